"""Several datasets in one step: each has slots of its own, in which it follows its own order and counts its own epochs.

The slots of a step are divided by weight (largest remainder, equal ones in the order given) and lie in that order. So
step s of a mixture is, end to end, step s of each dataset alone with as many sequences a step as it has slots. One
dataset is a mixture of one. Needs no torch.
"""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from decimal import ROUND_CEILING, Context, Decimal
from fractions import Fraction
from typing import Any

import numpy as np

from ..errors import Error, counted
from ..strict_json import Record
from .directory import Dataset
from .manifest import TOKENS, member
from .order import Position, Slots

MOST_TIMES = 16  # how much larger a step may be that is advised
Data = Dataset | Sequence[tuple[Dataset, float]]  # one dataset, or several with their weights


class Portion:
    """One dataset's slots of every step, and what its epochs are with so many.

    slots: of the `of` slots of a step, those that are its own; share: how much of a step they are; sequences: of an
    epoch, N; left_out: those of them that fill no step; trailing_tokens: tokens that are no sequence's target, but
    for the first of each shard, which nothing comes before.
    """

    def __init__(self, dataset: Dataset, weight: float, slots: range, *, of: int, seq_len: int):
        if dataset.kind != TOKENS:
            raise Error(f"dataset {dataset.path}: expected tokens to train on, got {dataset.kind}")
        self.dataset, self.weight, self.slots = dataset, weight, slots
        self.share = Fraction(len(slots), of)
        per_block = (dataset.blocks["train"]["tokens"].astype(np.int64) - 1) // seq_len
        self.sequences = int(per_block.sum())
        self.steps_per_epoch = self.sequences // len(slots)
        self.left_out = self.sequences - self.steps_per_epoch * len(slots)
        # Targets no sequence reaches: a shard's first token is never a target, its last few fill no sequence.
        targets = dataset.total("train", "tokens") - sum(1 for entry in dataset.shards("train") if entry.tokens)
        self.trailing_tokens = targets - self.sequences * seq_len
        if self.steps_per_epoch < 1:
            raise Error(f"dataset {dataset.path}: {self._too_short(seq_len)}")

    def positions(self, start: Position) -> Iterator[Position]:
        """Where the dataset is after each further step, epoch after epoch, without end."""
        while True:
            steps = Slots(self.sequences, len(self.slots), start.taken).steps
            for done in range(1, steps):
                yield start.after(len(self.slots), done)
            start = Position(start.epoch + 1)
            if steps:
                yield start

    def after(self, start: Position, slots: int, steps: int) -> Position:
        """Where the dataset is so many steps after `start`, with so many slots in each; no more than its sequences."""
        left = Slots(self.sequences, slots, start.taken).steps
        if steps < left:
            return start.after(slots, steps)
        epochs, rest = divmod(steps - left, self.sequences // slots)
        return Position(start.epoch + 1 + epochs, ((slots, rest),) if rest else ())

    def epochs(self, position: Position) -> float:
        """Epochs up to a position; of the one it is in, the steps that were taken of all that it has."""
        done = sum(steps for _, steps in position.taken)
        return position.epoch + done / (done + Slots(self.sequences, len(self.slots), position.taken).steps or 1)

    def position(self, record: Record) -> Position:
        """The position that a state has for this dataset. Raises Error where it is none."""
        taken: tuple[tuple[int, int], ...] = ()
        pairs = member(record, "taken", list)
        for pair in pairs:
            if not _is_pair(pair) or pair[1] > Slots(self.sequences, pair[0], taken).steps:
                raise Error(f"'taken': expected steps of an epoch of {self.sequences} sequences, got {str(pairs)[:80]}")
            taken = (*taken, (pair[0], pair[1]))
        return Position(member(record, "epoch", int), taken)

    def _too_short(self, seq_len: int) -> str:
        if not self.sequences:
            tokens = self.dataset.total("train", "tokens")
            return f"expected a text of more than seq_len = {seq_len} tokens, got {tokens} in all; lower seq_len"
        of_them, remedy = "a step", ""
        if self.share < 1:
            of_them, remedy = "its slots of a step", ": lower its weight, or the size of a step"
        return (
            f"expected at least one step of {counted(len(self.slots), 'sequence')} of {counted(seq_len, 'token')}, got "
            f"{counted(self.sequences, 'sequence')}; {of_them} may have at most {self.sequences:,}, that is "
            f"{counted(self.sequences * seq_len, 'token')}{remedy}"
        )


def portions(data: Data, *, sequences_per_step: int, seq_len: int) -> tuple[Portion, ...]:
    """Each dataset's portion of a step, in the order given.

    Raises Error for weights that are not above 0 and finite, for one dataset given twice, where a weight is too small
    for one slot, and for data that are not tokens or less than one step.
    """
    pairs = [(data, 1)] if isinstance(data, Dataset) else _pairs(data)
    first: dict[str, Dataset] = {}
    for dataset, weight in pairs:
        check_weight(weight, f"dataset {dataset.path}: weight")
        if dataset.id in first:
            raise Error(
                f"dataset {dataset.path}: expected each dataset once, got dataset_id {dataset.id} twice, first as "
                f"{first[dataset.id].path}; give it once, with both weights added up"
            )
        first[dataset.id] = dataset
    counts = divide(sequences_per_step, [weight for _, weight in pairs])
    for (dataset, _), count in zip(pairs, counts, strict=True):
        if not count:
            raise Error(f"dataset {dataset.path}: {_no_slot(dataset, pairs, sequences_per_step, seq_len)}")
    found, at = [], 0
    for (dataset, weight), count in zip(pairs, counts, strict=True):
        found.append(Portion(dataset, weight, range(at, at + count), of=sequences_per_step, seq_len=seq_len))
        at += count
    return tuple(found)


def _pairs(data: object) -> list[tuple[Dataset, float]]:
    if not isinstance(data, Sequence) or isinstance(data, str) or not data:
        raise Error(f"dataset: expected a Dataset, or a list of (Dataset, weight), got {repr(data)[:80]}")
    for pair in data:
        if not (isinstance(pair, Sequence) and len(pair) == 2 and isinstance(pair[0], Dataset)):
            raise Error(f"dataset: expected pairs such as (Dataset('data/a'), 3), got {repr(pair)[:80]}")
    return [(dataset, float(weight) if isinstance(weight, np.floating) else weight) for dataset, weight in data]


def check_weight(weight: object, where: str) -> None:
    """Raise Error for what is no weight."""
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not is_number or not 0 < weight <= sys.float_info.max:  # type: ignore[operator]
        raise Error(f"{where}: expected a number above 0 and finite, got {weight!r}")


def shares(weights: Sequence[float]) -> list[Fraction]:
    """What part of the whole each weight is; exact."""
    exact = [Fraction(str(weight)) for weight in weights]
    return [weight / sum(exact) for weight in exact]


def divide(slots: int, weights: Sequence[float]) -> list[int]:
    """Slots for each weight: its whole quotas, and one more for the largest remainders, of equal ones the first.

    Exact: weights are taken as the decimal numbers that they are written as.

    >>> divide(512, [3, 1]), divide(10, [0.5, 0.3, 0.2]), divide(3, [1, 1])
    ([384, 128], [5, 3, 2], [2, 1])
    """
    quotas = [slots * share for share in shares(weights)]
    counts = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(counts)), key=lambda i: counts[i] - quotas[i])  # stable: equal ones in order
    for i in by_remainder[: slots - sum(counts)]:
        counts[i] += 1
    return counts


