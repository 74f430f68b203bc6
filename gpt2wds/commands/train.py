"""gpt2wds-train: configuration → data, model and optimizer → the training loop."""

import dataclasses
import json
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import torch

from .. import __version__, files
from ..checkpoint import load_weights, newest_sound_checkpoint, restore
from ..config import differences, dump_config, load_config
from ..dataset import Dataset
from ..distributed import World, join_world
from ..evaluation import generate, unigram_entropy, validation_loss
from ..hellaswag import Questions, ending_log_probabilities, load_questions, scores
from ..loader import StepBatches, validation_sequences
from ..model import GPT2, SIZES, GPT2Config
from ..optim import learning_rate_factor, make_optimizers
from ..order import Position
from ..rundir import RunDirectory
from ..tokenizer import load_tokenizer
from ..training import Recipe, Trainer
from .common import ProgressLine, one_line_errors
from .models import find_weights

EVALUATION_SEQUENCES = 16  # of one forward pass over validation text


@dataclass(frozen=True)
class Run:
    dir: str = "runs/gpt2"
    seed: int = 1337
    device: str = "auto"


@dataclass(frozen=True)
class Data:
    path: str = "data/fineweb-edu"
    seq_len: int = 1024
    num_workers: int = 0


@dataclass(frozen=True)
class Model:
    size: str = "gpt2"
    n_layer: int = 0
    n_head: int = 0
    n_embd: int = 0
    init_from: str = ""


@dataclass(frozen=True)
class Train:
    tokens_per_step: int = 524288
    micro_batch_sequences: int = 64
    max_steps: int = 19073
    learning_rate: float = 6e-4
    min_learning_rate: float = 6e-5
    warmup_steps: int = 715
    schedule: str = "cosine"
    optimizer: str = "adamw"
    muon_learning_rate: float = 0.02
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    dtype: str = "bfloat16"
    compile: bool = True


@dataclass(frozen=True)
class Eval:
    every_steps: int = 250
    val_tokens: int = 10485760
    hellaswag: str = ""
    hellaswag_mode: str = "completion"
    sample_prompts: list[str] = field(default_factory=lambda: ["Hello, I'm a language model,"])
    sample_tokens: int = 64


@dataclass(frozen=True)
class Checkpoint:
    every_steps: int = 1000
    keep: int = 3


@dataclass(frozen=True)
class Config:
    run: Run = field(default_factory=Run)
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    train: Train = field(default_factory=Train)
    eval: Eval = field(default_factory=Eval)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)


