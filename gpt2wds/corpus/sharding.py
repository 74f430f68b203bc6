"""plan → tasks → shards → manifest, so that a kill at any moment loses and doubles nothing.

A dataset directory in the making holds `plan.json` (what to do, fixed before anything is done), `receipts/` (one
per finished task) and the shards. A task is a pure function of the plan. A shard is written under a temporary
name and linked to its final one; its receipt follows. What has a receipt of this plan stays, all else is done again.
"""

import dataclasses
import logging
from collections.abc import Sequence
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Protocol

from ..dataset import shards
from ..dataset.directory import Dataset
from ..dataset.manifest import MULTIPLE_CHOICE, SPLITS, TOKENS, LaterFormat, Manifest
from ..errors import Error
from ..fast_tokenizer import prove
from ..files import TEMPORARY, remove_dead
from ..folder import Folder
from ..tokenizer import load_tokenizer
from . import cutting
from .corpora import Corpus, Files, Request, record
from .cutting import Cut
from .executors import Executor, Processes
from .places import refuse_others
from .plan import PLAN, Plan, Span, Task, read_plan, write_plan
from .receipts import read_receipts, receipt_name, summed_up
from .writing import TaskRunner, text_hash

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
) -> Dataset:
    """Make a dataset directory of a corpus, or go on with one that was begun, and open it.

    request: Files, HubDataset, Plays, … ; cut: how it is cut into shards; workers: processes, all cores if None;
    executor: where else they shall run, for example ray_executor.OnRay("auto").
    Killed at any moment and called again with the same arguments, it continues where it was; the result is the same
    bytes. Raises Error when the arguments contradict what was begun in `out`, and for what cannot be read.

    >>> from gpt2wds import Cut, Plays, make_dataset
    >>> dataset = make_dataset("data/plays", Plays(), Cut(docs_per_shard=12))  # doctest: +SKIP
    >>> dataset.total("train", "tokens")  # doctest: +SKIP
    1718838
    """
    folder = Folder(out)
    plan = make_plan(folder, request, cut or Cut())
    if not is_finished(folder, plan):
        run_missing(folder, plan, executor or Processes(workers), progress=progress)
        finish(folder, plan)
    return Dataset(folder)


def make_plan(out: Folder, request: Request, cut: Cut | None = None) -> Plan:
    """The plan of a dataset: the one in `out` if there is one, else a new one, written there.

    Raises Error when `request` or `cut` is not what the plan that is there was made for.
    """
    asked = record(request) | (dataclasses.asdict(cut) if cut else {})
    is_new = not out.exists(PLAN)
    if is_new:
        _refuse_other_datasets(out)
        corpus = request.resolve(out)
        tasks = _tasks(corpus, cut or Cut())
        plan = Plan(
            request=asked,
            tokenizer=load_tokenizer().identity(),
            versions=shards.shard_versions(),
            kind=corpus.kind,
            corpus=corpus.name,
            text_column=getattr(request, "text_column", "text"),
            sources=corpus.sources,
            tasks=tuple(tasks),
            validation_texts=(),
        )
        plan = dataclasses.replace(plan, validation_texts=_validation_texts(plan))
        plan = write_plan(out, plan)
    else:
        plan = read_plan(out)
    _refuse_other_request(out, plan, asked)
    if not is_new:
        is_done = is_finished(out, plan)
        if not is_done:
            refuse_others(request, plan, out)
        if isinstance(request, Files):
            request.refuse_changes(plan.sources, is_done, out)
    _refuse_other_tokenizer(out, plan)
    return plan


def missing_tasks(out: Folder, plan: Plan) -> list[Task]:
    """Tasks without a receipt of this plan, or whose shard is not there with its receipt's size."""
    return _missing(out, plan, plan.tasks)


