"""One writer for a run directory."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from runs import finish, in_process, rows, start, wait_for

from gpt2wds.dataset.directory import Dataset
from gpt2wds.errors import Error
from gpt2wds.files import temporary_name
from gpt2wds.train import lock
from gpt2wds.train.lock import Lock

TAKE = """
import sys
from pathlib import Path
from gpt2wds.errors import Error
from gpt2wds.train.lock import Lock
sys.stdin.readline()
try:
    Lock(Path(sys.argv[1])).take()
    print("taken", flush=True)
except Error as error:
    print("refused", error, flush=True)
sys.stdin.readline()
"""


class Writer:
    """Another process, which takes the lock when it is told to, and ends when it is told to."""

    def __init__(self, folder: Path):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", TAKE, str(folder)], **pipes)

    def tell(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        return self.process.stdout.readline()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def writer(folder: Path) -> Iterator[Writer]:
    """One that has the directory."""
    other = Writer(folder)
    try:
        other.tell()
        assert other.answer() == "taken\n"
        yield other
    finally:
        other.end()


def change(folder: Path, **fields: str) -> None:
    """Make a lock another's."""
    (path,) = folder.glob("lock-*")
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_who_lives_keeps_it_and_who_is_dead_loses_it(tmp_path: Path) -> None:
    with writer(tmp_path) as other:
        pid = other.process.pid
        with pytest.raises(Error, match=rf"in use by process {pid} on \S+, since 2\S+ \S+ UTC; wait for it or stop it"):
            Lock(tmp_path).take()
        assert [path.name for path in tmp_path.iterdir()] == ["lock-1"]
    mine = Lock(tmp_path)  # it was killed
    mine.take()
    assert [path.name for path in tmp_path.iterdir()] == ["lock-2"]
    mine.release()
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_another_process_has_now_is_no_life(tmp_path: Path) -> None:
    with writer(tmp_path):
        change(tmp_path, process="1")
        Lock(tmp_path).take()


def test_who_ended_and_was_not_waited_for_is_dead(tmp_path: Path) -> None:
    with writer(tmp_path) as other:
        other.process.kill()
        os.waitid(os.P_PID, other.process.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
        Lock(tmp_path).take()


def test_a_copy_of_a_directory_in_use_is_free(tmp_path: Path) -> None:
    with writer(tmp_path / "run"):
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        Lock(tmp_path / "copy").take()
        with pytest.raises(Error, match="in use"):
            Lock(tmp_path / "run").take()


@pytest.mark.parametrize("lives", [True, False])
def test_of_another_host_it_counts_whether_the_file_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lives: bool
) -> None:
    monkeypatch.setattr(lock, "SILENT_SECONDS", 2.0)
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.1)
    said: list[str] = []
    other, mine = Lock(tmp_path), Lock(tmp_path, said.append)
    other.take()
    change(tmp_path, kernel="another", host="far")
    if lives:
        with pytest.raises(Error, match=r"in use by process \d+ on far"):
            mine.take()
    else:
        other.release()  # no longer touched; the file, which is not its own now, stays
        mine.take()
        assert [path.name for path in tmp_path.iterdir()] == ["lock-2"]
    assert said and "process" in said[0] and "waiting to see whether it still lives" in said[0]


def test_what_another_host_gives_back_while_it_is_watched_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "SILENT_SECONDS", 20.0)
    Lock(tmp_path).take()
    change(tmp_path, kernel="another", host="far")
    monkeypatch.setattr("time.sleep", lambda _: (tmp_path / "lock-1").unlink())
    Lock(tmp_path, lambda _: None).take()
    assert [path.name for path in tmp_path.iterdir()] == ["lock-2"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', "[" * 100_000, "\x00"])
def test_a_damaged_lock_counts_as_an_unknown_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(lock, "SILENT_SECONDS", 0.2)
    (tmp_path / "lock-7").write_text(text)
    Lock(tmp_path).take()
    assert [path.name for path in tmp_path.iterdir()] == ["lock-8"]


@pytest.mark.parametrize("dead", [True, False])
def test_of_many_that_start_at_once_one_has_it(tmp_path: Path, dead: bool) -> None:
    if dead:
        with writer(tmp_path):
            pass
        assert [path.name for path in tmp_path.iterdir()] == ["lock-1"]
    others = [Writer(tmp_path) for _ in range(6)]
    try:
        for other in others:
            other.tell()
        answers = [other.answer() for other in others]
    finally:
        for other in others:
            other.end()
    assert sum(answer == "taken\n" for answer in answers) == 1, answers
    assert sum(answer.startswith("refused") for answer in answers) == 5, answers


def test_of_many_threads_that_take_over_at_once_at_most_one_has_it(tmp_path: Path) -> None:
    """At most: two that see each other both give way."""
    for _ in range(30):
        taken, ready = [], threading.Barrier(4)

        def take(mine: Lock, taken: list[Lock] = taken, ready: threading.Barrier = ready) -> None:
            ready.wait()
            with contextlib.suppress(Error):
                mine.take()
                taken.append(mine)

        threads = [threading.Thread(target=take, args=(Lock(tmp_path),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(taken) <= 1
        for mine in taken:
            change(tmp_path, process="1")  # as if killed
            mine.release()


def test_who_stood_still_for_long_and_lost_it_is_told(tmp_path: Path) -> None:
    mine = Lock(tmp_path)
    mine.take()
    mine.check()
    (tmp_path / "lock-1").unlink()
    mine.check()  # removed by hand: it is there again
    assert (tmp_path / "lock-1").exists()
    (tmp_path / "lock-1").unlink()
    with writer(tmp_path), pytest.raises(Error, match="in use by process"):
        mine.check()
    mine.release()
    assert (tmp_path / "lock-1").exists()  # the other's


def test_directories_that_were_made_for_nothing_go(tmp_path: Path) -> None:
    mine = Lock(tmp_path / "runs" / "a")
    mine.take()
    mine.release()
    assert list(tmp_path.iterdir()) == []
    mine.take()
    (tmp_path / "runs" / "a" / "log.txt").touch()
    mine.release()
    assert [path.name for path in (tmp_path / "runs" / "a").iterdir()] == ["log.txt"]


@pytest.mark.slow
def test_a_command_given_twice_is_refused_and_harms_nothing(plays: Dataset, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(run, plays)
    wait_for(process, "precision:")
    process.send_signal(signal.SIGSTOP)
    try:
        code, said = in_process(run, plays)
        assert (code, said.count("\n")) == (1, 1), said
        assert said.startswith(f"error: {run}: in use by process {process.pid} on ")
        code, said = in_process(run, plays, "--dry-run")
        assert code == 0, said
    finally:
        process.send_signal(signal.SIGCONT)
    finish(process)
    np.testing.assert_array_equal(rows(run), rows(whole))
    assert not list(run.glob("lock-*"))


def test_tasks_of_slurm_without_torchrun_get_a_hint(
    plays: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    with writer(tmp_path / "run"):
        code, said = in_process(tmp_path / "run", plays)
    assert code == 1
    hint, error = said.splitlines()
    assert hint.startswith("WARNING: Slurm started 8 tasks without torchrun: each of them trains alone.")
    assert error.startswith(f"error: {tmp_path / 'run'}: in use by process")


def test_what_a_killed_process_left_of_taking_it_goes(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    name = temporary_name(tmp_path / "lock-1").name.replace(f".{os.getpid()}.", f".{ended.pid}.")
    (tmp_path / name).write_text("half")
    Lock(tmp_path).take()
    assert [path.name for path in tmp_path.iterdir()] == ["lock-1"]
