"""Settings and a world → data, model and optimizer → the training loop."""

import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from ..config import Table, dump_config
from ..dataset.directory import Dataset
from ..dataset.loader import StepBatches
from ..distributed import World, has_fast_bfloat16
from ..errors import Error, counted
from ..model import VOCAB_SIZE, GPT2Config
from ..rows import Facts, Measures
from ..tokenizer import load_tokenizer
from ..train.boards import BOARDS
from ..train.cost import flops_per_token, peak_flops
from ..train.hf_tokenizer import tokenizer_files
from ..train.loop import Evaluate, Trainer
from ..train.rundir import RunDirectory
from ..train.signals import Signals
from ..train.update import Update
from .existing import (
    as_begun,
    configuration_before,
    kept_measures,
    measures,
    refuse_other_mathematics,
    refuse_other_past,
)
from .measuring import evaluation
from .output import ProgressLine, duration
from .overview import device_name, forecast, introduce, run_facts, say_epochs
from .settings import Config
from .start import Start, find_start, refuse_nothing_to_train, refuse_on_all_ranks, refuse_other_starts


@dataclass(frozen=True)
class Assembly:
    """Everything a run needs, whole and in agreement; nothing is written yet."""

    settings: Config
    world: World
    run: RunDirectory
    batches: StepBatches
    update: Update
    evaluate: Evaluate
    start: Start
    measures: Measures


def launch(settings: Config, world: World, signals: Signals) -> int:
    """Begin the run, or go on with it; returns the signal that stopped it, or 0."""
    torch.set_float32_matmul_precision("high" if settings.train.dtype == "bfloat16" else "highest")
    run = _run_directory(settings, world)
    with _held(run, world):
        return train(assemble(settings, world, run), signals)


def preview(settings: Config, world: World, ranks: int | None = None, tokens_per_second: float | None = None) -> None:
    """Say what `launch` would do, and write nothing; as one of `ranks`, if given."""
    if ranks and world.world_size > 1:
        raise Error(f"ranks: expected one process to plan for {ranks}, got {world.world_size}; leave torchrun out")
    run = _run_directory(settings, world)
    run.refuse_damaged_rows()
    assembly = assemble(settings, world, run, ranks)
    settings, start = assembly.settings, assembly.start  # with what "auto" is here
    planned = dataclasses.replace(world, world_size=ranks or world.world_size)
    introduce(settings, start.model, assembly.batches, planned, run.say)
    forecast(settings, start.model, assembly.batches, planned, run.say)
    step, last = start.state.step, settings.train.max_steps
    if tokens_per_second:
        seconds = (last - step) * settings.train.tokens_per_step / tokens_per_second
        if not math.isfinite(seconds):
            raise Error(f"tokens_per_second: expected a rate that ends these steps, got {tokens_per_second}")
        run.say(
            f"time: {counted(last - step, 'step')} at {tokens_per_second:,.0f} tokens/s: {duration(seconds)}, "
            "without evaluations and checkpoints"
        )
    if start.checkpoint is not None:
        would = "it would continue from" if step < last else "it is finished, with"
        run.say(f"this run exists: {would} {start.checkpoint}, step {step:,} of {last:,}")
    elif start.state.origin:
        run.say(f"a new run: it would begin from {start.state.origin['path']}, step {step:,} of {last:,}")


def _run_directory(settings: Config, world: World) -> RunDirectory:
    boards = [name for name in BOARDS if getattr(settings.run, name)] if world.is_main else []
    for name in ("manifest.json", "plan.json"):
        if Path(settings.run.dir, name).exists():
            raise Error(f"run.dir: expected a directory of the run's own, got {settings.run.dir}, which has a dataset")
    for path in (Path(settings.run.dir), *Path(settings.run.dir).parents):
        if path.exists() and not path.is_dir():
            which = "which is a file" if path == Path(settings.run.dir) else f"in the file {path}"
            raise Error(f"run.dir: expected a directory, got {settings.run.dir}, {which}")
    return RunDirectory(settings.run.dir, is_main=world.is_main, boards=boards)


