"""Shards on the Hub, which takes few commits an hour: each is uploaded by who made it, and one commit takes many.

A shard and its receipt are in the same commit, so nobody sees one without the other. What a kill loses was finished
after the last commit. It is made again, but not uploaded again: the Hub knows the same bytes by their hash.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from ..errors import Error, counted
from ..folder import Folder
from ..repository import Addition, Repository
from .executors import Take, ignore

GATHER_SECONDS = 300.0  # twelve commits an hour; the Hub is said to take about 128 of one account
SHARDS_PER_COMMIT = 50


class Uncommitted(NamedTuple):
    """A finished task whose files are on the Hub, and not seen yet."""

    receipt_name: str
    shard: Addition
    receipt: Addition


class Gathering:
    """What has been finished since the last commit, in the process that hands out the tasks."""

    def __init__(self, repository: Repository):
        self._repository, self._held = repository, list[Uncommitted]()
        self._committed = time.monotonic()

    def add(self, made: Uncommitted) -> None:
        self._held.append(made)
        if len(self._held) >= SHARDS_PER_COMMIT or time.monotonic() - self._committed >= GATHER_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Commit all, but those of which another writer committed a receipt first. What fails is not tried again."""
        files = {made.receipt_name: (made.shard, made.receipt) for made in self._held}
        self._held.clear()
        if files:
            self._repository.commit_new(files, counted(len(files), "shard"))
        self._committed = time.monotonic()


@contextmanager
def gathering(out: Folder) -> Iterator[Take]:
    """What takes the results of tasks; on the Hub all of them are committed at its end, also of a run that fails."""
    if out.repository is None:
        yield ignore
        return
    gathered = Gathering(out.repository)
    try:
        yield gathered.add
    except BaseException:
        with suppress(Error, OSError):  # what came first is said
            gathered.commit()
        raise
    gathered.commit()
