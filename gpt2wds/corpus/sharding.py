"""plan → tasks → shards → manifest, so that a kill at any moment loses and doubles nothing.

A dataset directory in the making holds `plan.json` (what to do, fixed before anything is done), `receipts/` (one
per finished task) and the shards. A task is a pure function of the plan. A shard is written under a temporary
name and linked to its final one; its receipt follows. What has a receipt of this plan stays, all else is done again.
"""

import logging
from collections.abc import Sequence
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Protocol

from ..dataset.directory import Dataset
from ..dataset.manifest import TOKENS
from ..errors import Error, shown
from ..fast_tokenizer import prove
from ..files import TEMPORARY, remove_dead
from ..folder import Folder
from ..tokenizer import load_tokenizer
from .corpora import Request
from .cutting import Cut
from .executors import Executor, Processes
from .gathering import gathering
from .plan import Plan, Task
from .planning import begin, refuse_other_tokenizer
from .planning import make_plan as make_plan  # what else one needs to shard step by step
from .receipts import read_receipts, receipt_name, summed_up
from .writing import TaskRunner

_LOG = logging.getLogger(__name__)


class Progress(Protocol):
    """Who wants to know how sharding goes."""

    def start(self, plan: Plan, todo: Sequence[Task], there: int) -> None:
        """Called once, with the tasks that will be run, and the number of those that were asked for and are done."""

    def report(self, documents: int, tokens: int, task_done: bool) -> None:
        """Documents and tokens since the last call."""


class Silent:
    """Nobody does."""

    def start(self, plan: Plan, todo: Sequence[Task], there: int) -> None: ...

    def report(self, documents: int, tokens: int, task_done: bool) -> None: ...


def make_dataset(
    out: str | Path,
    request: Request,
    cut: Cut | None = None,
    workers: int | None = None,
    *,
    executor: Executor | None = None,
    progress: Progress | None = None,
    trust_times: bool = False,
) -> Dataset:
    """Make a dataset directory of a corpus, or go on with one that was begun, and open it.

    request: Files, HubDataset, Plays, … ; cut: how it is cut into shards; workers: cores, all if None;
    executor: where else they shall run, without workers, for example OnRay("auto"); trust_times: see planning.begin.
    Killed at any moment and called again with the same arguments, it continues where it was; the result is the same
    bytes. Raises Error when the arguments contradict what was begun in `out`, and for what cannot be read.

    >>> from gpt2wds import Cut, Plays, make_dataset
    >>> dataset = make_dataset("data/plays", Plays(), Cut(docs_per_shard=12))  # doctest: +SKIP
    >>> dataset.total("train", "tokens")  # doctest: +SKIP
    1718838
    """
    _refuse_nonsense(request, cut, executor, progress, trust_times)
    if executor is not None and workers is not None:
        raise Error("workers: expected None beside an executor, which has cores of its own, got both; leave one out")
    executor = executor or Processes(workers)  # which refuses workers that cannot be, before anything is read
    folder = Folder(out)
    plan, is_finished = begin(folder, request, cut or Cut(), trust_times=trust_times)
    if not is_finished:
        run_missing(folder, plan, executor, progress=progress)
        finish(folder, plan)
    return Dataset(folder)


def _refuse_nonsense(request: object, cut: object, executor: object, progress: object, trust_times: object) -> None:
    """Raise Error for arguments of make_dataset that are not what they are called."""
    if isinstance(request, type) or not callable(getattr(request, "resolve", None)):
        expected = "Files(('texts/*.jsonl',)), HubDataset('owner/name') or Plays()"
        raise Error(f"request: expected what to make the dataset of, {expected}, got {repr(request)[:80]}")
    if not isinstance(cut, Cut | None):
        raise Error(f"cut: expected a Cut, such as Cut(val_docs=100), or None, got {repr(cut)[:80]}")
    if executor is not None and (isinstance(executor, type) or not callable(getattr(executor, "run_tasks", None))):
        raise Error(f"executor: expected OnRay() or None, got {repr(executor)[:80]}")
    told = all(callable(getattr(progress, name, None)) for name in ("start", "report"))
    if progress is not None and (isinstance(progress, type) or not told):
        raise Error(f"progress: expected an object with start() and report(), or None, got {repr(progress)[:80]}")
    if not isinstance(trust_times, bool):
        raise Error(f"trust_times: expected True or False, got {repr(trust_times)[:80]}")


def missing_tasks(out: Folder, plan: Plan) -> list[Task]:
    """Tasks without a receipt of this plan, or whose shard is not there with its receipt's size."""
    return _missing(out, plan, plan.tasks)


