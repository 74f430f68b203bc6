"""Tasks on a real Ray of two nodes of this machine, on loopback addresses: lost workers, lost nodes, lost drivers."""

import contextlib
import hashlib
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gpt2wds import __version__
from gpt2wds.commands.shard import main
from gpt2wds.corpus.executors import Runner, Take, WorkerBug, ignore
from gpt2wds.corpus.ray_executor import TELL_EVERY, TRIES, OnRay
from gpt2wds.errors import Error
from gpt2wds.folder import Folder

COMMAND = Path(sys.executable).with_name("gpt2wds-shard")
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}


def processes(of: str) -> dict[int, str]:
    """Those of this machine whose command line has a word."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = path.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if of in line and int(path.name) != os.getpid():
                found[int(path.name)] = line
    return found


def until(happened: Callable[[], Any], seconds: float = 60) -> Any:
    """What it gives once that is true."""
    end = time.monotonic() + seconds
    while not (answer := happened()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
    return answer


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray whose head has one core; tests add other nodes. Nothing of it is left when the tests end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")  # nothing but the loopback reaches it
        patch.setenv("RAY_DEDUP_LOGS", "0")
        patch.setenv("RAY_worker_niceness", "0")  # 15 by default: where other tests keep all cores busy, they starve
        patch.delenv("RAY_ADDRESS", raising=False)
        cluster_utils = pytest.importorskip("ray.cluster_utils")
        cluster = cluster_utils.Cluster(True, head_node_args={**NODE, "node_ip_address": "127.0.0.2"})
        try:
            yield cluster
        finally:
            session = cluster.head_node.get_session_dir_path()
            cluster.shutdown()
            until(lambda: not processes(session) and not processes("ray::_work"))


@pytest.fixture
def second(cluster: Any) -> Iterator[Any]:
    """The second node, gone after the test."""
    node = cluster.add_node(**NODE, node_ip_address="127.0.0.3")
    yield node
    if node in cluster.list_all_nodes():
        cluster.remove_node(node)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two files of JSON lines, one compressed and so one chain."""
    folder = tmp_path_factory.mktemp("corpus")
    chance = random.Random(3)
    words = ["".join(chance.choices("etaoinshrdlu", k=chance.randint(2, 9))) for _ in range(3000)]
    for name, count in (("a.jsonl", 20_000), ("b.jsonl", 4_000)):
        lines = (json.dumps({"text": " ".join(chance.choices(words, k=400))}) + "\n" for _ in range(count))
        (folder / name).write_text("".join(lines))
    subprocess.run(["gzip", folder / "b.jsonl"], check=True)
    return [folder / "a.jsonl", folder / "b.jsonl.gz"]


def command(corpus: list[Path], out: Path, *more: str) -> list[str]:
    return list(map(str, [COMMAND, "files", *corpus, "--val-docs", 200, "--docs-per-shard", 500, "--out", out, *more]))


def start(cluster: Any, corpus: list[Path], out: Path) -> subprocess.Popen[str]:
    """The command in a process group of its own."""
    line = command(corpus, out, "--executor", "ray", "--ray-address", cluster.address)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(line, text=True, start_new_session=True, **pipes)


def ended(process: subprocess.Popen[str], code: int = 0) -> tuple[str, list[str]]:
    """What it said on standard output, and the lines of standard error."""
    out, err = process.communicate(timeout=90)
    assert process.returncode == code, err
    return out, err.splitlines()


def contents(out: Path) -> dict[str, str]:
    """SHA-256 of all that is there: strays would be seen, too."""
    files = [path for path in out.rglob("*") if path.is_file()]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def receipts(out: Path) -> int:
    return len(list(out.glob("receipts/*.json")))


def workers_of(node: Any) -> list[int]:
    """Processes that a node has started."""
    raylet = node.all_processes["raylet"][0].process.pid
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(path.joinpath("stat").read_text().rpartition(")")[2].split()[1]) == raylet:
                found.append(int(path.name))
    return found


