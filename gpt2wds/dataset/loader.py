"""A dataset directory → the batches of one rank, as a WebDataset pipeline.

    schedule  →  open frames  →  tar members  →  group by key  →  sequences of a step

The first stage stands where WebDataset has its shard list and `split_by_node`: it gives out frames in the global
order (order.py). Tar reading and grouping are WebDataset's own.
"""

import io
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import webdataset
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from webdataset.tariterators import group_by_keys, tar_file_expander

from ..errors import Error
from .directory import TOKENS, Dataset
from .order import EpochOrder, Position, Slots, rank_slots
from .shards import BLOCK_TOKENS

SAMPLE_MEMBER = "tokens.npy"


class StepBatches:
    """An endless stream of one rank's part of each step: (slots of the rank, seq_len + 1) uint16 arrays.

    Row i holds a sequence's inputs and, one further, its targets. Iterating starts at `position`; the caller
    counts the steps it used and asks `position_after` for what to store.

    Raises Error when the data hold less than one step.

    >>> batches = StepBatches(Dataset("demo/data"), seq_len=128, sequences_per_step=8, seed=1)  # doctest: +SKIP
    >>> next(iter(batches)).shape  # doctest: +SKIP
    (8, 129)
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        seq_len: int,
        sequences_per_step: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        position: Position | None = None,
    ):
        if dataset.kind != TOKENS:
            raise Error(f"dataset {dataset.path}: expected tokens to train on, got {dataset.kind}")
        if not 1 <= seq_len <= BLOCK_TOKENS:
            raise Error(f"seq_len: expected 1 to {BLOCK_TOKENS}, got {seq_len}")
        if not 0 <= seed < 2**64:
            raise Error(f"run.seed: expected 0 to 2^64 - 1, got {seed}")
        if world_size > sequences_per_step:
            raise Error(
                f"tokens_per_step: expected at least one sequence per rank, got {sequences_per_step} sequences "
                f"for {world_size} ranks"
            )
        self.dataset, self.seq_len, self.sequences_per_step, self.seed = dataset, seq_len, sequences_per_step, seed
        self.slots = rank_slots(sequences_per_step, rank, world_size)
        self.num_workers = min(num_workers, len(self.slots))
        self.position = position or Position()
        per_block = (dataset.blocks["train"]["tokens"].astype(np.int64) - 1) // seq_len
        self.sequences = int(per_block.sum())
        self.steps_per_epoch = self.sequences // sequences_per_step
        self.left_out = self.sequences - self.steps_per_epoch * sequences_per_step
        # Targets no sequence reaches: a shard's first token is never a target, its last few fill no sequence.
        targets = dataset.total("train", "tokens") - sum(1 for s in dataset.shards("train") if s["tokens"])
        self.trailing_tokens = targets - self.sequences * seq_len
        if self.steps_per_epoch < 1:
            raise Error(
                f"dataset {dataset.path}: expected at least one step of {sequences_per_step} sequences of {seq_len} "
                f"tokens, got {self.sequences} sequences; lower tokens_per_step to at most {self.sequences * seq_len}"
                if self.sequences
                else f"dataset {dataset.path}: expected a text of more than seq_len = {seq_len} tokens, "
                f"got {dataset.total('train', 'tokens')} in all; lower seq_len"
            )

    def __iter__(self) -> Iterator[np.ndarray]:
        position = self.position
        while True:
            yield from self._epoch(position)
            position = Position(position.epoch + 1)

    def position_after(self, steps: int) -> Position:
        """The position when `steps` steps were used since `self.position`."""
        epoch, taken = self.position.epoch, self.position.taken
        left = Slots(self.sequences, self.sequences_per_step, taken).steps
        while steps >= left:
            steps, epoch, taken, left = steps - left, epoch + 1, (), self.steps_per_epoch
        if taken and taken[-1][0] == self.sequences_per_step:
            return Position(epoch, (*taken[:-1], (self.sequences_per_step, taken[-1][1] + steps)))
        return Position(epoch, (*taken, (self.sequences_per_step, steps)) if steps else taken)

    def _epoch(self, position: Position) -> Iterator[np.ndarray]:
        dataset = EpochSequences(self.dataset, self.seq_len, self.sequences_per_step, self.seed, self.slots, position)
        if not self.num_workers:
            yield from dataset
            return
        # Each worker gives its slots of a step; the loader takes turns, so a step is one part from each.
        loader = DataLoader(dataset, batch_size=None, num_workers=self.num_workers, prefetch_factor=4)
        parts = iter(loader)
        while step := [part for _, part in zip(range(self.num_workers), parts, strict=False)]:
            assert len(step) == self.num_workers
            problems = [part for part in step if isinstance(part, str)]
            if problems:
                raise Error(problems[0])
            yield np.concatenate([part.numpy() for part in step])


class EpochSequences(IterableDataset):
    """One epoch of a rank's slots: yields (slots, seq_len + 1) uint16 per step; in a worker, the worker's slots."""

    def __init__(
        self, dataset: Dataset, seq_len: int, sequences_per_step: int, seed: int, slots: range, position: Position
    ):
        self._dataset, self._seq_len, self._sequences_per_step = dataset, seq_len, sequences_per_step
        self._seed, self._slots, self._position = seed, slots, position

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        slots = self._slots
        if worker is not None:
            slots = slots[slice(*_bounds(rank_slots(len(slots), worker.id, worker.num_workers)))]
        tokens = self._dataset.blocks["train"]["tokens"]
        order = EpochOrder(tokens, seq_len=self._seq_len, seed=self._seed, epoch=self._position.epoch)
        plan = Slots(order.sequences, self._sequences_per_step, self._position.taken)
        visits = [_visits(order, plan, slot) for slot in slots]
        pipeline = webdataset.DataPipeline(
            lambda: self._frames(order, visits),
            tar_file_expander,
            group_by_keys,
            lambda samples: self._steps(samples, order, visits, plan.steps),
        )
        return iter(pipeline) if worker is None else _error_as_item(pipeline)

    def _frames(self, order: EpochOrder, visits: list[np.ndarray]) -> Iterator[dict[str, Any]]:
        # In the order in which _steps will ask for them: by step, and within a step by slot.
        every = np.concatenate(visits)
        owner = np.repeat(np.arange(len(visits)), [len(v) for v in visits])
        for i in np.lexsort((owner, every[:, 0])):
            _, window, first, end = every[i].tolist()
            for block in np.unique(order.window_sequences(window, first, end)[0]).tolist():
                # Grouping keeps nothing of this but the URL, so the place travels there.
                yield {"url": f"{block}", "stream": io.BytesIO(self._dataset.read_frame("train", block))}

    def _steps(
        self, samples: Iterable[dict[str, Any]], order: EpochOrder, visits: list[np.ndarray], steps: int
    ) -> Iterator[np.ndarray]:
        source = iter(samples)
        sequences = [self._sequences(source, order, v) for v in visits]
        for _ in range(steps):
            yield np.stack([next(slot) for slot in sequences])  # (slots, seq_len + 1)

    def _sequences(
        self, samples: Iterator[dict[str, Any]], order: EpochOrder, visits: np.ndarray
    ) -> Iterator[np.ndarray]:
        """One slot's sequences; takes the next samples whenever the slot enters a window."""
        length = self._seq_len
        for _, window, first, end in visits.tolist():
            blocks, places = order.window_sequences(window, first, end)
            tokens = {block: self._tokens(next(samples), block) for block in np.unique(blocks).tolist()}
            for block, place in zip(blocks.tolist(), places.tolist(), strict=True):
                yield tokens[block][place * length : (place + 1) * length + 1]

    def _tokens(self, sample: dict[str, Any], block: int) -> np.ndarray:
        assert sample["__url__"] == str(block)
        return self._dataset.check_tokens("train", block, sample["__key__"], sample[SAMPLE_MEMBER])


