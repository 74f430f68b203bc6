"""Training: the same numbers as a plain loop, whatever interrupts it and however many ranks share it."""

import contextlib
import dataclasses
import importlib.util
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import shard_choices, shard_plays
from torch.nn import functional as F

from gpt2wds.commands import common
from gpt2wds.commands.train import main
from gpt2wds.dataset.directory import Dataset
from gpt2wds.dataset.loader import StepBatches
from gpt2wds.distributed import World
from gpt2wds.model import GPT2, GPT2Config
from gpt2wds.train.checkpoint import list_checkpoints, save_checkpoint
from gpt2wds.train.loop import SKIPS_IN_A_ROW, Recipe, Trainer
from gpt2wds.train.microbatches import micro_batch_shape, micro_batches
from gpt2wds.train.optim import learning_rate_factor, make_optimizers
from gpt2wds.train.parallel import Replicas
from gpt2wds.train.rundir import RunDirectory
from gpt2wds.train.signals import Signals

PROGRAMS = Path(sys.executable).parent
# 8 sequences a step, which three ranks do not divide. Small, but for the vocabulary.
CONFIG = """
[run]
device = "cpu"
[data]
seq_len = 32
[model]
n_layer = 1
n_head = 2
n_embd = 32
[train]
tokens_per_step = 256
micro_batch_sequences = 8
max_steps = 12
learning_rate = 1e-2
min_learning_rate = 1e-3
warmup_steps = 2
dtype = "float32"
compile = false
[eval]
every_steps = 5
val_tokens = 512
sample_prompts = []
[checkpoint]
every_steps = 4
keep = 2
"""


def arguments(run: Path, dataset: Dataset, *overrides: str) -> list[str]:
    path = run.with_suffix(".toml")
    path.write_text(CONFIG, encoding="utf-8")
    return [str(path), f"run.dir={run}", f"data.path={dataset.path}", *overrides]


def environment(**changes: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"} | changes


def start(run: Path, dataset: Dataset, *overrides: str, ranks: int = 1, **changes: str) -> subprocess.Popen[str]:
    command = [str(PROGRAMS / "gpt2wds-train"), *arguments(run, dataset, *overrides)]
    if ranks > 1:
        launcher = [str(PROGRAMS / "torchrun"), "--standalone", f"--nproc-per-node={ranks}", "--no-python"]
        command = [*launcher, *command]
    return program(command, **changes)


def program(command: list[str], **changes: str) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment(**changes), **pipes)


def finish(process: subprocess.Popen[str], expected: int = 0) -> str:
    """The rest of what it says; it must end as expected."""
    said, _ = process.communicate(timeout=300)
    assert process.returncode == expected, said
    return said


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """Read what it says until a line has `text`; all that was read."""
    said = ""
    for line in process.stdout:
        said += line
        if text in line:
            return said
    raise AssertionError(f"expected {text!r}, got {said}")


def in_process(run: Path, dataset: Dataset, *overrides: str) -> tuple[int, str]:
    """Exit code and output of gpt2wds-train, called here: faster than a new process."""
    result = CliRunner().invoke(main, arguments(run, dataset, *overrides))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As in the processes started here; with more the models here would be no faster."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rows(run: Path) -> np.ndarray:
    """(steps, 4) of log.txt."""
    return np.loadtxt(run / "log.txt", ndmin=2)


