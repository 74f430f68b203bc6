"""The loader: the same steps for any number of ranks and workers, continued exactly, damage named."""

import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
import zstandard
from conftest import shard_files
from test_order import reference_order, reference_steps
from torch.utils.data import IterableDataset

from gpt2wds.dataset.directory import Dataset
from gpt2wds.dataset.loader import EpochSequences, StepBatches, validation_sequences
from gpt2wds.dataset.order import Position

SEQ_LEN = 4096  # 418 sequences in the plays' 28 blocks: 26 steps of 16
PER_STEP = 16
SEED = 1337


def load(dataset: Dataset, **options: Any) -> StepBatches:
    return StepBatches(dataset, **{"seq_len": SEQ_LEN, "sequences_per_step": PER_STEP, "seed": SEED} | options)


def first_steps(dataset: Dataset, count: int, **options: Any) -> list[np.ndarray]:
    return list(islice(load(dataset, **options), count))


def all_ranks(dataset: Dataset, count: int, world_size: int, **options: Any) -> np.ndarray:
    """(steps, slots, seq_len + 1): what all ranks together get."""
    ranks = [first_steps(dataset, count, rank=rank, world_size=world_size, **options) for rank in range(world_size)]
    return np.stack([np.concatenate(parts) for parts in zip(*ranks, strict=True)])


def shard_texts(out: Path, texts: list[str], **cut: int) -> Dataset:
    path = out.with_suffix(".jsonl")
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return shard_files(out, path, **cut)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """60 training shards of one short block each, none longer than a hundred tokens or so; no validation."""
    rng = np.random.default_rng(0)
    texts = [" ".join(f"word{n}" for n in rng.integers(0, 1000, 10 + i % 30)) for i in range(60)]
    return shard_texts(tmp_path_factory.mktemp("small") / "data", texts, val_docs=0, docs_per_shard=1)


def tokens_of_shards(dataset: Dataset, split: str) -> list[np.ndarray]:
    """All tokens of each shard, read with nothing of ours: zstd, tar, npy; the overlaps cut off."""
    found = []
    for entry in dataset.shards(split):
        with Path(dataset.path, entry["file"]).open("rb") as file:
            content = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read()
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            blocks = [np.load(io.BytesIO(tar.extractfile(member).read())) for member in tar]
        found.append(np.concatenate([*(block[:-1] for block in blocks[:-1]), blocks[-1]]))
    return found


def sequences_of_blocks(dataset: Dataset, split: str, seq_len: int) -> list[list[np.ndarray]]:
    """For each block its sequences, as slices of the shards' tokens."""
    blocks = []
    for tokens in tokens_of_shards(dataset, split):
        for start in range(0, max(1, len(tokens) - 1), 65_536):
            end = min(start + 65_536, len(tokens) - 1)
            firsts = range(start, end - seq_len + 1, seq_len)
            blocks.append([tokens[first : first + seq_len + 1] for first in firsts])
    return blocks


def expected_steps(
    dataset: Dataset, epoch: int, *, seq_len: int = SEQ_LEN, per_step: int = PER_STEP, taken: tuple = ()
) -> np.ndarray:
    """(steps, slots, seq_len + 1): an epoch's steps by the definition of the order, from the shards' own tokens."""
    blocks = sequences_of_blocks(dataset, "train", seq_len)
    order = reference_order(dataset.blocks["train"]["tokens"].tolist(), seq_len, SEED, epoch)
    steps = reference_steps(order, per_step, taken)
    return np.array([[blocks[block][place] for block, place in step] for step in steps])


def test_an_epoch_is_the_orders_slices_of_the_shards(plays: Dataset) -> None:
    expected = expected_steps(plays, 0)
    assert expected.shape == (26, PER_STEP, SEQ_LEN + 1)
    batches = load(plays)
    assert (batches.steps_per_epoch, batches.sequences, batches.left_out) == (26, 418, 2)
    got = np.stack(list(islice(batches, 28)))
    assert got.dtype == np.uint16
    np.testing.assert_array_equal(got[:26], expected)
    np.testing.assert_array_equal(got[26:], expected_steps(plays, 1)[:2])


