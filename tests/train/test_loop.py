"""Training: the same numbers as a plain loop, whatever interrupts it and however many ranks share it."""

import json
import math
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from making import shard_choices
from runs import PROGRAMS, arguments, children, finish, in_process, program, rows, start, steps_of, trained, wait_for

from gpt2wds.dataset.directory import Dataset
from gpt2wds.train.checkpoint import list_checkpoints
from gpt2wds.train.optim import Optimizers
from gpt2wds.train.rundir import RunDirectory


def test_a_run_directory_is_what_it_should_be(whole: Path) -> None:
    assert (whole / "log.txt").read_text().startswith("# step train_loss val_loss hella_acc\n0 nan ")
    steps, losses, validation, accuracy = rows(whole).T
    assert steps.tolist() == list(range(13))
    assert np.flatnonzero(~np.isnan(validation)).tolist() == [0, 5, 10, 12]
    assert np.isnan(accuracy).all()
    assert losses[12] < losses[1] - 1
    assert validation[12] < validation[0] - 1
    assert [path.name for path in list_checkpoints(whole / "checkpoints")] == ["step-0000008", "step-0000012"]
    last = whole / "checkpoints" / "step-0000012"
    sums = (last / "SHA256SUMS").read_text()
    assert all(path.name in sums for path in last.iterdir() if path.name != "SHA256SUMS")
    assert {"model.safetensors", "vocab.json", "merges.txt", "tokenizer_config.json"} <= {
        p.name for p in last.iterdir()
    }
    metrics = RunDirectory(whole).read_metrics()
    assert [row["step"] for row in metrics] == steps.tolist()
    assert [row["tokens"] for row in metrics] == [256 * step for step in range(13)]
    assert (whole / "gpt.log").read_text().count("saved") == 3


def test_a_row_for_every_so_many_steps(plays: Dataset, whole: Path, tmp_path: Path) -> None:
    """Also where the run was stopped at a step of none."""
    run, seldom = tmp_path / "run", "run.log_every_steps=3"
    in_process(run, plays, seldom)
    kept = [0, 3, 5, 6, 9, 10, 12]  # 5 and 10 evaluate
    np.testing.assert_array_equal(rows(run), rows(whole)[kept])
    assert [row["step"] for row in RunDirectory(run).read_metrics()] == kept
    logged = (run / "log.txt").read_bytes()
    shutil.rmtree(run / "checkpoints" / "step-0000012")
    in_process(run, plays, seldom)
    assert (run / "log.txt").read_bytes() == logged


# (b) killed at any moment


