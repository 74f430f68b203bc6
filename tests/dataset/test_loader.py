"""The loader: the same steps for any number of ranks and workers, continued exactly, damage named."""

import io
import json
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import zstandard
from fsspec.implementations.memory import MemoryFileSystem
from making import shard_files
from test_order import reference_order, reference_steps
from torch.utils.data import DataLoader, IterableDataset

from gpt2wds.dataset.directory import Dataset
from gpt2wds.dataset.loader import StepBatches
from gpt2wds.errors import Error

SEQ_LEN = 4096  # 418 sequences in the plays' 28 blocks: 26 steps of 16
PER_STEP = 16
SEED = 1337


def load(dataset: Dataset, state: dict[str, Any] | None = None, **options: Any) -> StepBatches:
    batches = StepBatches(dataset, **{"seq_len": SEQ_LEN, "sequences_per_step": PER_STEP, "seed": SEED} | options)
    if state is not None:
        batches.load_state_dict(state)
    return batches


def state_after(batches: StepBatches, steps: int) -> dict[str, Any]:
    """The state when so many steps were handed out, as it comes back from a file."""
    for _ in islice(batches, steps):
        pass
    return json.loads(json.dumps(batches.state_dict()))


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
        with Path(dataset.path, entry.file).open("rb") as file:
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
        state = state_after(load(plays, world_size=4, rank=2, **options), step)
        resumed = all_ranks(plays, 1, world_size, state=state, **options)
        np.testing.assert_array_equal(resumed[0], whole[step], err_msg=f"step {step}")
    state = state_after(load(plays, num_workers=2, **options), 3)
    resumed = all_ranks(plays, 9, world_size, state=state, num_workers=2, **options)
    np.testing.assert_array_equal(resumed, whole[3:])


def test_a_changed_step_takes_what_was_unread(plays: Dataset) -> None:
    state = state_after(load(plays, state_after(load(plays), 5), sequences_per_step=50), 2)
    taken = ((16, 5), (50, 2))
    batches = load(plays, state, sequences_per_step=30)
    expected = expected_steps(plays, 0, per_step=30, taken=taken)
    assert len(expected) == (418 - 16 * 5 - 50 * 2) // 30
    np.testing.assert_array_equal(np.stack(list(islice(batches, len(expected)))), expected)
    # What is over starts the next epoch, in steps of the new size.
    after = load(plays, batches.state_dict(), sequences_per_step=30)
    np.testing.assert_array_equal(next(iter(after)), expected_steps(plays, 1, per_step=30)[0])
    # A step larger than all that is unread takes nothing of it, and is not read as a step of the old size.
    late = load(plays, state_after(load(plays), 25), sequences_per_step=200)
    np.testing.assert_array_equal(next(iter(late)), expected_steps(plays, 1, per_step=200)[0])


def test_the_state_counts_the_steps_that_were_handed_out(plays: Dataset) -> None:
    whole = first_steps(plays, 6, sequences_per_step=100)  # 4 steps an epoch
    batches = load(plays, sequences_per_step=100)
    fresh = batches.state_dict()
    got, states = [], []
    for sequences in islice(batches, 6):
        got.append(sequences)
        states.append(batches.state_dict())
    np.testing.assert_array_equal(got, whole)
    assert [state["epoch"] for state in states] == [0, 0, 0, 1, 1, 1]
    assert [state["taken"] for state in states] == [[[100, 1]], [[100, 2]], [[100, 3]], [], [[100, 1]], [[100, 2]]]
    # A new iterator goes on, where the one before was left.
    batches.load_state_dict(states[1])
    np.testing.assert_array_equal(list(islice(batches, 1)) + list(islice(batches, 2)), whole[2:5])
    batches.load_state_dict(fresh)
    np.testing.assert_array_equal(next(iter(batches)), whole[0])


def test_one_iterator_at_a_time(plays: Dataset) -> None:
    batches = load(plays)
    first, second = iter(batches), iter(batches)
    next(first)
    next(second)
    with pytest.raises(RuntimeError, match="one iterator at a time"):
        next(first)
    batches.load_state_dict(batches.state_dict())
    with pytest.raises(RuntimeError, match="older than the state"):
        next(second)
    # Nor does an older one, at the end of its epoch, move the state.
    batches = load(plays, sequences_per_step=200)  # 2 steps an epoch
    first = iter(batches)
    list(islice(first, 2))
    second = load(plays, sequences_per_step=200).state_dict()
    batches.load_state_dict(second)
    with pytest.raises(RuntimeError, match="older than the state"):
        next(first)
    assert batches.state_dict() == second


def test_a_state_without_a_version_is_the_first_versions(plays: Dataset) -> None:
    whole = first_steps(plays, 6)
    flat = {"step": 4, "row": {"step": 4}, "epoch": 0, "taken": [[PER_STEP, 4]]}
    flat |= {"dataset_id": plays.id, "seed": SEED, "seq_len": SEQ_LEN}
    np.testing.assert_array_equal(list(islice(load(plays, flat), 2)), whole[4:])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dataset_id": "ab" * 16}, "saved with dataset_id abab"),
        ({"seed": 1338}, "it was saved with seed 1338, here it is 1337; give that one again"),
        ({"seq_len": 2048}, "saved with seq_len 2048, here it is 4096"),
        ({"version": 2}, "expected version 1, got 2; update gpt2wds"),
        ({"version": "1"}, "'version': expected a count"),
        ({"dataset_id": None}, "dataset_id None, here it is {id}"),
        ({"epoch": -1}, "'epoch': expected a count, got -1"),
        ({"epoch": 10**30}, "'epoch': expected a count"),
        ({"taken": {}}, "'taken': expected a list"),
        ({"taken": [[16, 27]]}, "'taken': expected steps of an epoch of 418 sequences"),
        ({"taken": [[16, 5], [50, 7]]}, "'taken': expected steps"),
        ({"taken": [[10**9, 1]]}, "'taken': expected steps"),
        ({"taken": [[0, 1]]}, "'taken': expected steps"),
        ({"taken": [[16, -1]]}, "'taken': expected steps"),
        ({"taken": [[16, 1.5]]}, "'taken': expected steps"),
        ({"taken": [16, 1]}, "'taken': expected steps"),
    ],
)
def test_what_is_no_state_of_these_data_is_refused(plays: Dataset, change: dict[str, Any], said: str) -> None:
    batches = load(plays)
    before = state_after(batches, 3)
    with pytest.raises(Error) as caught:
        batches.load_state_dict(before | change)
    assert str(caught.value).startswith("state: ") and said.format(id=plays.id) in str(caught.value)
    assert batches.state_dict() == before


