"""Tasks in several processes."""

import os
import signal
import time
from functools import partial

import pytest

from gpt2wds.corpus.executors import WorkerBug, run_tasks
from gpt2wds.errors import Error


def note(folder, task, progress):
    (folder / task["shard"]).write_text(str(os.getpid()))
    progress(task["documents"], 10)
    if task.get("fails"):
        raise Error("this one fails")
    if task.get("is_wrong"):
        raise KeyError("ours")
    if task.get("dies"):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)


def tasks(count, **special):
    return [{"shard": f"train-{i:05d}", "documents": i, **special.get(f"task{i}", {})} for i in range(count)]


def alone(tasks):
    return [[task] for task in tasks]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_task_runs_once_and_all_progress_arrives(tmp_path, workers):
    reports = []
    run_tasks(alone(tasks(7)), partial(note, tmp_path), lambda *r: reports.append(r), workers=workers)
    assert sorted(p.name for p in tmp_path.iterdir()) == [t["shard"] for t in tasks(7)]
    assert sum(r[0] for r in reports) == sum(range(7)) and sum(r[1] for r in reports) == 70
    assert sum(r[2] for r in reports) == 7
    assert len({p.read_text() for p in tmp_path.iterdir()}) <= workers


@pytest.mark.parametrize("workers", [1, 2])
def test_tasks_of_a_chain_run_in_order_in_one_process(tmp_path, workers):
    first, second = tasks(5)[:3], tasks(5)[3:]
    run_tasks([first, second], partial(note, tmp_path), lambda *_: None, workers=workers)
    for chain in (first, second):
        made = [tmp_path / task["shard"] for task in chain]
        assert len({path.read_text() for path in made}) == 1
        times = [path.stat().st_mtime_ns for path in made]
        assert times == sorted(times)


def test_what_a_task_raises_arrives(tmp_path):
    with pytest.raises(Error, match="^this one fails$"):
        run_tasks(alone(tasks(4, task2={"fails": True})), partial(note, tmp_path), lambda *_: None, workers=2)


def test_our_mistake_arrives_with_its_traceback(tmp_path):
    with pytest.raises(WorkerBug, match=r"(?s)Traceback .*test_executors.py.*KeyError: 'ours'"):
        run_tasks(alone(tasks(4, task2={"is_wrong": True})), partial(note, tmp_path), lambda *_: None, workers=2)


def test_a_killed_worker_is_named_and_no_process_stays(tmp_path):
    with pytest.raises(Error, match="killed while it made .*train-00001"):
        run_tasks(alone(tasks(4, task1={"dies": True})), partial(note, tmp_path), lambda *_: None, workers=2)
    for path in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)


def test_no_tasks_is_no_work(tmp_path):
    run_tasks([], partial(note, tmp_path), lambda *_: pytest.fail("a report"), workers=2)
