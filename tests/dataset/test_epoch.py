"""One epoch of a rank's slots: a WebDataset pipeline that reads each block when it is needed, and about once."""

import json
import threading
import time
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


@pytest.mark.parametrize("slots", [3, 40])
def test_blocks_are_read_as_they_are_needed(small: Dataset, slots: int) -> None:
    """A first step asks for a block per sequence at most, not for all blocks of all its windows."""
    dataset = Counting(small.path)
    steps = iter(EpochSequences(dataset, 4, slots, SEED, range(slots), Position()))
    for taken in range(1, 4):
        next(steps)
        assert len(dataset.reads) <= taken * slots


@pytest.fixture
def far(plays: Dataset) -> "Counting":
    """The plays at a URL."""
    fsspec.filesystem("memory").put(f"{plays.path}/", "/far-epoch/", recursive=True)
    return Counting("memory://far-epoch")


def test_blocks_of_a_url_are_read_many_at_once(
    plays: Dataset, far: "Counting", monkeypatch: pytest.MonkeyPatch
) -> None:
    together, first = threading.Barrier(8), iter(range(8))
    read = far.read_frame

    def read_frame(split: str, block: int) -> bytes:
        if next(first, None) is not None:
            together.wait(60)  # breaks unless eight are asked for at the same time
        return read(split, block)

    monkeypatch.setattr(far, "read_frame", read_frame)
    monkeypatch.setattr(epoch, "AT_ONCE", 8)
    np.testing.assert_array_equal(whole(far, 4096, 16), whole(plays, 4096, 16))


@pytest.mark.parametrize(("at_once", "slots", "held"), [(2, 9, 9), (5, 3, 5)])
def test_a_url_is_read_ahead_by_a_block_for_each_slot(
    plays: Dataset, far: "Counting", monkeypatch: pytest.MonkeyPatch, at_once: int, slots: int, held: int
) -> None:
    """Whatever the time a trainer takes: so much is in memory, and no more."""
    monkeypatch.setattr(epoch, "AT_ONCE", at_once)
    near = Counting(plays.path)
    steps = [iter(EpochSequences(data, 1024, slots, SEED, range(slots), Position())) for data in (far, near)]
    for _ in range(3):
        for source in steps:
            next(source)
        ahead = min(len(near.reads) + held - 1, len(plays.blocks["train"]))
        deadline = time.monotonic() + 60
        while len(far.reads) < ahead and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert len(far.reads) == ahead


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
