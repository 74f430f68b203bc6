"""One epoch of a rank's slots, as a WebDataset pipeline.

    entries  →  samples  →  sequences of a step

The entries stand where WebDataset has its shard list and `split_by_node`: they give out blocks in the global order
(order.py). A sample is a block of tokens, read by its range and held to the index, where WebDataset would read a shard
from its beginning.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import webdataset
from torch.utils.data import IterableDataset, get_worker_info

from ..errors import Error
from .directory import Dataset
from .order import EpochOrder, Position, Slots, even_share

AHEAD = 64  # blocks of a URL that are read at once, and held: 8 MB

Sample = tuple[int, np.ndarray]  # a block and its (tokens,) uint16
# A slot's sequences in a window, as blocks and places in them, and those of the blocks that no slot holds by then.
Entry = tuple[list[int], list[int], list[int]]


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
            share = even_share(len(slots), worker.id, worker.num_workers)
            slots = slots[share.start : share.stop]
        tokens = self._dataset.blocks["train"]["tokens"]
        order = EpochOrder(tokens, seq_len=self._seq_len, seed=self._seed, epoch=self._position.epoch)
        left = Slots(order.sequences, self._sequences_per_step, self._position.taken)
        visits = [_visits(order, left, slot) for slot in slots]
        pipeline = webdataset.DataPipeline(
            lambda: (block for _, _, new in _entries(order, visits) for block in new),
            self._samples,
            lambda samples: self._steps(samples, order, visits, left.steps),
        )
        return iter(pipeline) if worker is None else _error_as_item(pipeline)

    def _samples(self, blocks: Iterable[int]) -> Iterator[Sample]:
        """Blocks with their tokens. From a URL so many are asked for at once, ahead of need."""
        if self._dataset.folder.is_local:
            yield from ((block, self._dataset.read_tokens("train", block)) for block in blocks)
            return
        threads = ThreadPoolExecutor(AHEAD)
        asked = deque[tuple[int, Future[np.ndarray]]]()
        try:
            for block in blocks:
                asked.append((block, threads.submit(self._dataset.read_tokens, "train", block)))
                if len(asked) == AHEAD:
                    first, tokens = asked.popleft()
                    yield first, tokens.result()
            for first, tokens in asked:
                yield first, tokens.result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    def _steps(
        self, samples: Iterable[Sample], order: EpochOrder, visits: list[np.ndarray], steps: int
    ) -> Iterator[np.ndarray]:
        source, entries = iter(samples), _entries(order, visits)
        held = WeakValueDictionary[int, np.ndarray]()  # by the slots: a block goes when the last one leaves its window
        sequences = [self._sequences(source, entries, held) for _ in visits]
        shape = (len(visits), self._seq_len + 1)
        for _ in range(steps):
            # np.stack would look at each sequence singly, for longer than copying takes.
            yield np.concatenate([next(slot) for slot in sequences]).reshape(shape)

    def _sequences(
        self, samples: Iterator[Sample], entries: Iterator[Entry], held: WeakValueDictionary[int, np.ndarray]
    ) -> Iterator[np.ndarray]:
        """One slot's sequences; takes the next entry and its samples whenever the slot enters a window."""
        length = self._seq_len
        for blocks, places, new in entries:
            read = dict(islice(samples, len(new)))
            assert list(read) == new
            held.update(read)
            tokens = {block: held[block] for block in set(blocks)}
            del read
            for block, place in zip(blocks, places, strict=True):
                yield tokens[block][place * length : (place + 1) * length + 1]


def _error_as_item(steps: Iterable[np.ndarray]) -> Iterator[np.ndarray | str]:
    """In a worker what goes wrong is its last item: DataLoader would wrap an exception into a page of traceback."""
    try:
        yield from steps
    except Error as error:
        yield str(error)


def _entries(order: EpochOrder, visits: list[np.ndarray]) -> Iterator[Entry]:
    """Each time that a slot enters a window, by step and within a step by slot."""
    every = np.concatenate(visits)
    owner = np.repeat(np.arange(len(visits)), [len(v) for v in visits])
    windows, slots = np.unique(every[:, 1], return_counts=True)
    shared = set(windows[slots > 1].tolist())
    until: dict[int, int] = {}  # by block of a shared window: the step at which the last slot leaves it
    for i in np.lexsort((owner, every[:, 0])):
        step, window, first, end = every[i].tolist()
        blocks, places = order.window_sequences(window, first, end)
        new = np.unique(blocks).tolist()
        if window in shared:
            left = {block: until.get(block, 0) for block in new}
            new = [block for block in new if left[block] <= step]
            until |= {block: max(leaves, step + end - first) for block, leaves in left.items()}
        yield blocks.tolist(), places.tolist(), new


def _visits(order: EpochOrder, left: Slots, slot: int) -> np.ndarray:
    """The windows a slot passes through: rows of (step from here, window, first position, end position)."""
    rows, step = [np.zeros((0, 4), dtype=np.int64)], 0
    for start, length in left.ranges(slot):
        windows, first = order.windows(start, length)
        ends = np.append(first[1:], start + length)
        rows.append(np.stack([step + first - start, windows, first, ends], axis=1))
        step += length
    return np.concatenate(rows)
