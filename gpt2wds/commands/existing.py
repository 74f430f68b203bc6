"""A command given again for a run that exists: what may change, what is kept, and what is refused."""

import dataclasses
import tomllib
from collections.abc import Sequence

from ..config import Table, differences, dump_config
from ..dataset.directory import Dataset
from ..dataset.mixture import Portion
from ..dataset.order import step_ranges
from ..errors import Error
from ..rows import Measures
from ..train.checkpoint import State
from ..train.recipe import Checkpoint, Train
from ..train.rundir import RunDirectory
from .settings import Config

# Nothing here changes a number in log.txt, but for when it is taken.
FREE = {
    "run": ("dir", "device", "log_every_steps", "tensorboard", "wandb", "fork_from"),
    "data": ("path", "num_workers", "skip_steps"),  # skip_steps for steps to come
    "model": ("init_from",),
    "train": ("micro_batch_sequences", "on_nan", "parallel", "compile", "activation_checkpointing"),
    "eval": ("every_steps", "sample_prompts", "sample_tokens"),
    "checkpoint": tuple(f.name for f in dataclasses.fields(Checkpoint)),
}
LENGTH = ("train.max_steps", "train.decay_steps")  # free where they change no rate of a step that is done
OF_A_CHECKPOINT = ("run.seed", "data.seq_len", "train.tokens_per_step", "train.optimizer")  # a fork keeps them
MEASURES = ("eval.val_tokens", "eval.hellaswag", "eval.hellaswag_mode")  # compared by what they measure


def configuration_before(run: RunDirectory) -> Table | None:
    """What config.toml says; a key that the run was started without has its default. None where there is no file."""
    if not run.config.exists():
        return None
    defaults = tomllib.loads(dump_config(Config()))
    try:
        before = tomllib.loads(run.config.read_text(encoding="utf-8"))
    except ValueError as error:  # TOML, or UTF-8
        raise Error(f"{run.config}: expected TOML ({error}); restore it, it says how the run was begun") from None
    return {section: values | before.get(section, {}) for section, values in defaults.items()}


def refuse_other_mathematics(run: RunDirectory, before: Table | None, settings: Config) -> None:
    """Raise Error where the run is one of another configuration, and show the difference."""
    changed = [line for line in _changed(before, settings) if line.split(":")[0] not in (*LENGTH, *MEASURES)]
    if changed:
        raise _other(run, changed)


def refuse_other_past(run: RunDirectory, before: Table | None, settings: Config, step: int) -> None:
    """Raise Error where another length of the run, or other steps left out, would change a step that is done."""
    _refuse_others_left_out(run, before, settings, step)
    changed = [line for line in _changed(before, settings) if line.split(":")[0] in LENGTH]
    if before is None or not changed:
        return
    if settings.train.max_steps < step:
        raise Error(
            f"train.max_steps: expected at least {step}, the number of steps done, got {settings.train.max_steps}"
        )
    old, new = Train(**before["train"]).rate_factor(), settings.train.rate_factor()
    other = next((number for number in range(1, step + 1) if old(number) != new(number)), None)
    if other is not None:
        raise _other(run, changed, f"; it would change the learning rate of step {other}, which is done")


def _refuse_others_left_out(run: RunDirectory, before: Table | None, settings: Config, step: int) -> None:
    old = step_ranges(before["data"]["skip_steps"]) if before is not None else ()
    for past in range(1, step + 1):
        if any(past in steps for steps in old) != any(past in steps for steps in settings.data.skipped):
            raise Error(
                f"data.skip_steps: {run.path} is at step {step}, expected steps that come after, got a change at step "
                f"{past}; to train again from before it, remove the checkpoints of step {past} and later"
            )


def as_begun(settings: Config, before: Table | None, state: State, run: RunDirectory) -> Config:
    """The settings of a run that goes on, with what it began from in truth, whatever the command says now."""
    origin = state.origin or {"path": ""}
    begun = {"init_from": origin.get("init_from", ""), "fork_from": origin.get("fork_from", "")}
    if before is not None:
        begun = {"init_from": before["model"]["init_from"], "fork_from": before["run"]["fork_from"]}
    for name, asked in (("fork_from", settings.run.fork_from), ("init_from", settings.model.init_from)):
        if asked not in ("", begun[name]):
            section = "run" if name == "fork_from" else "model"
            run.say(
                f"{section}.{name}: {asked} is not read: this run goes on, and began from "
                f"{begun['fork_from'] or begun['init_from'] or 'random weights'}"
            )
    return dataclasses.replace(
        settings,
        run=dataclasses.replace(settings.run, fork_from=begun["fork_from"]),
        model=dataclasses.replace(settings.model, init_from=begun["init_from"]),
    )


def measures(settings: Config, portions: Sequence[Portion], choices: Dataset | None) -> Measures:
    """What the columns mean: how much validation text, read how, and which examples in which mode, if there are any."""
    held_out = (portion.dataset.total("val", "tokens") for portion in portions)
    found: Measures = {"val_tokens": sum(min(settings.eval.val_tokens, tokens) for tokens in held_out)}
    if settings.data.document_masking:
        found["document_masking"] = True
    if choices is not None:
        found["hellaswag"] = {"dataset_id": choices.id, "mode": settings.eval.hellaswag_mode}
    return found


def kept_measures(run: RunDirectory, before: Table | None, now: Measures) -> Measures:
    """The measures of a run that goes on. Raises Error where one would put other numbers into its column."""
    first = run.read_facts()
    old = first.get("hellaswag") or {}
    if not old and before is not None and before["eval"]["hellaswag"]:  # begun before run.json said so
        old = {"mode": before["eval"]["hellaswag_mode"]}
    new = now.get("hellaswag", {})
    columns = {
        "eval.val_tokens": (first.get("val_tokens"), now["val_tokens"]),
        "eval.hellaswag_mode": (old.get("mode"), new.get("mode")),
        "eval.hellaswag": (old.get("dataset_id"), new.get("dataset_id")),
    }
    for name, (before_now, is_now) in columns.items():
        if None not in (before_now, is_now) and before_now != is_now:
            what = "dataset_id " if name == "eval.hellaswag" else ""
            raise Error(
                f"{name}: expected {what}{before_now}, by which this run measures, got {what}{is_now}; one column "
                "would hold two measures: take the change back, or go on in another run.dir with "
                f"run.fork_from={run.path}"
            )
    return {"hellaswag": old, **now} if old else now


def _changed(before: Table | None, settings: Config) -> list[str]:
    """`section.key: old → new` of what is not free."""
    if before is None:
        return []
    lines = differences(before, tomllib.loads(dump_config(settings)))
    return [line for line in lines if line.split(":")[0].split(".")[1] not in FREE[line.split(".")[0]]]


def _other(run: RunDirectory, changed: list[str], why: str = "") -> Error:
    keys = {line.split(":")[0] for line in changed}
    way = f", where run.fork_from={run.path} goes on from its newest checkpoint"
    if keys & set(OF_A_CHECKPOINT):
        way = f", where model.init_from={run.path} begins anew with its model"
    if any(key.startswith("model.") for key in keys):
        way = ""
    return Error(
        f"{run.path}: holds a run of another configuration ({'; '.join(changed)}){why}; take the change back, or "
        f"choose another run.dir{way}"
    )