def _error_as_item(steps: Iterable[np.ndarray]) -> Iterator[np.ndarray | str]:
    """In a worker what goes wrong is its last item: DataLoader would wrap an exception into a page of traceback."""
    try:
        yield from steps
    except Error as error:
        yield str(error)


def _visits(order: EpochOrder, plan: Slots, slot: int) -> np.ndarray:
    """The windows a slot passes through: rows of (step from here, window, first position, end position)."""
    rows, step = [np.zeros((0, 4), dtype=np.int64)], 0
    for start, length in plan.ranges(slot):
        windows, first = order.windows(start, length)
        ends = np.append(first[1:], start + length)
        rows.append(np.stack([step + first - start, windows, first, ends], axis=1))
        step += length
    return np.concatenate(rows)


def _bounds(part: range) -> tuple[int, int]:
    return part.start, part.stop


def validation_sequences(
    dataset: Dataset,
    *,
    seq_len: int,
    max_tokens: int,
    batch_sequences: int,
    rank: int = 0,
    world_size: int = 1,
    split: str = "val",
) -> Iterator[np.ndarray]:
    """The first `max_tokens` tokens of a split in storage order: (≤ batch_sequences, seq_len + 1) uint16 arrays.

    All ranks together give each batch of a single rank once, so what is computed from them does not depend on how many
    share the work. Raises Error when there is not one sequence.
    """
    if dataset.kind != TOKENS:
        raise Error(f"dataset {dataset.path}: expected tokens, got {dataset.kind}; make some with gpt2wds-shard files")
    tokens = dataset.blocks[split]["tokens"].astype(np.int64)
    per_block = np.maximum(tokens - 1, 0) // seq_len
    total = min(int(per_block.sum()), max_tokens // seq_len)
    if not total:
        raise Error(
            f"dataset {dataset.path}: expected a {split} text of more than seq_len = {seq_len} tokens, got "
            f"{dataset.total(split, 'tokens')} tokens of which eval.val_tokens = {max_tokens} are used"
        )
    dealt = rank_slots(math.ceil(total / batch_sequences), rank, world_size)
    mine = range(dealt.start * batch_sequences, min(dealt.stop * batch_sequences, total))
    starts = np.cumsum(per_block) - per_block
    batch: list[np.ndarray] = []
    for block in range(len(per_block)):
        first, end = max(mine.start, int(starts[block])), min(mine.stop, int(starts[block] + per_block[block]))
        if first >= end:
            continue
        values = dataset.read_tokens(split, block)
        for i in range(first - int(starts[block]), end - int(starts[block])):
            batch.append(values[i * seq_len : (i + 1) * seq_len + 1])
            if len(batch) == batch_sequences:
                yield np.stack(batch)
                batch = []
    if batch:
        yield np.stack(batch)
