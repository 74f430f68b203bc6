"""What a configuration of gpt2wds-train says: names, defaults, and what can be checked without looking further."""

from dataclasses import dataclass, field

from ..dataset.prompts import MODES
from ..errors import Error
from ..model import SIZES, GPT2Config
from ..train.recipe import Checkpoint, Train, at_least, one_of


@dataclass(frozen=True)
class Run:
    dir: str = "runs/gpt2"
    seed: int = 1337
    device: str = "auto"
    tensorboard: bool = False
    fork_from: str = ""

    def __post_init__(self) -> None:
        if not self.dir.strip():
            raise Error(f"run.dir: expected a directory, got {self.dir!r}; for example runs/mine")
        if not 0 <= self.seed < 2**64:
            raise Error(f"run.seed: expected 0 to 2^64 - 1, got {self.seed}")


@dataclass(frozen=True)
class Data:
    path: str = "data/fineweb-edu"
    seq_len: int = 1024
    num_workers: int = 0

    def __post_init__(self) -> None:
        at_least("data", self, seq_len=1, num_workers=0)
        if not self.path.strip():
            raise Error(f"data.path: expected a dataset directory, got {self.path!r}; for example data/mine")


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
        GPT2Config(*self.shape)  # refuses what no GPT-2 has

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
        if self.run.fork_from and self.model.init_from:
            raise Error(
                "run.fork_from, model.init_from: expected one of them, got both; a fork begins from its checkpoint's "
                "weights"
            )
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
