"""What a run does: the tables [train] and [checkpoint] of a configuration."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..errors import Error
from .optim import OPTIMIZERS, learning_rate_factor
from .parallel import KINDS


def key(default: Any, unit: str, says: str) -> Any:
    """A configuration's key: its default, the unit of its values ("" for none), and what it says, in one line."""
    metadata = {"unit": unit, "says": says}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Train:
    """How the model is updated. Steps count updates; sizes are of a step, over all ranks."""

    tokens_per_step: int = key(524288, "tokens", "of one update; a multiple of data.seq_len")
    micro_batch_sequences: int = key(64, "sequences", "of a rank's forward and backward, at most; changes no loss")
    max_steps: int = key(19073, "steps", "of the whole run")
    learning_rate: float = key(6e-4, "", "the highest, after warm-up")
    min_learning_rate: float | None = key(None, "", "where the schedule ends; a tenth of the learning rate if left out")
    warmup_steps: int = key(715, "steps", "in which the rate rises from 0")
    schedule: str = key("cosine", "", "cosine, linear, constant, or wsd (warm-up, stable, decay)")
    decay_steps: int = key(0, "steps", "of the decay at the end, with wsd; a fifth of max_steps is usual")
    optimizer: str = key("adamw", "", "adamw, or muon for the matrices inside the blocks")
    muon_learning_rate: float = key(0.02, "", "Muon's own, on the same schedule")
    weight_decay: float = key(0.1, "", "of matrices; vectors have none")
    betas: list[float] = key([0.9, 0.95], "", "AdamW's two: of the gradient, of its square")
    grad_clip: float = key(1.0, "norm", "of the whole gradient, at most; inf for none")
    on_nan: str = key("stop", "", "stop, or skip the update")
    parallel: str = key("ddp", "", "ddp (each rank a copy) or fsdp (each a shard)")
    dtype: str = key("bfloat16", "", "of matrix products: bfloat16, float32, auto (bfloat16 where it is fast)")
    compile: bool = key(True, "", "torch.compile with static shapes")
    activation_checkpointing: bool = key(
        False, "", "less memory for more time: blocks are computed again; changes no loss"
    )

    def __post_init__(self) -> None:
        at_least("train", self, max_steps=1, micro_batch_sequences=1, decay_steps=0)
        if not 0 < self.learning_rate < math.inf:
            raise Error(f"train.learning_rate: expected a finite number above 0, got {self.learning_rate}")
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
                raise Error(f"train.{name}: expected a finite number, 0 or more, got {getattr(self, name)}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise Error(f"train.betas: expected two numbers from 0 to below 1, got {self.betas}")
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

    every_steps: int = key(1000, "steps", "between checkpoints; the last step has one too")
    keep: int = key(3, "checkpoints", "the newest so many")
    on_error: str = key("stop", "", "stop, or continue, where a checkpoint cannot be written")

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
