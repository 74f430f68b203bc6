"""One epoch of a rank's slots: a WebDataset pipeline that reads each block when it is needed, and about once."""

import json
import threading
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import webdataset
from making import shard_files
from torch.utils.data import IterableDataset

from gpt2wds.dataset import epoch
from gpt2wds.dataset.directory import Dataset
from gpt2wds.dataset.epoch import EpochSequences
from gpt2wds.dataset.order import Position

SEED = 1337


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """60 training shards of one short block each, none longer than a hundred tokens or so; no validation."""
    rng = np.random.default_rng(0)
    texts = [" ".join(f"word{n}" for n in rng.integers(0, 1000, 10 + i % 30)) for i in range(60)]
    folder = tmp_path_factory.mktemp("small")
    Path(folder, "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return shard_files(folder / "data", folder / "texts.jsonl", val_docs=0, docs_per_shard=1)


def whole(dataset: Dataset, seq_len: int, slots: int, part: range | None = None) -> np.ndarray:
    """(steps, slots, seq_len + 1): an epoch of some of its slots, of all if not given."""
    return np.stack(list(EpochSequences(dataset, seq_len, slots, SEED, part or range(slots), Position())))


class Counting(Dataset):
    """Counts how often each training block is read."""

    def __init__(self, path: str):
        super().__init__(path)
        self.reads: list[int] = []

    def read_frame(self, split: str, block: int) -> bytes:
        self.reads.append(block)
        return super().read_frame(split, block)

    def times(self) -> int:
        """The most that a block was read."""
        return int(np.bincount(self.reads).max())


def test_a_block_is_read_about_once(small: Dataset) -> None:
    dataset = Counting(small.path)
    whole(dataset, 4, 3)
    # Only a window in which one slot ends and the next begins is read by both: 8 blocks each.
    assert set(dataset.reads) == set(range(60))
    assert len(dataset.reads) <= 60 + 2 * 8


@pytest.mark.parametrize("slots", [9, 40, 200])
def test_slots_in_the_same_window_share_its_blocks(small: Dataset, slots: int) -> None:
    dataset = Counting(small.path)
    together = whole(dataset, 4, slots)
    assert dataset.times() <= 2
    alone = [whole(small, 4, slots, range(slot, slot + 1)) for slot in range(0, slots, 7)]
    np.testing.assert_array_equal(together[:, ::7], np.concatenate(alone, axis=1))


def test_a_step_of_all_sequences_reads_each_block_once(small: Dataset) -> None:
    dataset = Counting(small.path)
    sequences = int(((small.blocks["train"]["tokens"].astype(int) - 1) // 4).sum())
    (step,) = whole(dataset, 4, sequences)
    assert sorted(dataset.reads) == list(range(60))
    stored = [small.read_tokens("train", block) for block in range(60)]
    every = [tokens[at : at + 5].tolist() for tokens in stored for at in range(0, len(tokens) - 4, 4)]
    assert sorted(step.tolist()) == sorted(every)


def test_blocks_are_read_as_they_are_needed(small: Dataset) -> None:
    dataset = Counting(small.path)
    next(iter(EpochSequences(dataset, 4, 3, SEED, range(3), Position())))
    assert len(dataset.reads) <= 3 * 8


def test_blocks_of_a_url_are_read_many_at_once(plays: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.filesystem("memory").put(f"{plays.path}/", "/far-epoch/", recursive=True)
    far = Counting("memory://far-epoch")
    together = threading.Barrier(8)
    read = far.read_frame

    def read_frame(split: str, block: int) -> bytes:
        if len(far.reads) < 8:
            together.wait(5)  # breaks unless eight are asked for at the same time
        return read(split, block)

    monkeypatch.setattr(far, "read_frame", read_frame)
    monkeypatch.setattr(epoch, "AHEAD", 8)
    np.testing.assert_array_equal(whole(far, 4096, 16), whole(plays, 4096, 16))


def test_it_is_a_webdataset_pipeline(plays: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Any, ...]] = []

    class Recorded(webdataset.DataPipeline):
        def __init__(self, *stages: Any):
            made.append(stages)
            super().__init__(*stages)

    monkeypatch.setattr(webdataset, "DataPipeline", Recorded)
    sequences = EpochSequences(plays, 4096, 4, SEED, range(4), Position())
    assert isinstance(sequences, IterableDataset)
    assert next(iter(sequences)).shape == (4, 4097)
    ((blocks, samples, _),) = made
    block, tokens = next(samples(blocks()))
    np.testing.assert_array_equal(tokens, plays.read_tokens("train", block))