def hold(*nodes: Any) -> list[int]:
    """A worker of each node, stopped amid a task: on a fast machine the others would have done all before the last of
    the nodes began."""
    held: dict[Any, int] = {}

    def all_held() -> bool:
        for node in nodes:
            for worker in set(workers_of(node)) & processes("ray::_work").keys():
                if node not in held:
                    os.kill(worker, signal.SIGSTOP)
                    held[node] = worker
        return len(held) == len(nodes)

    until(all_held)
    return [held[node] for node in nodes]


@pytest.fixture(scope="module")
def whole(corpus: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The dataset as this machine's own processes make it."""
    out = tmp_path_factory.mktemp("whole") / "out"
    subprocess.run(command(corpus, out, "--workers", "2"), check=True, capture_output=True)
    return contents(out)


@pytest.mark.slow
def test_two_nodes_make_the_same_bytes_and_say_what_one_machine_says(
    cluster: Any, second: Any, corpus: list[Path], whole: dict[str, str], tmp_path: Path
) -> None:
    out, lines = ended(start(cluster, corpus, tmp_path / "out"))
    assert contents(tmp_path / "out") == whole
    assert out.startswith(f"{tmp_path / 'out'}: files: train 48 shards") and len(out.splitlines()) == 1
    assert all(line.startswith("sharding files: ") for line in lines), lines
    assert lines[-1].endswith(", 49 of 49 shards") and lines[-1].startswith("sharding files: 24,000 documents")


@pytest.mark.slow
def test_a_node_that_is_lost_costs_its_chain_only(
    cluster: Any, second: Any, corpus: list[Path], whole: dict[str, str], tmp_path: Path
) -> None:
    process = start(cluster, corpus, tmp_path / "out")
    until(lambda: receipts(tmp_path / "out") > 5)
    stays, _ = hold(cluster.head_node, second)
    workers = workers_of(second)
    cluster.remove_node(second, allow_graceful=False)
    for worker in workers:  # they would go on for some seconds, which those of a lost machine do not
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
    assert receipts(tmp_path / "out") < 40, "too late to matter"
    os.kill(stays, signal.SIGCONT)
    said, lines = ended(process)
    assert contents(tmp_path / "out") == whole
    lost = [line for line in lines if "its worker was lost, it is made again (" in line]
    assert 1 <= len(lost) <= 3, lines
    assert lines[-1].startswith("sharding files: 24,000 documents"), lines  # none counted twice
    assert len(said.splitlines()) == 1 and len(lines) <= len(lost) + 5, lines


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_its_chain_only(
    cluster: Any, second: Any, corpus: list[Path], whole: dict[str, str], tmp_path: Path
) -> None:
    process = start(cluster, corpus, tmp_path / "out")
    for worker in hold(cluster.head_node, second):
        os.kill(worker, signal.SIGKILL)
    assert receipts(tmp_path / "out") < 40, "too late to matter"
    said, lines = ended(process)
    assert contents(tmp_path / "out") == whole
    assert sum("its worker was lost, it is made again (The worker died" in line for line in lines) == 2, lines
    assert lines[-1].startswith("sharding files: 24,000 documents"), lines
    assert len(said.splitlines()) == 1


@pytest.mark.slow
def test_the_command_that_was_killed_goes_on(
    cluster: Any, second: Any, corpus: list[Path], whole: dict[str, str], tmp_path: Path
) -> None:
    process = start(cluster, corpus, tmp_path / "out")
    until(lambda: receipts(tmp_path / "out") > 5)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    until(lambda: not processes("ray::_work"))  # what it had begun ends with it
    assert 5 < receipts(tmp_path / "out") < 40
    _, lines = ended(start(cluster, corpus, tmp_path / "out"))
    assert "going on, " in lines[0]
    assert contents(tmp_path / "out") == whole


@pytest.mark.slow
def test_ctrl_c_stops_what_runs_on_the_nodes(cluster: Any, second: Any, corpus: list[Path], tmp_path: Path) -> None:
    process = start(cluster, corpus, tmp_path / "out")
    until(lambda: receipts(tmp_path / "out") > 5)
    os.killpg(process.pid, signal.SIGINT)
    said, lines = ended(process, code=130)
    assert said == "" and lines[-1] == "stopped; the same command goes on from here", lines
    until(lambda: not processes("ray::_work"))
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert not list((tmp_path / "out").glob(".shared*"))


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a node a file system of its own")
def test_a_directory_that_the_nodes_do_not_share_is_one_line(cluster: Any, corpus: list[Path], tmp_path: Path) -> None:
    """The second node has an empty file system in the place of the output directory's parent."""
    private = tmp_path / "private"
    private.mkdir()
    ray = Path(sys.executable).with_name("ray")
    node = f"{ray} start --address {cluster.address} --node-ip-address 127.0.0.4 --num-cpus 1 --block"
    script = f"mount -t tmpfs none {private} && exec {node} --object-store-memory {80 << 20} --disable-usage-stats"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    alone = subprocess.Popen(["unshare", "--mount", "sh", "-c", script], start_new_session=True, **quiet)
    try:
        nodes = cluster.global_state.node_table
        until(lambda: [node for node in nodes() if node["Alive"] and node["NodeManagerAddress"] == "127.0.0.4"])
        _, lines = ended(start(cluster, corpus, private / "out"), code=1)
    finally:
        alone.terminate()
        alone.wait(timeout=30)
    assert lines[-1].startswith("error: node ") and "choose an --out that all nodes share" in lines[-1], lines
    assert "Traceback" not in "".join(lines)


@pytest.mark.slow
def test_a_ray_of_its_own_ends_with_the_command(corpus: list[Path], whole: dict[str, str], tmp_path: Path) -> None:
    line = command(corpus, tmp_path / "out", "--executor", "ray", "--workers", "2")
    cache = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    environment = os.environ | {"HOME": str(tmp_path), "XDG_CACHE_HOME": cache}  # Ray keeps a token of its own there
    done = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=90)
    assert done.returncode == 0, done.stderr
    assert all(line.startswith("sharding files: ") for line in done.stderr.splitlines()), done.stderr
    assert contents(tmp_path / "out") == whole
    until(lambda: not processes("raylet/raylet") or processes("127.0.0.2"))


