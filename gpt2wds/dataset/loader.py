"""Datasets → the batches of one rank, from where it was to the end of time, with a state."""

import atexit
import signal
import weakref
from collections.abc import Generator, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ..arguments import whole
from ..errors import Error, reason
from ..strict_json import Record
from .epoch import EpochSequences
from .manifest import member
from .mixture import Data, Portion, portions, positions_of, state_of, steps_of
from .order import Position, even_share, ranked
from .shards import BLOCK_TOKENS

GRACE_SECONDS = 60  # that a worker process outlives a signal to stop
STATE_VERSION = 1


class StepBatches(IterableDataset):
    """An endless stream of one rank's share of each step: (slots of the rank, seq_len + 1) uint16 arrays.

    Row i holds a sequence's inputs and, one further, its targets. The stream goes on from its state, which counts the
    steps that were handed out and fits any `sequences_per_step`, number of ranks and of workers.

    `dataset` is one, or a mixture: `[(Dataset("data/a"), 3), (Dataset("data/b"), 1)]`, datasets with their weights. The
    slots of a step are divided among them by weight; each follows its own order and counts its own epochs. `portions`
    says what each has; `sequences`, `left_out` and `trailing_tokens` are of all together, `steps_per_epoch` of the one
    whose epoch ends first.

    `num_workers` processes of this class's own read ahead; a torch DataLoader around it takes `batch_size=None` and no
    workers, for each of them would repeat every step. From a URL an iterator reads ahead, in threads, until it is
    closed (`contextlib.closing(iter(batches))`) or forgotten, or the program ends. Raises Error for arguments that
    cannot be, and when the data hold less than one step.

    >>> batches = StepBatches(Dataset("demo/plays"), seq_len=128, sequences_per_step=8, seed=1)  # doctest: +SKIP
    >>> next(iter(batches)).shape  # doctest: +SKIP
    (8, 129)
    >>> saved = batches.state_dict()  # doctest: +SKIP
    """

    def __init__(
        self,
        dataset: Data,
        *,
        seq_len: int,
        sequences_per_step: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
    ):
        seq_len, seed = whole("seq_len", seq_len), whole("seed", seed)
        rank, world_size = ranked(rank, world_size)
        num_workers = whole("num_workers", num_workers)
        sequences_per_step = whole("sequences_per_step", sequences_per_step)
        if not 1 <= seq_len <= BLOCK_TOKENS:
            raise Error(f"seq_len: expected 1 to {BLOCK_TOKENS}, got {seq_len}")
        if not 0 <= seed < 2**64:
            raise Error(f"seed: expected 0 to 2^64 - 1, got {seed}")
        if num_workers < 0:
            raise Error(f"num_workers: expected 0 or more, got {num_workers}")
        if world_size > sequences_per_step:
            raise Error(
                f"sequences_per_step: expected at least one sequence per rank, got {sequences_per_step} sequences "
                f"for {world_size} ranks"
            )
        self.seq_len, self.sequences_per_step, self.seed = seq_len, sequences_per_step, seed
        self.slots = even_share(sequences_per_step, rank, world_size)
        self.num_workers = min(num_workers, len(self.slots))
        self.portions = portions(dataset, sequences_per_step=sequences_per_step, seq_len=seq_len)
        self.sequences = sum(portion.sequences for portion in self.portions)
        self.steps_per_epoch = min(portion.steps_per_epoch for portion in self.portions)
        self.left_out = sum(portion.left_out for portion in self.portions)
        self.trailing_tokens = sum(portion.trailing_tokens for portion in self.portions)
        self._settings = {"seed": seed, "seq_len": seq_len}
        self._positions = tuple(Position() for _ in self.portions)
        self._handed_out: Position | None = Position()  # all steps, as if they were one epoch
        self._iterators = 0

    def state_dict(self) -> Record:
        """The state: JSON-able, the same on every rank. Keep it as it is; its members may change between versions."""
        return {"version": STATE_VERSION, **state_of(self.portions, self._positions, self._settings, self._handed_out)}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on from a state: with a new iterator, those made before are of no use any more.

        Raises Error for the state of other data or weights, of another seed or seq_len, of a later version, for one
        whose datasets are not where the same steps took them, and for what is no state.
        """
        if not isinstance(state, Mapping) or not state.keys() & {"dataset_id", "datasets"}:
            raise Error(f"state: expected what state_dict() gave, got {repr(state)[:80]}")
        try:
            version = member({"version": 1, **state}, "version", int)  # the first ones had none
            if version > STATE_VERSION:
                raise Error(f"expected version {STATE_VERSION}, got {version}; update gpt2wds")
            record = dict(state)
            self._positions, self._handed_out = positions_of(record, self.portions, self._settings), steps_of(record)
        except Error as error:
            raise Error(f"state: {error}") from None
        self._iterators += 1

    def __iter__(self) -> Generator[np.ndarray, None, None]:
        if get_worker_info() is not None:
            raise WorkersRepeat()
        self._iterators += 1
        current = self._iterators
        starts = zip(self.portions, self._positions, strict=True)
        places = zip(*(portion.positions(start) for portion, start in starts), strict=True)
        steps = self._steps()
        if self.num_workers:
            # Before multiprocessing's own end of a program, which would wait for workers that leave signals to us.
            atexit.register(_close, weakref.ref(steps))
        for sequences, place in zip(steps, places, strict=True):
            self._positions = place
            if self._handed_out is not None:
                self._handed_out = self._handed_out.after(self.sequences_per_step, 1)
            yield sequences
            if self._iterators != current:
                raise RuntimeError("StepBatches: one iterator at a time, this one is older than the state")

    def epochs_read(self) -> tuple[float, ...]:
        """Epochs of each dataset in the steps that were handed out."""
        found = zip(self.portions, self._positions, strict=True)
        return tuple(portion.epochs(position) for portion, position in found)

    def _steps(self) -> Generator[np.ndarray, None, None]:
        """This rank's share of each step from the positions on, without end."""
        source = SlotSequences(self.portions, self.seq_len, self.seed, self.slots, self._positions)
        if not self.num_workers:
            yield from source
            return
        # Each worker gives its slots of a step; the loader takes turns, so a step is one share from each.
        loader = DataLoader(
            source,
            batch_size=None,
            num_workers=self.num_workers,
            prefetch_factor=4,
            worker_init_fn=_leave_signals_to_the_parent,
        )
        shares = iter(loader)
        try:
            while step := list(islice(shares, self.num_workers)):
                assert len(step) == self.num_workers
                if problems := [share for share in step if isinstance(share, str)]:
                    raise Error(problems[0])
                yield np.concatenate([share.numpy() for share in step])
        except (ConnectionError, EOFError) as error:  # of a process that is killed while it hands over a tensor
            raise RuntimeError(f"DataLoader worker exited unexpectedly: {reason(error)}") from error


