"""What the outside asks of a run."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from runs import PROGRAMS, arguments, environment, finish, program, rows, start, wait_for

from gpt2wds.dataset.directory import Dataset
from gpt2wds.train.checkpoint import list_checkpoints
from gpt2wds.train.signals import Agreement, Signals

# (c) signals


@pytest.mark.slow
def test_usr1_saves_and_term_saves_and_stops(plays: Dataset, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(run, plays, "checkpoint.every_steps=1000")
    wait_for(process, "step 0: validation loss")
    process.send_signal(signal.SIGUSR1)
    said = wait_for(process, "saved") + wait_for(process, "validation loss")  # it goes on
    process.send_signal(signal.SIGTERM)
    said += finish(process, 128 + signal.SIGTERM)
    steps = [int(step) for step in re.findall(r"step (\d+): saved", said)]
    assert len(steps) == 2
    assert 0 < steps[0] < steps[1] < 12
    assert f"step {steps[1]}: stopped by SIGTERM" in said
    assert rows(run)[-1, 0] <= steps[1]
    said = finish(start(run, plays, "checkpoint.every_steps=1000"))
    assert f"step-{steps[1]:07d}" in said
    assert (run / "log.txt").read_text() == (whole / "log.txt").read_text()


def catches(process: subprocess.Popen[str], number: int) -> bool:
    """Whether a process has a handler for a signal, as Linux knows it."""
    (mask,) = re.findall(r"^SigCgt:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
    return bool(int(mask, 16) >> (number - 1) & 1)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_usr1_while_it_starts_is_done_after_the_first_step(plays: Dataset, tmp_path: Path) -> None:
    process = start(tmp_path / "run", plays, "checkpoint.every_steps=1000", "train.max_steps=2")
    while not catches(process, signal.SIGUSR1):
        # Not only when torch is there, seconds later.
        assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR1)
    said = finish(process)
    assert re.findall(r"step (\d+): saved", said) == ["1", "2"]


@pytest.mark.parametrize(("seconds", "most"), [(0.01, 100), (0.5, 4), (5.0, 1)])
def test_ranks_agree_about_every_two_seconds(seconds: float, most: int) -> None:
    """Whatever a step takes."""
    asked: list[int] = []
    step = 0

    class Pair:
        world_size = 2

        def any(self, flag: bool) -> bool:
            asked.append(step)
            return flag

        def least(self, number: int) -> int:
            return number

    agreement = Agreement(Signals(), Pair(), clock=lambda: step * seconds)
    for step in range(7, 400):
        agreement.at(step)
    assert asked[0] == 7
    assert np.diff(sorted(set(asked))).max() == most


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_whole_process_group_saves_with_loader_workers(
    plays: Dataset, whole: Path, tmp_path: Path, number: int
) -> None:
    """As Slurm and systemd send it: to the loader's worker processes too."""
    run = tmp_path / "run"
    workers = ["data.num_workers=2", "checkpoint.every_steps=1000"]
    command = [str(PROGRAMS / "gpt2wds-train"), *arguments(run, plays, *workers)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, env=environment(), start_new_session=True, **pipes)
    wait_for(process, "step 0: validation loss")
    os.killpg(process.pid, number)
    said = finish(process, 128 + number)
    (stopped,) = re.findall(r"step (\d+): stopped by", said)
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == [f"step-{int(stopped):07d}"]
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # no worker is left
    finish(start(run, plays, *workers))
    np.testing.assert_array_equal(rows(run), rows(whole))


@pytest.mark.slow
def test_ranks_save_and_end_when_their_launcher_was_killed(plays: Dataset, whole: Path, tmp_path: Path) -> None:
    """SIGKILL to torchrun, which hands nothing on."""
    run = tmp_path / "run"
    process = start(run, plays, "checkpoint.every_steps=1000", "train.max_steps=100000", ranks=2)
    wait_for(process, "step 0: validation loss")
    writer = json.loads((run / "lock-1").read_text())["pid"]
    process.kill()
    said, _ = process.communicate(timeout=60)  # until the last rank has closed its output
    (stopped,) = re.findall(r"step (\d+): stopped by SIGTERM", said)
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == [f"step-{int(stopped):07d}"]
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.kill(writer, 0)
            time.sleep(0.1)
    assert not list(run.glob("lock-*"))


@pytest.mark.slow
def test_under_nohup_a_hang_up_stops_nothing(plays: Dataset, tmp_path: Path) -> None:
    command = [str(PROGRAMS / "gpt2wds-train"), *arguments(tmp_path / "run", plays)]
    process = program(["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *command])
    wait_for(process, "step 0: validation loss")
    process.send_signal(signal.SIGHUP)
    assert "finished" in finish(process)