@pytest.mark.parametrize("world_size", range(1, 17))
def test_ranks_together_get_the_same_steps(plays: Dataset, world_size: int) -> None:
    np.testing.assert_array_equal(all_ranks(plays, 3, world_size), expected_steps(plays, 0)[:3])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 1), (1, 2), (1, 3), (3, 2), (7, 3), (16, 2)])
def test_workers_change_nothing(plays: Dataset, world_size: int, num_workers: int) -> None:
    # 11 sequences a step: neither ranks nor workers divide it.
    per_step = max(11, world_size)
    got = all_ranks(plays, 2, world_size, num_workers=num_workers, sequences_per_step=per_step)
    np.testing.assert_array_equal(got, expected_steps(plays, 0, per_step=per_step)[:2])


def test_workers_go_on_into_the_next_epoch(plays: Dataset) -> None:
    got = np.stack(first_steps(plays, 5, num_workers=2, sequences_per_step=160))
    epochs = [expected_steps(plays, epoch, per_step=160) for epoch in range(3)]
    assert [len(epoch) for epoch in epochs] == [2, 2, 2]
    np.testing.assert_array_equal(got, np.concatenate(epochs)[:5])


@pytest.mark.parametrize("world_size", [1, 3, 5])
def test_a_run_continues_at_any_step_on_any_number_of_ranks(plays: Dataset, world_size: int) -> None:
    # 5 steps an epoch: the positions lie in three epochs.
    options: dict[str, Any] = {"seq_len": 16_384, "sequences_per_step": 20}
    whole = np.stack(first_steps(plays, 12, **options))
    for step in range(11):
        position = load(plays, world_size=4, rank=2, **options).position_after(step)
        assert position.epoch == step // 5
        resumed = all_ranks(plays, 1, world_size, position=position, **options)
        np.testing.assert_array_equal(resumed[0], whole[step], err_msg=f"step {step}")
    position = load(plays, **options).position_after(3)
    resumed = all_ranks(plays, 9, world_size, position=position, num_workers=2, **options)
    np.testing.assert_array_equal(resumed, whole[3:])


def test_a_changed_step_takes_what_was_unread(plays: Dataset) -> None:
    taken = ((16, 5), (50, 2))
    batches = load(plays, sequences_per_step=30, position=Position(0, taken))
    expected = expected_steps(plays, 0, per_step=30, taken=taken)
    assert len(expected) == (418 - 16 * 5 - 50 * 2) // 30
    np.testing.assert_array_equal(np.stack(list(islice(batches, len(expected)))), expected)
    # What is over starts the next epoch, in steps of the new size.
    after = load(plays, sequences_per_step=30, position=batches.position_after(len(expected)))
    np.testing.assert_array_equal(next(iter(after)), expected_steps(plays, 1, per_step=30)[0])


def test_position_after_counts_steps(plays: Dataset) -> None:
    batches = load(plays)  # 26 steps an epoch
    assert batches.position_after(0) == Position(0, ())
    assert batches.position_after(25) == Position(0, ((16, 25),))
    assert batches.position_after(26) == Position(1, ())
    assert batches.position_after(26 * 4 + 3) == Position(4, ((16, 3),))
    changed = load(plays, sequences_per_step=30, position=Position(2, ((16, 5),)))  # 338 unread: 11 steps of 30
    assert changed.position_after(0) == Position(2, ((16, 5),))
    assert changed.position_after(10) == Position(2, ((16, 5), (30, 10)))
    assert changed.position_after(11) == Position(3, ())
    assert changed.position_after(11 + 13 + 1) == Position(4, ((30, 1),))
    for first in range(0, 60, 7):
        later = load(plays, position=batches.position_after(first))
        for more in (0, 1, 10, 31):
            assert later.position_after(more) == batches.position_after(first + more)