@pytest.fixture(scope="module")
def whole(plays: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps that nothing interrupted. Read it, do not change it."""
    run = tmp_path_factory.mktemp("whole") / "run"
    finish(start(run, plays))
    return run


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


# (a) the same numbers as a plain loop

STEPS, RATE, LOWEST, WARMUP, DECAY = 20, 1e-2, 1e-3, 4, 0.5


def plain_rate(step: int) -> float:
    """Linear warm-up and cosine, counted from 0 as the lesson does."""
    if step < WARMUP:
        return RATE * (step + 1) / WARMUP
    return LOWEST + 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP))) * (RATE - LOWEST)


def batches_of(dataset: Dataset, world: World) -> StepBatches:
    options = {"seq_len": 32, "sequences_per_step": 8, "seed": 3}
    return StepBatches(dataset, rank=world.rank, world_size=world.world_size, **options)


@pytest.fixture(scope="module")
def plain(plays: Dataset) -> list[tuple[float, float]]:
    """Loss and gradient norm of 20 steps of a straightforward loop in PyTorch's own words."""
    model = GPT2(GPT2Config(2, 2, 32, n_positions=32), seed=3)
    decaying = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": decaying, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), eps=1e-8)
    found = []
    for step, sequences in enumerate(islice(batches_of(plays, World(0, 1, torch.device("cpu"))), STEPS)):
        tokens = torch.from_numpy(sequences.astype(np.int64))
        logits = model.logits(model.hidden(tokens[:, :-1])[0])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = plain_rate(step)
        optimizer.step()
        found.append((loss.item(), norm.item()))
    return found


def trained_here(dataset: Dataset, folder: Path, model: GPT2, **options: Any) -> list[dict[str, Any]]:
    """Rows of a run of the trainer in this process."""
    world = World(0, 1, torch.device("cpu"))
    rates = {"learning_rate": RATE, "weight_decay": DECAY, "muon_learning_rate": 0.0}
    recipe = Recipe(
        max_steps=STEPS,
        micro_batch_sequences=8,
        grad_clip=1.0,
        on_nan="stop",
        dtype="float32",
        compile=False,
        learning_rate=RATE,
        learning_rate_factor=learning_rate_factor(
            "cosine", warmup_steps=WARMUP, max_steps=STEPS, min_factor=LOWEST / RATE
        ),
        eval_every_steps=100,
        checkpoint_every_steps=100,
        checkpoint_keep=1,
        checkpoint_on_error="stop",
    )
    folder.mkdir(exist_ok=True)
    run = RunDirectory(folder)
    trainer = Trainer(
        Replicas(model, world),
        make_optimizers(model, "adamw", **rates),
        batches_of(dataset, world),
        lambda model: {},
        dataclasses.replace(recipe, **options),
        run=run,
        world=world,
        signals=Signals(),
        beside_weights={},
        say=lambda text: None,
        progress=lambda steps, note: None,
    )
    assert trainer.train({"step": 0, "row": {"step": 0, "tokens": 0}}) == 0
    return run.read_metrics()[1:]


@pytest.mark.parametrize("micro_batch_sequences", [1, 3, 8])
def test_losses_are_a_plain_loops(
    plays: Dataset, tmp_path: Path, plain: list[tuple[float, float]], micro_batch_sequences: int
) -> None:
    model = GPT2(GPT2Config(2, 2, 32, n_positions=32), seed=3)
    metrics = trained_here(plays, tmp_path, model, micro_batch_sequences=micro_batch_sequences)
    expected_losses, expected_norms = np.array(plain).T
    assert max(expected_norms) > 1 > min(expected_norms)  # some were clipped, some not
    np.testing.assert_allclose([row["train_loss"] for row in metrics], expected_losses, rtol=0, atol=1e-4)
    np.testing.assert_allclose([row["grad_norm"] for row in metrics], expected_norms, rtol=2e-3)
    rates_used = [row["learning_rate"] for row in metrics]
    np.testing.assert_allclose(rates_used, [plain_rate(step) for step in range(STEPS)], rtol=1e-12)


@pytest.mark.parametrize("at_most", [1, 3, 5, 8, 100])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_micro_batches_hold_every_sequence_once(world_size: int, at_most: int) -> None:
    step = np.arange(8 * 5, dtype=np.uint16).reshape(8, 5)
    sizes, found = set(), []
    for rank in range(world_size):
        mine = step[rank * 8 // world_size : (rank + 1) * 8 // world_size]
        shape = micro_batch_shape(8, world_size, at_most)
        parts = list(micro_batches(mine, *shape, torch.device("cpu")))
        assert shape == (len(parts), len(parts[0][0]))
        sizes.add((len(parts), *{len(tokens) for tokens, _ in parts}))
        found += [tokens[weights == 1].numpy() for tokens, weights in parts]
        assert all(set(weights.tolist()) <= {0.0, 1.0} for _, weights in parts)
    ((count, size),) = sizes  # every rank has as many parts, all of one size
    assert size <= at_most
    assert 0 <= count * size - math.ceil(8 / world_size) < count  # no more padding than need be
    np.testing.assert_array_equal(np.concatenate(found), step)


def test_a_checkpoint_is_of_the_size_announced(whole: Path) -> None:
    (announced,) = re.findall(r"checkpoints of (\d+) MB", (whole / "gpt.log").read_text())
    files = (whole / "checkpoints" / "step-0000012").glob("*.safetensors")
    assert sum(path.stat().st_size for path in files) / 1e6 == pytest.approx(int(announced), abs=1)


def test_progress_tells_what_is_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(common, "LINE_SECONDS", 0)
    progress = common.ProgressLine("training", 1000, " steps", done=100)
    time.sleep(0.05)
    progress.update(10, "loss 3.0")  # a tenth of a tenth: 890 steps at ≤ 200 a second
    (said,) = re.findall(r"training: 110 of 1,000 steps, .*/s, (.*) left, loss 3.0", capsys.readouterr().err)
    assert re.fullmatch(r"0:00:(0[4-9]|[1-5]\d)", said)


def test_how_much_of_the_peak_that_is(plays: Dataset, tmp_path: Path) -> None:
    model = GPT2(GPT2Config(2, 2, 32, n_positions=32), seed=3)
    for row in trained_here(plays, tmp_path, model, max_steps=2, peak_tokens_per_second=1e6):
        assert row["mfu"] == pytest.approx(row["tokens_per_second"] / 1e6)


def test_rows_for_tensorboard(plays: Dataset, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = "run.tensorboard=true"
    in_process(tmp_path / "run", plays, board)
    # Two steps are done again: they are there once.
    shutil.rmtree(list_checkpoints(tmp_path / "run" / "checkpoints")[-1])
    in_process(tmp_path / "run", plays, board)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    found = [(event.step, event.value) for event in events.Scalars("train_loss")]
    expected = [(row["step"], row["train_loss"]) for row in RunDirectory(tmp_path / "run").read_metrics()[1:]]
    assert [step for step, _ in found] == list(range(1, 13))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert [event.step for event in events.Scalars("val_loss")] == [0, 5, 10, 12]


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is not None, reason="needs tensorboard to be absent")
def test_tensorboard_where_it_is_not_installed(plays: Dataset, tmp_path: Path) -> None:
    code, said = in_process(tmp_path / "run", plays, "run.tensorboard=true")
    assert code == 1
    assert "error: run.tensorboard: expected the package tensorboard, which is not installed; pip install" in said


# (b) killed at any moment


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
    history.append(finish(start(run, plays)))
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
    ["gpt2wds.commands.launch", "validation_loss", 1],
    ["gpt2wds.train.loop", "Trainer._step", 1],
    ["gpt2wds.train.loop", "Trainer._step", 2],
    ["gpt2wds.train.checkpoint", "save_file", 1],
    ["gpt2wds.train.checkpoint", "save_file", 2],
    ["gpt2wds.train.checkpoint", "_sha256", 3],
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
    ["gpt2wds.commands.launch", "ending_log_probabilities", 1],
    ["gpt2wds.commands.launch", "generate", 1],
    ["gpt2wds.evaluate.text", "_choose", 3],
    # while resuming, and while old checkpoints are removed
    ["pathlib", "Path.replace", 3],
    ["shutil", "rmtree", 1],
]


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


# (c) signals


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


# (d) several ranks


@pytest.fixture(scope="module")
def pair(plays: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two ranks that nothing interrupted. Read it, do not change it."""
    run = tmp_path_factory.mktemp("pair") / "run"
    finish(start(run, plays, "train.micro_batch_sequences=2", ranks=2))
    return run


def norms(run: Path) -> list[float]:
    return [row["grad_norm"] for row in RunDirectory(run).read_metrics()[1:]]


def test_ranks_that_each_have_a_part_of_the_model(plays: Dataset, pair: Path, tmp_path: Path) -> None:
    """FSDP: losses and gradient norms (all of them clipped) of whole copies, and the same checkpoints."""
    run = tmp_path / "run"
    said = finish(start(run, plays, "train.parallel=fsdp", "train.micro_batch_sequences=2", ranks=2))
    assert "Warning" not in said
    np.testing.assert_allclose(rows(run), rows(pair), rtol=0, atol=1e-5)
    # Sums of a million squares in float32; a norm of one rank's part alone would be a third less.
    np.testing.assert_allclose(norms(run), norms(pair), rtol=1e-3)
    assert min(norms(run)) > 1
    for name in ("alone", "copies"):
        shutil.copytree(run, tmp_path / name)
        shutil.rmtree(tmp_path / name / "checkpoints" / "step-0000012")
    code, said = in_process(tmp_path / "alone", plays)
    assert code == 0
    said += finish(start(tmp_path / "copies", plays, ranks=2))
    assert len(re.findall(r"resuming from \S+step-0000008", said)) == 2
    for name in ("alone", "copies"):
        np.testing.assert_allclose(rows(tmp_path / name), rows(pair), rtol=0, atol=2e-5)


def steps_of(run: Path) -> list[int]:
    return rows(run)[:, 0].astype(int).tolist()


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


def test_ranks_may_be_others_each_time(plays: Dataset, whole: Path, tmp_path: Path) -> None:
    """Two ranks, then one, then four: steps of the same sequences, so losses to float error."""
    run = tmp_path / "run"
    for ranks, last in ((2, 4), (1, 8), (4, 12)):
        if ranks > 1:
            said = finish(start(run, plays, "checkpoint.keep=3", ranks=ranks))
        else:
            code, said = in_process(run, plays, "checkpoint.keep=3")
            assert code == 0
        for path in list_checkpoints(run / "checkpoints"):
            if int(path.name[5:]) > last:
                shutil.rmtree(path)
        assert ("resuming from" in said) == (last > 4)
    assert steps_of(run) == list(range(13))
    np.testing.assert_allclose(rows(run), rows(whole), rtol=0, atol=1e-5)


def test_ranks_share_a_step_that_they_do_not_divide(plays: Dataset, whole: Path, tmp_path: Path) -> None:
    finish(start(tmp_path / "run", plays, "train.micro_batch_sequences=2", ranks=3))
    np.testing.assert_allclose(rows(tmp_path / "run"), rows(whole), rtol=0, atol=2e-4)


def test_a_run_of_two_ranks_goes_on_with_one(plays: Dataset, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(run, plays, "checkpoint.every_steps=1000", ranks=2)
    wait_for(process, "step 0: validation loss")
    process.send_signal(signal.SIGTERM)  # torchrun hands it on to its ranks
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "step 10: stopped by SIGTERM" in said
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["step-0000010"]
    said = finish(start(run, plays))
    assert "step-0000010" in said
    np.testing.assert_allclose(rows(run), rows(whole), rtol=0, atol=2e-4)


# (e) another configuration


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("train.learning_rate=2e-2", "train.learning_rate: 0.01 → 0.02"),
        ("run.seed=1", "run.seed: 1337 → 1"),
        ("train.tokens_per_step=512", "train.tokens_per_step: 256 → 512"),
        ("train.optimizer=muon", "train.optimizer: 'adamw' → 'muon'"),
        ("train.max_steps=13", "train.max_steps: 12 → 13"),
        ("data.seq_len=64", "data.seq_len: 32 → 64"),
        ("model.n_layer=2", "model.n_layer: 1 → 2"),
        ("train.dtype=bfloat16", "train.dtype: 'float32' → 'bfloat16'"),
    ],
)
def test_other_mathematics_is_refused(
    plays: Dataset, whole: Path, monkeypatch: pytest.MonkeyPatch, override: str, difference: str
) -> None:
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda precision: None)  # of the other tests here
    before = {path: path.read_bytes() for path in whole.iterdir() if path.is_file()}
    code, said = in_process(whole, plays, override)
    assert code == 1
    assert f"holds a run of another configuration ({difference})" in said
    assert {path: path.read_bytes() for path in whole.iterdir() if path.is_file()} == before


def test_what_changes_no_number_is_accepted(plays: Dataset, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoints" / "step-0000012")
    other = ["eval.every_steps=3", "checkpoint.every_steps=2", "train.micro_batch_sequences=3"]
    code, said = in_process(run, plays, *other)
    assert code == 0
    assert "resuming from" in said
    got, expected = rows(run), rows(whole)
    np.testing.assert_allclose(got[:, :2], expected[:, :2], rtol=0, atol=1e-4)
    # Up to the checkpoint the old rhythm, from there the new one.
    assert np.flatnonzero(~np.isnan(got[:, 2])).tolist() == [0, 5, 9, 12]


def test_another_dataset_is_refused(plays: Dataset, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    other = shard_plays(tmp_path / "other", docs_per_shard=1, limit_docs=2, val_docs=1)
    code, said = in_process(tmp_path / "run", other)
    assert code == 1
    assert f"data.path = {other.path}: state: expected dataset_id {other.id}, got {plays.id}; give the one" in said
    # The same data in another place are the same data.
    shutil.copytree(plays.path, tmp_path / "copy")
    code, _ = in_process(tmp_path / "run", Dataset(tmp_path / "copy"))
    assert code == 0


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


def test_a_mistake_that_was_corrected_is_no_other_run(plays: Dataset, tmp_path: Path) -> None:
    code, said = in_process(tmp_path / "run", plays, f"train.tokens_per_step={10**9 // 32 * 32}")
    assert (code, "a step may have at most" in said) == (1, True)
    code, said = in_process(tmp_path / "run", plays, "train.max_steps=2")
    assert code == 0, said


def test_weights_of_another_vocabulary_are_refused(plays: Dataset, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, GPT2(GPT2Config(1, 2, 32, n_positions=32, vocab_size=300)), {}, {}, keep=1)
    other = tmp_path / "step-0000001"
    code, said = in_process(tmp_path / "run", plays, f"model.init_from={other}")
    assert code == 1
    assert f"model.init_from: expected a vocabulary of 50257 tokens, which the data have, {other} has 300" in said


def test_a_run_starts_from_anothers_weights(plays: Dataset, whole: Path, tmp_path: Path) -> None:
    start_from = f"model.init_from={whole}"
    code, said = in_process(tmp_path / "long", plays, start_from, "data.seq_len=64")
    assert code == 1
    assert f"data.seq_len: expected at most the 32 positions of {whole}, got 64" in said
    code, said = in_process(tmp_path / "run", plays, start_from, "train.max_steps=2")
    assert code == 0, said
    assert rows(tmp_path / "run")[0, 2] == pytest.approx(rows(whole)[12, 2], abs=1e-5)
    # Which a resumed run does not need.
    shutil.rmtree(list_checkpoints(tmp_path / "run" / "checkpoints")[-1])
    code, said = in_process(tmp_path / "run", plays, "model.init_from=nowhere", "train.max_steps=2")
    assert code == 1  # there is no checkpoint to resume from
    in_process(tmp_path / "run", plays, start_from, "train.max_steps=2")
    code, said = in_process(tmp_path / "run", plays, "model.init_from=nowhere", "train.max_steps=2")
    assert (code, "already finished" in said) == (0, True)


# (f) compiled


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


class OverflowsOnce(GPT2):
    """A model whose loss is not finite in one step: a sequence that overflows, as in low precision."""

    step = 0

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        self.step += 1
        loss = super().forward(inputs, targets, weights)
        return loss * math.inf if self.step == 5 else loss


def test_a_step_whose_gradient_is_no_number_is_skipped(plays: Dataset, tmp_path: Path) -> None:
    shape = GPT2Config(2, 2, 32, n_positions=32)
    metrics = trained_here(plays, tmp_path / "skip", OverflowsOnce(shape, seed=3), on_nan="skip")
    assert [row["skipped"] for row in metrics] == [0] * 4 + [1] * (STEPS - 4)
    assert [row["step"] for row in metrics if row["train_loss"] is None] == [5]
    assert np.isinf(rows(tmp_path / "skip")[5, 1])
    model = GPT2(shape, seed=3)
    whole = trained_here(plays, tmp_path / "whole", model)
    losses, expected = ([row["train_loss"] for row in some] for some in (metrics, whole))
    assert losses[:4] == expected[:4]  # nothing else is different
    assert losses[5] != expected[5]  # the same weights on the next step's sequences
    assert max(losses[6:]) < losses[0]

    with pytest.raises(ValueError, match=f"step {SKIPS_IN_A_ROW}: expected a finite loss, {SKIPS_IN_A_ROW} steps one"):
        model = GPT2(shape, seed=3)
        model.ln_f.weight.data[0] = math.nan
        trained_here(plays, tmp_path / "never", model, on_nan="skip")


FAULTY = """
import os, sys, torch
from gpt2wds.commands import common
from gpt2wds.commands.train import main
from gpt2wds.model import GPT2

def forward(self, inputs, targets, weights):
    self.calls = getattr(self, "calls", 0) + self.training
    loss = plain(self, inputs, targets, weights)
    return loss * float("nan") if os.environ["RANK"] == "1" and self.training and self.calls == 3 else loss

plain, GPT2.forward = GPT2.forward, forward
main()
"""


def test_all_ranks_skip_alike(plays: Dataset, tmp_path: Path) -> None:
    """One of two ranks has a loss that is not finite in its third step."""
    (tmp_path / "faulty.py").write_text(FAULTY)
    launcher = [str(PROGRAMS / "torchrun"), "--standalone", "--nproc-per-node=2", str(tmp_path / "faulty.py")]
    said = finish(program([*launcher, *arguments(tmp_path / "run", plays, "train.on_nan=skip", "eval.every_steps=1")]))
    assert "step 3: loss or gradient is not finite, update skipped; 1 so far" in said
    found = rows(tmp_path / "run")
    assert np.flatnonzero(np.isnan(found[:, 1])).tolist() == [0, 3]
    assert found[3, 2] == found[2, 2]  # the weights are the same
    assert found[12, 2] < found[3, 2] - 1  # and go on


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
    assert last.startswith("error: out of memory with micro-batches of 2048 sequence(s): try train.micro_batch_seq")
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
        "error: step 8: the checkpoint could not be written (optimizer.safetensors: Error while serializing: I/O "
        "error: No space left on device (os error 28)); make room, then the same command goes on from the one before"
    )
    assert [path.name for path in (little_disk / "checkpoints").iterdir()] == ["step-0000004"]
    subprocess.run(["mount", "-o", "remount,size=80m", str(little_disk / "checkpoints")], check=True)
    code, said = in_process(little_disk, plays)
    assert code == 0
    np.testing.assert_allclose(rows(little_disk), rows(whole), rtol=0, atol=1e-4)


def test_a_full_disk_is_told_and_trained_on(plays: Dataset, whole: Path, little_disk: Path) -> None:
    code, said = in_process(little_disk, plays, "checkpoint.on_error=continue")
    assert code == 0
    assert re.findall(r"WARNING: step (\d+): the checkpoint could not be written", said) == ["8", "12"]
    assert [path.name for path in (little_disk / "checkpoints").iterdir()] == ["step-0000004"]
    np.testing.assert_allclose(rows(little_disk), rows(whole), rtol=0, atol=1e-4)
