"""What a configuration of gpt2wds-train says: names, defaults, and what can be checked without looking further."""

import dataclasses
from dataclasses import dataclass, field

from ..dataset.mixture import check_weight
from ..dataset.order import step_ranges
from ..dataset.prompts import MODES
from ..errors import Error
from ..model import SIZES, GPT2Config
from ..train.recipe import Checkpoint, Train, at_least, key, one_of

LARGEST = {"n_layer": 1000, "n_head": 1000, "n_embd": 1 << 17}  # beyond any GPT-2: building it would not end


@dataclass(frozen=True)
class Run:
    dir: str = key("runs/gpt2", "path", "the run directory")
    seed: int = key(1337, "", "of the weights, the order of the data, and the samples")
    device: str = key("auto", "", "auto (CUDA, then MPS, then CPU), cpu, cuda, cuda:1, mps")
    log_every_steps: int = key(1, "steps", "of which one has a row in log.txt; steps that evaluate have theirs too")
    tensorboard: bool = key(False, "", "write the numbers for TensorBoard too")
    wandb: bool = key(False, "", "send the numbers to Weights & Biases too")
    fork_from: str = key("", "path", "a checkpoint, or a run: a new run goes on from there; empty: none")

    def __post_init__(self) -> None:
        if not self.dir.strip():
            raise Error(f"run.dir: expected a directory, got {self.dir!r}; for example runs/mine")
        if not 0 <= self.seed < 2**64:
            raise Error(f"run.seed: expected 0 to 2^64 - 1, got {self.seed}")
        at_least("run", self, log_every_steps=1)


@dataclass(frozen=True)
class Weighted:
    """A dataset of several, and how much of each step it has, beside the others' weights."""

    path: str
    weight: float

    def __post_init__(self) -> None:
        if not self.path.strip():
            raise Error(f"data.path: expected dataset directories, got {self.path!r}; for example data/mine")
        check_weight(self.weight, f"data.path: weight of {self.path}")


@dataclass(frozen=True)
class Data:
    path: str | list[Weighted] = key(
        "data/fineweb-edu", "path or URL", "a dataset directory of tokens, or several: [{path = …, weight = …}, …]"
    )
    seq_len: int = key(1024, "tokens", "of a sequence; the positions of a fresh model")
    num_workers: int = key(0, "processes", "of each rank that read ahead; 0: the training process reads")
    document_masking: bool = key(False, "", "attention and positions stay within a document, in validation too")
    skip_steps: list[str] = key([], "steps", 'such as ["8400-8420", "9000"]: their sequences are not trained on')

    def __post_init__(self) -> None:
        at_least("data", self, seq_len=1, num_workers=0)
        _ = self.skipped
        if not self.path or (isinstance(self.path, str) and not self.path.strip()):
            raise Error(f"data.path: expected a dataset directory, got {self.path!r}; for example data/mine")
        if isinstance(self.path, str) and self.path.lstrip().startswith("[{"):  # given on a command line
            raise Error(
                f"data.path: expected TOML, got {self.path}; write it as in "
                """'data.path=[{path = "data/a", weight = 3}, {path = "data/b", weight = 1}]'"""
            )

    @property
    def weighted(self) -> list[Weighted]:
        """The datasets with their weights, of which one alone has any."""
        return [Weighted(self.path, 1.0)] if isinstance(self.path, str) else self.path

    @property
    def described(self) -> str:
        """The datasets in one line."""
        if isinstance(self.path, str):
            return self.path
        return ", ".join(f"{each.path} (weight {each.weight:g})" for each in self.path)

    @property
    def skipped(self) -> tuple[range, ...]:
        """`skip_steps` as steps. Raises Error where they are none."""
        try:
            return step_ranges(self.skip_steps)
        except Error as error:
            raise Error(f"data.skip_steps: {error}") from None


@dataclass(frozen=True)
class Model:
    size: str = key("gpt2", "", "gpt2, gpt2-medium, gpt2-large or gpt2-xl")
    n_layer: int = key(0, "layers", "with n_head and n_embd: a shape of your own in place of size")
    n_head: int = key(0, "heads", "with n_layer and n_embd, which they divide")
    n_embd: int = key(0, "channels", "with n_layer and n_head")
    init_from: str = key("", "MODEL", "weights to begin with: run, checkpoint, directory or Hub name; empty: random")

    def __post_init__(self) -> None:
        given = [name for name in ("n_layer", "n_head", "n_embd") if getattr(self, name)]
        at_least("model", self, n_layer=0, n_head=0, n_embd=0)
        for name, most in LARGEST.items():
            if getattr(self, name) > most:
                raise Error(f"model.{name}: expected at most {most:,}, got {getattr(self, name)}")
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
    every_steps: int = key(250, "steps", "between evaluations; the first and the last step have one too")
    val_tokens: int = key(10485760, "tokens", "of the validation text, at most")
    hellaswag: str = key("", "path or URL", "a dataset directory of multiple-choice examples; empty: none")
    hellaswag_mode: str = key("completion", "", "completion or lm-eval")
    sample_prompts: list[str] = key(
        ["Hello, I'm a language model,"], "", "a sample of each at every evaluation; []: none"
    )
    sample_tokens: int = key(64, "tokens", "of a sample, at most")

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
    def idle(self) -> list[str]:
        """Keys that were set and do nothing beside the others, in a line each: by their default nobody set them."""
        train, a_tenth = self.train, dataclasses.replace(self.train, min_learning_rate=None).lowest_rate
        uses = [
            ("train.decay_steps", train.schedule == "wsd", "train.schedule=wsd", Train().decay_steps),
            ("train.min_learning_rate", train.schedule != "constant", "another schedule", a_tenth),
            ("train.muon_learning_rate", train.optimizer == "muon", "train.optimizer=muon", Train().muon_learning_rate),
            ("model.size", not self.model.n_layer, "no n_layer, n_head and n_embd", Model().size),
            ("eval.hellaswag_mode", self.eval.hellaswag, "eval.hellaswag", Eval().hellaswag_mode),
            ("eval.sample_tokens", self.eval.sample_prompts, "eval.sample_prompts", Eval().sample_tokens),
        ]
        found = []
        for name, is_used, beside, usual in uses:
            section, _, of_it = name.partition(".")
            value = getattr(getattr(self, section), of_it)
            if value != usual and not is_used:
                found.append(f"{name}={value} does nothing: it would with {beside}")
        return found

    @property
    def sequences_per_step(self) -> int:
        return self.train.tokens_per_step // self.data.seq_len
