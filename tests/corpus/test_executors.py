"""Tasks in several processes."""

import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from gpt2wds.corpus.executors import WorkerBug, as_message, hand_out, receive, run_tasks
from gpt2wds.errors import Error


@dataclass
class Task:
    shard: str
    documents: int
    fails: bool = False
    dies: bool = False
    is_buggy: bool = False

    def __str__(self) -> str:
        return self.shard


def note(folder, task, progress, cores):
    (folder / task.shard).write_text(str(os.getpid()))
    progress(task.documents, 10)
    if task.fails:
        raise Error("this one fails")
    if task.is_buggy:
        raise KeyError("our mistake")
    if task.dies:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    return f"did {task.shard}"


def tasks(count, **special):
    return [Task(f"train-{i:05d}", i, **special.get(f"task{i}", {})) for i in range(count)]


def alone(tasks):
    return [[task] for task in tasks]


@pytest.mark.parametrize("workers", [1, 2, pytest.param(5, marks=pytest.mark.slow)])
def test_every_task_runs_once_and_all_progress_arrives(tmp_path, workers):
    reports = []
    run_tasks(alone(tasks(7)), partial(note, tmp_path), lambda *r: reports.append(r), workers=workers)
    assert sorted(p.name for p in tmp_path.iterdir()) == [t.shard for t in tasks(7)]
    assert sum(r[0] for r in reports) == sum(range(7)) and sum(r[1] for r in reports) == 70
    assert sum(r[2] for r in reports) == 7
    assert len({p.read_text() for p in tmp_path.iterdir()}) <= workers


@pytest.mark.parametrize("workers", [1, 2])
def test_what_tasks_return_arrives_before_they_are_done(tmp_path, workers):
    heard = []
    report = lambda *r: heard.append("done") if r[2] else None  # noqa: E731
    run_tasks(alone(tasks(3)), partial(note, tmp_path), report, heard.append, workers=workers)
    assert sorted(heard[::2]) == [f"did train-{i:05d}" for i in range(3)] and heard[1::2] == ["done"] * 3


@pytest.mark.parametrize("workers", [1, 2])
def test_tasks_of_a_chain_run_in_order_in_one_process(tmp_path, workers):
    first, second = tasks(5)[:3], tasks(5)[3:]
    run_tasks([first, second], partial(note, tmp_path), lambda *_: None, workers=workers)
    for chain in (first, second):
        made = [tmp_path / task.shard for task in chain]
        assert len({path.read_text() for path in made}) == 1
        times = [path.stat().st_mtime_ns for path in made]
        assert times == sorted(times)


def test_what_a_task_raises_arrives(tmp_path):
    with pytest.raises(Error, match="^this one fails$"):
        run_tasks(alone(tasks(4, task2={"fails": True})), partial(note, tmp_path), lambda *_: None, workers=2)


def test_a_killed_worker_is_named_and_no_process_stays(tmp_path):
    with pytest.raises(ValueError, match="killed while it made train-00001"):
        run_tasks(alone(tasks(4, task1={"dies": True})), partial(note, tmp_path), lambda *_: None, workers=2)
    for path in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)


def hang_up(folder, task, *_):
    os.kill(os.getpid(), signal.SIGHUP)
    (folder / task.shard).touch()


def test_a_terminal_that_is_closed_is_the_parents_alone(tmp_path):
    """It sends SIGHUP to all of its processes: a worker that ended with it would be called killed."""
    run_tasks(alone(tasks(2)), partial(hang_up, tmp_path), lambda *_: None, workers=2)
    assert len(list(tmp_path.iterdir())) == 2


def test_no_tasks_is_no_work(tmp_path):
    run_tasks([], partial(note, tmp_path), lambda *_: pytest.fail("a report"), workers=2)


def test_a_mistake_of_ours_arrives_with_its_traceback(tmp_path):
    with pytest.raises(WorkerBug, match=r"Traceback [\s\S]*in note[\s\S]*KeyError: 'our mistake'") as caught:
        run_tasks(alone(tasks(4, task2={"is_buggy": True})), partial(note, tmp_path), lambda *_: None, workers=2)
    assert not isinstance(caught.value, ValueError)
    with pytest.raises(KeyError):
        run_tasks(alone(tasks(4, task2={"is_buggy": True})), partial(note, tmp_path), lambda *_: None, workers=1)


def test_a_worker_that_is_killed_with_a_task_unread_is_named_too():
    ours, theirs = multiprocessing.Pipe()
    ours.send("a task that nobody reads")
    theirs.close()  # the kernel answers with a reset, not with an end
    with pytest.raises(Error, match="a worker was killed while it made train-00001"):
        receive(ours, {ours: [tasks(2)[1]]}, [], lambda *_: None)
    with pytest.raises(Error, match="a worker was killed while it made train-00001"):
        hand_out(ours, {ours: [tasks(2)[1]]})


def test_a_worker_without_memory_is_one_line():
    assert "out of memory; the same command goes on" in str(as_message(MemoryError()))


def sleep(folder, task, *_):
    (folder / task.shard).write_text(str(os.getpid()))
    time.sleep(60)


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_workers_end_when_their_parent_is_killed(tmp_path):
    parent = multiprocessing.get_context("fork").Process(
        target=run_tasks, args=(alone(tasks(2)), partial(sleep, tmp_path), print), kwargs={"workers": 2}
    )
    parent.start()
    while len([path for path in tmp_path.iterdir() if path.read_text()]) < 2:
        time.sleep(0.02)
    os.kill(parent.pid, signal.SIGKILL)
    parent.join()
    left = {int(path.read_text()) for path in tmp_path.iterdir()}
    end = time.monotonic() + 5
    while left and time.monotonic() < end:
        left = {pid for pid in left if runs(pid)}
        time.sleep(0.02)
    assert not left


def cores_had(folder, task, _, cores):
    """Notes how many cores it has while as many tasks run as it says, and when it has as many as it needs."""
    end = time.monotonic() + 20

    def wait_for(condition):
        while not condition():
            assert time.monotonic() < end, f"{task.shard} has {cores()} cores"
            time.sleep(0.01)

    (folder / f"{task.shard}.runs").touch()
    wait_for(lambda: len(list(folder.glob("*.runs"))) >= task.beside and cores() >= task.needs)
    (folder / f"{task.shard}.had").write_text(str(cores()))
    wait_for(lambda: len(list(folder.glob("*.had"))) >= task.beside)


@dataclass
class Cored:
    shard: str
    beside: int = 0
    needs: int = 0


@pytest.mark.parametrize(("workers", "had"), [pytest.param(2, ["1", "1"], marks=pytest.mark.slow), (5, ["3", "2"])])
def test_tasks_share_the_cores_of_all_workers(tmp_path, workers, had):
    todo = alone([Cored("a", beside=2, needs=int(had[0])), Cored("b", beside=2, needs=int(had[1]))])
    run_tasks(todo, partial(cores_had, tmp_path), lambda *_: None, workers=workers)
    assert [(tmp_path / f"{name}.had").read_text() for name in "ab"] == had


def test_the_cores_of_a_worker_that_is_done_go_to_those_that_still_run(tmp_path):
    todo = alone([Cored("a", needs=3), Cored("b")])
    run_tasks(todo, partial(cores_had, tmp_path), lambda *_: None, workers=3)


def test_a_single_chain_runs_in_this_process_with_all_cores(tmp_path):
    run_tasks([[Cored("a"), Cored("b")]], partial(cores_had, tmp_path), lambda *_: None, workers=7)
    assert [(tmp_path / f"{name}.had").read_text() for name in "ab"] == ["7", "7"]
