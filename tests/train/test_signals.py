"""What the outside asks of a run."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from runs import PROGRAMS, arguments, environment, finish, program, rows, start, trained, wait_for

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
    said = trained(run, plays, "checkpoint.every_steps=1000")
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


def test_after_an_error_signals_are_noted_until_it_is_said() -> None:
    """torchrun's SIGTERM comes when a rank died, and so does the error of the others."""
    signals, killed = Signals(), []
    before = signal.signal(signal.SIGTERM, lambda *_: killed.append("killed"))
    try:
        with pytest.raises(ValueError), signals.noting(signal.SIGUSR1):
            try:
                with signals.noting(signal.SIGTERM):
                    raise ValueError
            finally:
                signal.raise_signal(signal.SIGTERM)
        assert (signals.stop, killed) == (signal.SIGTERM, [])
        with signals.noting(signal.SIGUSR1):
            with signals.noting(signal.SIGTERM):
                pass
            signal.raise_signal(signal.SIGTERM)
        assert killed == ["killed"]
    finally:
        signal.signal(signal.SIGTERM, before)


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


def test_ranks_agree_soon_where_the_first_step_seemed_short() -> None:
    """A device takes work without doing it at once, so the first step may seem to take no time."""
    asked: list[float] = []
    step = 0

    def clock() -> float:
        return 0.3 * max(0, step - 1) + 0.001 * step

    class Pair:
        world_size = 2

        def any(self, flag: bool) -> bool:
            asked.append(clock())
            return flag

        def least(self, number: int) -> int:
            return number

    agreement = Agreement(Signals(), Pair(), clock=clock)
    for step in range(400):
        agreement.at(step)
    assert np.diff(asked).max() < 2.5


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
    trained(run, plays, *workers)
    np.testing.assert_array_equal(rows(run), rows(whole))


@pytest.mark.slow
def test_a_run_whose_output_nobody_reads_any_more_goes_on(plays: Dataset, whole: Path, tmp_path: Path) -> None:
    process = start(tmp_path / "run", plays)
    wait_for(process, "gpt2wds 0.1.0")
    process.stdout.close()
    assert process.wait(timeout=120) == 0
    np.testing.assert_array_equal(rows(tmp_path / "run"), rows(whole))
    assert (tmp_path / "run" / "gpt.log").read_text().endswith(f"finished: {tmp_path / 'run'}\n")


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_ctrl_c_saves_although_it_ends_tee_too(plays: Dataset, tmp_path: Path, ranks: int) -> None:
    run = tmp_path / "run"
    launcher = f"torchrun --standalone --nproc-per-node={ranks} --no-python " * (ranks > 1)
    options = ["train.max_steps=100000", "checkpoint.every_steps=100000", "eval.every_steps=100000"]
    command = f"{launcher}gpt2wds-train {shlex.join(arguments(run, plays, *options))} 2>&1 | tee {tmp_path / 'tee'}"
    shell = ["bash", "-c", f"trap : INT; {command}"]
    process = subprocess.Popen(shell, env=environment(), start_new_session=True)
    end = time.monotonic() + 120
    while not (run / "log.txt").exists() or len((run / "log.txt").read_text().splitlines()) < 5:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    process.wait(timeout=60)
    with pytest.raises(ProcessLookupError):
        for _ in range(300):  # the shell waits for torchrun, which a rank may outlive
            os.killpg(process.pid, 0)
            time.sleep(0.1)
    (stopped,) = re.findall(r"^step (\d+): stopped by SIG(?:INT|TERM)", (run / "gpt.log").read_text(), re.MULTILINE)
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == [f"step-{int(stopped):07d}"]


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


ORPHAN = """
import os, time
from gpt2wds.train.signals import end_with_launcher
while os.getppid() == int(os.environ["PARENT"]):
    time.sleep(0.01)
print(os.getppid(), flush=True)
end_with_launcher(0.05)
time.sleep(30)
print("lives")
"""


def test_a_rank_whose_launcher_was_killed_before_it_looked_ends() -> None:
    """It would wait for the others, for half an hour."""
    shell = ["sh", "-c", 'PARENT=$$ TORCHELASTIC_RUN_ID=x "$0" -c "$1" &', sys.executable, ORPHAN]
    found = subprocess.run(shell, stdout=subprocess.PIPE, text=True, timeout=60).stdout.split()
    if found[0] != "1":
        pytest.skip("orphans have another parent than process 1 here")
    assert found == ["1"]


@pytest.mark.slow
def test_under_nohup_a_hang_up_stops_nothing(plays: Dataset, tmp_path: Path) -> None:
    command = [str(PROGRAMS / "gpt2wds-train"), *arguments(tmp_path / "run", plays)]
    process = program(["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *command])
    wait_for(process, "step 0: validation loss")
    process.send_signal(signal.SIGHUP)
    assert "finished" in finish(process)
