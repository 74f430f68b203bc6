"""The files under examples/: their own command lines, run with the environment that a scheduler would give them."""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from runs import PROGRAMS, arguments, environment, finish, rows, trained

from gpt2wds.dataset.directory import Dataset

EXAMPLES = Path(__file__).parents[1] / "examples"
SLURM, KUBERNETES = EXAMPLES / "slurm", EXAMPLES / "kubernetes"


@pytest.mark.parametrize("script", sorted(SLURM.glob("*.sbatch")), ids=lambda path: path.name)
def test_scripts_are_sound(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)


# Sharding without a head node


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What is asked for: 11 shards of a file of JSON lines."""
    path = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    chance = random.Random(5)
    words = ["".join(chance.choices("etaoinshrdlu", k=chance.randint(2, 9))) for _ in range(500)]
    texts = (" ".join(chance.choices(words, k=100)) for _ in range(1050))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return ["files", str(path), "--val-docs", "50", "--docs-per-shard", "100"]


@pytest.fixture(scope="module")
def whole(corpus: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The dataset that one command makes."""
    out = tmp_path_factory.mktemp("whole") / "out"
    subprocess.run([PROGRAMS / "gpt2wds-shard", *corpus, "--out", out], check=True, capture_output=True)
    return contents(out)


def contents(out: Path) -> dict[str, str]:
    files = [path for path in out.rglob("*") if path.is_file()]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def at_once(commands: list[tuple[list[str], dict[str, str]]]) -> None:
    """Run commands side by side, each with what is added to its environment; all must succeed."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started = [subprocess.Popen(line, env=environment(**extra), **pipes) for line, extra in commands]
    for process in started:
        finish(process)


@pytest.mark.slow
def test_an_array_job_makes_the_bytes_of_one_run(corpus: list[str], whole: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = ["bash", str(SLURM / "finish.sbatch"), str(out)]
    fixed = {"SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_CPUS_PER_TASK": "1"}
    line = ["bash", str(SLURM / "shard.sbatch"), str(out), *corpus]
    at_once([(line, fixed | {"SLURM_ARRAY_TASK_ID": str(i)}) for i in (4, 1, 2)])
    missing = subprocess.run(ended, env=environment(), capture_output=True, text=True)
    assert missing.returncode == 1 and "missing: train-00001\n" in missing.stdout  # slice 2/4: the third's
    at_once([(line, fixed | {"SLURM_ARRAY_TASK_ID": "3"})])
    at_once([(ended, {})])
    assert contents(out) == whole


@pytest.mark.slow
def test_an_indexed_job_makes_the_bytes_of_one_run(corpus: list[str], whole: dict[str, str], tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    at_once([(line, extra) for line, extra in (pod(index, 4, corpus, out) for index in (3, 0, 2, 1))])
    job = yaml.safe_load((KUBERNETES / "finish.yaml").read_text())
    command = job["spec"]["template"]["spec"]["containers"][0]["command"]
    at_once([([out if word.startswith("/data/") else word for word in command], {})])
    assert contents(tmp_path / "out") == whole


def pod(index: int, slices: int, corpus: list[str], out: str) -> tuple[list[str], dict[str, str]]:
    """The command line and environment that the job's file gives a pod, for another corpus, directory and number."""
    container = yaml.safe_load((KUBERNETES / "shard.yaml").read_text())["spec"]["template"]["spec"]["containers"][0]
    env = {entry["name"]: entry["value"] for entry in container["env"]}
    assert env.keys() == {"SLICES", "OUT", "WORKERS"}
    changed = {"SLICES": str(slices), "OUT": out, "WORKERS": "1", "JOB_COMPLETION_INDEX": str(index)}
    return [*container["command"], *corpus], changed