def state_of(
    own: Sequence[Portion], positions: Sequence[Position], settings: Mapping[str, int], steps: Position | None
) -> Record:
    """Which data, in which order by `settings`, and where each dataset is, as a JSON object.

    steps: all there were, as if they were one epoch, by which the places of several datasets can be held to each other.
    """
    records = [{"epoch": position.epoch, "taken": _listed(position)} for position in positions]
    if len(own) == 1:
        return {"dataset_id": own[0].dataset.id, **settings, **records[0]}
    pairs = zip(own, records, strict=True)
    datasets = [{"dataset_id": portion.dataset.id, "weight": portion.weight, **record} for portion, record in pairs]
    known = {} if steps is None else {"steps": _listed(steps)}
    return {**settings, **known, "datasets": datasets}


def positions_of(state: Record, own: Sequence[Portion], settings: Mapping[str, int]) -> tuple[Position, ...]:
    """Where each dataset is. Raises Error for the state of other data, weights or settings, and for what is none."""
    records = _records(state, own)
    for name, value in settings.items():
        if state.get(name) != value:
            if name not in state:
                raise Error(
                    f"{name!r}: expected the one it was saved with, got nothing; give the state as it was saved"
                )
            raise Error(f"it was saved with {name} {state[name]}, here it is {value}; give that one again")
    positions = tuple(portion.position(record) for portion, record in zip(own, records, strict=True))
    if (steps := steps_of(state)) is not None:
        _refuse_apart(own, positions, steps)
    return positions