# What a run may be continued with differently: nothing here changes a number in log.txt, but for when it is taken.
FREE = {
    "run": ("dir", "device"),
    "data": ("path", "num_workers"),
    "model": ("init_from",),
    "train": ("micro_batch_sequences", "compile"),
    "eval": tuple(f.name for f in dataclasses.fields(Eval)),
    "checkpoint": tuple(f.name for f in dataclasses.fields(Checkpoint)),
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
@click.option("--dry-run", is_flag=True, help="Print what would be done: sizes, steps, tokens left out.")
@click.version_option(__version__)
def main(config: Path, overrides: tuple[str, ...], dry_run: bool) -> None:
    """Train a GPT-2 on a dataset directory as CONFIG, a TOML file, says.

    Alone, or on several GPUs: torchrun --standalone --nproc-per-node=8 --no-python gpt2wds-train CONFIG.
    A run that was stopped, in whatever way, goes on when the same command is given again.
    """
    with one_line_errors():
        settings = load_config(config, list(overrides), Config)
        with join_world(settings.run.device) as world:
            signal_number = _train(settings, world, dry_run)
    if signal_number:
        sys.exit(128 + signal_number)


def _train(settings: Config, world: World, dry_run: bool) -> int:
    torch.set_float32_matmul_precision("high" if settings.train.dtype == "bfloat16" else "highest")
    settings = dataclasses.replace(settings, train=dataclasses.replace(settings.train, dtype=_dtype(settings, world)))
    run = RunDirectory(settings.run.dir)
    dataset = Dataset(settings.data.path)
    recipe, sequences_per_step = _recipe(settings), _sequences_per_step(settings)
    if not dry_run:
        _refuse_other_mathematics(run, settings)
    say = _printer(run, world, to_file=not dry_run)

    model = _model(settings).to(world.device)
    optimizers = make_optimizers(
        model,
        settings.train.optimizer,
        learning_rate=settings.train.learning_rate,
        weight_decay=settings.train.weight_decay,
        muon_learning_rate=settings.train.muon_learning_rate,
    )
    state: dict[str, Any] = {"step": 0, "row": {"step": 0, "tokens": 0}}
    checkpoint = None if dry_run else newest_sound_checkpoint(run.checkpoints, say)
    if checkpoint is not None:
        state, tensors = restore(checkpoint, model)
        optimizers.load_state(model, tensors)
        if state["dataset_id"] != dataset.id:
            raise ValueError(
                f"{run.path}: was trained on dataset {state['dataset_id']}, data.path = {settings.data.path} is "
                f"{dataset.id}; give the first one, or choose another run.dir"
            )
    batches = StepBatches(
        dataset,
        seq_len=settings.data.seq_len,
        sequences_per_step=sequences_per_step,
        seed=settings.run.seed,
        rank=world.rank,
        world_size=world.world_size,
        num_workers=settings.data.num_workers,
        position=Position(state.get("epoch", 0), tuple((g, n) for g, n in state.get("taken", ()))),
    )
    evaluate = _evaluation(settings, dataset, model.config, world, say)
    if not dry_run:
        # Only now, when all of it is known to be possible: a mistake corrected is no other run.
        _claim(run, settings, world)
    _introduce(settings, dataset, model, batches, world, say)
    if dry_run:
        return 0
    if checkpoint is not None:
        if state["step"] == settings.train.max_steps and _is_logged(run, state["step"]):
            say(f"already finished: {run.path}")
            return 0
        say(f"resuming from {checkpoint}")
    if world.is_main:
        files.replace(run.facts, json.dumps(_facts(settings, dataset, model, world), indent=1) + "\n")
    progress = ProgressLine("training", settings.train.max_steps, " steps", done=state["step"])
    trainer = Trainer(
        model,
        optimizers,
        batches,
        evaluate,
        recipe,
        run=run,
        world=world,
        say=say,
        progress=progress.update if world.is_main else lambda *_: None,
    )
    stopped_by = trainer.train(state)
    if not stopped_by:
        say(f"finished: {run.path}")
    return stopped_by


def _is_logged(run: RunDirectory, step: int) -> bool:
    return any(row["step"] == step for row in run.read_metrics())


def _refuse_other_mathematics(run: RunDirectory, settings: Config) -> None:
    if not run.config.exists():
        return
    wanted = tomllib.loads(dump_config(settings))
    changed = [
        line
        for line in differences(tomllib.loads(run.config.read_text(encoding="utf-8")), wanted)
        if line.split(":")[0].split(".")[1] not in FREE[line.split(".")[0]]
    ]
    if changed:
        raise ValueError(
            f"{run.path}: holds a run of another configuration ({'; '.join(changed)}); "
            "take the change back, or choose another run.dir"
        )


def _claim(run: RunDirectory, settings: Config, world: World) -> None:
    """Write config.toml, once every rank has compared what was there."""
    world.barrier()
    if world.is_main:
        run.path.mkdir(parents=True, exist_ok=True)
        files.replace(run.config, dump_config(settings))


def _printer(run: RunDirectory, world: World, to_file: bool) -> Callable[[str], None]:
    def say(text: str) -> None:
        if world.is_main:
            print(text, flush=True)
            if to_file:
                with run.printed.open("a", encoding="utf-8") as file:
                    file.write(text + "\n")

    return say


def _model(settings: Config) -> GPT2:
    m = settings.model
    if m.init_from:
        model = load_weights(find_weights(m.init_from))
        if model.config.n_positions < settings.data.seq_len:
            raise ValueError(
                f"data.seq_len: expected at most the {model.config.n_positions} positions of {m.init_from}, "
                f"got {settings.data.seq_len}"
            )
        return model
    if m.n_layer or m.n_head or m.n_embd:
        shape = (m.n_layer, m.n_head, m.n_embd)
    elif m.size in SIZES:
        shape = SIZES[m.size]
    else:
        raise ValueError(f"model.size: expected {', '.join(SIZES)}, or n_layer, n_head and n_embd, got {m.size!r}")
    n_layer, n_head, n_embd = shape
    return GPT2(GPT2Config(n_layer, n_head, n_embd, n_positions=settings.data.seq_len), seed=settings.run.seed)


def _dtype(settings: Config, world: World) -> str:
    """bfloat16 where asked; "auto" takes it where the processor computes it faster than float32."""
    dtype = settings.train.dtype
    if dtype == "auto":
        fast = (
            torch.cuda.is_bf16_supported()
            if world.device.type == "cuda"
            else torch.ops.mkldnn._is_mkldnn_bf16_supported()
        )
        return "bfloat16" if fast else "float32"
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"train.dtype: expected bfloat16, float32 or auto, got {dtype!r}")
    if dtype == "bfloat16" and world.device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ValueError('train.dtype: this GPU has no bfloat16; use train.dtype = "float32"')
    return dtype


