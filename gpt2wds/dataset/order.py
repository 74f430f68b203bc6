"""The global order: which sequences make a step, whoever reads them.

A step's content depends on (dataset, seed, epoch, step, seq_len, sequences per step) and on nothing else: not on
world size, workers or micro-batches. The order of an epoch:

1. blocks are permuted; block b holds (tokens_b - 1) // seq_len sequences;
2. the permuted blocks are cut into windows of 8 and the sequences permuted within each window, so that neighbours
   in the text are apart in training and each frame is still decompressed once;
3. with G sequences per step, slot g of G owns a stretch of S = N // G positions; step s is the s-th of each slot.

Random numbers are Philox's raw words, which NumPy promises never to change.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..arguments import whole
from ..errors import Error

WINDOW_BLOCKS = 8
_LOW = np.uint64(0xFFFFFFFF)


def permutation(n: int, seed: int, epoch: int, counter: tuple[int, int, int, int] = (0, 0, 0, 0)) -> np.ndarray:
    """(n,) uint32: 0 … n - 1 in the order of n random words whose low halves are replaced by the index."""
    bits = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64), counter=np.array(counter, dtype=np.uint64))
    keys = bits.random_raw(n)
    keys &= ~_LOW
    keys |= np.arange(n, dtype=np.uint64)
    keys.sort()
    return (keys & _LOW).astype(np.uint32)


class EpochOrder:
    """All sequences of a split in the order of one epoch.

    block_tokens: (B,) tokens of each block, the overlapping one included. `sequences` is N.
    """

    def __init__(self, block_tokens: np.ndarray, *, seq_len: int, seed: int, epoch: int):
        self._seed, self._epoch = seed, epoch
        self._blocks = permutation(len(block_tokens), seed, epoch)
        per_block = ((block_tokens.astype(np.int64) - 1) // seq_len).astype(np.int32)[self._blocks]
        self._per_block = per_block  # (B,) sequences of each block, in permuted order
        edges = np.arange(0, len(per_block), WINDOW_BLOCKS)
        sizes = np.add.reduceat(per_block, edges, dtype=np.int64) if len(edges) else np.zeros(0, dtype=np.int64)
        self._window_starts = np.concatenate(([0], np.cumsum(sizes)))  # (windows + 1,) positions
        self.sequences = int(self._window_starts[-1])

    def windows(self, start: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Windows that positions start … start + length - 1 pass through, and the first position in each."""
        first = np.searchsorted(self._window_starts, start, side="right") - 1
        last = np.searchsorted(self._window_starts, start + length, side="left")
        numbers = np.arange(first, last)
        numbers = numbers[self._window_starts[numbers + 1] > self._window_starts[numbers]]
        return numbers, np.maximum(self._window_starts[numbers], start)

    def window_sequences(self, window: int, first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions first … end - 1 of one window: (block number, sequence within the block), each (end - first,)."""
        part = slice(window * WINDOW_BLOCKS, (window + 1) * WINDOW_BLOCKS)
        counts, origin = self._per_block[part], int(self._window_starts[window])
        chosen = permutation(int(counts.sum()), self._seed, self._epoch, (0, 0, 1, window))[
            first - origin : end - origin
        ]
        ends = np.cumsum(counts)
        place = np.searchsorted(ends, chosen, side="right")
        return self._blocks[part][place], chosen - (ends - counts)[place]

    def positions(self, block: int) -> np.ndarray:
        """(sequences of the block,) positions at which they come: the inverse of window_sequences."""
        window = int(np.flatnonzero(self._blocks == block)[0]) // WINDOW_BLOCKS
        start, end = self._window_starts[window : window + 2].tolist()
        blocks, places = self.window_sequences(window, start, end)
        of_block = np.flatnonzero(blocks == block)
        return start + of_block[np.argsort(places[of_block])]


@dataclass(frozen=True)
class Position:
    """Where in the data a run is: the epoch, and what was taken of it as (sequences per step, steps) pairs.

    One pair, unless the step's size was changed in mid-epoch.
    """

    epoch: int = 0
    taken: tuple[tuple[int, int], ...] = ()

    def after(self, sequences_per_step: int, steps: int) -> "Position":
        """The position so many steps further in the same epoch.

        >>> Position(0, ((16, 5),)).after(16, 2)
        Position(epoch=0, taken=((16, 7),))
        >>> Position(0, ((16, 5),)).after(30, 2)
        Position(epoch=0, taken=((16, 5), (30, 2)))
        """
        *earlier, (size, done) = self.taken or ((sequences_per_step, 0),)
        if size == sequences_per_step:
            return Position(self.epoch, (*earlier, (size, done + steps)))
        return Position(self.epoch, (*self.taken, (sequences_per_step, steps)))


class Slots:
    """What each slot still has to read of an epoch.

    After a change of the step's size, the unread rest of all slots and what no slot had are laid end to end and
    cut again. `steps` is how many whole steps there are from here, `left_out` the sequences they do not reach.
    """

    def __init__(self, sequences: int, sequences_per_step: int, taken: tuple[tuple[int, int], ...] = ()):
        starts, lengths = np.array([0]), np.array([sequences])
        *earlier, (size, done) = taken or ((sequences_per_step, 0),)
        if size != sequences_per_step:
            earlier, done = [*earlier, (size, done)], 0
        for size, steps in earlier:
            starts, lengths = _rest(starts, lengths, size, steps)
        self._starts, self._lengths, self._done = starts, lengths, done
        total = int(lengths.sum())
        self._per_slot = total // sequences_per_step
        self.steps = self._per_slot - done
        self.left_out = total - sequences_per_step * self._per_slot

    def ranges(self, slot: int) -> Iterator[tuple[int, int]]:
        """(start, length) of the positions a slot reads from here on, in order."""
        yield from _ranges(self._starts, self._lengths, slot * self._per_slot + self._done, self.steps)


def _ranges(starts: np.ndarray, lengths: np.ndarray, at: int, count: int) -> Iterator[tuple[int, int]]:
    """Real positions of `count` places from place `at`, when the intervals are laid end to end."""
    ends = np.cumsum(lengths)
    i = int(np.searchsorted(ends, at, side="right"))
    while count > 0:
        skip = at - int(ends[i] - lengths[i])
        length = min(count, int(lengths[i]) - skip)
        yield int(starts[i]) + skip, length
        at, count, i = at + length, count - length, i + 1


def _rest(starts: np.ndarray, lengths: np.ndarray, slots: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The intervals that remain when each of `slots` slots has read `steps` places."""
    total = int(lengths.sum())
    per_slot = total // slots
    places = [(slot * per_slot + steps, per_slot - steps) for slot in range(slots)]
    places.append((slots * per_slot, total - slots * per_slot))
    ranges = [part for at, count in places for part in _ranges(starts, lengths, at, count)]
    rest = np.array(ranges, dtype=np.int64).reshape(-1, 2)
    return rest[:, 0], rest[:, 1]


def even_share(n: int, i: int, of: int) -> range:
    """Share i of n things dealt out in order to so many; their number need not divide n.

    >>> [len(even_share(512, rank, 3)) for rank in range(3)]
    [170, 171, 171]
    """
    return range(i * n // of, (i + 1) * n // of)


def ranked(rank: object, world_size: object) -> tuple[int, int]:
    """A caller's rank and world size, as Python's own ints. Raises Error where there is no such rank."""
    number, of = whole("rank", rank), whole("world_size", world_size)
    if of < 1:
        raise Error(f"world_size: expected 1 or more, got {of}")
    if not 0 <= number < of:
        raise Error(f"rank: expected 0 to world_size - 1 = {of - 1}, got {number}")
    return number, of


def step_ranges(texts: Sequence[str]) -> tuple[range, ...]:
    """Steps, and runs of steps from the first to the last of them. Raises Error.

    >>> step_ranges(["8400-8420", "9000"])
    (range(8400, 8421), range(9000, 9001))
    """
    found = []
    for text in texts:
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", text)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last:
            raise Error(f'expected steps from 1 on such as "8412" or "8400-8420", got {text!r}')
        found.append(range(first, last + 1))
    return tuple(found)
