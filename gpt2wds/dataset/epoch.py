"""One epoch of some slots of one dataset, as a WebDataset pipeline.

    blocks  →  samples  →  sequences of a step

The blocks stand where WebDataset has its shard list and `split_by_node`: they are given out as the global order
(order.py) needs them. A sample is a block of tokens, read by its range and held to the index, where WebDataset would
read a shard from its beginning.
"""

from collections.abc import Iterable, Iterator
from heapq import heappop, heappush
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import webdataset
from torch.utils.data import IterableDataset

from .ahead import read_ahead
from .directory import Dataset
from .order import EpochOrder, Position, Slots

AT_ONCE = 64  # blocks of a URL that are read at once

Sample = tuple[int, np.ndarray]  # a block and its (tokens,) uint16


class Window(dict[int, np.ndarray]):
    """The blocks of a window that were read, held by the slots that are in it: with the last one they go."""


class EpochSequences(IterableDataset):
    """One epoch of some slots of one dataset: yields (slots, seq_len + 1) uint16 per step."""

    def __init__(
        self, dataset: Dataset, seq_len: int, sequences_per_step: int, seed: int, slots: range, position: Position
    ):
        self._dataset, self._seq_len, self._sequences_per_step = dataset, seq_len, sequences_per_step
        self._seed, self._slots, self._position = seed, slots, position

    def __iter__(self) -> Iterator[Any]:
        tokens = self._dataset.blocks["train"]["tokens"]
        order = EpochOrder(tokens, seq_len=self._seq_len, seed=self._seed, epoch=self._position.epoch)
        left = Slots(order.sequences, self._sequences_per_step, self._position.taken)
        visits = [_visits(order, left, slot) for slot in self._slots]
        pipeline = webdataset.DataPipeline(
            lambda: _blocks(order, visits),
            self._samples,
            lambda samples: self._steps(samples, order, visits, left.steps),
        )
        return iter(pipeline)

    def _samples(self, blocks: Iterable[int]) -> Iterator[Sample]:
        """Blocks with their tokens. From a URL many are asked for at once, ahead of need."""

        def read(block: int) -> np.ndarray:
            return self._dataset.read_tokens("train", block)

        if self._dataset.folder.is_local:
            return ((block, read(block)) for block in blocks)
        # While a trainer computes its first steps, the next ones' windows fill: with a block for each slot ahead,
        # which is an eighth of what the windows hold.
        return read_ahead(blocks, read, at_once=AT_ONCE, held=max(AT_ONCE, len(self._slots)))

    def _steps(
        self, samples: Iterable[Sample], order: EpochOrder, visits: list[np.ndarray], steps: int
    ) -> Iterator[np.ndarray]:
        source, windows = iter(samples), WeakValueDictionary[int, Window]()
        sequences = [self._sequences(source, order, passed, windows) for passed in visits]
        shape = (len(visits), self._seq_len + 1)
        for _ in range(steps):
            # np.stack would look at each sequence singly, for longer than copying takes.
            yield np.concatenate([next(slot) for slot in sequences]).reshape(shape)

    def _sequences(
        self,
        samples: Iterator[Sample],
        order: EpochOrder,
        visits: np.ndarray,
        windows: WeakValueDictionary[int, Window],
    ) -> Iterator[np.ndarray]:
        """One slot's sequences; takes the next sample whenever it is the first that needs the block."""
        length = self._seq_len
        for _, window, first, end in visits.tolist():
            held = windows.setdefault(window, Window())
            blocks, places = order.window_sequences(window, first, end)
            for block, place in zip(blocks.tolist(), places.tolist(), strict=True):
                if (tokens := held.get(block)) is None:
                    read, tokens = next(samples)
                    assert read == block
                    held[block] = tokens
                yield tokens[place * length : (place + 1) * length + 1]
            del held, tokens  # before the next window is entered


def _blocks(order: EpochOrder, visits: list[np.ndarray]) -> Iterator[int]:
    """Blocks when a slot first needs them: by step and within a step by slot.

    What a slot in the same window has read already is not read again.
    """
    every = np.concatenate(visits)
    owner = np.repeat(np.arange(len(visits)), [len(v) for v in visits])
    windows, slots = np.unique(every[:, 1], return_counts=True)
    # By window that slots share: when the last of them leaves it, and what they have read.
    left: dict[int, tuple[int, int]] = dict.fromkeys(windows[slots > 1].tolist(), (0, -1))
    shared: dict[int, set[int]] = {}
    needs: list[tuple[int, int, int, int]] = []  # a heap of (step, slot, window, block)

    def until(step: int, slot: int) -> Iterator[int]:
        while needs and needs[0] < (step, slot):
            _, _, window, block = heappop(needs)
            read = shared.get(window)
            if read is None:
                yield block
            elif block not in read:
                read.add(block)
                yield block

    for i in np.lexsort((owner, every[:, 0])):
        (step, window, first, end), slot = every[i].tolist(), int(owner[i])
        yield from until(step, slot)
        if window in left:
            if left[window] <= (step, slot):
                shared[window] = set()
            left[window] = max(left[window], (step + end - first, slot))
        blocks, at = np.unique(order.window_sequences(window, first, end)[0], return_index=True)
        for block, offset in zip(blocks.tolist(), at.tolist(), strict=True):
            heappush(needs, (step + offset, slot, window, block))
    yield from until(order.sequences, 0)


def _visits(order: EpochOrder, left: Slots, slot: int) -> np.ndarray:
    """The windows a slot passes through: rows of (step from here, window, first position, end position)."""
    rows, step = [np.zeros((0, 4), dtype=np.int64)], 0
    for start, length in left.ranges(slot):
        windows, first = order.windows(start, length)
        ends = np.append(first[1:], start + length)
        rows.append(np.stack([step + first - start, windows, first, ends], axis=1))
        step += length
    return np.concatenate(rows)
