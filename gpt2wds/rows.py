"""What tables hold: a row of a run's log, its facts, a model's scores. As JSON has them, with null for NaN."""

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


class Beginning(TypedDict, total=False):
    """What a run began from, where it is not random weights: as it was asked for, and as it was found."""

    init_from: str
    fork_from: str
    path: Required[str]
    step: int | None  # of a checkpoint
    sha256: str  # of the weights


class ChoiceSet(TypedDict, total=False):
    dataset_id: str
    mode: str


class Measures(TypedDict, total=False):
    """What the columns val_loss and hella_acc of a run mean."""

    val_tokens: int
    document_masking: bool
    hellaswag: ChoiceSet


class DatasetFacts(TypedDict):
    """One of several datasets: `steps_per_epoch` of its own epochs, `sequences_per_step` of its slots."""

    path: str
    corpus: str
    dataset_id: str
    weight: float
    sequences_per_step: int
    steps_per_epoch: int
    train_tokens: int
    val_split_tokens: int


class Facts(Measures, total=False):
    """What stays the same for a whole run, run.json; that of an earlier version may lack any of it."""

    version: str
    corpus: str
    dataset_id: str
    train_tokens: int
    val_split_tokens: int
    parameters: int
    tokens_per_step: int
    seq_len: int
    max_steps: int
    world_size: int
    device: str
    torch: str
    val_unigram_entropy: float | None
    datasets: list[DatasetFacts]
    origin: Beginning | str  # an earlier version wrote its path alone


def number(row: Mapping[str, object], name: str) -> float | None:
    """A number of a table; None where it was not measured, or is not a number.

    >>> number({"step": 1, "val_loss": 5.5}, "val_loss")
    5.5
    """
    value = row.get(name)
    return value if isinstance(value, int | float) else None