def steps_of(state: Record) -> Position | None:
    """All steps there were; None where a state, one of a single dataset or an older one, does not say them."""
    if "steps" not in state:
        return None
    pairs = member(state, "steps", list)
    if not all(_is_pair(pair) for pair in pairs):
        raise Error(f"'steps': expected pairs of sequences per step and steps, got {str(pairs)[:80]}")
    return Position(0, tuple((size, count) for size, count in pairs))


def _refuse_apart(own: Sequence[Portion], positions: Sequence[Position], steps: Position) -> None:
    """Raise Error where the datasets are not where the same steps took them all."""
    weights = [portion.weight for portion in own]
    for i, (portion, position) in enumerate(zip(own, positions, strict=True)):
        place = Position()
        for size, count in steps.taken:
            slots = divide(size, weights)[i]
            if not 1 <= slots <= portion.sequences:
                raise Error(
                    f"'steps': expected steps of these datasets, got {size} sequences per step; give the state as it "
                    "was saved"
                )
            place = portion.after(place, slots, count)
        if position != place:
            raise Error(
                f"dataset {portion.dataset.path}: expected epoch {place.epoch}, taken {_listed(place)}, where the "
                f"steps {_listed(steps)} end, got epoch {position.epoch}, taken {_listed(position)}; give the state as "
                "it was saved"
            )


def _listed(position: Position) -> list[list[int]]:
    return [list(pair) for pair in position.taken]


def _is_pair(pair: object) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(type(n) is int and n > 0 for n in pair)


def _records(state: Record, own: Sequence[Portion]) -> list[Record]:
    """What a state has for each portion. Raises Error for the state of other datasets or of other weights."""
    if len(own) == 1 and "datasets" not in state:
        if state.get("dataset_id") != (here := own[0].dataset.id):
            raise Error(
                f"it was saved with dataset_id {state.get('dataset_id')}, here it is {here}; give that one again"
            )
        return [state]
    records = member(state, "datasets", list) if "datasets" in state else [state]
    if not all(isinstance(record, dict) for record in records):
        raise Error(f"'datasets': expected objects, got {str(records)[:80]}")
    ids, here_ids = [record.get("dataset_id") for record in records], [portion.dataset.id for portion in own]
    if ids != here_ids:
        raise Error(
            f"it was saved with dataset_id {_and(ids)}, here it is {_and(here_ids)}; give the same datasets in "
            "the same order again"
        )
    weights: list[Any] = [record.get("weight") for record in records]
    here_weights = [portion.weight for portion in own]
    for weight in weights:
        check_weight(weight, "'weight'")
    if shares(weights) != shares(here_weights):
        raise Error(
            f"it was saved with the weights {_and(weights)}, here they are {_and(here_weights)}, which is another "
            "order of the data; give those again"
        )
    return records


def identity(own: Sequence[Portion]) -> str:
    """Which data these are: a dataset's id, or how much of a step each of several has."""
    if len(own) == 1:
        return own[0].dataset.id
    return " + ".join(f"{portion.share} of {portion.dataset.id}" for portion in own)


def _no_slot(dataset: Dataset, pairs: Sequence[tuple[Dataset, float]], slots: int, seq_len: int) -> str:
    """What would give every dataset a slot for sure: a quota of one."""
    enough = math.ceil(1 / min(shares([weight for _, weight in pairs])))
    (weight,) = (w for d, w in pairs if d is dataset)
    others = sum((Fraction(str(w)) for d, w in pairs if d is not dataset), Fraction(0))
    larger, steps = "", f"steps of {enough} sequences, that is {enough * seq_len} tokens,"
    if len(pairs) <= slots:
        least, upwards = others / (slots - 1), Context(prec=3, rounding=ROUND_CEILING)
        larger = f"a weight of {upwards.divide(Decimal(least.numerator), Decimal(least.denominator))}"
    if enough <= MOST_TIMES * slots:
        remedy = f"{larger}, or {steps} are enough" if larger else f"{steps} are enough"
    elif larger:
        remedy = f"{larger} is enough"
    else:
        remedy = f"give it a weight nearer to the others', and steps of {len(pairs)} sequences or more"
    return (
        f"expected a weight that gives it one of the {counted(slots, 'sequence')} of a step, got {weight:g}, which "
        f"gives it none; {remedy}"
    )


def _and(values: Sequence[object]) -> str:
    return " and ".join(f"{value:g}" if isinstance(value, int | float) else str(value) for value in values)
