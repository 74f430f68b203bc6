"""What a run starts with: random weights, another model's, another run's checkpoint, or its own newest."""

import dataclasses
import re
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..config import differences, dump_config
from ..dataset.loader import StepBatches
from ..dataset.mixture import identity
from ..distributed import World
from ..errors import Error, counted
from ..model import GPT2, VOCAB_SIZE, GPT2Config
from ..rows import Beginning
from ..train.checkpoint import State, load_state, newest_sound_checkpoint, state_hash
from ..train.rundir import RunDirectory
from ..train.weights import load_weights, weights_hash
from .models import find_checkpoint, find_weights, step_of
from .settings import Config

# What ranks may have of their own: where things are on their host.
OWN_KEYS = {"run.dir", "run.device", "data.path", "model.init_from", "run.fork_from", "eval.hellaswag"}


@dataclass(frozen=True)
class Start:
    """checkpoint: of this run, what it continues from; hash: of that checkpoint, "" for a new run."""

    model: GPT2
    state: State = field(default_factory=State)
    moments: dict[str, torch.Tensor] = field(default_factory=dict)
    checkpoint: Path | None = None
    hash: str = ""


def find_start(settings: Config, run: RunDirectory, batches: StepBatches) -> Start:
    """What the run's newest sound checkpoint holds, or else a new run's beginning; `batches` goes to its place."""
    checkpoint = newest_sound_checkpoint(run.checkpoints, run.say)
    if checkpoint is not None:
        remedy = (
            f"{checkpoint}: {{}}, or choose another run.dir, where model.init_from={run.path} begins a new run with "
            "what this one has learned"
        )
        start = _from_checkpoint(checkpoint, settings, batches, remedy)
        found, asked = start.model.config.document_masking, settings.data.document_masking
        if found != asked:
            mistake = f"expected data.document_masking = {str(found).lower()}, got {str(asked).lower()}; take it back"
            raise Error(remedy.format(mistake))
        return start
    if settings.run.fork_from:
        source = find_checkpoint(settings.run.fork_from)
        remedy = f"run.fork_from={source}: {{}}, or begin with its model alone (model.init_from={source})"
        start = _from_checkpoint(source, settings, batches, remedy)
        _read_documents(start.model, settings)
        if start.state.step >= settings.train.max_steps:
            raise Error(
                f"train.max_steps: expected more than the {counted(start.state.step, 'step')} of {source}, got "
                f"{settings.train.max_steps}"
            )
        origin: Beginning = {"fork_from": settings.run.fork_from, **_origin(source)}
        return dataclasses.replace(start, state=dataclasses.replace(start.state, origin=origin), checkpoint=None)
    if settings.model.init_from:
        source = find_weights(settings.model.init_from)
        origin = {"init_from": settings.model.init_from, **_origin(source)}
        return Start(_others_weights(source, settings), State(origin=origin), hash=origin["sha256"])
    model = GPT2(GPT2Config(*settings.model.shape, n_positions=settings.data.seq_len), seed=settings.run.seed)
    _read_documents(model, settings)
    return Start(model)


def _read_documents(model: GPT2, settings: Config) -> None:
    """Have the model tell documents apart, or not, whatever it did before."""
    model.config = dataclasses.replace(model.config, document_masking=settings.data.document_masking)


def refuse_nothing_to_train(start: Start, settings: Config) -> None:
    """Raise Error for a new run all of whose steps are left out: it would end well, and have trained nothing."""
    steps, skipped = range(start.state.step + 1, settings.train.max_steps + 1), settings.data.skipped
    if start.checkpoint is None and all(any(step in left_out for left_out in skipped) for step in steps):
        raise Error(
            f"data.skip_steps: expected some of the steps {steps.start:,} to {steps[-1]:,} to train on, got all left "
            "out; take some back, or raise train.max_steps"
        )


def _from_checkpoint(path: Path, settings: Config, batches: StepBatches, remedy: str) -> Start:
    """Raises Error, with a remedy, where the checkpoint, a sound one, is of another configuration."""
    state, moments = load_state(path)
    model = load_weights(path, is_checked=True)
    tokens, asked = state.row["tokens"], settings.model.asked_shape
    shape = (model.config.n_layer, model.config.n_head, model.config.n_embd)
    try:
        batches.load_state_dict(state.batches or {})
        if tokens != state.step * settings.train.tokens_per_step:
            raise Error(
                f"expected train.tokens_per_step = {tokens // max(1, state.step)}, got {settings.train.tokens_per_step}"
                "; give the one it was saved with"
            )
        if asked not in (None, shape):
            raise Error(f"expected a model of {_shape_in_words(shape)}, got {asked}; leave [model] out")
    except Error as error:
        raise Error(remedy.format(_with_key(str(error), settings))) from None
    return Start(model, state, moments, path, state_hash(path))


def _with_key(text: str, settings: Config) -> str:
    """What the loader says of a state, and the key of the configuration that it is about."""
    if found := re.match("state: (it was saved with (seed|seq_len) .*)", text):
        return f"{'run' if found[2] == 'seed' else 'data'}.{found[2]}: {found[1]}"
    return f"data.path = {settings.data.described}: {text}" if text.startswith("state: ") else text


def _origin(source: Path) -> Beginning:
    """What a run began from, as its run.json and its checkpoints tell it."""
    return {"path": str(source.resolve()), "step": step_of(source), "sha256": weights_hash(source)}


def refuse_other_starts(start: Start, settings: Config, batches: StepBatches, world: World) -> None:
    """Raise Error where ranks would start from different steps or states, or with different data or configurations."""
    others = world.gather((start.state.step, start.hash, identity(batches.portions), dump_config(settings)))
    step, own, data, config = others[0]
    for rank, (its_step, its_hash, its_data, its_config) in enumerate(others):
        if (its_step, its_hash) != (step, own):
            refuse_on_all_ranks(
                f"ranks would start from different states: rank 0 from step {step:,} ({own[:12] or 'a new model'}), "
                f"rank {rank} from step {its_step:,} ({its_hash[:12] or 'a new model'}); see that every host has the "
                f"same {settings.run.dir}, not an old view or a damaged copy of it, then give the same command again",
                world,
            )
        if its_data != data:
            refuse_on_all_ranks(
                f"ranks have different data: rank 0 dataset_id {data}, rank {rank} {its_data}; see that every host has "
                "the same datasets, and give all ranks the same data.path",
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


def _others_weights(source: Path, settings: Config) -> GPT2:
    """A model to begin with. Raises Error where it is not one for these settings."""
    model = load_weights(source)
    c = model.config
    shape = (c.n_layer, c.n_head, c.n_embd)
    if settings.model.asked_shape not in (None, shape):
        raise Error(
            f"model: expected the shape of model.init_from, {_shape_in_words(shape)}, "
            f"got {settings.model.asked_shape}; leave model.size, n_layer, n_head and n_embd out"
        )
    if c.n_positions < settings.data.seq_len:
        raise Error(
            f"data.seq_len: expected at most the {c.n_positions} positions of {settings.model.init_from}, "
            f"got {settings.data.seq_len}"
        )
    if c.vocab_size < VOCAB_SIZE:
        raise Error(
            f"model.init_from: expected a vocabulary of {VOCAB_SIZE} tokens, which the data have, "
            f"{settings.model.init_from} has {c.vocab_size}; give a model of GPT-2's vocabulary"
        )
    _read_documents(model, settings)
    return model


def _shape_in_words(shape: tuple[int, int, int]) -> str:
    return ", ".join(map(counted, shape, ("layer", "head", "channel")))
