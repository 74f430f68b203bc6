"""Several ranks."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from runs import PROGRAMS, arguments, finish, forked, in_process, program, rows, steps_of, trained, wait_for

from gpt2wds.dataset.directory import Dataset
from gpt2wds.distributed import join_world
from gpt2wds.train.checkpoint import list_checkpoints


@pytest.mark.slow
def test_torchrun_starts_again_when_a_rank_is_killed(plays: Dataset, pair: Path, tmp_path: Path) -> None:
    """SIGKILL to one of two ranks: all start again, and each step is logged once, as if nothing had been."""
    run = tmp_path / "run"
    launcher = [str(PROGRAMS / "torchrun"), "--standalone", "--nproc-per-node=2", "--max-restarts=2", "--no-python"]
    command = [str(PROGRAMS / "gpt2wds-train"), *arguments(run, plays, "train.micro_batch_sequences=2")]
    process = program([*launcher, *command])
    said = wait_for(process, "step 8: saved")
    os.kill(rank_process(process.pid, 1), signal.SIGKILL)
    said += finish(process)
    assert re.findall(r"resuming from \S+step-(\d+)", said) == ["0000008"]
    assert (run / "log.txt").read_text() == (pair / "log.txt").read_text()


def rank_process(launcher: int, rank: int) -> int:
    """Process number of a rank that torchrun started."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = path.joinpath("stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == launcher and f"\0RANK={rank}\0".encode() in path.joinpath("environ").read_bytes():
                return int(path.name)
    raise AssertionError(f"torchrun has no rank {rank}")


@pytest.mark.slow
def test_ranks_may_be_others_each_time(plays: Dataset, whole: Path, tmp_path: Path) -> None:
    """Two ranks, then one, then four: steps of the same sequences, so losses to float error."""
    run = tmp_path / "run"
    for ranks, last in ((2, 4), (1, 8), (4, 12)):
        if ranks > 1:
            said = trained(run, plays, "checkpoint.keep=3", ranks=ranks)
        else:
            code, said = in_process(run, plays, "checkpoint.keep=3")
            assert code == 0
        for path in list_checkpoints(run / "checkpoints"):
            if int(path.name[5:]) > last:
                shutil.rmtree(path)
        assert ("resuming from" in said) == (last > 4)
    assert steps_of(run) == list(range(13))
    np.testing.assert_allclose(rows(run), rows(whole), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_three_ranks_that_do_not_divide_a_step_resume_bit_for_bit(plays: Dataset, whole: Path, tmp_path: Path) -> None:
    """Three numbers, unlike two, have a sum that hangs on the order in which they are added."""
    run, resumed = tmp_path / "run", tmp_path / "resumed"
    trained(run, plays, "train.micro_batch_sequences=2", ranks=3)
    np.testing.assert_allclose(rows(run), rows(whole), rtol=0, atol=2e-4)
    shutil.copytree(run, resumed)
    last = "checkpoints/step-0000012"
    shutil.rmtree(resumed / last)
    assert "step-0000008" in trained(resumed, plays, "train.micro_batch_sequences=2", ranks=3)
    for name in ("log.txt", f"{last}/model.safetensors", f"{last}/optimizer.safetensors"):
        assert (resumed / name).read_bytes() == (run / name).read_bytes(), name


SLOW = """
import time
from gpt2wds.commands.train import main
from gpt2wds.model import GPT2

def forward(self, *arguments):
    time.sleep(SECONDS * self.training)
    return plain(self, *arguments)

plain, GPT2.forward = GPT2.forward, forward
main()
"""


@pytest.mark.slow
def test_a_run_of_two_ranks_with_long_steps_stops_at_once_and_goes_on_with_one(
    plays: Dataset, whole: Path, tmp_path: Path
) -> None:
    """Ranks agree by time, not by steps: torchrun kills what has not ended after 30 seconds."""
    run = tmp_path / "run"
    (tmp_path / "slow.py").write_text(SLOW.replace("SECONDS", "1.5"))
    launcher = [str(PROGRAMS / "torchrun"), "--standalone", "--nproc-per-node=2", str(tmp_path / "slow.py")]
    process = program([*launcher, *arguments(run, plays, "checkpoint.every_steps=1000")])
    wait_for(process, "step 0: validation loss")
    process.send_signal(signal.SIGTERM)  # torchrun hands it on to its ranks
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    (stopped,) = re.findall(r"step (\d+): stopped by SIGTERM", said)
    assert 1 <= int(stopped) <= 3
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == [f"step-{int(stopped):07d}"]
    said = trained(run, plays)
    assert f"step-{int(stopped):07d}" in said
    np.testing.assert_allclose(rows(run), rows(whole), rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"RANK": "0"}, "expected WORLD_SIZE beside RANK; let torchrun set them, or unset all of them"),
        ({"WORLD_SIZE": "2"}, "expected RANK and MASTER_ADDR and MASTER_PORT beside WORLD_SIZE"),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "x"}, "expected MASTER_PORT beside RANK and WORLD_SIZE and"),
        ({"RANK": "1", "WORLD_SIZE": "1"}, "expected a RANK from 0 to WORLD_SIZE - 1, got RANK=1 and WORLD_SIZE=1"),
        ({"RANK": "x", "WORLD_SIZE": "1"}, "expected a RANK from 0 to WORLD_SIZE - 1, got RANK=x and WORLD_SIZE=1"),
    ],
)
def test_half_a_world_is_refused(
    plays: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], message: str
) -> None:
    """Else each process would take itself for the only one, and all would write into one directory."""
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    code, said = in_process(tmp_path / "run", plays)
    assert code == 1
    assert said.startswith(f"error: environment: {message}")
    assert not (tmp_path / "run").exists()


