"""What a configuration of gpt2wds-train says: names, defaults, and what can be checked without looking further."""

import dataclasses
import tomllib
from dataclasses import dataclass, field

from ..config import differences, dump_config
from ..errors import Error
from ..model import SIZES
from ..train.parallel import KINDS
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

    def __post_init__(self) -> None:
        _at_least("data", self, seq_len=1, num_workers=0)


@dataclass(frozen=True)
class Model:
    size: str = "gpt2"
    n_layer: int = 0
    n_head: int = 0
    n_embd: int = 0
    init_from: str = ""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n_layer, n_head, n_embd)."""
        if self.n_layer or self.n_head or self.n_embd:
            return self.n_layer, self.n_head, self.n_embd
        if self.size not in SIZES:
            raise Error(f"model.size: expected {', '.join(SIZES)}, or n_layer, n_head and n_embd, got {self.size!r}")
        return SIZES[self.size]


@dataclass(frozen=True)
class Train:
    tokens_per_step: int = 524288
    micro_batch_sequences: int = 64
    max_steps: int = 19073
    learning_rate: float = 6e-4
    min_learning_rate: float = 6e-5
    warmup_steps: int = 715
    schedule: str = "cosine"
    decay_steps: int = 0
    optimizer: str = "adamw"
    muon_learning_rate: float = 0.02
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    on_nan: str = "stop"
    parallel: str = "ddp"
    dtype: str = "bfloat16"
    compile: bool = True

    def __post_init__(self) -> None:
        _at_least("train", self, max_steps=1, micro_batch_sequences=1)
        if not self.learning_rate > 0:
            raise Error(f"train.learning_rate: expected more than 0, got {self.learning_rate}")
        if not self.grad_clip > 0:
            raise Error(f"train.grad_clip: expected more than 0 (inf for none), got {self.grad_clip}")
        _one_of("train.parallel", self.parallel, *KINDS)
        if (self.parallel, self.optimizer) == ("fsdp", "muon"):
            raise Error(
                "train.optimizer: expected adamw with train.parallel = fsdp, got muon, which needs whole matrices; "
                "use train.parallel=ddp"
            )
        _one_of("train.on_nan", self.on_nan, "stop", "skip")
        _one_of("train.dtype", self.dtype, "bfloat16", "float32", "auto")


@dataclass(frozen=True)
class Eval:
    every_steps: int = 250
    val_tokens: int = 10485760
    hellaswag: str = ""
    hellaswag_mode: str = "completion"
    sample_prompts: list[str] = field(default_factory=lambda: ["Hello, I'm a language model,"])
    sample_tokens: int = 64

    def __post_init__(self) -> None:
        _at_least("eval", self, every_steps=1)


@dataclass(frozen=True)
class Checkpoint:
    every_steps: int = 1000
    keep: int = 3
    on_error: str = "stop"

    def __post_init__(self) -> None:
        _at_least("checkpoint", self, every_steps=1, keep=1)
        _one_of("checkpoint.on_error", self.on_error, "stop", "continue")


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


# What a run may be continued with differently: nothing here changes a number in log.txt, but for when it is taken.
FREE = {
    "run": ("dir", "device", "tensorboard"),
    "data": ("path", "num_workers"),
    "model": ("init_from",),
    "train": ("micro_batch_sequences", "on_nan", "parallel", "compile"),
    "eval": tuple(f.name for f in dataclasses.fields(Eval)),
    "checkpoint": tuple(f.name for f in dataclasses.fields(Checkpoint)),
}


def refuse_other_mathematics(run: RunDirectory, settings: Config) -> None:
    """Raise Error where a run directory holds a run of another configuration, and show the difference.

    A key that the run was started without counts as its default.
    """
    if not run.config.exists():
        return
    defaults = tomllib.loads(dump_config(Config()))
    before = tomllib.loads(run.config.read_text(encoding="utf-8"))
    before = {section: values | before.get(section, {}) for section, values in defaults.items()}
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


def _at_least(section: str, values: object, **lowest: int) -> None:
    for name, low in lowest.items():
        if getattr(values, name) < low:
            raise Error(f"{section}.{name}: expected at least {low}, got {getattr(values, name)}")


def _one_of(name: str, value: str, *known: str) -> None:
    if value not in known:
        raise Error(f"{name}: expected {', '.join(known[:-1])} or {known[-1]}, got {value!r}")
