"""What a configuration of gpt2wds-train says: names, defaults, and what can be checked without looking further."""

import dataclasses
import tomllib
from dataclasses import dataclass, field
from typing import Any

from ..config import differences, dump_config
from ..dataset.order import step_ranges
from ..dataset.prompts import MODES
from ..errors import Error
from ..model import SIZES
from ..train.recipe import Checkpoint, Train, at_least, one_of
from ..train.rundir import RunDirectory


@dataclass(frozen=True)
class Run:
    dir: str = "runs/gpt2"
    seed: int = 1337
    device: str = "auto"
    tensorboard: bool = False


@dataclass(frozen=True)
class Data:
    path: str = "data/fineweb-edu"
    seq_len: int = 1024
    num_workers: int = 0
    skip_steps: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        at_least("data", self, seq_len=1, num_workers=0)
        _ = self.skipped

    @property
    def skipped(self) -> tuple[range, ...]:
        """`skip_steps` as steps. Raises Error where they are none."""
        try:
            return step_ranges(self.skip_steps)
        except Error as error:
            raise Error(f"data.skip_steps: {error}") from None


@dataclass(frozen=True)
class Model:
    size: str = "gpt2"
    n_layer: int = 0
    n_head: int = 0
    n_embd: int = 0
    init_from: str = ""

    def __post_init__(self) -> None:
        given = [name for name in ("n_layer", "n_head", "n_embd") if getattr(self, name)]
        at_least("model", self, n_layer=0, n_head=0, n_embd=0)
        if self.size not in SIZES:
            raise Error(f"model.size: expected {', '.join(SIZES)}, or n_layer, n_head and n_embd, got {self.size!r}")
        if given and len(given) < 3:
            raise Error(f"model: expected all of n_layer, n_head and n_embd or none, got {', '.join(given)}")

    @property
    def asked_shape(self) -> tuple[int, int, int] | None:
        """The shape if one was asked for, None where only the default of `size` stands."""
        return None if self == Model(init_from=self.init_from) else self.shape

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n_layer, n_head, n_embd)."""
        if self.n_layer or self.n_head or self.n_embd:
            return self.n_layer, self.n_head, self.n_embd
        return SIZES[self.size]


@dataclass(frozen=True)
class Eval:
    every_steps: int = 250
    val_tokens: int = 10485760
    hellaswag: str = ""
    hellaswag_mode: str = "completion"
    sample_prompts: list[str] = field(default_factory=lambda: ["Hello, I'm a language model,"])
    sample_tokens: int = 64

    def __post_init__(self) -> None:
        at_least("eval", self, every_steps=1, val_tokens=1, sample_tokens=1)
        one_of("eval.hellaswag_mode", self.hellaswag_mode, *MODES)


@dataclass(frozen=True)
class Config:
    run: Run = field(default_factory=Run)
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    train: Train = field(default_factory=Train)
    eval: Eval = field(default_factory=Eval)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)

    def __post_init__(self) -> None:
        tokens, seq_len = self.train.tokens_per_step, self.data.seq_len
        if tokens < seq_len or tokens % seq_len:
            below, above = tokens // seq_len * seq_len, (tokens // seq_len + 1) * seq_len
            near = f"{below} or {above}" if below > 0 else str(max(above, seq_len))
            raise Error(
                f"train.tokens_per_step: expected a multiple of data.seq_len = {seq_len}, got {tokens}; try {near}"
            )

    @property
    def sequences_per_step(self) -> int:
        return self.train.tokens_per_step // self.data.seq_len


# What a run may be continued with differently: nothing here changes a number in log.txt, but for when it is taken. What
# skip_steps changes is in the future, see refuse_another_past.
FREE = {
    "run": ("dir", "device", "tensorboard"),
    "data": ("path", "num_workers", "skip_steps"),
    "model": ("init_from",),
    "train": ("micro_batch_sequences", "on_nan", "parallel", "compile"),
    "eval": tuple(f.name for f in dataclasses.fields(Eval)),
    "checkpoint": tuple(f.name for f in dataclasses.fields(Checkpoint)),
}


def refuse_other_mathematics(run: RunDirectory, settings: Config) -> None:
    """Raise Error where a run directory holds a run of another configuration, and show the difference.

    A key that the run was started without counts as its default.
    """
    before = _config_before(run)
    if before is None:
        return
    changed = [
        line
        for line in differences(before, tomllib.loads(dump_config(settings)))
        if line.split(":")[0].split(".")[1] not in FREE[line.split(".")[0]]
    ]
    if changed:
        raise Error(
            f"{run.path}: holds a run of another configuration ({'; '.join(changed)}); "
            "take the change back, or choose another run.dir"
        )


def refuse_another_past(run: RunDirectory, settings: Config, step: int) -> None:
    """Raise Error where data.skip_steps would change for steps that the run, now after `step`, has behind it."""
    before = _config_before(run) or {"data": {}}
    old, new = step_ranges(before["data"].get("skip_steps", [])), settings.data.skipped
    for past in range(1, step + 1):
        if any(past in steps for steps in old) != any(past in steps for steps in new):
            raise Error(
                f"data.skip_steps: {run.path} is at step {step}, expected steps that come after, got a change at step "
                f"{past}; to train again from before it, remove the checkpoints of step {past} and later"
            )


def _config_before(run: RunDirectory) -> dict[str, Any] | None:
    """The configuration a run directory was begun with, in full; None for a fresh one. Raises Error."""
    if not run.config.exists():
        return None
    defaults = tomllib.loads(dump_config(Config()))
    try:
        before = tomllib.loads(run.config.read_text(encoding="utf-8"))
    except ValueError as error:  # TOML, or UTF-8
        raise Error(f"{run.config}: expected TOML ({error}); restore it, it says how the run was begun") from None
    return {section: values | before.get(section, {}) for section, values in defaults.items()}
