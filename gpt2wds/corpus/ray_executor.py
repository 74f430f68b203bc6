"""Where tasks run: on the nodes of a Ray cluster. Needs the package ray (pip install 'gpt2wds[ray]').

A chain of tasks is one Ray task on one core. It streams what it has done to this process, which submits again, from
its first unfinished task on, a chain whose worker or node was lost.
"""

import contextlib
import logging
import secrets
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..arguments import at_least, keep_checked, or_none, text
from ..errors import Error, reason
from ..files import temporary_name
from ..folder import Folder
from ..version import __version__
from .executors import MakeRunner, Report, Runner, Take, WorkerBug, as_message, ignore
from .ray_cluster import connected

TRIES = 4  # of a task, each ended by the loss of its worker or node
TELL_EVERY = 1.0  # seconds between a worker's messages
NO_CORES_FOR = 600.0  # seconds that a cluster may take to get its first core: its nodes may be starting
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class OnRay:
    """The cores of a Ray cluster.

    address: HOST:PORT of the cluster's head, or "auto" for the one that this machine is a node of. None: the address in
    RAY_ADDRESS, else a Ray of this machine's cores, which ends with the run. A program that has called ray.init()
    stays connected as it is. at_once: tasks in flight, None for twice the cluster's cores, also of one that grows.

    The nodes need the same versions of Python, Ray and gpt2wds as this machine, see the output directory under the same
    path, and read the sources by the names in the plan.
    """

    address: str | None = None
    at_once: int | None = None

    def __post_init__(self) -> None:
        keep_checked(self, address=or_none(text), at_once=or_none(at_least(1)))

    def run_tasks(
        self, chains: Iterable[list[Any]], make_runner: MakeRunner, report: Report, *, out: Folder, take: Take = ignore
    ) -> None:
        """See executors.Executor. Raises Error also when Ray is not installed or the cluster cannot be reached."""
        with connected(self.address, self.at_once), _marked(out) as mark:
            # The chains wait here, not in Ray, which would hold them all in memory.
            driver = _Driver(_Node(make_runner, out, mark), report, take, self.at_once)
            driver.run([list(chain) for chain in chains if chain])


@dataclass
class _Done:
    """What a worker has done of a chain so far: in all, and at the end of its last finished task."""

    tasks: int = 0
    documents: int = 0
    tokens: int = 0
    kept_documents: int = 0
    kept_tokens: int = 0
    returned: list[Any] = field(default_factory=list)  # by the tasks that were not told of before

    def add(self, documents: int, tokens: int) -> None:
        self.documents, self.tokens = self.documents + documents, self.tokens + tokens

    def keep(self, returned: Any) -> None:
        self.kept_documents, self.kept_tokens = self.documents, self.tokens
        self.returned.append(returned)

    def told(self) -> "_Done":
        """What is to be told now, while another thread goes on."""
        news = self.returned[:]
        del self.returned[: len(news)]
        self.tasks += len(news)
        return replace(self, returned=news)


@dataclass
class _Chain:
    """Tasks that one worker runs in order, and what is known of it."""

    tasks: list[Any]
    losses: int = 0  # of workers, at its first task
    done: _Done = field(default_factory=_Done)


@dataclass(frozen=True)
class _Node:
    """What a node needs to run tasks of this run."""

    make_runner: MakeRunner
    out: Folder
    mark: str
    version: str = __version__
    key: str = field(default_factory=secrets.token_hex)

    def ready(self) -> Runner:
        """Raises Error when this node cannot do what the others do."""
        host = socket.gethostname()
        if self.version != __version__:
            raise Error(f"node {host}: expected gpt2wds {self.version}, as where the command runs, got {__version__}")
        # Who finishes the dataset removes the mark with other temporary files.
        if not (self.out.exists(self.mark) or self.out.exists("manifest.json")):
            raise Error(
                f"node {host}: expected to see {self.out} as the machine does where the command runs, got another or "
                "no directory; choose an --out that all nodes share (a network file system)"
            )
        return self.make_runner()


