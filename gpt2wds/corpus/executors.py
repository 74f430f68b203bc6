"""Where tasks run: in this process, or in several processes of this machine; ray_executor.py has clusters.

Workers are plain processes with a pipe each: no shared memory, no semaphores, no lock files, so nothing is left
behind however they end. A task's result is on disk when it is done; the pipe carries only progress.
"""

import itertools
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from ..errors import Error
from ..folder import Folder

Run = Callable[[Any, Callable[[int, int], None]], None]  # task, progress → done
MakeRun = Callable[[], Run]  # called where tasks will run: what it needs to know of that machine, it asks there
Report = Callable[[int, int, bool], None]  # documents, tokens, whether a task is done


class Executor(Protocol):
    """Where tasks run."""

    def run_tasks(self, chains: Iterable[list[Any]], make_run: MakeRun, report: Report, *, out: Folder) -> None:
        """Run all tasks, those of one chain in order and in one process; their results go to the directory `out`.

        Raises what a task raised, or Error when its worker was killed; what runs elsewhere is stopped then.
        """


@dataclass(frozen=True)
class Processes:
    """Processes of this machine: so many, or as many as it has cores."""

    workers: int | None = None

    def run_tasks(self, chains: Iterable[list[Any]], make_run: MakeRun, report: Report, *, out: Folder) -> None:
        run_tasks(chains, make_run(), report, workers=self.workers or os.cpu_count() or 1)


def run_tasks(chains: Iterable[list[Any]], run: Run, report: Report, *, workers: int) -> None:
    """Run all tasks, those of one chain in order and in one process.

    `run` must be picklable when workers > 1; each worker has its own copy of it.
    Raises what a task raised first, or Error when a worker was killed; the other workers are stopped then.
    """
    todo = [list(chain) for chain in chains if chain]
    if min(workers, len(todo)) <= 1:
        for task in itertools.chain(*todo):
            run(task, lambda documents, tokens: report(documents, tokens, False))
            report(0, 0, True)
        return
    # Not forked: a fork would copy the threads' locks of libraries that this process already uses.
    context = multiprocessing.get_context("spawn")
    busy: dict[Connection, list[Any]] = {}  # the chain a worker is at, its running task first
    processes = []
    try:
        for _ in range(min(workers, len(todo))):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, run), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            busy[ours] = todo.pop(0)
            hand_out(ours, busy)
        while busy:
            for pipe in wait(list(busy)):
                assert isinstance(pipe, Connection)
                receive(pipe, busy, todo, report)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def receive(pipe: Connection, busy: dict[Connection, list[Any]], todo: list[list[Any]], report: Report) -> None:
    try:
        message = pipe.recv()
    except (EOFError, OSError):  # closed, reset, or in the middle of a message
        raise _killed(busy[pipe][0]) from None
    if isinstance(message, BaseException):
        raise message
    documents, tokens, done = message
    report(documents, tokens, done)
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


def _killed(task: Any) -> Error:
    return Error(
        f"a worker was killed while it made {task} (out of memory?); "
        "the same command goes on, perhaps with fewer --workers"
    )


def _work(pipe: Connection, run: Run) -> None:
    # Ctrl-C reaches the whole process group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        while True:
            task, progress = pipe.recv(), _Batched(pipe)
            run(task, progress.add)
            progress.send(done=True)
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


class _Batched:
    """Sends progress once in so many documents: a message per document would cost more than tokenising it."""

    DOCUMENTS = 64

    def __init__(self, pipe: Connection):
        self._pipe, self._documents, self._tokens = pipe, 0, 0

    def add(self, documents: int, tokens: int) -> None:
        self._documents, self._tokens = self._documents + documents, self._tokens + tokens
        if self._documents >= self.DOCUMENTS:
            self.send(done=False)

    def send(self, done: bool) -> None:
        self._pipe.send((self._documents, self._tokens, done))
        self._documents = self._tokens = 0
