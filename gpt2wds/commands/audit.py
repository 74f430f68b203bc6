"""gpt2wds-shard verify DIR --source N: what is asked before, and what is said of each shard."""

import secrets
import sys

import click

from ..corpus.audit import audit, chosen, read_audited_plan
from ..dataset.directory import Dataset
from ..dataset.manifest import SPLITS
from ..dataset.verify import verify_dataset, verify_shard
from ..errors import Error, Unanswered, counted
from .output import ProgressLine, say

PLACES_SHOWN = 20


def verify_with_sources(dataset: Dataset, count: int, seed: int | None, trusts: bool) -> None:
    """Read some shards whole, make them again from their sources, and compare. Raises Error where anything is wrong."""
    plan = read_audited_plan(dataset)
    seed = secrets.randbelow(1 << 31) if seed is None else seed
    tasks = chosen(plan, count, seed)
    places = {entry.name: (split, n) for split in SPLITS for n, entry in enumerate(dataset.shards(split))}
    problems, unknown = verify_dataset(dataset), 0
    for problem in problems:
        say(problem)
    findings = audit(dataset, plan, tasks, lambda names: trusts or _asks(dataset, names))
    progress = ProgressLine("made again", len(tasks), " shards")
    for task, finding in zip(tasks, findings, strict=True):
        damage, obstacle = list[str](), finding.obstacle
        try:
            damage = verify_shard(dataset, *places[task.shard])
        except Unanswered as error:
            obstacle = str(error)
        if obstacle:
            say(f"{finding.shard}: cannot be audited: {obstacle}")
            unknown += 1
        elif finding.difference:
            damage.append(f"{finding.shard}: differs: {finding.difference}")
        elif not damage:
            say(f"{finding.shard}: the same tokens")
        for problem in damage:
            say(problem)
        problems += damage
        progress.update(1)
    progress.close()
    sample = f"{len(tasks):,} of {counted(len(plan.tasks), 'shard')}, --seed {seed}"
    if problems:
        raise Error(f"{dataset.path}: {counted(len(problems), 'problem')} found, named above ({sample})")
    if unknown:
        raise Error(f"{dataset.path}: {counted(unknown, 'shard')} could not be audited, named above ({sample})")
    others = "; the other shards were not read" if len(tasks) < len(plan.tasks) else ""
    say(f"{dataset.path}: all right, the sources give the same tokens ({sample}){others}")


def _asks(dataset: Dataset, names: list[str]) -> bool:
    """Show what a plan would have read, and ask whoever is there."""
    say(f"{dataset.path}: its plan would have these read, of this machine or from where it can reach:")
    for name in names[:PLACES_SHOWN]:
        say(f"  {name}")
    if len(names) > PLACES_SHOWN:
        say(f"  … and {len(names) - PLACES_SHOWN:,} more; `gpt2wds-shard info --json` has all")
    if not sys.stdin.isatty():
        raise Error(f"{dataset.path}: nothing was opened; give --trust if these may be read")
    return click.confirm("May they be read?")
