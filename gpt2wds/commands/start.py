"""What a run starts with: random weights, another model's, or its own newest checkpoint; the same on every rank."""

import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..config import differences, dump_config
from ..dataset.loader import StepBatches
from ..distributed import World
from ..errors import Error
from ..model import GPT2, VOCAB_SIZE, GPT2Config
from ..train.checkpoint import State, load_state, newest_sound_checkpoint, state_hash
from ..train.rundir import RunDirectory
from ..train.weights import load_weights
from .models import find_weights
from .settings import Config

# What ranks may have of their own: where things are on their host.
OWN_KEYS = {"run.dir", "run.device", "data.path", "model.init_from", "eval.hellaswag"}


@dataclass(frozen=True)
class Start:
    """checkpoint: of this run, what it continues from; hash: of that checkpoint, "" for a new run."""

    model: GPT2
    state: State = field(default_factory=State)
    moments: dict[str, torch.Tensor] = field(default_factory=dict)
    checkpoint: Path | None = None
    hash: str = ""


def find_start(settings: Config, run: RunDirectory, batches: StepBatches) -> Start:
    """A fresh model, or what the run's newest sound checkpoint holds; `batches` goes to its place in the data."""
    checkpoint = newest_sound_checkpoint(run.checkpoints, run.say)
    if checkpoint is None:
        return Start(_fresh_model(settings))
    state, moments = load_state(checkpoint)
    try:
        batches.load_state_dict(state.batches or {})
    except Error as error:
        raise Error(f"{checkpoint}, data.path = {settings.data.path}: {error}, or choose another run.dir") from None
    return Start(load_weights(checkpoint), state, moments, checkpoint, state_hash(checkpoint))


def refuse_other_starts(start: Start, settings: Config, world: World) -> None:
    """Raise Error where ranks would start from different steps or states, or with different configurations."""
    config = dump_config(settings)
    others = world.gather((start.state.step, start.hash, config))
    step, digest, config = others[0]
    for rank, (its_step, its_digest, its_config) in enumerate(others):
        if (its_step, its_digest) != (step, digest):
            refuse_on_all_ranks(
                f"ranks would start from different states: rank 0 from step {step:,} ({digest[:12] or 'a new model'}), "
                f"rank {rank} from step {its_step:,} ({its_digest[:12] or 'a new model'}); see that every host has the "
                f"same {settings.run.dir}, not an old view or a damaged copy of it, then give the same command again",
                world,
            )
        changed = [
            line
            for line in differences(tomllib.loads(config), tomllib.loads(its_config))
            if line.split(":")[0] not in OWN_KEYS
        ]
        if changed:
            refuse_on_all_ranks(
                f"ranks have different configurations: rank 0 → rank {rank}: {'; '.join(changed)}; give all of them "
                "the same file and the same command",
                world,
            )


def refuse_on_all_ranks(problem: str, world: World) -> None:
    """End every rank where there is a problem, the same on all; the first says what it is."""
    if not problem:
        return
    if world.is_main:
        raise Error(problem)
    sys.exit(1)


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