def test_nonsense_is_no_state(plays: Dataset) -> None:
    for nonsense in (None, [], 7, "state", {}, {"version": 1, "seed": SEED}):
        with pytest.raises(Error, match=r"^state: expected what state_dict\(\) gave, got "):
            load(plays).load_state_dict(nonsense)
    with pytest.raises(
        Error, match="^state: 'seed': expected the one it was saved with, got nothing; give the state as"
    ):
        load(plays).load_state_dict({"dataset_id": plays.id})


def test_torchs_dataloader_takes_it_without_workers(plays: Dataset) -> None:
    batches = load(plays)
    assert isinstance(batches, IterableDataset)
    whole = first_steps(plays, 3)
    loader = DataLoader(batches, batch_size=None)
    np.testing.assert_array_equal(np.stack([tokens.numpy() for tokens in islice(loader, 2)]), whole[:2])
    np.testing.assert_array_equal(next(iter(batches)), whole[2])
    with pytest.raises(Error) as caught:
        next(iter(DataLoader(batches, batch_size=None, num_workers=2)))
    assert "give num_workers to StepBatches" in str(caught.value) and "\n" not in str(caught.value)


def at_a_url(dataset: Dataset) -> Dataset:
    fsspec.filesystem("memory").put(f"{dataset.path}/", "/far/", recursive=True)
    return Dataset("memory://far")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_dataset_at_a_url_gives_the_same_steps(plays: Dataset, num_workers: int) -> None:
    options: dict[str, Any] = {"num_workers": num_workers, "sequences_per_step": 160}
    got = first_steps(at_a_url(plays), 5, **options)
    np.testing.assert_array_equal(np.stack(got), np.stack(first_steps(plays, 5, **options)))


@pytest.mark.parametrize("end", ["closed", "forgotten"])
def test_an_iterator_that_is_left_reads_no_more(
    plays: Dataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, end: str
) -> None:
    """Neither go its threads on nor do they ask again, when the store is gone by then."""
    far = at_a_url(plays)

    def readers() -> int:
        return sum(thread.name == "gpt2wds-ahead" for thread in threading.enumerate())

    is_gone, cat_file = threading.Event(), MemoryFileSystem.cat_file

    def slow(*arguments: Any, **options: Any) -> bytes:
        time.sleep(0.05)
        if is_gone.is_set():
            raise ConnectionResetError("gone")
        return cat_file(*arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", slow)
    steps = iter(load(far, sequences_per_step=2))
    next(steps)
    assert readers() > 0
    if end == "closed":
        steps.close()
    else:
        del steps
    is_gone.set()
    deadline = time.monotonic() + 30
    while readers() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert readers() == 0 and time.monotonic() < deadline - 25 and not caplog.records


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
    block = plays.shards("train")[0].blocks + 4
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
    message = (
        rf"one step of {count + 1:,} sequences .* got {count:,} seq.* at most {count:,}, that is {count * 16:,} tokens$"
    )
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
        with pytest.raises(ValueError, match=rf"^seed: expected 0 to 2\^64 - 1, got {seed}"):
            load(plays, seed=seed)
    for world_size in (0, -1):
        with pytest.raises(Error, match=f"^world_size: expected 1 or more, got {world_size}"):
            load(plays, rank=world_size, world_size=world_size)
    for rank, world_size in ((3, 3), (-1, 2)):
        with pytest.raises(Error, match=f"^rank: expected 0 to world_size - 1 = {world_size - 1}, got {rank}"):
            load(plays, rank=rank, world_size=world_size)
    with pytest.raises(Error, match="^num_workers: expected 0 or more, got -1"):
        load(plays, num_workers=-1)
    with pytest.raises(ValueError, match="expected tokens to train on, got multiple-choice"):
        load(choices)
    for name in ("seq_len", "sequences_per_step", "seed", "rank", "world_size", "num_workers"):
        for value in (None, 1.5, "1", True):
            with pytest.raises(Error, match=f"^{name}: expected a whole number, got {value!r}"):
                load(plays, **{name: value})
    assert type(load(plays, seed=np.int64(3)).state_dict()["seed"]) is int, "a state is JSON"


def test_a_program_that_holds_its_iterator_to_the_end_ends_at_once(plays: Dataset) -> None:
    """Its workers leave signals to it, so nothing but itself may end them."""
    program = (
        "from gpt2wds import Dataset, StepBatches\n"
        f"batches = StepBatches(Dataset({plays.path!r}), seq_len=64, sequences_per_step=8, seed=1, num_workers=2)\n"
        "steps = iter(batches)\n"
        "print(next(steps).shape)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=45, check=True)
    assert (ended.stdout, ended.stderr) == ("(8, 65)\n", "")