def test_a_world_of_one_may_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for given in ({}, {"WORLD_SIZE": "1"}, {"RANK": "0", "WORLD_SIZE": "1"}):
        with monkeypatch.context() as patch:
            for name, value in given.items():
                patch.setenv(name, value)
            with join_world("cpu") as world:
                assert (world.rank, world.world_size, world.gather("a")) == (0, 1, ["a"])


@pytest.mark.slow
def test_ranks_that_would_start_from_different_states_do_not(plays: Dataset, pair: Path, tmp_path: Path) -> None:
    """As with an old view of a shared directory, or a copy that was damaged on one host."""

    def attempt(*of_rank_1: str) -> str:
        words = arguments(tmp_path / "run", plays, "train.micro_batch_sequences=2")
        ranks = [[*words, f"run.dir={tmp_path}/run{rank}", *own] for rank, own in enumerate(((), of_rank_1))]
        codes, _, said = forked("train", *ranks)
        (error,) = re.findall("^error: (.*)", said, re.MULTILINE)
        assert codes == [1, 1]
        return error

    for rank in (0, 1):
        shutil.copytree(pair, tmp_path / f"run{rank}")
    expected = "ranks have different configurations: rank 0 → rank 1: eval.every_steps: 5 → 6; give all"
    assert attempt("eval.every_steps=6").startswith(expected)
    newest = tmp_path / "run1" / "checkpoints" / "step-0000012"
    with (newest / "state.json").open("a") as file:
        file.write(" ")
    other = r"ranks would start from different states: rank 0 from step 12 \(\w{12}\), rank 1 from step "
    assert re.match(other + "8 ", attempt())  # the newest is damaged there
    names = [path.name for path in newest.iterdir() if path.name != "SHA256SUMS"]
    sums = subprocess.run(["sha256sum", *names], cwd=newest, capture_output=True, text=True, check=True).stdout
    (newest / "SHA256SUMS").write_text(sums)
    assert re.match(other + "12 ", attempt())
    shutil.rmtree(newest.parent)
    assert re.match(other + r"0 \(a new model\)", attempt())
    assert (tmp_path / "run0" / "log.txt").read_text() == (pair / "log.txt").read_text()
