"""gpt2wds-shard finish: the end of every dataset, and what it still needs where its shards are not all there."""

from collections.abc import Iterable, Iterator
from itertools import groupby

import click

from ..corpus import sharding
from ..corpus.plan import Plan, Task, read_plan
from ..corpus.receipts import is_finished
from ..dataset.directory import Dataset
from ..errors import Error, counted
from ..folder import Folder
from .common import Directory
from .looking import skipped, totals
from .output import say

SHOWN = 20  # lines of missing shards; --all has them all


@click.command("finish")
@click.argument("directory", type=Directory(), metavar="DIR")
@click.option("--all", "tells_all", is_flag=True, help="Name every shard that is missing, in a line each.")
def finish_command(directory: Folder, tells_all: bool) -> None:
    """Make the manifest when all shards are there; exit code 1 and the names of those that are missing if not.

    For a corpus sharded in slices (--task-slice) or by several machines on one directory.
    """
    plan = read_plan(directory)
    if directory.exists("manifest.json") and not directory.sizes("receipts"):
        raise Error(
            f"{directory}: expected shards in the making, got a finished dataset without receipts, as a published copy "
            "is; gpt2wds-shard verify reads every byte of it"
        )
    if is_finished(directory, plan):
        say_finished(directory)
        return
    missing = sharding.missing_tasks(directory, plan)
    lines = list(map(str, missing) if tells_all else _in_runs(missing))
    shown = lines if tells_all else lines[:SHOWN]
    for line in shown:
        say(f"missing: {line}")
    if missing:
        of = f"{len(missing):,} of {counted(len(plan.tasks), 'shard')} {'is' if len(missing) == 1 else 'are'} missing"
        where = "named above" if shown == lines else "some named above, all by --all"
        raise Error(f"{directory}: {of}, {where}; give the command that makes them again")
    finish_dataset(directory, plan)


def _in_runs(tasks: Iterable[Task]) -> Iterator[str]:
    """Tasks by name, those that follow one another in one line: train-00000 to train-00007."""
    for _, pairs in groupby(enumerate(tasks), lambda pair: (pair[1].split, pair[1].number - pair[0])):
        first, *others = [task.shard for _, task in pairs]
        yield f"{first} to {others[-1]}" if others else first


def finish_dataset(out: Folder, plan: Plan) -> None:
    """Make the manifest, and say what the dataset has."""
    dataset = sharding.finish(out, plan)
    say(f"{out}: {totals(dataset)}")
    for reason, places in skipped(dataset).items():
        named = ", ".join(places[:3]) + (", …" if len(places) > 3 else "")
        say(f"  {counted(len(places), 'document')} skipped: {reason} ({named})")


def say_finished(out: Folder) -> None:
    """Of a dataset of which nothing is left to do."""
    sharding.remove_strays(out)
    say(f"{out}: already there, {totals(Dataset(out))} (sizes were compared; verify reads every byte)")
