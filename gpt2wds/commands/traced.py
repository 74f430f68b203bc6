"""A run directory → the order its run reads in, and how far it is."""

import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..dataset.directory import Dataset
from ..dataset.manifest import member
from ..dataset.mixture import check_weight, identity, portions
from ..dataset.order import step_ranges
from ..dataset.origins import Place
from ..dataset.trace import Trace
from ..errors import Error
from ..train.rundir import RunDirectory
from .output import say

READ, NOT_YET, LEFT_OUT, FILLS_NO_STEP = "read", "not yet", "left out", "fills no step"


@dataclass(frozen=True)
class TracedRun:
    """A run's order, and how far it is: `last_step` updates are done, of which `skip_steps` were none.

    traces: of each of its datasets, which have a step's slots one after the other.
    """

    run: RunDirectory
    traces: tuple[Trace, ...]
    seq_len: int
    max_steps: int
    last_step: int
    skip_steps: tuple[range, ...]

    def state(self, step: int | None) -> str:
        """What became of a step's sequences; of those of no step None is given."""
        if step is None:
            return FILLS_NO_STEP
        if any(step in steps for steps in self.skip_steps):
            return LEFT_OUT
        return READ if step <= self.last_step else NOT_YET

    def first_slot(self, trace: Trace) -> int:
        """The first of a step's slots that a dataset has."""
        return sum(other.sequences_per_step for other in self.traces[: self.traces.index(trace)])

    def find(self, source: str, number: int) -> list[tuple[Trace, Place]]:
        """Where a document is: in each dataset that has it. Raises Error where none has."""
        found, problems = [], []
        for trace in self.traces:
            try:
                found.append((trace, trace.find(source, number)))
            except Error as error:
                problems.append(f"{trace.dataset.path}: {error}" if len(self.traces) > 1 else str(error))
        if not found:
            raise Error("; ".join(problems))
        return found


def traced_run(folder: Path, data: tuple[str, ...]) -> TracedRun:
    """What the run's configuration says of its order; `data` stands in for its datasets' places. Raises Error."""
    run = RunDirectory(folder, is_main=False)
    if not run.config.exists():
        raise Error(f"{folder}: expected a run directory ({run.config.name}), got none")
    try:
        config = tomllib.loads(run.config.read_text(encoding="utf-8"))
        tables = {name: member(config, name, dict) for name in ("run", "data", "train")}
        seq_len, seed = member(tables["data"], "seq_len", int), tables["run"].get("seed")
        tokens, steps = (member(tables["train"], name, int) for name in ("tokens_per_step", "max_steps"))
        skipped = step_ranges(tables["data"].get("skip_steps", []))
        weighted = _weighted(tables["data"].get("path"))
        if type(seed) is not int or not 0 < seq_len <= tokens:
            raise Error("expected 'seed', and 'tokens_per_step' of 'seq_len' or more")
    except (ValueError, TypeError) as error:  # TOML, UTF-8, or what it says
        raise Error(f"{run.config}: {error}; restore it, it says how the run was begun") from None
    if data and len(data) != len(weighted):
        raise Error(
            f"--data: expected {len(weighted)}, one for each dataset of the run in their order, got {len(data)}"
        )
    paths = data or tuple(path for path, _ in weighted)
    pairs = [(Dataset(path), weight) for path, (_, weight) in zip(paths, weighted, strict=True)]
    known, each = _known_data(run)
    _refuse_other_order(each, [dataset.id for dataset, _ in pairs], paths)
    mixed = portions(pairs, sequences_per_step=tokens // seq_len, seq_len=seq_len)
    here = identity(mixed)
    if known not in (None, here):
        raise Error(
            f"{', '.join(paths)}: expected the run's dataset, {known}, got {here}; give its directory with --data"
        )
    traces = tuple(
        Trace(portion.dataset, seq_len=seq_len, sequences_per_step=len(portion.slots), seed=seed) for portion in mixed
    )
    return TracedRun(run, traces, seq_len, steps, _last_step(run), skipped)


def _last_step(run: RunDirectory) -> int:
    """The last update that was done: logged, or saved by a run that was then stopped."""
    names = (path.name.removeprefix("step-") for path in run.checkpoints.glob("step-*"))
    return max(run.last_step(), *(int(name) for name in names if name.isdecimal()), 0)


def _known_data(run: RunDirectory) -> tuple[object, list[str]]:
    """The `dataset_id` that the run noted, and that of each of several datasets; None and [] where it noted none."""
    try:
        facts = run.read_facts()
        each = [member(one, "dataset_id", str) for one in member({"datasets": [], **facts}, "datasets", list)]
        if "dataset_id" not in facts:
            raise Error(f"{run.facts_path}: expected a dataset_id, got none")
    except Error as error:
        say(f"WARNING: {error}; whether the dataset is the run's cannot be told", file=sys.stderr)
        return None, []
    return facts["dataset_id"], each


def _refuse_other_order(known: list[str], here: list[str], paths: Sequence[str]) -> None:
    """Raise Error where these are the run's datasets, but not in its order."""
    if known != here and sorted(known) == sorted(here):
        ordered = " ".join(f"--data {paths[here.index(one)]}" for one in known)
        raise Error(f"--data: expected the datasets in the run's order, got {', '.join(paths)}; give {ordered}")


def _weighted(path: object) -> list[tuple[str, float]]:
    """What `data.path` says: one dataset, or several with their weights."""
    if isinstance(path, str):
        return [(path, 1)]
    if not isinstance(path, list) or not path or not all(isinstance(each, dict) for each in path):
        raise Error(f"'path': expected a text, or a list of tables, got {path!r}")
    for each in path:
        check_weight(each.get("weight"), "'weight'")
    return [(member(each, "path", str), each["weight"]) for each in path]
