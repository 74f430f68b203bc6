"""What only a GPU can show: it computes what the CPU computes, and goes on where it stopped. Skipped without CUDA."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import finish, in_process, rows, start

from gpt2wds.dataset.directory import Dataset
from gpt2wds.distributed import World
from gpt2wds.evaluate.hellaswag import ending_log_probabilities
from gpt2wds.evaluate.questions import load_questions
from gpt2wds.model import GPT2, GPT2Config, autocast

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA")
GPU = ("run.device=cuda", "train.dtype=bfloat16")


def test_bfloat16_there_is_float32_here() -> None:
    model = GPT2(GPT2Config(2, 2, 64, n_positions=64), seed=1)
    tokens = torch.from_numpy(np.random.default_rng(1).integers(0, 50257, (4, 65)))
    losses = []
    for device, dtype in (("cpu", "float32"), ("cuda", "bfloat16")):
        place = torch.device(device)
        with torch.no_grad(), autocast(place, dtype):
            on, weights = tokens.to(place), torch.ones(4, device=place)
            losses.append(float(model.to(place)(on[:, :-1], on[:, 1:], weights)) / 4)
    assert abs(losses[0] - losses[1]) < 0.02, losses


def test_a_run_learns_what_it_learns_on_a_cpu(plays: Dataset, whole: Path, tmp_path: Path) -> None:
    code, said = in_process(tmp_path / "run", plays, *GPU)
    assert code == 0, said
    np.testing.assert_allclose(rows(tmp_path / "run")[:, 1], rows(whole)[:, 1], rtol=0, atol=0.05)


def test_a_run_goes_on_where_it_stopped(plays: Dataset, tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert in_process(whole, plays, *GPU)[0] == 0
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoints" / "step-0000012")
    code, said = in_process(run, plays, *GPU)
    assert code == 0 and "8" in said
    np.testing.assert_allclose(rows(run)[:, 1:3], rows(whole)[:, 1:3], rtol=0, atol=1e-3)


def test_one_shard_of_one_rank_is_the_whole(plays: Dataset, tmp_path: Path) -> None:
    for name in ("ddp", "fsdp"):
        finish(start(tmp_path / name, plays, *GPU, f"train.parallel={name}"))
    np.testing.assert_allclose(rows(tmp_path / "fsdp")[:, 1], rows(tmp_path / "ddp")[:, 1], rtol=0, atol=1e-2)


def test_endings_are_as_likely_as_on_a_cpu(choices: Dataset) -> None:
    model = GPT2(GPT2Config(2, 2, 64, n_positions=1024), seed=1).eval()
    questions = load_questions(choices, "completion", 1024)
    sums = []
    for device in ("cpu", "cuda"):
        world = World(0, 1, torch.device(device))
        sums.append(ending_log_probabilities(model.to(world.device), questions, world, "float32"))
    np.testing.assert_allclose(sums[0], sums[1], rtol=0, atol=0.02)
