"""gpt2wds-shard stopped at any moment, in any way: the same command goes on and makes the same bytes."""

import itertools
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from making import shard_files, tree
from shard_command import COMMAND


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of JSON lines, one compressed: 24 shards that take a while."""
    folder = tmp_path_factory.mktemp("corpus")
    chance = random.Random(3)
    words = ["".join(chance.choices("etaoinshrdlu", k=chance.randint(2, 9))) for _ in range(3000)]
    for name in ("a.jsonl", "b.jsonl"):
        texts = [" ".join(chance.choices(words, k=400)) for _ in range(3000)]
        (folder / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    subprocess.run(["gzip", folder / "b.jsonl"], check=True)
    return folder


def command(corpus: Path, out: Path, workers: int = 2) -> list[str]:
    paths = [corpus / "a.jsonl", corpus / "b.jsonl.gz"]
    options = ["--val-docs", 100, "--docs-per-shard", 250, "--workers", workers, "--out", out]
    return list(map(str, [COMMAND, "files", *paths, *options]))


def start(corpus: Path, out: Path) -> subprocess.Popen:
    """In a process group of its own."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(command(corpus, out), start_new_session=True, text=True, **quiet)


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The dataset made in one go by one process: this one."""
    out = tmp_path_factory.mktemp("whole") / "out"
    shard_files(out, corpus / "a.jsonl", corpus / "b.jsonl.gz", val_docs=100, docs_per_shard=250)
    return tree(out)


@pytest.mark.parametrize(
    "workers", [3, pytest.param(2, marks=pytest.mark.slow), pytest.param(5, marks=pytest.mark.slow)]
)
def test_the_number_of_workers_changes_no_byte(corpus: Path, whole: dict[str, str], tmp_path: Path, workers: int):
    """And nothing is left behind in shared memory or in temporary folders."""

    def everything() -> set[Path]:
        # tiktoken keeps its vocabulary in a folder of its own, once and for all.
        found = {*Path("/dev/shm").glob("*"), *temporary.rglob("*")}
        return {path for path in found if "data-gym-cache" not in path.parts}

    temporary = tmp_path / "tmp"
    temporary.mkdir()
    before = everything()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    subprocess.run(command(corpus, tmp_path / "out", workers), check=True, capture_output=True, env=environment)
    assert tree(tmp_path / "out") == whole
    assert everything() <= before


def receipts(out: Path) -> int:
    return len(list(out.glob("receipts/*.json")))


def half_way(corpus: Path, out: Path) -> subprocess.Popen:
    """A command that has made some shards."""
    process = start(corpus, out)
    while process.poll() is None and receipts(out) < 3:
        time.sleep(0.005)
    return process


@pytest.mark.slow
def test_25_kills_at_random_moments_change_nothing(corpus: Path, whole: dict[str, str], tmp_path: Path):
    chance, kills, stages = random.Random(11), 0, []
    for attempt in itertools.count():
        out = tmp_path / str(attempt)
        ended = False
        while kills < 25 and not ended:
            # Some moments from the start on, where the plan is made, the others from some number of shards on.
            begin, after = receipts(out), chance.choice([0, 0, 1, 2, 4])
            process = start(corpus, out)
            moment = time.monotonic() + chance.uniform(0, 2.0 if after == 0 else 0.1)
            while (time.monotonic() < moment or receipts(out) < begin + after) and process.poll() is None:
                time.sleep(0.002)
            ended = process.poll() == 0
            if not ended:
                os.killpg(process.pid, signal.SIGKILL)
                assert process.wait() == -signal.SIGKILL
                kills += 1
                stages.append(receipts(out))
        done = subprocess.run(command(corpus, out), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert tree(out) == whole
        if kills == 25:
            break
    assert len(set(stages)) > 5, stages  # the moments were of different stages


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(
    corpus: Path, whole: dict[str, str], tmp_path: Path, number: signal.Signals
):
    out = tmp_path / "out"
    process = half_way(corpus, out)
    os.killpg(process.pid, number)  # as a terminal does, also when it is closed: to all of the group
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + number and "Traceback" not in said
    assert said.rstrip().endswith("stopped; the same command goes on from here")
    with pytest.raises(ProcessLookupError):  # no worker stays; Python's resource tracker ends a moment later
        for _ in range(500):
            os.killpg(process.pid, 0)
            time.sleep(0.01)
    assert not (out / "manifest.json").exists()
    subprocess.run(command(corpus, out), check=True, capture_output=True)
    assert tree(out) == whole


@pytest.mark.slow
@pytest.mark.parametrize("wait", [0, 0.01, 0.03, 0.1, 0.3])
def test_ctrl_c_while_workers_start_is_one_line(corpus: Path, tmp_path: Path, wait: float):
    """They are in Python's own start then, which would answer with a traceback."""
    process = start(corpus, tmp_path / "out")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not any(
        b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes() for child in children.read_text().split()
    ):
        time.sleep(0.001)
    time.sleep(wait)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert [line for line in said.splitlines() if not line.startswith("sharding ")] == [
        "stopped; the same command goes on from here"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_one_big_task_that_threads_work_on_stops_like_any(corpus: Path, tmp_path: Path, how: signal.Signals):
    paths = [corpus / "a.jsonl", corpus / "b.jsonl.gz"]

    def one_task(out: Path, workers: int) -> list[str]:
        return list(map(str, [COMMAND, "files", *paths, "--out", out, "--workers", workers]))

    out = tmp_path / "out"
    process = subprocess.Popen(one_task(out, 3), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not any(path.stat().st_size for path in out.glob(".train-00000*")):
        time.sleep(0.001)
    process.send_signal(how)
    _, said = process.communicate(timeout=30)
    assert not (out / "train-00000.tar.zst").exists()
    if how == signal.SIGINT:
        assert process.returncode == 130 and "Traceback" not in said
        assert not list(out.glob(".train*"))
    subprocess.run(one_task(out, 3), check=True, capture_output=True)
    subprocess.run(one_task(tmp_path / "alone", 1), check=True, capture_output=True)
    assert tree(out) == tree(tmp_path / "alone")


@pytest.mark.slow
def test_slices_of_the_tasks_make_the_same_dataset_in_any_order(corpus: Path, whole: dict[str, str], tmp_path: Path):
    out = tmp_path / "out"

    def run(*more: str) -> subprocess.CompletedProcess:
        return subprocess.run([*command(corpus, out), *more], capture_output=True, text=True)

    assert "slice 2/3 is done" in run("--task-slice", "2/3").stdout
    missing = subprocess.run([COMMAND, "finish", out], capture_output=True, text=True)
    assert missing.returncode == 1 and "missing: train-00000\n" in missing.stdout
    assert "17 of 25 shards are missing" in missing.stderr and len(missing.stderr.splitlines()) == 1
    assert "slice 0/3 is done" in run("--task-slice", "0/3").stdout
    assert not (out / "manifest.json").exists()
    last = run("--task-slice", "1/3")
    assert last.returncode == 0
    assert tree(out) == whole
    (out / "manifest.json").unlink()
    assert subprocess.run([COMMAND, "finish", out], capture_output=True).returncode == 0
    assert tree(out) == whole
    for wrong in ("3/3", "x", "1"):
        assert run("--task-slice", wrong).returncode == 2


def check_becomes(out: Path, wanted: dict[str, str]) -> None:
    """`out` is as wanted; workers whose parent was killed get some time to end their last task."""
    until = time.monotonic() + 30
    while tree(out) != wanted and time.monotonic() < until:
        time.sleep(0.1)
    assert tree(out) == wanted


@pytest.mark.slow
def test_workers_whose_parent_was_killed_do_no_harm(corpus: Path, whole: dict[str, str], tmp_path: Path):
    out = tmp_path / "out"
    process = half_way(corpus, out)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (out / "manifest.json").exists()
    assert start(corpus, out).wait() == 0
    check_becomes(out, whole)


@pytest.mark.slow
def test_two_processes_at_once_make_one_dataset(corpus: Path, whole: dict[str, str], tmp_path: Path):
    out = tmp_path / "out"
    assert [process.wait() for process in (start(corpus, out), start(corpus, out))] == [0, 0]
    check_becomes(out, whole)