class SlotSequences(IterableDataset):
    """Some of a step's slots, whosever they are: yields (slots, seq_len + 1) uint16 per step, without end.

    In a worker those are the worker's share of the slots.
    """

    def __init__(
        self, mixed: tuple[Portion, ...], seq_len: int, seed: int, slots: range, positions: tuple[Position, ...]
    ):
        self._mixed, self._seq_len, self._seed, self._slots, self._positions = mixed, seq_len, seed, slots, positions

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        slots = self._slots
        if worker is not None:
            share = even_share(len(slots), worker.id, worker.num_workers)
            slots = slots[share.start : share.stop]
        parts = []
        for portion, position in zip(self._mixed, self._positions, strict=True):
            first, end = max(slots.start, portion.slots.start), min(slots.stop, portion.slots.stop)
            if first < end:
                own = range(first - portion.slots.start, end - portion.slots.start)
                parts.append(self._epochs(portion, own, position))
        steps = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
        return steps if worker is None else _error_as_item(steps)

    def _epochs(self, portion: Portion, slots: range, position: Position) -> Iterator[np.ndarray]:
        """One dataset's slots, counted from its own first."""
        while True:
            per_step = len(portion.slots)
            yield from EpochSequences(portion.dataset, self._seq_len, per_step, self._seed, slots, position)
            position = Position(position.epoch + 1)


class WorkersRepeat(Error):
    """Raised in a torch DataLoader's worker, and again in its parent, which would add a page of traceback."""

    def __init__(self, *_: object):
        super().__init__(
            "StepBatches: expected a DataLoader without workers, each of which would repeat all steps; "
            "give num_workers to StepBatches instead"
        )


def _close(steps: "weakref.ref[Generator[np.ndarray, None, None]]") -> None:
    """End an iterator that the program still holds when it ends, and its workers with it."""
    if (alive := steps()) is not None:
        alive.close()


def _leave_signals_to_the_parent(_: int) -> None:
    """Schedulers send a signal to all processes: the parent saves first, and needs its workers for that."""

    def wait(number: int, frame: Any) -> None:
        signal.alarm(GRACE_SECONDS)  # and goes by itself should the parent be lost

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, wait)


def _error_as_item(steps: Iterable[np.ndarray]) -> Iterator[np.ndarray | str]:
    """In a worker what goes wrong is its last item: DataLoader would wrap an exception into a page of traceback."""
    try:
        yield from steps
    except Error as error:
        yield str(error)
