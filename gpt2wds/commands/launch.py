"""Settings and a world → data, model and optimizer → the training loop."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..config import dump_config
from ..dataset.directory import Dataset
from ..dataset.loader import StepBatches
from ..dataset.validation import validation_sequences
from ..distributed import World
from ..errors import Error
from ..evaluate.hellaswag import score
from ..evaluate.inference import NotFinite
from ..evaluate.questions import Questions, load_questions
from ..evaluate.text import generate, validation_loss
from ..model import GPT2, VOCAB_SIZE, GPT2Config
from ..tokenizer import Tokenizer, load_tokenizer
from ..train.checkpoint import State, load_state, newest_sound_checkpoint
from ..train.cost import flops_per_token, peak_flops
from ..train.hf_tokenizer import tokenizer_files
from ..train.loop import Evaluate, Trainer
from ..train.rundir import RunDirectory
from ..train.signals import Signals
from ..train.update import Update
from ..train.weights import load_weights
from .common import ProgressLine
from .models import find_weights
from .overview import device_name, forecast, introduce, run_facts
from .settings import Config, refuse_another_past, refuse_other_mathematics

EVALUATION_SEQUENCES = 16  # of one forward pass over validation text, at most


@dataclass(frozen=True)
class Assembly:
    """Everything a run needs, whole and in agreement; nothing is written yet."""

    settings: Config
    world: World
    run: RunDirectory
    dataset: Dataset
    batches: StepBatches
    model: GPT2
    update: Update
    evaluate: Evaluate
    state: State
    checkpoint: Path | None  # what the run continues from


def launch(settings: Config, world: World, signals: Signals, dry_run: bool) -> int:
    """Begin the run, or go on with it; returns the signal that stopped it, or 0."""
    torch.set_float32_matmul_precision("high" if settings.train.dtype == "bfloat16" else "highest")
    assembly = assemble(settings, world)
    if dry_run:
        settings = assembly.settings  # with what "auto" is here
        introduce(settings, assembly.dataset, assembly.model, assembly.batches, world, assembly.run.say)
        forecast(settings, assembly.model, assembly.batches, world, assembly.run.say)
        if assembly.checkpoint is not None:
            step, last = assembly.state.step, settings.train.max_steps
            assembly.run.say(
                f"this run exists: it would continue from {assembly.checkpoint}, step {step:,} of {last:,}"
            )
        return 0
    return train(assembly, signals)


def assemble(settings: Config, world: World) -> Assembly:
    """Settings and a world → a run, fresh or as its newest sound checkpoint left it.

    Raises Error where settings, data, model and run directory do not fit.
    """
    settings = dataclasses.replace(settings, train=dataclasses.replace(settings.train, dtype=_dtype(settings, world)))
    tensorboard = settings.run.tensorboard and world.is_main
    run = RunDirectory(settings.run.dir, is_main=world.is_main, tensorboard=tensorboard)
    dataset = Dataset(settings.data.path)
    refuse_other_mathematics(run, settings)
    batches = StepBatches(
        dataset,
        seq_len=settings.data.seq_len,
        sequences_per_step=settings.sequences_per_step,
        seed=settings.run.seed,
        rank=world.rank,
        world_size=world.world_size,
        num_workers=settings.data.num_workers,
    )
    state = State()
    tensors: dict[str, torch.Tensor] = {}
    checkpoint = newest_sound_checkpoint(run.checkpoints, run.say)
    if checkpoint is not None:
        state, tensors = load_state(checkpoint)
        try:
            batches.load_state_dict(state.batches or {})
        except Error as error:
            raise Error(f"{checkpoint}, data.path = {settings.data.path}: {error}, or choose another run.dir") from None
    refuse_another_past(run, settings, state.step)
    model = (_fresh_model(settings) if checkpoint is None else load_weights(checkpoint)).to(world.device)
    update = Update(
        model,
        settings.train,
        world,
        sequences_per_step=settings.sequences_per_step,
        skip_steps=settings.data.skipped,
        say=run.say,
    )
    update.load_optimizer_tensors(tensors)
    evaluate = _evaluation(settings, dataset, model.config, world, run.say)
    return Assembly(settings, world, run, dataset, batches, model, update, evaluate, state, checkpoint)


def train(assembly: Assembly, signals: Signals) -> int:
    """Train to the end; returns the signal that stopped it, or 0."""
    settings, world, run, model = assembly.settings, assembly.world, assembly.run, assembly.model
    # Only now, when all of it is known to be possible: a mistake corrected is no other run. And once every rank has
    # compared what was there.
    world.barrier()
    run.claim(dump_config(settings))
    introduce(settings, assembly.dataset, model, assembly.batches, world, run.say)
    state = assembly.state
    if assembly.checkpoint is not None:
        if state.step == settings.train.max_steps and any(row["step"] == state.step for row in run.read_metrics()):
            run.say(f"already finished: {run.path}")
            return 0
        run.say(f"resuming from {assembly.checkpoint}")
    run.write_facts(run_facts(settings, assembly.dataset, model, world))
    peak = peak_flops(device_name(world), settings.train.dtype)
    progress = ProgressLine("training", settings.train.max_steps, " steps", done=state.step)
    trainer = Trainer(
        assembly.update,
        assembly.batches,
        assembly.evaluate,
        run,
        signals,
        settings.checkpoint,
        settings.eval.every_steps,
        beside_weights=_tokenizer_files(model.config, run.say) if world.is_main else {},
        progress=progress.update if world.is_main else lambda *_: None,
        peak_tokens_per_second=peak and peak * world.world_size / flops_per_token(model, settings.data.seq_len),
    )
    stopped_by = trainer.train(state)
    if not stopped_by:
        run.say(f"finished: {run.path}")
    return stopped_by


def _fresh_model(settings: Config) -> GPT2:
    """The model a run begins with: random, or the weights of model.init_from, which a resumed run does not need."""
    origin = settings.model.init_from
    if not origin:
        shape = GPT2Config(*settings.model.shape, n_positions=settings.data.seq_len)
        return GPT2(shape, seed=settings.run.seed)
    model = load_weights(find_weights(origin))
    c = model.config
    if settings.model.asked_shape not in (None, (c.n_layer, c.n_head, c.n_embd)):
        raise Error(
            f"model: expected the shape of model.init_from, {c.n_layer} layers, {c.n_head} heads, {c.n_embd} channels, "
            f"got {settings.model.asked_shape}; leave model.size, n_layer, n_head and n_embd out"
        )
    if model.config.n_positions < settings.data.seq_len:
        raise Error(
            f"data.seq_len: expected at most the {model.config.n_positions} positions of {origin}, "
            f"got {settings.data.seq_len}"
        )
    if model.config.vocab_size < VOCAB_SIZE:
        raise Error(
            f"model.init_from: expected a vocabulary of {VOCAB_SIZE} tokens, which the data have, {origin} has "
            f"{model.config.vocab_size}; give a model of GPT-2's vocabulary"
        )
    return model


def _tokenizer_files(config: GPT2Config, say: Callable[[str], None]) -> dict[str, bytes]:
    if config.vocab_size != VOCAB_SIZE:
        return {}
    try:
        return tokenizer_files(load_tokenizer(), config.n_positions)
    except Error as error:
        # Ids are all that training needs.
        say(f"checkpoints will have no tokenizer files ({error})")
        return {}


def _dtype(settings: Config, world: World) -> str:
    """bfloat16 where asked; "auto" takes it where the processor computes it faster than float32."""
    dtype = settings.train.dtype
    on_gpu = world.device.type == "cuda"
    if dtype == "auto":
        fast = torch.cuda.is_bf16_supported() if on_gpu else torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return "bfloat16" if fast else "float32"
    if dtype == "bfloat16" and on_gpu and not torch.cuda.is_bf16_supported():
        raise Error('train.dtype: this GPU has no bfloat16; use train.dtype = "float32"')
    return dtype


def _sample(model: GPT2, tokenizer: Tokenizer, prompt: str, settings: Config, world: World) -> str:
    seed = settings.run.seed
    return generate(model, tokenizer, prompt, tokens=settings.eval.sample_tokens, seed=seed, device=world.device)


def _evaluation(
    settings: Config, dataset: Dataset, config: GPT2Config, world: World, say: Callable[[str], None]
) -> Evaluate:
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
                # Where a micro-batch fits, so does this.
                batch_sequences=min(EVALUATION_SEQUENCES, settings.train.micro_batch_sequences),
                rank=world.rank,
                world_size=world.world_size,
            )
            metrics["val_loss"] = validation_loss(model, batches, world, settings.train.dtype)
        try:
            if questions is not None:
                metrics["hella_acc"] = math.nan
                metrics["hellaswag"] = score(model, questions, world, settings.train.dtype)
                metrics["hella_acc"] = metrics["hellaswag"]["acc_norm_tokens"]
            if tokenizer is not None and world.is_main:
                metrics["samples"] = [
                    {"prompt": prompt, "text": _sample(model, tokenizer, prompt, settings, world)}
                    for prompt in settings.eval.sample_prompts
                ]
        except NotFinite as error:
            say(f"WARNING: {error}")
        model.train()
        return metrics

    return evaluate