def _sequences_per_step(settings: Config) -> int:
    tokens, seq_len = settings.train.tokens_per_step, settings.data.seq_len
    if seq_len < 1:
        raise ValueError(f"data.seq_len: expected at least 1, got {seq_len}")
    if tokens < seq_len or tokens % seq_len:
        below, above = tokens // seq_len * seq_len, (tokens // seq_len + 1) * seq_len
        near = f"{below} or {above}" if below > 0 else str(max(above, seq_len))
        raise ValueError(
            f"train.tokens_per_step: expected a multiple of data.seq_len = {seq_len}, got {tokens}; try {near}"
        )
    return tokens // seq_len


def _recipe(settings: Config) -> Recipe:
    t = settings.train
    for name, value in (("max_steps", t.max_steps), ("micro_batch_sequences", t.micro_batch_sequences)):
        if value < 1:
            raise ValueError(f"train.{name}: expected at least 1, got {value}")
    if not t.learning_rate > 0:
        raise ValueError(f"train.learning_rate: expected more than 0, got {t.learning_rate}")
    for name, value in (("eval", settings.eval.every_steps), ("checkpoint", settings.checkpoint.every_steps)):
        if value < 1:
            raise ValueError(f"{name}.every_steps: expected at least 1, got {value}")
    if not 0 <= settings.run.seed < 2**64:
        # Said here, because torch would say only that something overflowed.
        raise ValueError(f"run.seed: expected 0 to 2^64 - 1, got {settings.run.seed}")
    if settings.checkpoint.keep < 1:
        raise ValueError(f"checkpoint.keep: expected at least 1, got {settings.checkpoint.keep}")
    factor = learning_rate_factor(
        t.schedule,
        warmup_steps=t.warmup_steps,
        max_steps=t.max_steps,
        min_factor=t.min_learning_rate / t.learning_rate,
    )
    return Recipe(
        max_steps=t.max_steps,
        micro_batch_sequences=t.micro_batch_sequences,
        grad_clip=t.grad_clip,
        dtype=t.dtype,
        compile=t.compile,
        learning_rate=t.learning_rate,
        learning_rate_factor=factor,
        eval_every_steps=settings.eval.every_steps,
        checkpoint_every_steps=settings.checkpoint.every_steps,
        checkpoint_keep=settings.checkpoint.keep,
    )