@pytest.mark.slow
def test_a_node_with_another_version_is_refused(cluster: Any, corpus: list[Path], tmp_path: Path) -> None:
    newer = "from gpt2wds import version; version.__version__ = '99'; from gpt2wds.commands.shard import main; main()"
    line = [sys.executable, "-c", newer, *command(corpus, tmp_path / "out")[1:], "--executor", "ray"]
    done = subprocess.run([*line, "--ray-address", cluster.address], capture_output=True, text=True, timeout=90)
    said = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and said.startswith("error: node "), done.stderr
    assert said.endswith(f"expected gpt2wds 99, as where the command runs, got {__version__}")


# What a task does, in a process of its own


class Note:
    """Notes each run of a task, and does what the task says."""

    def __init__(self, folder: Path):
        self._folder = folder

    def __call__(self, task: dict[str, Any], progress: Callable[[int, int], None]) -> str:
        note = self._folder / task["name"]
        is_first = not note.exists()
        with note.open("a") as file:
            file.write(f"{os.getpid()}\n")
        progress(task.get("documents", 1), 10)
        match task.get("does"):
            case "bug":
                raise KeyError("ours")
            case "error":
                raise Error("source x: expected a, got b; do c")
            case "disk":
                raise OSError(28, "No space left on device", "/x")
            case "die once late" if is_first:
                time.sleep(TELL_EVERY + 1)  # its worker has told of what it did
                os.kill(os.getpid(), signal.SIGKILL)
            case "die":
                time.sleep(0.3)
                os.kill(os.getpid(), signal.SIGKILL)
        return f"did {task['name']}"


