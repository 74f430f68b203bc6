"""Shards of a finished dataset made again from their sources, in a temporary place, and compared with what it says.

Anybody can do it with a published dataset: its plan says what every shard was made of, its manifest what came of it.
Bytes may differ between versions of zstd, tokens may not.
"""

import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..dataset.directory import Dataset
from ..dataset.manifest import SPLITS, TOKENS, ShardEntry
from ..errors import Error, reason
from ..fast_tokenizer import prove
from ..folder import Folder
from ..locations import PACKAGE, LocalFile
from ..tokenizer import load_tokenizer
from .plan import PLAN, Plan, Span, Task, read_plan
from .planning import refuse_other_tokenizer
from .receipts import read_receipt, receipt_name
from .trust import to_be_asked_for
from .writing import TaskRunner

COMPARED = ("tokens_sha256", "tokens", "documents", "blocks", "text_bytes", "skipped")


@dataclass(frozen=True)
class Finding:
    """What came of one shard: `difference` from what the dataset says, `obstacle` to making it again; "" for none."""

    shard: str
    difference: str = ""
    obstacle: str = ""


def read_audited_plan(dataset: Dataset) -> Plan:
    """The plan of a finished dataset. Raises Error where it has none, or not its own, or this machine's ids differ."""
    if not dataset.folder.exists(PLAN):
        raise Error(f"{dataset.path}: cannot be audited: it has no {PLAN}, which says what its shards were made of")
    plan = read_plan(dataset.folder)
    shards = [entry.name for split in SPLITS for entry in dataset.shards(split)]
    if sorted(shards) != sorted(map(str, plan.tasks)):
        raise Error(f"{dataset.path}: cannot be audited: its {PLAN} is of other shards than its manifest")
    refuse_other_tokenizer(dataset.folder, plan)
    return plan


def chosen(plan: Plan, count: int, seed: int) -> list[Task]:
    """So many tasks at random, in the plan's order; all of them where there are no more."""
    numbers = random.Random(seed).sample(range(len(plan.tasks)), min(count, len(plan.tasks)))
    return [plan.tasks[number] for number in sorted(numbers)]


def audit(
    dataset: Dataset, plan: Plan, tasks: Sequence[Task], may_read: Callable[[list[str]], bool] = lambda _: False
) -> Iterator[Finding]:
    """Make these tasks' shards again, one after the other, and compare them with the manifest.

    may_read: asked once, before anything is opened, with the local files and addresses that the plan would have read;
    not asked where it reads the Hub alone. Raises Error where it says no.
    """
    shown = to_be_asked_for(plan, tasks)
    if shown and not may_read(shown):
        raise Error(
            f"{dataset.path}: cannot be audited: its plan would have {len(shown):,} of this machine's files or "
            "addresses read, and that was not allowed; nothing of it was opened"
        )
    entries = {entry.name: entry for split in SPLITS for entry in dataset.shards(split)}
    differing = prove(load_tokenizer()) if plan.kind == TOKENS else None
    with tempfile.TemporaryDirectory(prefix="gpt2wds-") as name:
        folder = Folder(name)
        runner = TaskRunner(folder, plan, differing)
        for task in tasks:
            yield _compared(folder, plan, task, runner, entries[task.shard])
        runner.close()


def _compared(folder: Folder, plan: Plan, task: Task, runner: TaskRunner, entry: ShardEntry) -> Finding:
    try:
        runner(task, lambda documents, tokens: None)
    except (Error, OSError) as error:  # the source's, not the shard's
        return Finding(task.shard, obstacle=reason(error))
    receipt = read_receipt(folder, plan, task)
    assert receipt is not None, "it was written just now"
    for name in (f"{task.shard}.tar.zst", receipt_name(task)):
        folder.remove(name)
    made = receipt.shard
    differing = [name for name in COMPARED if getattr(made, name) != getattr(entry, name)]
    if [(s.source, s.first, s.count) for s in made.spans] != [(s.source, s.first, s.count) for s in entry.spans]:
        differing.append("spans")
    if not differing:
        return Finding(task.shard)
    name = differing[0]
    if name == "spans":
        return Finding(task.shard, difference="manifest.json has other spans of its sources than plan.json")
    if any(_may_be_another(plan, span) for span in task.spans):
        return Finding(
            task.shard, obstacle=f"its sources give other {name}, but the plan has no hash of them: they may be others"
        )
    found, said = (str(getattr(each, name))[:80] for each in (made, entry))
    return Finding(task.shard, difference=f"its sources give {name} {found}, manifest.json says {said}")


def _may_be_another(plan: Plan, span: Span) -> bool:
    """Whether a local file may have changed without the plan's knowing: by size alone it is known."""
    file = plan.sources[span.source].location
    is_timeless = isinstance(file, LocalFile) and file.mtime_ns is None and not file.path.startswith(PACKAGE)
    return is_timeless and not span.hash