def _evaluation(
    settings: Config, dataset: Dataset, config: GPT2Config, world: World, say: Callable[[str], None]
) -> Callable[[GPT2], dict[str, Any]]:
    """What is measured every eval.every_steps: validation loss, HellaSwag, samples; each where there is something."""
    questions: Questions | None = None
    if settings.eval.hellaswag:
        questions = load_questions(Dataset(settings.eval.hellaswag), settings.eval.hellaswag_mode, config.n_positions)
    tokenizer = load_tokenizer() if settings.eval.sample_prompts else None

    def evaluate(model: GPT2) -> dict[str, Any]:
        model.eval()
        metrics: dict[str, Any] = {}
        if dataset.shards("val"):
            batches = validation_sequences(
                dataset,
                seq_len=settings.data.seq_len,
                max_tokens=settings.eval.val_tokens,
                batch_sequences=EVALUATION_SEQUENCES,
                rank=world.rank,
                world_size=world.world_size,
            )
            metrics["val_loss"] = validation_loss(model, batches, world, settings.train.dtype)
        if questions is not None:
            result = scores(questions, ending_log_probabilities(model, questions, world, settings.train.dtype))
            metrics["hella_acc"], metrics["hellaswag"] = result["acc_norm_tokens"], result
        if tokenizer is not None and world.is_main:
            metrics["samples"] = []
            for prompt in settings.eval.sample_prompts:
                count, seed = settings.eval.sample_tokens, settings.run.seed
                text = generate(model, tokenizer, prompt, tokens=count, seed=seed, device=world.device)
                metrics["samples"].append({"prompt": prompt, "text": text})
        model.train()
        return metrics

    return evaluate


def _introduce(
    settings: Config, dataset: Dataset, model: GPT2, batches: StepBatches, world: World, say: Callable[[str], None]
) -> None:
    steps, tokens = settings.train.max_steps, settings.train.tokens_per_step
    say(f"gpt2wds {__version__}, torch {torch.__version__}, {_device_name(world)}, {world.world_size} rank(s)")
    c = model.config
    say(f"model: {model.parameter_count():,} parameters, {c.n_layer} layers, {c.n_head} heads, {c.n_embd} channels")
    say(f"data: {dataset.corpus}, {dataset.total('train', 'tokens'):,} training tokens, dataset_id {dataset.id}")
    say(
        f"steps: {steps:,} of {tokens:,} tokens, {steps / batches.steps_per_epoch:.2f} epochs of "
        f"{batches.steps_per_epoch:,} steps; left out of an epoch: {batches.left_out:,} sequences that fill no step, "
        f"{batches.trailing_tokens:,} tokens at shards' ends that fill no sequence"
    )
    say(f"precision: {settings.train.dtype}; checkpoints of {model.parameter_count() * 12 / 1e6:,.0f} MB")


def _facts(settings: Config, dataset: Dataset, model: GPT2, world: World) -> dict[str, Any]:
    """What the report tells of the run as a whole."""
    blocks = (dataset.read_tokens("val", block) for block in range(len(dataset.blocks["val"])))
    return {
        "version": __version__,
        "corpus": dataset.corpus,
        "dataset_id": dataset.id,
        "train_tokens": dataset.total("train", "tokens"),
        "val_tokens": min(settings.eval.val_tokens, dataset.total("val", "tokens")),
        "parameters": model.parameter_count(),
        "tokens_per_step": settings.train.tokens_per_step,
        "seq_len": settings.data.seq_len,
        "max_steps": settings.train.max_steps,
        "world_size": world.world_size,
        "device": _device_name(world),
        "torch": torch.__version__,
        "val_unigram_entropy": unigram_entropy(blocks) if len(dataset.blocks["val"]) else None,
    }


def _device_name(world: World) -> str:
    if world.device.type == "cuda":
        return torch.cuda.get_device_name(world.device)
    if world.device.type == "cpu":
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.exists() else []
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        return f"CPU {names[0] if names else ''}, {torch.get_num_threads()} threads"
    return world.device.type
