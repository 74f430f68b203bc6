"""What the tables hold: a row of a run's log, and the scores of a model. As JSON has them, with null for NaN."""

from collections.abc import Mapping
from typing import Required, TypedDict


class Scores(TypedDict):
    """Accuracies on a set of multiple-choice examples; a standard error is None where there is one example alone."""

    name: str
    mode: str
    examples: int
    acc: float
    acc_stderr: float | None
    acc_norm_tokens: float
    acc_norm_tokens_stderr: float | None
    acc_norm_characters: float
    acc_norm_characters_stderr: float | None
    acc_norm_bytes: float
    acc_norm_bytes_stderr: float | None
    truncated: int


class Sample(TypedDict):
    prompt: str
    text: str


class Metrics(TypedDict, total=False):
    """What an evaluation measures; what there is nothing for is not there. Losses in nats per token."""

    val_loss: float | None
    val_losses: list[float | None]  # of each of several datasets
    hella_acc: float | None
    hellaswag: Scores
    samples: list[Sample]


class Row(Metrics, total=False):
    """A step of a run, a line of metrics.jsonl; `tokens` are those of all steps so far."""

    step: Required[int]
    tokens: int
    learning_rate: float
    train_loss: float | None
    grad_norm: float | None
    seconds: float
    tokens_per_second: float
    mfu: float
    skipped: int
    left_out: bool


def number(row: Mapping[str, object], name: str) -> float | None:
    """A number of a table; None where it was not measured, or is not a number.

    >>> number({"step": 1, "val_loss": 5.5}, "val_loss")
    5.5
    """
    value = row.get(name)
    return value if isinstance(value, int | float) else None
