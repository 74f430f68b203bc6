"""What a run does: the tables [train] and [checkpoint] of a configuration."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import Error
from .optim import OPTIMIZERS, learning_rate_factor
from .parallel import KINDS


@dataclass(frozen=True)
class Train:
    """How the model is updated. Steps count updates; sizes are of a step, over all ranks."""

    tokens_per_step: int = 524288
    micro_batch_sequences: int = 64  # of one forward and backward, at most: bounds memory, changes no loss
    max_steps: int = 19073
    learning_rate: float = 6e-4
    min_learning_rate: float | None = None  # None: a tenth of the learning rate
    warmup_steps: int = 715
    schedule: str = "cosine"
    decay_steps: int = 0
    optimizer: str = "adamw"
    muon_learning_rate: float = 0.02
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    on_nan: str = "stop"  # or "skip" the update
    parallel: str = "ddp"
    dtype: str = "bfloat16"  # of the matrix products; "auto" is resolved before training
    compile: bool = True

    def __post_init__(self) -> None:
        at_least("train", self, max_steps=1, micro_batch_sequences=1)
        if not 0 < self.learning_rate < math.inf:
            raise Error(f"train.learning_rate: expected more than 0, got {self.learning_rate}")
        if self.min_learning_rate is None:
            # Rounded, so that a tenth of 6e-4 is written 6e-05.
            object.__setattr__(self, "min_learning_rate", float(f"{self.learning_rate / 10:.12g}"))
        if not 0 <= self.lowest_rate <= self.learning_rate:
            raise Error(
                f"train.min_learning_rate: expected 0 to learning_rate = {self.learning_rate}, got "
                f"{self.min_learning_rate}; left out it is a tenth of the learning rate"
            )
        for name in ("weight_decay", "muon_learning_rate"):
            if not 0 <= getattr(self, name) < math.inf:
                raise Error(f"train.{name}: expected 0 or more, got {getattr(self, name)}")
        if not self.grad_clip > 0:
            raise Error(f"train.grad_clip: expected more than 0 (inf for none), got {self.grad_clip}")
        one_of("train.parallel", self.parallel, *KINDS)
        if (self.parallel, self.optimizer) == ("fsdp", "muon"):
            raise Error(
                "train.optimizer: expected adamw with train.parallel = fsdp, got muon, which needs whole matrices; "
                "use train.parallel=ddp"
            )
        one_of("train.on_nan", self.on_nan, "stop", "skip")
        one_of("train.dtype", self.dtype, "bfloat16", "float32", "auto")
        one_of("train.optimizer", self.optimizer, *OPTIMIZERS)
        self.rate_factor()  # refuses a schedule that cannot be

    @property
    def lowest_rate(self) -> float:
        """The learning rate that the schedule ends at."""
        assert self.min_learning_rate is not None
        return self.min_learning_rate

    def rate_factor(self) -> Callable[[int], float]:
        """Step, counted from 1 → factor of the learning rates."""
        return learning_rate_factor(
            self.schedule,
            warmup_steps=self.warmup_steps,
            max_steps=self.max_steps,
            min_factor=self.lowest_rate / self.learning_rate,
            decay_steps=self.decay_steps,
        )


@dataclass(frozen=True)
class Checkpoint:
    """When checkpoints are written, how many are kept, and what happens where one cannot be written."""

    every_steps: int = 1000
    keep: int = 3
    on_error: str = "stop"  # or "continue" without

    def __post_init__(self) -> None:
        at_least("checkpoint", self, every_steps=1, keep=1)
        one_of("checkpoint.on_error", self.on_error, "stop", "continue")


def at_least(section: str, values: object, **lowest: int) -> None:
    """Raise Error for a value of a table that is too low."""
    for name, low in lowest.items():
        if getattr(values, name) < low:
            raise Error(f"{section}.{name}: expected at least {low}, got {getattr(values, name)}")


def one_of(name: str, value: str, *known: str) -> None:
    """Raise Error for a value that is none of those known."""
    if value not in known:
        raise Error(f"{name}: expected {', '.join(known[:-1])} or {known[-1]}, got {value!r}")