class Counting(Dataset):
    """Counts how often each training block is read."""

    def __init__(self, path: str):
        super().__init__(path)
        self.reads: list[int] = []

    def read_frame(self, split: str, block: int) -> bytes:
        self.reads.append(block)
        return super().read_frame(split, block)


def test_a_frame_is_read_about_once(small: Dataset) -> None:
    dataset = Counting(small.path)
    batches = load(dataset, seq_len=4, sequences_per_step=3)
    for _ in islice(batches, batches.steps_per_epoch):
        pass
    # Only a window in which one slot ends and the next begins is read by both: 8 blocks each.
    assert set(dataset.reads) == set(range(60))
    assert len(dataset.reads) <= 60 + 2 * 8


def test_frames_are_read_as_they_are_needed(small: Dataset) -> None:
    dataset = Counting(small.path)
    next(iter(load(dataset, seq_len=4, sequences_per_step=3)))
    assert len(dataset.reads) <= 3 * 8


def test_it_is_a_webdataset_pipeline(plays: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Any, ...]] = []

    class Recorded(webdataset.DataPipeline):
        def __init__(self, *stages: Any):
            made.append(stages)
            super().__init__(*stages)

    monkeypatch.setattr(webdataset, "DataPipeline", Recorded)
    epoch = EpochSequences(plays, SEQ_LEN, 4, SEED, range(4), Position())
    assert isinstance(epoch, IterableDataset)
    assert next(iter(epoch)).shape == (4, SEQ_LEN + 1)
    ((_, expand, group, _),) = made
    assert (expand, group) == (webdataset.tariterators.tar_file_expander, webdataset.tariterators.group_by_keys)


