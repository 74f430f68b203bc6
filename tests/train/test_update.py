"""One update: the numbers of a plain loop, whatever the micro-batches, and steps that are no numbers."""

import dataclasses
import math
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import PROGRAMS, arguments, finish, program, rows
from torch.nn import functional as F

from gpt2wds.dataset.directory import Dataset
from gpt2wds.dataset.loader import StepBatches
from gpt2wds.distributed import World
from gpt2wds.model import GPT2, GPT2Config
from gpt2wds.train.checkpoint import State
from gpt2wds.train.loop import Trainer
from gpt2wds.train.recipe import Checkpoint, Train
from gpt2wds.train.rundir import RunDirectory
from gpt2wds.train.signals import Signals
from gpt2wds.train.update import SKIPS_IN_A_ROW, Update, micro_batch_shape, micro_batches

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
    peak = options.pop("peak_tokens_per_second", None)
    train = Train(
        max_steps=STEPS,
        micro_batch_sequences=8,
        learning_rate=RATE,
        min_learning_rate=LOWEST,
        warmup_steps=WARMUP,
        weight_decay=DECAY,
        dtype="float32",
        compile=False,
    )
    train = dataclasses.replace(train, **options)
    folder.mkdir(exist_ok=True)
    run = RunDirectory(folder)
    trainer = Trainer(
        Update(model, train, world, sequences_per_step=8),
        batches_of(dataset, world),
        lambda model, each: {},
        run,
        Signals(),
        Checkpoint(every_steps=100, keep=1),
        100,
        peak_tokens_per_second=peak,
    )
    assert trainer.train(State()) == 0
    return run.read_metrics()[1:]


@pytest.mark.parametrize("micro_batch_sequences", [pytest.param(1, marks=pytest.mark.slow), 3, 8])
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


def test_how_much_of_the_peak_that_is(plays: Dataset, tmp_path: Path) -> None:
    model = GPT2(GPT2Config(2, 2, 32, n_positions=32), seed=3)
    for row in trained_here(plays, tmp_path, model, max_steps=2, warmup_steps=1, peak_tokens_per_second=1e6):
        assert row["mfu"] == pytest.approx(row["tokens_per_second"] / 1e6)


class OverflowsOnce(GPT2):
    """A model whose loss is not finite in one step: a sequence that overflows, as in low precision."""

    step = 0

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        self.step += 1
        loss = super().forward(inputs, targets, weights)
        return loss * math.inf if self.step == 5 else loss


def test_a_step_whose_gradient_is_no_number_is_skipped(plays: Dataset, tmp_path: Path) -> None:
    shape = GPT2Config(2, 2, 32, n_positions=32)
    metrics = trained_here(plays, tmp_path / "skip", OverflowsOnce(shape, seed=3), max_steps=8, on_nan="skip")
    assert [row["skipped"] for row in metrics] == [0] * 4 + [1] * 4
    assert [row["step"] for row in metrics if row["train_loss"] is None] == [5]
    assert np.isinf(rows(tmp_path / "skip")[5, 1])
    model = GPT2(shape, seed=3)
    whole = trained_here(plays, tmp_path / "whole", model, max_steps=8)
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
from gpt2wds.commands.train import main
from gpt2wds.model import GPT2

def forward(self, inputs, targets, weights):
    self.calls = getattr(self, "calls", 0) + self.training
    loss = plain(self, inputs, targets, weights)
    return loss * float("nan") if os.environ["RANK"] == "1" and self.training and self.calls == 4 else loss

plain, GPT2.forward = GPT2.forward, forward
main()
"""


@pytest.mark.slow
def test_all_ranks_skip_alike(plays: Dataset, tmp_path: Path) -> None:
    """One of two ranks has a loss that is not finite in its third step, after a rehearsal."""
    (tmp_path / "faulty.py").write_text(FAULTY)
    launcher = [str(PROGRAMS / "torchrun"), "--standalone", "--nproc-per-node=2", str(tmp_path / "faulty.py")]
    said = finish(program([*launcher, *arguments(tmp_path / "run", plays, "train.on_nan=skip", "eval.every_steps=1")]))
    assert "step 3: loss or gradient is not finite, update skipped; 1 so far" in said
    found = rows(tmp_path / "run")
    assert np.flatnonzero(np.isnan(found[:, 1])).tolist() == [0, 3]
    assert found[3, 2] == found[2, 2]  # the weights are the same
    assert found[12, 2] < found[3, 2] - 1  # and go on