def run(cluster: Any, folder: Path, *chains: list[dict[str, Any]], take: Take = ignore) -> list[tuple[int, int, bool]]:
    """Reports of the chains' run on the cluster. take: gets what tasks return."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the nodes do not know this file
    make_run: Callable[[], Runner] = partial(Note, folder)
    reports: list[tuple[int, int, bool]] = []
    OnRay(cluster.address).run_tasks(chains, make_run, lambda *r: reports.append(r), out=Folder(folder), take=take)
    return reports


@pytest.mark.slow
def test_a_chain_runs_in_order_in_one_process_and_all_progress_arrives(cluster: Any, tmp_path: Path) -> None:
    first, second = ([{"name": f"{c}{i}", "documents": i} for i in range(4)] for c in "ab")
    reports = run(cluster, tmp_path, first, second)
    assert [sum(column) for column in zip(*reports, strict=True)] == [12, 80, 8]
    for letter in "ab":
        assert len({(tmp_path / f"{letter}{i}").read_text() for i in range(4)}) == 1
        times = [(tmp_path / f"{letter}{i}").stat().st_mtime_ns for i in range(4)]
        assert times == sorted(times)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_what_a_task_raises_arrives(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(WorkerBug, match=r'(?s)Traceback.*test_ray.py", line.*KeyError: .ours.'):
        run(cluster, tmp_path, [{"name": "a", "does": "bug"}])
    with pytest.raises(Error, match="^source x: expected a, got b; do c$"):
        run(cluster, tmp_path, [{"name": "a", "does": "error"}])
    with pytest.raises(Error, match="^node .*: .*No space left on device: '/x'$"):
        run(cluster, tmp_path, [{"name": "a", "does": "disk"}])


@pytest.mark.slow
def test_what_a_lost_task_had_counted_is_taken_back(cluster: Any, tmp_path: Path) -> None:
    lost, returned = {"name": "b", "documents": 5, "does": "die once late"}, list[str]()
    reports = run(cluster, tmp_path, [{"name": "a", "documents": 3}, lost, {"name": "c"}], take=returned.append)
    assert returned == ["did a", "did b", "did c"]
    assert (-5, -10, False) in reports
    assert [sum(column) for column in zip(*reports, strict=True)] == [9, 30, 3]
    assert [len((tmp_path / name).read_text().splitlines()) for name in "abc"] == [1, 2, 1]


@pytest.mark.slow
@pytest.mark.timeout(120)  # a chain that began again from its start would never be given up
def test_a_task_that_always_kills_its_worker_is_given_up(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(Error, match=f"the worker that made .*b.* was lost {TRIES} times.*out of memory"):
        run(cluster, tmp_path, [{"name": "a"}, {"name": "b", "does": "die"}])
    assert len((tmp_path / "b").read_text().splitlines()) == TRIES
    assert len((tmp_path / "a").read_text().splitlines()) == 1  # finished, so not done again


@pytest.mark.slow
def test_a_node_that_does_not_know_our_code_is_one_line(cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "only_here.py").write_text("def make_run(): ...")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        make_run = __import__("only_here").make_run
        with pytest.raises(
            Error, match=r"^a node cannot load .*No module named 'only_here'\); install the same gpt2wds"
        ):
            OnRay(cluster.address).run_tasks([[{"name": "a"}]], make_run, lambda *_: None, out=Folder(tmp_path))


# Without a cluster


def refused(*options: str) -> str:
    result = CliRunner().invoke(main, ["shakespeare", "--source", "plays", *options])
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert len(result.stderr.splitlines()) == 1
    return result.stderr


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "Ray at 127.0.0.1:1: cannot connect (Connection refused)"),
        ("ray://127.0.0.1:1", "expected the address auto or HOST:PORT of the cluster's head, got 'ray://127.0.0.1:1'"),
        ("nowhere", "expected the address auto or HOST:PORT"),
    ],
)
def test_an_address_that_cannot_be_reached_is_one_line(address: str, said: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    assert said in refused("--executor", "ray", "--ray-address", address, "--out", out)
    assert not list((tmp_path / "out").glob(".shared*"))


def test_where_ray_is_not_installed_it_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: (name != "ray" and find(name, *more)) or None)
    assert "pip install 'gpt2wds[ray]'" in refused("--executor", "ray", "--out", str(tmp_path / "out"))


def test_an_address_without_the_executor_is_refused(tmp_path: Path) -> None:
    line = ["shakespeare", "--source", "plays", "--ray-address", "auto", "--out", str(tmp_path / "out")]
    assert CliRunner().invoke(main, line).exit_code == 2