@contextmanager
def _held(run: RunDirectory, world: World) -> Iterator[None]:
    """Have the run directory for this world alone. Where another has it, all ranks end, and the first says why."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks != "1" and "RANK" not in os.environ:
        run.say(
            f"WARNING: Slurm started {tasks} tasks without torchrun: each of them trains alone. For one run over all "
            "GPUs start one task on each node, torchrun, as examples/slurm/train.sbatch does"
        )
    with ExitStack() as stack:
        problem = ""
        try:
            stack.enter_context(run.held())
        except Error as error:
            problem = str(error)
        refuse_on_all_ranks(world.gather(problem)[0], world)
        yield


def assemble(settings: Config, world: World, run: RunDirectory, ranks: int | None = None) -> Assembly:
    """Settings and a world → a run, fresh or as its newest sound checkpoint left it; as one of `ranks`, if given.

    Raises Error where settings, data, model and run directory do not fit.
    """
    before = configuration_before(run)
    dtype = _dtype(settings, before, world)
    settings = dataclasses.replace(settings, train=dataclasses.replace(settings.train, dtype=dtype))
    data = [(Dataset(each.path), each.weight) for each in settings.data.weighted]
    refuse_other_mathematics(run, before, settings)
    batches = StepBatches(
        data,
        seq_len=settings.data.seq_len,
        sequences_per_step=settings.sequences_per_step,
        seed=settings.run.seed,
        rank=world.rank,
        world_size=ranks or world.world_size,
        num_workers=settings.data.num_workers,
    )
    start = find_start(settings, run, batches)
    refuse_nothing_to_train(start, settings)
    refuse_other_starts(start, settings, batches, world)
    choices = Dataset(settings.eval.hellaswag) if settings.eval.hellaswag else None
    means = measures(settings, batches.portions, choices)
    if start.checkpoint is not None:
        if before is None:
            run.say(f"WARNING: {run.config} is not there; held to what {start.checkpoint} says of itself")
        refuse_other_past(run, before, settings, start.state.step)
        settings = as_begun(settings, before, start.state, run)
        means = kept_measures(run, before, means)
    start.model.to(world.device)
    evaluate = evaluation(settings, batches.portions, choices, start.model.config, world, run.say)
    update = Update(
        start.model,
        settings.train,
        world,
        sequences_per_step=settings.sequences_per_step,
        skip_steps=settings.data.skipped,
        say=run.say,
    )
    update.load_optimizer_tensors(start.moments)
    return Assembly(settings, world, run, batches, update, evaluate, start, means)


def train(assembly: Assembly, signals: Signals) -> int:
    """Train to the end; returns the signal that stopped it, or 0."""
    settings, world, run, start = assembly.settings, assembly.world, assembly.run, assembly.start
    model, state = start.model, start.state
    # Only now, when all of it is known to be possible: a mistake, corrected, does not count as another run. And once
    # every rank has compared what was there.
    world.barrier()
    run.claim(dump_config(settings))
    introduce(settings, model, assembly.batches, world, run.say)
    if start.checkpoint is not None:
        if state.step == settings.train.max_steps and any(row["step"] == state.step for row in run.read_metrics()):
            run.say(f"already finished: {run.path}")
            return 0
        run.say(f"resuming from {start.checkpoint}")
        say_epochs(assembly.batches, run.say)
    elif settings.run.fork_from:
        run.say(f"beginning from {state.origin and state.origin['path']}, step {state.step:,}")
    facts: Facts = {**run_facts(settings, assembly.batches.portions, model, world), **assembly.measures}
    run.write_facts({**facts, "origin": state.origin} if state.origin else facts)
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
        settings.run.log_every_steps,
        beside_weights=_tokenizer_files(model.config, run.say) if world.is_main else {},
        progress=progress.update if world.is_main else lambda *_: None,
        peak_tokens_per_second=peak and peak * world.world_size / flops_per_token(model, settings.data.seq_len),
    )
    stopped_by = trainer.train(state)
    say_epochs(assembly.batches, run.say)
    if not stopped_by:
        run.say(f"finished: {run.path}")
    return stopped_by


def _tokenizer_files(config: GPT2Config, say: Callable[[str], None]) -> dict[str, bytes]:
    if config.vocab_size != VOCAB_SIZE:
        return {}
    try:
        return tokenizer_files(load_tokenizer(), config.n_positions)
    except Error as error:
        # Ids are all that training needs.
        say(f"checkpoints will have no tokenizer files ({error})")
        return {}


def _dtype(settings: Config, before: Table | None, world: World) -> str:
    """What "auto" is: what the run began with, or bfloat16 where the processor computes it faster than float32."""
    dtype = settings.train.dtype
    if dtype == "auto" and before is not None:
        dtype = before["train"]["dtype"]
    if dtype == "auto":
        dtype = "bfloat16" if has_fast_bfloat16(world.device) else "float32"
    if dtype == "bfloat16" and world.device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise Error('train.dtype: this GPU has no bfloat16; use train.dtype = "float32"')
    return dtype