def is_finished(out: Folder, plan: Plan) -> bool:
    """Whether nothing is left to do: the shards are there, and indices and manifest say what their receipts do."""
    names = ("manifest.json", *(f"{split}.blocks.npy" for split in SPLITS))
    there = out.sizes()
    if not there.keys() >= set(names):
        return False
    try:
        manifest, indices = summed_up(out, plan)
    except Error:  # a receipt is missing
        return False
    if any(there.get(entry.file) != entry.bytes for split in SPLITS for entry in manifest.shards[split]):
        return False
    try:
        found = Manifest.from_json(out.read("manifest.json"))
    except LaterFormat:
        return True  # Dataset says so
    except Error:
        return False
    hashes = found.blocks_sha256 or manifest.blocks_sha256  # earlier versions wrote none
    if dataclasses.replace(found, extras={}, blocks_sha256=hashes) != manifest:
        return False
    return all(out.read(f"{split}.blocks.npy") == index for split, index in indices.items())


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
        (executor or Processes()).run_tasks(chains(plan, todo), make_runner, progress.report, out=out.absolute())
    return missing_tasks(out, plan)


def _runner(out: Folder, plan: Plan) -> TaskRunner:
    """Called on the machine that will run tasks. Raises Error where its tokenizer is not the plan's."""
    _refuse_other_tokenizer(out, plan)
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
            "%s: made again, because shard or receipt is not as it was written, or another plan's: %s", out, named
        )
    for task in damaged:
        out.remove(f"{task.shard}.tar.zst")
        out.remove(receipt_name(task))


def chains(plan: Plan, tasks: Sequence[Task]) -> list[list[Task]]:
    """Tasks in the groups that one process should run in order: those that begin in one source read as a stream."""
    grouped: list[list[Task]] = []
    last = None
    for task in tasks:
        first = task.spans[0].source if task.spans else None
        stream = first if first is not None and plan.sources[first].format.is_streamed else None
        if stream is not None and stream == last:
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


def _tasks(corpus: Corpus, cut: Cut) -> list[Task]:
    if corpus.kind == MULTIPLE_CHOICE:
        return [Task("val", 0, (Span(0, 0, corpus.val_docs),))]
    tasks = cutting.tasks(corpus.sources, cut, val_docs=corpus.val_docs, spread=corpus.spread)
    if not tasks:
        raise Error(f"corpus {corpus.name.source}: expected at least one document, got none")
    if not any(task.split == "train" for task in tasks):
        raise Error(
            f"corpus {corpus.name.source}: all of its documents went to validation, none is left to train on; "
            "lower val_docs (0 for no validation), or give more text"
        )
    return tasks


def _validation_texts(plan: Plan) -> tuple[str, ...]:
    if plan.kind != TOKENS:
        return ()
    runner = TaskRunner(Folder("."), plan, None)
    held = (task for task in plan.tasks if task.split == "val")
    texts = (text for task in held for text in runner.documents(task))
    found = sorted({text_hash(text) for text in texts if isinstance(text, str)})
    runner.close()
    return tuple(found)


def _missing(out: Folder, plan: Plan, tasks: Sequence[Task]) -> list[Task]:
    told = [receipt.shard if receipt else None for receipt in read_receipts(out, plan, tasks)]
    there = out.sizes()  # asked last: a shard is there before its receipt is
    pairs = zip(tasks, told, strict=True)
    return [task for task, shard in pairs if shard is None or there.get(shard.file) != shard.bytes]


def _refuse_other_datasets(out: Folder) -> None:
    if out.exists("manifest.json"):
        raise Error(f"{out}: expected a directory of this command's own, got a dataset without its {PLAN}")
    if any(name.endswith(".json") for name in out.sizes("receipts")):
        # They are another plan's: taken for this one's, documents would be lost or doubled.
        raise Error(f"{out}: expected an empty directory, got shards without their {PLAN}; choose another --out")


def _refuse_other_tokenizer(out: Folder, plan: Plan) -> None:
    for name, value in load_tokenizer().identity().items():
        if value != plan.tokenizer.get(name):
            raise Error(
                f"{out}: its plan was made with {name} = {plan.tokenizer.get(name)}, here it is {value}; "
                f"ids would differ: pip install tiktoken=={plan.tokenizer.get('tiktoken')}"
            )


def _refuse_other_request(out: Folder, plan: Plan, asked: dict[str, object]) -> None:
    for name, value in asked.items():
        planned = plan.request.get(name)
        if value == planned:
            continue
        if value is None:
            raise Error(
                f"{out}: its plan has {name} = {planned!r}, which this command leaves out; "
                "give it again, or choose another --out"
            )
        raise Error(
            f"{out}: its plan has {name} = {planned!r}, this command {value!r}; "
            "repeat the first command, or choose another --out"
        )
