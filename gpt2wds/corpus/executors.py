"""Where tasks run: in this process, or in several processes of this machine; ray_executor.py has clusters.

Workers are plain processes with a pipe each: no shared memory, no semaphores, no lock files, so nothing is left
behind however they end. A task's result is on disk when it is done; the pipe carries only progress.
"""

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from ..arguments import at_least, keep_checked, or_none
from ..errors import Error
from ..folder import Folder
from .overlap import Cores, keep_memory, one_core


class Runner(Protocol):
    """What runs a task, and tells progress in documents and tokens. It may use so many cores of this machine.

    What it returns is for who handed the task out.
    """

    def __call__(self, task: Any, progress: Callable[[int, int], None], cores: Cores = one_core, /) -> Any: ...


_OF_A_TERMINAL = signal.SIGINT, signal.SIGHUP  # which come to all of its processes at once
MakeRunner = Callable[[], Runner]  # called where tasks will run: what it needs to know of that machine, it asks there
Report = Callable[[int, int, bool], None]  # documents, tokens, whether a task is done
Take = Callable[[Any], None]  # what a task returned; called before it is reported as done


class Executor(Protocol):
    """Where tasks run."""

    def run_tasks(
        self, chains: Iterable[list[Any]], make_runner: MakeRunner, report: Report, *, out: Folder, take: Take
    ) -> None:
        """Run all tasks, those of one chain in order and in one process; their results go to the directory `out`.

        Raises what a task raised, or Error when its worker was killed; what runs elsewhere is stopped then.
        """


@dataclass(frozen=True)
class Processes:
    """Processes of this machine: so many, or as many as it has cores. Where tasks are fewer, they use threads."""

    workers: int | None = None

    def __post_init__(self) -> None:
        keep_checked(self, workers=or_none(at_least(1)))

    def run_tasks(
        self, chains: Iterable[list[Any]], make_runner: MakeRunner, report: Report, *, out: Folder, take: Take
    ) -> None:
        if out.is_in_memory:  # what another process writes there, nobody sees: one chain is one process
            chains = [list(itertools.chain(*chains))]
        run_tasks(chains, make_runner(), report, take, workers=self.workers or os.cpu_count() or 1)


def ignore(_: Any) -> None:
    """Of what tasks return nothing is needed."""


def run_tasks(
    chains: Iterable[list[Any]], runner: Runner, report: Report, take: Take = ignore, *, workers: int
) -> None:
    """Run all tasks, those of one chain in order and in one process; while fewer run than `workers`, they share the
    cores of those that have nothing to do.

    `runner` must be picklable when workers > 1; each worker has its own copy of it.
    Raises what a task raised first, or Error when a worker was killed; the other workers are stopped then.
    """
    todo = [list(chain) for chain in chains if chain]
    if min(workers, len(todo)) <= 1:
        for task in itertools.chain(*todo):
            take(runner(task, lambda documents, tokens: report(documents, tokens, False), lambda: workers))
            report(0, 0, True)
        return
    # Not forked: a fork would copy the threads' locks of libraries that this process already uses.
    context = multiprocessing.get_context("spawn")
    busy: dict[Connection, list[Any]] = {}  # the chain a worker is at, its running task first
    processes = []
    try:
        for _ in range(min(workers, len(todo))):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, runner), daemon=True)
            with _held_back(*_OF_A_TERMINAL):
                process.start()
            theirs.close()
            processes.append(process)
            busy[ours] = todo.pop(0)
            hand_out(ours, busy)
        running = workers  # that share the cores; one core each is what they begin with
        while busy:
            if len(busy) < running:
                running = len(busy)
                _share_out(workers, list(busy))
            for pipe in wait(list(busy)):
                assert isinstance(pipe, Connection)
                receive(pipe, busy, todo, report, take)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


@contextlib.contextmanager
def _held_back(*numbers: int) -> Iterator[None]:
    """Signals come after this, and never to the processes that begin in here: Ctrl-C would find them in Python's own
    start, which answers with a traceback. The parent decides what it means."""
    resource_tracker.ensure_running()  # which would let it through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def receive(
    pipe: Connection, busy: dict[Connection, list[Any]], todo: list[list[Any]], report: Report, take: Take = ignore
) -> None:
    try:
        message = pipe.recv()
    except (EOFError, OSError):  # closed, reset, or in the middle of a message
        raise _killed(busy[pipe][0]) from None
    if isinstance(message, BaseException):
        raise message
    documents, tokens, *done = message
    if done:
        take(done[0])
    report(documents, tokens, bool(done))
    if not done:
        return
    busy[pipe] = busy[pipe][1:] or (todo.pop(0) if todo else [])
    if busy[pipe]:
        hand_out(pipe, busy)
    else:
        del busy[pipe]
        pipe.close()


def hand_out(pipe: Connection, busy: dict[Connection, list[Any]]) -> None:
    try:
        pipe.send(busy[pipe][0])
    except ConnectionError:
        raise _killed(busy[pipe][0]) from None


def _share_out(cores: int, pipes: list[Connection]) -> None:
    for number, pipe in enumerate(pipes):
        with contextlib.suppress(ConnectionError):  # a worker that was killed is found where its answer is missing
            pipe.send(cores // len(pipes) + (number < cores % len(pipes)))


def _killed(task: Any) -> Error:
    return Error(
        f"a worker was killed while it made {task} (out of memory?); "
        "the same command goes on, perhaps with fewer --workers"
    )


def _work(pipe: Connection, runner: Runner) -> None:
    # They were held back while this process began. The parent decides what they mean.
    for number in _OF_A_TERMINAL:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_memory()
    parent = _Parent(pipe)
    try:
        while True:
            parent.send(runner(parent.next_task(), parent.add, parent.cores))
    except (EOFError, BrokenPipeError):
        pass  # the parent is gone or needs nothing more
    except Exception as error:
        pipe.send(as_message(error))


def _end_with_parent() -> None:
    """A parent that is killed stops nobody: what a worker makes then is what the same command makes again meanwhile."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)


class WorkerBug(Exception):
    """A mistake of ours in a worker; its message is the worker's traceback."""


def as_message(error: Exception) -> Exception:
    """What a worker sends of the exception that it is handling: a user's as it is, ours with its traceback."""
    if isinstance(error, MemoryError):
        return Error("a worker is out of memory; the same command goes on, perhaps with fewer --workers")
    return error if isinstance(error, (Error, OSError)) else WorkerBug(traceback.format_exc())


class _Parent:
    """A worker's end of its pipe: tasks, and how many cores they may use, come; progress goes.

    Progress is sent once in so many documents: a message per document would cost more than tokenising it.
    """

    DOCUMENTS = 64

    def __init__(self, pipe: Connection):
        self._pipe, self._documents, self._tokens, self._cores = pipe, 0, 0, 1

    def next_task(self) -> Any:
        while isinstance(message := self._pipe.recv(), int):
            self._cores = message
        return message

    def cores(self) -> int:
        """Asked while a task runs: then nothing else comes."""
        while self._pipe.poll():
            self._cores = self._pipe.recv()
        return self._cores

    def add(self, documents: int, tokens: int) -> None:
        self._documents, self._tokens = self._documents + documents, self._tokens + tokens
        if self._documents >= self.DOCUMENTS:
            self.send()

    def send(self, *done: Any) -> None:
        """done: what a task returned, when it is done."""
        self._pipe.send((self._documents, self._tokens, *done))
        self._documents = self._tokens = 0
