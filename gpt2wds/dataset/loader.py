"""A dataset directory → the batches of one rank, from where it was to the end of time, with a state."""

import signal
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ..errors import Error, reason
from .directory import Dataset
from .epoch import EpochSequences
from .manifest import TOKENS, member
from .order import Position, Slots, even_share
from .shards import BLOCK_TOKENS

GRACE_SECONDS = 60  # that a worker process outlives a signal to stop
STATE_VERSION = 1


class StepBatches(IterableDataset):
    """An endless stream of one rank's share of each step: (slots of the rank, seq_len + 1) uint16 arrays.

    Row i holds a sequence's inputs and, one further, its targets. The stream goes on from its state, which counts the
    steps that were handed out and fits any `sequences_per_step`, number of ranks and of workers.

    `num_workers` processes of this class's own read ahead; a torch DataLoader around it takes `batch_size=None` and no
    workers, for each of them would repeat every step. Raises Error for arguments that cannot be, and when the data hold
    less than one step.

    >>> batches = StepBatches(Dataset("demo/plays"), seq_len=128, sequences_per_step=8, seed=1)  # doctest: +SKIP
    >>> next(iter(batches)).shape  # doctest: +SKIP
    (8, 129)
    >>> saved = batches.state_dict()  # doctest: +SKIP
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
    ):
        if dataset.kind != TOKENS:
            raise Error(f"dataset {dataset.path}: expected tokens to train on, got {dataset.kind}")
        if not 1 <= seq_len <= BLOCK_TOKENS:
            raise Error(f"seq_len: expected 1 to {BLOCK_TOKENS}, got {seq_len}")
        if not 0 <= seed < 2**64:
            raise Error(f"seed: expected 0 to 2^64 - 1, got {seed}")
        if not 0 <= rank < world_size:
            raise Error(f"rank: expected 0 to world_size - 1 = {world_size - 1}, got {rank}")
        if world_size > sequences_per_step:
            raise Error(
                f"sequences_per_step: expected at least one sequence per rank, got {sequences_per_step} sequences "
                f"for {world_size} ranks"
            )
        self.dataset, self.seq_len, self.sequences_per_step, self.seed = dataset, seq_len, sequences_per_step, seed
        self.slots = even_share(sequences_per_step, rank, world_size)
        self.num_workers = min(num_workers, len(self.slots))
        per_block = (dataset.blocks["train"]["tokens"].astype(np.int64) - 1) // seq_len
        self.sequences = int(per_block.sum())
        self.steps_per_epoch = self.sequences // sequences_per_step
        self.left_out = self.sequences - self.steps_per_epoch * sequences_per_step
        # Targets no sequence reaches: a shard's first token is never a target, its last few fill no sequence.
        targets = dataset.total("train", "tokens") - sum(1 for entry in dataset.shards("train") if entry.tokens)
        self.trailing_tokens = targets - self.sequences * seq_len
        if self.steps_per_epoch < 1:
            raise Error(f"dataset {dataset.path}: {self._too_short()}")
        self._position = Position()
        self._iterators = 0

    def state_dict(self) -> dict[str, Any]:
        """The state: JSON-able, the same on every rank. Keep it as it is; its members may change between versions."""
        return {
            "version": STATE_VERSION,
            "dataset_id": self.dataset.id,
            "seed": self.seed,
            "seq_len": self.seq_len,
            "epoch": self._position.epoch,
            "taken": [list(pair) for pair in self._position.taken],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state: with a new iterator, those made before are of no use any more.

        Raises Error for the state of another dataset, seed or seq_len, of a later version, and for what is no state.
        """
        if not isinstance(state, Mapping):
            raise Error(f"state: expected what state_dict() gave, got {repr(state)[:80]}")
        try:
            version = member({"version": 1, **state}, "version", int)  # the first ones had none
            if version > STATE_VERSION:
                raise Error(f"expected version {STATE_VERSION}, got {version}; update gpt2wds")
            for name, own in (("dataset_id", self.dataset.id), ("seed", self.seed), ("seq_len", self.seq_len)):
                if state.get(name) != own:
                    raise Error(f"it was saved with {name} {state.get(name)}, here it is {own}; give that one again")
            taken = _checked_taken(member(state, "taken", list), self.sequences)
            self._position = Position(member(state, "epoch", int), taken)
        except Error as error:
            raise Error(f"state: {error}") from None
        self._iterators += 1

    def __iter__(self) -> Iterator[np.ndarray]:
        if get_worker_info() is not None:
            raise WorkersRepeat()
        current = self._iterators = self._iterators + 1
        while True:
            start, following = self._position, Position(self._position.epoch + 1)
            steps = Slots(self.sequences, self.sequences_per_step, start.taken).steps
            if not steps:
                self._position = following
                continue
            for done, sequences in enumerate(self._epoch(start), 1):
                self._position = start.after(self.sequences_per_step, done) if done < steps else following
                yield sequences
                if self._iterators != current:
                    raise RuntimeError("StepBatches: one iterator at a time, this one is older than the state")

    def _too_short(self) -> str:
        if not self.sequences:
            tokens = self.dataset.total("train", "tokens")
            return f"expected a text of more than seq_len = {self.seq_len} tokens, got {tokens} in all; lower seq_len"
        return (
            f"expected at least one step of {self.sequences_per_step} sequences of {self.seq_len} tokens, got "
            f"{self.sequences} sequences; a step may have at most {self.sequences}, that is "
            f"{self.sequences * self.seq_len} tokens"
        )

    def _epoch(self, position: Position) -> Iterator[np.ndarray]:
        dataset = EpochSequences(self.dataset, self.seq_len, self.sequences_per_step, self.seed, self.slots, position)
        if not self.num_workers:
            yield from dataset
            return
        # Each worker gives its slots of a step; the loader takes turns, so a step is one share from each.
        loader = DataLoader(
            dataset,
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


class WorkersRepeat(Error):
    """Raised in a torch DataLoader's worker, and again in its parent, which would add a page of traceback."""

    def __init__(self, *_: object):
        super().__init__(
            "StepBatches: expected a DataLoader without workers, each of which would repeat all steps; "
            "give num_workers to StepBatches instead"
        )


def _checked_taken(pairs: list[Any], sequences: int) -> tuple[tuple[int, int], ...]:
    """A position's (sequences per step, steps), as far as an epoch of so many sequences has them. Raises Error."""
    taken: tuple[tuple[int, int], ...] = ()
    for pair in pairs:
        whole = isinstance(pair, list) and len(pair) == 2 and all(type(n) is int and n > 0 for n in pair)
        if not whole or pair[1] > Slots(sequences, pair[0], taken).steps:
            raise Error(f"'taken': expected steps of an epoch of {sequences} sequences, got {repr(pairs)[:80]}")
        taken = (*taken, (pair[0], pair[1]))
    return taken


def _leave_signals_to_the_parent(_: int) -> None:
    """Schedulers send a signal to all processes: the parent saves first, and needs its workers for that."""

    def wait(number: int, frame: Any) -> None:
        signal.alarm(GRACE_SECONDS)  # and goes by itself should the parent be lost

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, wait)