def test_what_is_left_out_is_counted(plays: Dataset) -> None:
    tokens = [len(t) for t in tokens_of_shards(plays, "train")]
    for seq_len in (128, 1024, 65_536):
        batches = load(plays, seq_len=seq_len, sequences_per_step=1)
        assert batches.trailing_tokens == sum((t - 1) % seq_len for t in tokens)
    # Where seq_len does not divide a block, each block loses its own rest too.
    batches = load(plays, seq_len=1000, sequences_per_step=7)
    blocks = plays.blocks["train"]["tokens"].astype(int)
    assert batches.trailing_tokens == sum((blocks - 1) % 1000)
    assert batches.left_out == sum((blocks - 1) // 1000) % 7


def damaged(plays: Dataset, folder: Path) -> Iterator[str]:
    """Copies of the plays, each with block 4 of train-00001 damaged in another way."""
    block = plays.shards("train")[0]["blocks"] + 4
    row = plays.blocks["train"][block]
    offset, length = int(row["offset"]), int(row["length"])
    original = Path(plays.path, "train-00001.tar.zst").read_bytes()
    flipped = bytearray(original)
    flipped[offset + length // 2] ^= 1
    neighbour = original[offset - length : offset]
    other = original[:offset] + neighbour + original[offset + length :]
    for name, content in (("flipped", bytes(flipped)), ("cut", original[: offset + length - 1]), ("other", other)):
        copy = folder / name
        shutil.copytree(plays.path, copy)
        (copy / "train-00001.tar.zst").write_bytes(content)
        yield str(copy)
    copy = folder / "missing"
    shutil.copytree(plays.path, copy)
    (copy / "train-00001.tar.zst").unlink()
    yield str(copy)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_damage_is_named_and_never_passed_over(plays: Dataset, tmp_path: Path, num_workers: int) -> None:
    for path in damaged(plays, tmp_path):
        # In a cut or missing file whichever is asked for first of the blocks that are not there.
        block = r"block \d" if path.endswith(("cut", "missing")) else "block 4"
        with pytest.raises(ValueError, match=rf"^{path}/train-00001.tar.zst {block}: [^\n]+$"):
            first_steps(Dataset(path), 26, num_workers=num_workers)


def test_a_corpus_shorter_than_a_step(small: Dataset) -> None:
    count = load(small, seq_len=16, sequences_per_step=1).sequences
    message = rf"one step of {count + 1} sequences .* got {count} sequences; .* at most {count * 16}$"
    assert load(small, seq_len=16, sequences_per_step=count).steps_per_epoch == 1
    with pytest.raises(ValueError, match=message):
        load(small, seq_len=16, sequences_per_step=count + 1)


def test_a_corpus_shorter_than_a_sequence(small: Dataset) -> None:
    with pytest.raises(ValueError, match=r"more than seq_len = 1024 tokens, got \d+ in all; lower seq_len"):
        load(small, seq_len=1024, sequences_per_step=1)


def test_arguments_that_cannot_be(plays: Dataset, choices: Dataset) -> None:
    with pytest.raises(ValueError, match="at least one sequence per rank, got 2 sequences for 3 ranks"):
        load(plays, sequences_per_step=2, world_size=3)
    for seq_len in (0, 65_537):
        with pytest.raises(ValueError, match=f"seq_len: expected 1 to 65536, got {seq_len}"):
            load(plays, seq_len=seq_len)
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match=rf"run.seed: expected 0 to 2\^64 - 1, got {seed}"):
            load(plays, seed=seed)
    with pytest.raises(ValueError, match="expected tokens to train on, got multiple-choice"):
        load(choices)


def validation(dataset: Dataset, world_size: int, max_tokens: int, seq_len: int = 512) -> list[np.ndarray]:
    rows = []
    for rank in range(world_size):
        options = {"batch_sequences": 7, "rank": rank, "world_size": world_size}
        batches = list(validation_sequences(dataset, seq_len=seq_len, max_tokens=max_tokens, **options))
        assert all(len(batch) == 7 for batch in batches[:-1])
        assert all(1 <= len(batch) <= 7 for batch in batches)
        rows += [row for batch in batches for row in batch]
    return rows


def test_validation_is_the_same_set_in_storage_order_for_any_world(plays: Dataset) -> None:
    stored = [sequence for block in sequences_of_blocks(plays, "val", 512) for sequence in block]
    assert len(stored) > 150
    for world_size in range(1, 17):
        np.testing.assert_array_equal(validation(plays, world_size, 10**9), stored)
        np.testing.assert_array_equal(validation(plays, world_size, 20 * 512), stored[:20])
    # More ranks than sequences: some have none.
    np.testing.assert_array_equal(validation(plays, 16, 5 * 512), stored[:5])


def test_validation_honours_its_limit(plays: Dataset) -> None:
    assert len(validation(plays, 1, 3 * 512)) == 3
    assert len(validation(plays, 1, 4 * 512 - 1)) == 3
    with pytest.raises(ValueError, match=r"more than seq_len = 512 tokens, .* eval.val_tokens = 511 are used"):
        validation(plays, 1, 511)


def test_ranks_share_out_the_batches_of_one(plays: Dataset) -> None:
    options = {"seq_len": 512, "max_tokens": 40 * 512, "batch_sequences": 7}
    alone = list(validation_sequences(plays, **options))
    assert [len(batch) for batch in alone] == [7, 7, 7, 7, 7, 5]
    for world_size in (2, 3, 4, 9):
        ranks = [list(validation_sequences(plays, **options, rank=r, world_size=world_size)) for r in range(world_size)]
        together = [batch for rank in ranks for batch in rank]
        assert len(together) == len(alone)
        assert all(np.array_equal(one, many) for one, many in zip(alone, together, strict=True))
        assert max(map(len, ranks)) <= -(-6 // world_size)


def test_examples_are_no_text_to_validate_on(choices: Dataset) -> None:
    with pytest.raises(ValueError, match="expected tokens, got multiple-choice"):
        next(validation_sequences(choices, seq_len=8, max_tokens=100, batch_sequences=1))


def test_validation_of_another_split(plays: Dataset) -> None:
    batch = next(validation_sequences(plays, seq_len=100, max_tokens=10**6, batch_sequences=3, split="train"))
    tokens = tokens_of_shards(plays, "train")[0]
    np.testing.assert_array_equal(batch, [tokens[0:101], tokens[100:201], tokens[200:301]])