def test_kubernetes_gives_each_slice_its_pod() -> None:
    job = yaml.safe_load((KUBERNETES / "shard.yaml").read_text())
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    slices = {entry["name"]: entry["value"] for entry in pod["containers"][0]["env"]}["SLICES"]
    assert spec["completionMode"] == "Indexed" and spec["completions"] == int(slices)
    assert pod["restartPolicy"] == "Never"  # what backoffLimitPerIndex asks for
    mounted = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_ray_knows_every_key_of_the_cluster_file() -> None:
    ray, jsonschema = pytest.importorskip("ray"), pytest.importorskip("jsonschema")
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    cluster = yaml.safe_load((EXAMPLES / "ray" / "cluster.yaml").read_text())
    jsonschema.validate(cluster, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(cluster | {"no_such_key": 1}, schema)
    assert cluster["head_node_type"] in cluster["available_node_types"]


# Training on two nodes


@pytest.fixture
def two_nodes() -> Iterator[tuple[str, list[str]]]:
    """The beginning of a shell line that runs the rest on node $SLURM_NODEID, and the nodes' names.

    Each has a network and a host name of its own where that is allowed; else both are this machine.
    """
    mine = f"g{os.getpid() % 100_000}"
    names = [f"{mine}-{i}" for i in range(2)]
    links = [f"{mine}v{i}" for i in range(2)]
    can = os.geteuid() == 0 and shutil.which("ip") and shell(f"ip netns add {names[0]}", check=False)
    if not can:
        yield "exec", ["127.0.0.1", "127.0.0.1"]
        return
    try:
        shell(f"ip netns add {names[1]}")
        shell(f"ip link add {links[0]} netns {names[0]} type veth peer name {links[1]} netns {names[1]}")
        for i, (name, link) in enumerate(zip(names, links, strict=True)):
            shell(f"ip -n {name} addr add 10.77.0.{i + 1}/24 dev {link}; ip -n {name} link set {link} up")
            shell(f"ip -n {name} link set lo up")
            hosts = Path("/etc/netns", name, "hosts")  # ip shows it in the place of /etc/hosts
            hosts.parent.mkdir(parents=True)
            hosts.write_text("127.0.0.1 localhost\n" + "".join(f"10.77.0.{j + 1} {names[j]}\n" for j in range(2)))
        own_name = """unshare --uts sh -c 'hostname "$0"; exec "$@"'"""
        yield f"exec ip netns exec {mine}-$SLURM_NODEID {own_name} {mine}-$SLURM_NODEID", names
    finally:
        for name in names:
            shell(f"ip netns del {name}", check=False)
            shutil.rmtree(Path("/etc/netns", name), ignore_errors=True)


def shell(line: str, check: bool = True) -> bool:
    return subprocess.run(line, shell=True, check=check, capture_output=True).returncode == 0


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def processes_of_node(test: Path, node: int) -> list[int]:
    """What this test's srun started on a node, and all that came of it."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"\0NODE_OF_TEST={test}:{node}\0".encode() in path.joinpath("environ").read_bytes():
                found.append(int(path.name))
    return found


@pytest.mark.slow
def test_training_goes_on_exactly_when_a_node_is_lost(
    plays: Dataset, two_nodes: tuple[str, list[str]], tmp_path: Path
) -> None:
    """Two torchrun agents as train.sbatch starts them; all of the second node's processes are killed in mid-run."""
    on_node, names = two_nodes
    steps = "train.max_steps=24"
    trained(tmp_path / "whole", plays, steps)
    tools = tmp_path / "tools"
    tools.mkdir()
    program(tools / "scontrol", f"printf '%s\\n' {' '.join(names)}")
    program(tools / "srun", f"""
        while [[ $1 == --* ]]; do shift; done
        for SLURM_NODEID in 0 1; do export SLURM_NODEID NODE_OF_TEST={tmp_path}:$SLURM_NODEID; ( {on_node} "$@" ) & done
        wait -n; wait""")  # fmt: skip
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[0-1]", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "1"}
    changes = job | {"PATH": f"{tools}:{PROGRAMS}:{os.environ['PATH']}", "WAIT_FOR_NODES": "10"}
    changes["RDZV_PORT"] = str(29_000 + os.getpid() % 3000)
    line = ["bash", str(SLURM / "train.sbatch"), *arguments(tmp_path / "run", plays, steps)]
    log = tmp_path / "said.txt"
    with log.open("w") as file:
        process = subprocess.Popen(line, env=environment(**changes), stdout=file, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: "step 8: saved" in log.read_text() or process.poll() is not None, 60)
        for number in processes_of_node(tmp_path, 1):
            os.kill(number, signal.SIGKILL)
        process.wait(timeout=120)
    finally:
        for number in [*processes_of_node(tmp_path, 0), *processes_of_node(tmp_path, 1)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        process.kill()
    said = log.read_text()
    assert process.returncode == 0, said
    begun = said.split("gpt2wds 0.1.0")[1:]
    assert len(begun) == 2 and "2 ranks" in begun[0] and "1 rank" in begun[1], said
    last = max(int(found.split(":")[0]) for found in begun[0].split("step ")[1:] if ": saved" in found.splitlines()[0])
    assert last < 24 and f"resuming from {tmp_path}/run/checkpoints/step-{last:07d}\n" in begun[1], said
    assert rows(tmp_path / "run")[:, 0].tolist() == list(range(25))
    np.testing.assert_allclose(rows(tmp_path / "run"), rows(tmp_path / "whole"), rtol=0, atol=1e-5)


def wait_until(happened: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