def run_missing(
    out: Folder,
    plan: Plan,
    executor: Executor | None = None,
    *,
    task_slice: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
) -> list[Task]:
    """Run the tasks that are missing, of all or of a slice (i, n): tasks i, i + n, …; returns what still is missing."""
    progress = progress or Silent()
    for folder in (Path(out.path), Path(out.path, "receipts")) if out.is_local else ():
        remove_dead(folder)  # a killed process leaves half a shard, and there may be many kills before the end
    first, step = task_slice
    mine = set(plan.tasks[first::step])
    todo = [task for task in missing_tasks(out, plan) if task in mine]
    discard_damaged(out, plan, todo)
    progress.start(plan, todo, len(mine) - len(todo))
    if todo:
        make_runner = partial(_runner, out.absolute(), plan)
        with gathering(out) as take:
            (executor or Processes()).run_tasks(
                chains(plan, todo), make_runner, progress.report, out=out.absolute(), take=take
            )
    return missing_tasks(out, plan)


def _runner(out: Folder, plan: Plan) -> TaskRunner:
    """Called on the machine that will run tasks. Raises Error where its tokenizer is not the plan's."""
    refuse_other_tokenizer(out, plan)
    return TaskRunner(out, plan, prove(load_tokenizer()) if plan.kind == TOKENS else None)


def discard_damaged(out: Folder, plan: Plan, todo: Sequence[Task]) -> None:
    """Remove what is left of tasks that will be run again: a damaged shard must not be taken for one that another
    process committed first, and a finished dataset is not finished while one of its shards is missing."""
    if todo:
        out.remove("manifest.json")
    receipts = out.sizes("receipts")
    begun = [task for task in todo if f"{task.shard}.json" in receipts]
    damaged = _missing(out, plan, begun)  # the others were done by another process in the meantime
    if damaged:
        named = ", ".join(map(str, damaged[:3])) + (", …" if len(damaged) > 3 else "")
        _LOG.warning(
            "%s: made again, because shard or receipt is not there, not as it was written, or another plan's: %s",
            shown(out),
            named,
        )
    for task in damaged:
        out.remove(f"{task.shard}.tar.zst")
        out.remove(receipt_name(task))


def chains(plan: Plan, tasks: Sequence[Task]) -> list[list[Task]]:
    """Tasks in the groups that one process should run in order: those that begin in one source read as a stream.

    A single task of validation is mostly short, and a process takes a second to start: the next task follows in its.
    """
    is_short = sum(task.split == "val" for task in tasks) == 1
    grouped: list[list[Task]] = []
    last = None
    for task in tasks:
        first = task.spans[0].source if task.spans else None
        stream = first if first is not None and plan.sources[first].format.is_streamed else None
        if (stream is not None and stream == last) or (is_short and grouped and grouped[-1][-1].split == "val"):
            grouped[-1].append(task)
        else:
            grouped.append([task])
        last = stream
    return grouped


def finish(out: Folder, plan: Plan) -> Dataset:
    """Indices, then the manifest, then no temporary files. Raises Error when a task is missing."""
    manifest, indices = summed_up(out, plan)
    wanted = "train" if plan.kind == TOKENS else "val"
    if not any(entry.documents for entry in manifest.shards[wanted]):
        reasons = sorted(
            {reason for entries in manifest.shards.values() for entry in entries for reason in entry.skipped}
        )
        named = ", ".join(source.name for source in plan.sources[:3]) + (", …" if len(plan.sources) > 3 else "")
        raise Error(
            f"corpus {named}: expected at least one document for {wanted}, got none ({', '.join(reasons)}); "
            "make it anew in an empty directory with other options or sources"
        )
    for split, index in indices.items():
        out.replace(f"{split}.blocks.npy", index)
    out.replace("manifest.json", manifest.to_json().encode("utf-8"))
    remove_strays(out)
    return Dataset(out)


def remove_strays(out: Folder) -> None:
    """Temporary files that killed processes left; only called when nothing is left to do."""
    for below in ("", "receipts/"):
        for name in out.sizes(below.rstrip("/")):
            if fnmatch(name, TEMPORARY):
                out.remove(below + name)


def _missing(out: Folder, plan: Plan, tasks: Sequence[Task]) -> list[Task]:
    told = [receipt.shard if receipt else None for receipt in read_receipts(out, plan, tasks)]
    there = out.sizes()  # asked last: a shard is there before its receipt is
    pairs = zip(tasks, told, strict=True)
    return [task for task, shard in pairs if shard is None or there.get(shard.file) != shard.bytes]