class _Driver:
    """Keeps chains in flight until all are done."""

    def __init__(self, node: _Node, report: Report, take: Take, at_once: int | None):
        import ray

        self._ray, self._report, self._take, self._at_once = ray, report, take, at_once
        self._key, self._node = node.key, ray.put(node)
        # Ray's own retries would count what was done twice, and begin a chain again from its first task.
        remote = ray.remote(num_cpus=1, max_retries=0, num_returns="streaming")
        self._work = remote(_work)
        self._running: dict[Any, _Chain] = {}  # by the stream of what its worker says

    def run(self, chains: list[list[Any]]) -> None:
        todo = [_Chain(tasks) for tasks in reversed(chains)]
        limits = _Limits(self._ray, self._at_once)
        try:
            while todo or self._running:
                while todo and len(self._running) < limits.now():
                    self._start(todo.pop())
                ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=1.0)
                if ready:  # and those that are ready by now
                    ready, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
                self._report(0, 0, False)  # so that the line moves on while nothing comes
                for stream in ready:
                    self._receive(stream, todo)
        finally:
            for stream in self._running:
                self._ray.cancel(stream, force=True)

    def _start(self, chain: _Chain) -> None:
        # The node travels in a list: a worker fetches and opens it once, not for each chain.
        self._running[self._work.remote(self._key, [self._node], chain.tasks)] = chain

    def _receive(self, stream: Any, todo: list[_Chain]) -> None:
        chain, lost = self._running[stream], self._ray.exceptions
        try:
            said = self._ray.get(next(stream))
        except StopIteration:
            del self._running[stream]
            return
        except lost.RayTaskError as error:  # before or outside of what _work watches
            raise _cannot_load(error.cause) if isinstance(error.cause, ImportError) else WorkerBug(str(error)) from None
        except (
            lost.WorkerCrashedError,
            lost.NodeDiedError,
            lost.LocalRayletDiedError,
            lost.OutOfMemoryError,
            lost.ObjectLostError,
        ) as error:
            del self._running[stream]
            todo.append(self._again(chain, error))
            return
        if isinstance(said, BaseException):
            raise said
        self._count(chain.done, said)
        chain.done = said

    def _again(self, chain: _Chain, error: Exception) -> _Chain:
        """The rest of a chain whose worker was lost; what it had counted of its unfinished task is taken back."""
        done = chain.done
        self._report(done.kept_documents - done.documents, done.kept_tokens - done.tokens, False)
        rest = chain.tasks[done.tasks :]
        losses = 1 if done.tasks else chain.losses + 1
        if losses == TRIES:
            raise Error(
                f"the worker that made {rest[0]} was lost {TRIES} times, the last time: {reason(error)} "
                "(out of memory?); the same command goes on, perhaps on larger nodes"
            )
        _LOG.warning("%s: its worker was lost, it is made again (%s)", rest[0], reason(error).partition(". ")[0])
        return _Chain(rest, losses)

    def _count(self, before: _Done, now: _Done) -> None:
        self._report(now.documents - before.documents, now.tokens - before.tokens, False)
        for returned in now.returned:
            self._take(returned)
            self._report(0, 0, True)


class _Limits:
    """How many chains may be in flight: twice the cores, so that none is idle and a cluster that can grow does."""

    def __init__(self, ray: Any, at_once: int | None):
        self._ray, self._at_once = ray, at_once
        self._start, self._asked, self._cores = time.monotonic(), -10.0, 0

    def now(self) -> int:
        """Raises Error when the cluster still has no core after NO_CORES_FOR seconds."""
        clock = time.monotonic()
        if clock - self._asked > 5:
            self._asked, self._cores = clock, int(self._ray.cluster_resources().get("CPU", 0))
            if self._cores:
                self._start = clock
            elif clock - self._start > NO_CORES_FOR:
                raise Error(f"Ray: expected a cluster with at least one core, got none for {NO_CORES_FOR:.0f} seconds")
        return self._at_once or max(2, 2 * self._cores)


_here: tuple[str, Runner] | None = None  # in a worker: what runs the tasks of a run, kept from chain to chain


def _work(key: str, node: list[Any], tasks: list[Any]) -> Iterator[_Done | Exception]:
    """Runs in a worker: the tasks of a chain in order. Yields what is done, every second and whenever a task is, and
    last what was raised."""
    done, raised, news = _Done(), list[Exception](), threading.Event()

    def work() -> None:
        try:
            run = _run_of(key, node)
            for task in tasks:
                done.keep(run(task, done.add))
                news.set()
        except OSError as error:
            raised.append(Error(f"node {socket.gethostname()}: {error}"))
        except Exception as error:
            raised.append(as_message(error))
        finally:
            news.set()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while thread.is_alive():
        news.wait(TELL_EVERY)
        news.clear()
        yield done.told()
    yield done.told()
    yield from raised


def _run_of(key: str, node: list[Any]) -> Runner:
    global _here
    if _here is None or _here[0] != key:
        import ray

        try:
            found = ray.get(node[0])
        except ray.exceptions.RaySystemError as error:  # what it is made of is not known here
            raise _cannot_load(error) from None
        _here = key, found.ready()
    return _here[1]


def _cannot_load(error: Exception) -> Error:
    found = reason(error).removeprefix("System error: ")
    return Error(f"a node cannot load what the tasks need ({found}); install the same gpt2wds on all nodes")


@contextlib.contextmanager
def _marked(out: Folder) -> Iterator[str]:
    """The name of a file that is in `out` for the time of the run: a node that sees it sees the same directory."""
    mark = temporary_name(Path("shared")).name
    out.create_text(mark, "")
    try:
        yield mark
    finally:
        out.remove(mark)
