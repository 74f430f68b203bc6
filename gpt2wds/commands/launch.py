"""Settings and a world → data, model and optimizer → the training loop."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import torch

from .. import files
from ..config import dump_config
from ..dataset.directory import Dataset
from ..dataset.loader import StepBatches, validation_sequences
from ..distributed import World
from ..errors import Error
from ..evaluate.hellaswag import Questions, ending_log_probabilities, load_questions, scores
from ..evaluate.text import generate, validation_loss
from ..model import GPT2, VOCAB_SIZE, GPT2Config
from ..tokenizer import load_tokenizer
from ..train.checkpoint import load_state, load_weights, newest_sound_checkpoint
from ..train.cost import flops_per_token, peak_flops
from ..train.hf_tokenizer import tokenizer_files
from ..train.loop import Recipe, Trainer
from ..train.optim import learning_rate_factor, make_optimizers
from ..train.parallel import share
from ..train.rundir import RunDirectory
from ..train.signals import Signals
from .common import ProgressLine
from .models import find_weights
from .overview import device_name, facts, forecast, introduce
from .settings import Config, refuse_other_mathematics

EVALUATION_SEQUENCES = 16  # of one forward pass over validation text, at most


def launch(settings: Config, world: World, signals: Signals, dry_run: bool) -> int:
    """Begin the run, or go on with it; returns the signal that stopped it, or 0."""
    torch.set_float32_matmul_precision("high" if settings.train.dtype == "bfloat16" else "highest")
    settings = dataclasses.replace(settings, train=dataclasses.replace(settings.train, dtype=_dtype(settings, world)))
    run = RunDirectory(settings.run.dir, tensorboard=settings.run.tensorboard and world.is_main)
    dataset, recipe = Dataset(settings.data.path), make_recipe(settings)
    if not dry_run:
        refuse_other_mathematics(run, settings)
    say = _printer(run, world, to_file=not dry_run)

    batches = _batches(settings, dataset, world)
    checkpoint = None if dry_run else newest_sound_checkpoint(run.checkpoints, say)
    state: dict[str, Any] = {"step": 0, "row": {"step": 0, "tokens": 0}}
    if checkpoint is not None:
        state, tensors = load_state(checkpoint)
        try:
            batches.load_state_dict(state.get("batches", state))
        except Error as error:
            raise Error(f"{checkpoint}, data.path = {settings.data.path}: {error}, or choose another run.dir") from None
    model = (_fresh_model(settings) if checkpoint is None else load_weights(checkpoint)).to(world.device)
    shared = share(model, world, settings.train.parallel)
    optimizers = make_optimizers(
        model,
        settings.train.optimizer,
        learning_rate=settings.train.learning_rate,
        weight_decay=settings.train.weight_decay,
        muon_learning_rate=settings.train.muon_learning_rate,
    )
    if checkpoint is not None:
        optimizers.load_state(model, tensors)
    evaluate = _evaluation(settings, dataset, model.config, world)
    if not dry_run:
        # Only now, when all of it is known to be possible: a mistake corrected is no other run.
        _claim(run, settings, world)
    introduce(settings, dataset, model, batches, world, say)
    if dry_run:
        forecast(settings, model, batches, world, say)
        return 0
    if checkpoint is not None:
        if state["step"] == settings.train.max_steps and _is_logged(run, state["step"]):
            say(f"already finished: {run.path}")
            return 0
        say(f"resuming from {checkpoint}")
    if world.is_main:
        files.replace(run.facts, json.dumps(facts(settings, dataset, model, world), indent=1) + "\n")
    peak = peak_flops(device_name(world), settings.train.dtype)
    if peak is not None:
        per_token = flops_per_token(model, settings.data.seq_len)
        recipe = dataclasses.replace(recipe, peak_tokens_per_second=peak * world.world_size / per_token)
    progress = ProgressLine("training", settings.train.max_steps, " steps", done=state["step"])
    trainer = Trainer(
        shared,
        optimizers,
        batches,
        evaluate,
        recipe,
        run=run,
        world=world,
        signals=signals,
        beside_weights=_tokenizer_files(model.config, say) if world.is_main else {},
        say=say,
        progress=progress.update if world.is_main else lambda *_: None,
    )
    stopped_by = trainer.train(state)
    if not stopped_by:
        say(f"finished: {run.path}")
    return stopped_by


def _is_logged(run: RunDirectory, step: int) -> bool:
    return any(row["step"] == step for row in run.read_metrics())


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


def _batches(settings: Config, dataset: Dataset, world: World) -> StepBatches:
    return StepBatches(
        dataset,
        seq_len=settings.data.seq_len,
        sequences_per_step=settings.sequences_per_step,
        seed=settings.run.seed,
        rank=world.rank,
        world_size=world.world_size,
        num_workers=settings.data.num_workers,
    )


def _fresh_model(settings: Config) -> GPT2:
    """The model a run begins with: random, or the weights of model.init_from, which a resumed run does not need."""
    origin = settings.model.init_from
    if not origin:
        shape = GPT2Config(*settings.model.shape, n_positions=settings.data.seq_len)
        return GPT2(shape, seed=settings.run.seed)
    model = load_weights(find_weights(origin))
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


def make_recipe(settings: Config) -> Recipe:
    t = settings.train
    factor = learning_rate_factor(
        t.schedule,
        warmup_steps=t.warmup_steps,
        max_steps=t.max_steps,
        min_factor=t.min_learning_rate / t.learning_rate,
        decay_steps=t.decay_steps,
    )
    return Recipe(
        max_steps=t.max_steps,
        micro_batch_sequences=t.micro_batch_sequences,
        grad_clip=t.grad_clip,
        on_nan=t.on_nan,
        dtype=t.dtype,
        compile=t.compile,
        learning_rate=t.learning_rate,
        learning_rate_factor=factor,
        eval_every_steps=settings.eval.every_steps,
        checkpoint_every_steps=settings.checkpoint.every_steps,
        checkpoint_keep=settings.checkpoint.keep,
        checkpoint_on_error=settings.checkpoint.on_error,
    )


def _evaluation(
    settings: Config, dataset: Dataset, config: GPT2Config, world: World
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
                # Where a micro-batch fits, so does this.
                batch_sequences=min(EVALUATION_SEQUENCES, settings.train.micro_batch_sequences),
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