@pytest.mark.slow
def test_killed_at_any_moment_it_gives_the_same_log(plays: Dataset, whole: Path, tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    half = sum(row.get("seconds", 0) for row in RunDirectory(whole).read_metrics()) / 2
    # After "saved" a checkpoint is there and its row is not; the others are any moment.
    moments = [("saved", 0.0), ("precision:", rng.uniform(0, half))]
    run = tmp_path / "run"
    history, kills = [f"seed {seed}"], 0
    for text, seconds in moments:
        process = start(run, plays)
        history.append(f"to be killed {seconds:.3f} s after {text!r}:\n")
        for line in process.stdout:
            history.append(line)
            if text in line:
                time.sleep(seconds)
                process.kill()
        kills += process.wait() == -signal.SIGKILL
    history.append(trained(run, plays))
    assert (run / "log.txt").read_text() == (whole / "log.txt").read_text(), "".join(history)
    assert [row["step"] for row in RunDirectory(run).read_metrics()] == list(range(13)), "".join(history)
    assert kills >= 1, "".join(history)
    # The finished run has the same weights too, bit for bit.
    one, other = (path / "checkpoints" / "step-0000012" / "model.safetensors" for path in (run, whole))
    assert one.read_bytes() == other.read_bytes()


# Function and call, counted in each run of its own; ten steps, a checkpoint every two, an evaluation every three.
MOMENTS: list[list[Any]] = [
    # before there is any checkpoint, and in its first write
    ["gpt2wds.train.rundir", "RunDirectory.rewind", 1],
    ["gpt2wds.commands.measuring", "validation_loss", 1],
    ["gpt2wds.train.update", "Update.__call__", 1],
    ["gpt2wds.train.update", "Update.__call__", 2],
    ["gpt2wds.train.checkpoint", "save_file", 1],
    ["gpt2wds.train.checkpoint", "save_file", 2],
    ["hashlib", "file_digest", 3],
    ["gpt2wds.train.checkpoint", "sync", 4],
    ["pathlib", "Path.rename", 1],
    # in a step
    ["torch", "Tensor.backward", 3],
    ["gpt2wds.train.parallel", "Replicas.clip_gradients", 4],
    ["gpt2wds.train.optim", "Optimizers.step", 3],
    # a checkpoint is there, its row is not; one file of rows has it, the other does not
    ["gpt2wds.train.checkpoint", "list_checkpoints", 2],
    ["gpt2wds.train.rundir", "RunDirectory.append", 1],
    ["gpt2wds.train.rundir", "_without_nan", 2],
    # in the evaluation
    ["gpt2wds.commands.measuring", "score", 1],
    ["gpt2wds.commands.measuring", "next_tokens", 1],
    ["gpt2wds.evaluate.text", "choose_token", 3],
    # while resuming, and while old checkpoints are removed
    ["pathlib", "Path.replace", 3],
    ["shutil", "rmtree", 1],
]


@pytest.mark.slow
def test_killed_at_twenty_known_moments_it_gives_the_same_log(plays: Dataset, tmp_path: Path) -> None:
    choices = shard_choices(tmp_path / "choices", limit=3)
    short = [
        "data.seq_len=128",  # a multiple-choice example fits
        "train.max_steps=10",
        "eval.val_tokens=256",
        "checkpoint.every_steps=2",
        "eval.every_steps=3",
        f"eval.hellaswag={choices.path}",
        'eval.sample_prompts=["Hi"]',
        "eval.sample_tokens=4",
    ]
    runs = {"killed": MOMENTS, "whole": []}
    said = {}
    for name, moments in runs.items():
        (tmp_path / "moments.json").write_text(json.dumps(moments))
        faults = Path(__file__).parents[1] / "faults" / "train_killed.py"
        command = [sys.executable, str(faults), str(tmp_path / "moments.json")]
        said[name] = finish(program([*command, *arguments(tmp_path / name, plays, *short)]))
    outcomes = re.findall(r"^MOMENT (.*)", said["killed"], re.MULTILINE)
    assert outcomes == [*(f"{json.dumps(moment)} killed" for moment in MOMENTS), "null status 0"], said["killed"]
    assert (tmp_path / "killed" / "log.txt").read_text() == (tmp_path / "whole" / "log.txt").read_text()
    assert steps_of(tmp_path / "killed") == list(range(11))
    one, other = (RunDirectory(tmp_path / name).read_metrics() for name in runs)
    assert [row.get("samples") for row in one] == [row.get("samples") for row in other]
    assert [row["step"] for row in one] == list(range(11))


def test_a_finished_run_stays_as_it_is(plays: Dataset, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    code, _ = in_process(tmp_path / "run", plays)
    assert code == 0
    assert (tmp_path / "run" / "log.txt").read_text() == (whole / "log.txt").read_text()


def test_a_damaged_checkpoint_costs_steps_and_nothing_else(plays: Dataset, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "checkpoints" / "step-0000012" / "optimizer.safetensors").write_bytes(b"")
    code, said = in_process(run, plays)
    assert code == 0
    assert re.search(r"WARNING: checkpoint \S+step-0000012 is damaged", said)
    assert re.search(r"resuming from \S+step-0000008", said)
    np.testing.assert_allclose(rows(run), rows(whole), rtol=0, atol=1e-4)


# (e) another configuration


def test_a_checkpoint_from_before_states_had_versions_is_continued(plays: Dataset, whole: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "step-0000012")
    checkpoint = run / "checkpoints" / "step-0000008"
    state = json.loads((checkpoint / "state.json").read_text())
    batches = state.pop("batches")
    del batches["version"]
    (checkpoint / "state.json").write_text(json.dumps(state | batches))
    names = sorted(path.name for path in checkpoint.iterdir() if path.name != "SHA256SUMS")
    sums = subprocess.run(["sha256sum", *names], cwd=checkpoint, capture_output=True, text=True, check=True).stdout
    (checkpoint / "SHA256SUMS").write_text(sums)
    code, said = in_process(run, plays)
    assert (code, "resuming from" in said) == (0, True), said
    np.testing.assert_array_equal(rows(run), rows(whole))


# (f) compiled


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
def test_compiled_it_gives_the_same_losses(plays: Dataset, whole: Path, tmp_path: Path) -> None:
    """Evaluation and samples run while it is on."""
    short = ["train.compile=true", "eval.every_steps=3", 'eval.sample_prompts=["Hello"]']
    settings = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    process = start(tmp_path / "run", plays, *short, **settings)
    wait_for(process, "step 6:")
    process.send_signal(signal.SIGTERM)
    said = finish(process, 128 + signal.SIGTERM)
    assert "no C++ compiler" not in said
    assert any((tmp_path / "cache").rglob("*.cpp"))  # it did compile
    got = rows(tmp_path / "run")
    np.testing.assert_allclose(got[:6, 1], rows(whole)[:6, 1], rtol=0, atol=2e-4)
    samples = [row["samples"] for row in RunDirectory(tmp_path / "run").read_metrics() if "samples" in row]
    assert samples[0][0]["text"].startswith("Hello")


@pytest.mark.slow
def test_with_a_compiler_that_does_not_work_it_says_so_and_runs(plays: Dataset, whole: Path, tmp_path: Path) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    settings = {"CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    said = finish(start(tmp_path / "run", plays, "train.compile=true", **settings))
    assert said.count("WARNING: train.compile: it failed (") == 1 and "going on without it" in said
    np.testing.assert_array_equal(rows(tmp_path / "run"), rows(whole))


@pytest.mark.slow
def test_a_loader_process_that_was_killed_is_one_line(plays: Dataset, tmp_path: Path) -> None:
    process = start(tmp_path / "run", plays, "data.num_workers=1", "train.max_steps=100000", "eval.every_steps=100000")
    wait_for(process, "step 4: saved")
    (child,) = children(process)
    os.kill(child, signal.SIGKILL)
    last = finish(process, 1).splitlines()[-1]
    assert re.match(r"error: DataLoader worker .*(killed by signal|exited unexpectedly)", last), last
    assert last.endswith("lower data.num_workers; the same command goes on from the last checkpoint")


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(["gpt2wds.distributed", "World.gather", 1], id="starting"),
        pytest.param(["gpt2wds.train.signals", "Signals.agree", 2], id="agreeing"),
        pytest.param(["torch", "Tensor.backward", 3], id="backward"),
        pytest.param(["gpt2wds.train.loop", "Trainer._save", 1], id="saving"),
        pytest.param(["gpt2wds.commands.measuring", "validation_loss", 2], id="evaluating"),
    ],
)
def test_a_rank_that_was_killed_is_one_line_of_the_others(plays: Dataset, tmp_path: Path, moment: list[Any]) -> None:
    """Also of one that torchrun's SIGTERM finds on its way out."""
    launcher = [str(PROGRAMS / "torchrun"), "--standalone", "--nproc-per-node=2", "--no-python"]
    killed = [sys.executable, str(Path(__file__).parents[1] / "faults" / "rank_killed.py"), *map(str, moment)]
    process = program([*launcher, *killed, *arguments(tmp_path / "run", plays, "train.max_steps=100000")])
    said = finish(process, 1)
    assert said.count("error: a rank is gone, see what it said last (") == 1, said
    assert "[rank0]" not in said  # no traceback of ours


def test_on_a_cpu_malloc_keeps_the_pages_of_a_step(
    plays: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = list[bool]()
    monkeypatch.setattr("gpt2wds.commands.train.keep_pages", lambda: kept.append(True))
    assert in_process(tmp_path / "run", plays, "train.max_steps=1", "train.warmup_steps=0")[0] == 0
    assert kept == [True]


def test_without_a_compiler_it_says_so_and_runs(
    plays: Dataset, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    code, said = in_process(tmp_path / "run", plays, "train.compile=true")
    assert code == 0
    assert "no C++ compiler here, going on without it" in said
    np.testing.assert_allclose(rows(tmp_path / "run"), rows(whole), rtol=0, atol=1e-4)


# (g) bad numbers, too little memory, a full disk


def test_a_loss_that_is_no_number_stops_the_run(plays: Dataset, tmp_path: Path) -> None:
    code, said = in_process(tmp_path / "run", plays, "train.learning_rate=1e30", "train.warmup_steps=0")
    assert code == 1
    assert "step 2: expected a finite loss and gradient, got nan and nan" in said
    assert "lower train.learning_rate" in said
    assert list_checkpoints(tmp_path / "run" / "checkpoints") == []


@pytest.mark.parametrize("on_nan", ["stop", "skip"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_weights_lost_in_the_last_update_are_not_saved(
    plays: Dataset, tmp_path: Path, on_nan: str, optimizer: str
) -> None:
    """The loss before it was finite, and no step after it tells."""
    lost = ["train.max_steps=1", "train.warmup_steps=0", "train.learning_rate=1e30", "train.muon_learning_rate=1e30"]
    settings = [*lost, f"train.on_nan={on_nan}", f"train.optimizer={optimizer}"]
    code, said = in_process(tmp_path / "run", plays, *settings)
    assert code == 1
    assert re.search(r"error: step 1: expected weights .* finite, below 1e\+18, but \S+ goes from -\S+ to \S+;", said)
    assert "finished" not in said
    assert list_checkpoints(tmp_path / "run" / "checkpoints") == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("place", ["weight", "moment"])
def test_one_number_that_is_lost_is_found(
    plays: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, place: str
) -> None:
    plain = Optimizers.step

    def step(self: Optimizers, factor: float) -> None:
        plain(self, factor)
        parameter = self.all[0].param_groups[0]["params"][0]
        tensor = parameter if place == "weight" else self.all[0].state[parameter]["exp_avg_sq"]
        with torch.no_grad():
            tensor.view(-1)[7] = value

    monkeypatch.setattr(Optimizers, "step", step)
    code, said = in_process(tmp_path / "run", plays, "train.max_steps=1", "train.warmup_steps=1")
    kept = place == "moment" and value == 1e30  # large, and still a number
    assert (code, "expected weights and moments that are finite" in said) == ((0, False) if kept else (1, True)), said


@pytest.mark.slow
def test_too_little_memory_is_one_line(plays: Dataset, tmp_path: Path) -> None:
    """A micro-batch of a million tokens needs two gigabytes for its embeddings alone."""
    command = [str(PROGRAMS / "gpt2wds-train"), *arguments(tmp_path / "run", plays)]
    large = [
        "data.seq_len=512",
        "train.tokens_per_step=1048576",
        "train.micro_batch_sequences=100000",
        "eval.every_steps=1000",
    ]
    limited = ["bash", "-c", 'ulimit -v 3500000; exec "$@"', "bash", *command, *large, "model.n_embd=512"]
    said = finish(program(limited), 1)
    assert "Traceback" not in said
    last = said.strip().splitlines()[-1]
    assert last.startswith("error: out of memory with micro-batches of 2,048 sequences: try train.micro_batch_seq")
    assert "train.micro_batch_sequences=1024, which" in last


@pytest.fixture
def little_disk(tmp_path: Path) -> Iterator[Path]:
    """A run directory whose checkpoints are on a disk with room for one and a half of them."""
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", str(checkpoints)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs to mount a small disk")
    yield tmp_path / "run"
    subprocess.run(["umount", str(checkpoints)], check=True)


def test_a_full_disk_stops_the_run(plays: Dataset, whole: Path, little_disk: Path) -> None:
    code, said = in_process(little_disk, plays)
    assert code == 1
    assert said.strip().splitlines()[-1] == (
        f"error: step 8: {little_disk}/checkpoints: the checkpoint could not be written (No space left on device); "
        "make room, then the same command goes on from the one before"
    )
    assert [path.name for path in (little_disk / "checkpoints").iterdir()] == ["step-0000004"]
    subprocess.run(["mount", "-o", "remount,size=80m", str(little_disk / "checkpoints")], check=True)
    code, said = in_process(little_disk, plays)
    assert code == 0
    np.testing.assert_allclose(rows(little_disk), rows(whole), rtol=0, atol=1e-4)


def test_a_limit_of_files_sizes_is_told_as_that(plays: Dataset, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        code, said = in_process(tmp_path / "run", plays)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 1 and "(File too large); allow larger files (ulimit -f), then the same command" in said


def test_a_full_disk_is_told_and_trained_on(plays: Dataset, whole: Path, little_disk: Path) -> None:
    code, said = in_process(little_disk, plays, "checkpoint.on_error=continue")
    # Trained on, but not finished: the weights of the end are nowhere.
    assert code == 1 and "finished:" not in said
    assert "trained to the end, but the last checkpoint could not be written; make room, then" in said
    assert re.findall(r"WARNING: step (\d+): .*: the checkpoint could not be written", said) == ["8", "12"]
    assert [path.name for path in (little_disk / "checkpoints").iterdir()] == ["step-0000004"]
    np.testing.assert_allclose(rows(little_disk), rows(whole), rtol=0, atol=1e-4)
