"""The training loop: from a rank's batches to a run directory.

Reads from top to bottom: `Trainer.train` steps, saves, evaluates and logs; the rest are its named parts.
A row "step s" tells of update s: its loss (before the update), and what was measured after it.
"""

import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch

from ..dataset.loader import StepBatches
from ..distributed import World
from ..errors import Error
from ..model import GPT2, autocast
from .checkpoint import save_checkpoint
from .microbatches import micro_batch_shape, micro_batches
from .optim import Optimizers
from .parallel import Shared
from .rundir import RunDirectory
from .signals import Signals

SKIPS_IN_A_ROW = 10  # updates skipped one after the other, after which nothing is to be hoped for
SYNC_STEPS = 10  # losses are fetched from the device, and signals agreed on, once in so many steps

Evaluate = Callable[[GPT2], dict[str, Any]]  # a model → metrics such as {"val_loss": 5.1}
Say = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """What a loop does, apart from the objects it works on. Steps count updates."""

    max_steps: int
    micro_batch_sequences: int
    grad_clip: float
    on_nan: str  # "stop", or "skip" the update
    dtype: str  # of the matrix products: "float32" or "bfloat16"
    compile: bool
    learning_rate: float
    learning_rate_factor: Callable[[int], float]
    eval_every_steps: int
    checkpoint_every_steps: int
    checkpoint_keep: int
    checkpoint_on_error: str  # "stop", or "continue" without
    peak_tokens_per_second: float | None = None  # what the hardware's published peak would be, where known


class Trainer:
    """One rank's training: the objects it works on, and the loop.

    state: {"step": updates done, "row": that step's metrics}, from a checkpoint or for a fresh run.
    beside_weights: files that go into each checkpoint beside the weights, name → content.
    """

    def __init__(
        self,
        shared: Shared,
        optimizers: Optimizers,
        batches: StepBatches,
        evaluate: Evaluate,
        recipe: Recipe,
        *,
        run: RunDirectory,
        world: World,
        signals: Signals,
        beside_weights: dict[str, bytes],
        say: Say,
        progress: Callable[[int, str], None],
    ):
        self.shared, self.optimizers, self.batches, self.evaluate = shared, optimizers, batches, evaluate
        self.recipe, self.run, self.world, self.signals = recipe, run, world, signals
        self.beside_weights, self.say, self.progress = beside_weights, say, progress
        self._micro_steps, self._micro_batch = micro_batch_shape(
            batches.sequences_per_step, world.world_size, recipe.micro_batch_sequences
        )
        self._forward = self._compiled(shared.module)
        self._pending: list[Pending] = []
        self._skipped = self._skipped_in_a_row = 0
        self._clock = 0.0

    def train(self, state: dict[str, Any]) -> int:
        """Train from `state` to `recipe.max_steps`; returns the signal that stopped it, or 0.

        The checkpoint of a step is written before its evaluation, and its row after: a run killed in between does
        the evaluation again, and no step is logged twice.
        """
        recipe, world = self.recipe, self.world
        first, row = state["step"], state["row"]
        self._skipped = row.get("skipped", 0)
        if world.is_main:
            self.run.rewind(first - 1)
        sequences = iter(self.batches)
        self._clock = time.perf_counter()
        wanted = False  # a checkpoint, by a signal
        with self.signals.noting(signal.SIGTERM, signal.SIGINT), self._naming_memory():
            for step in count(first):
                last = step >= recipe.max_steps
                evaluate = step % recipe.eval_every_steps == 0 or last
                save = step > first and (step % recipe.checkpoint_every_steps == 0 or last)
                sync = world.world_size == 1 or step % SYNC_STEPS == 0
                asked, stop = self.signals.agree(world.any) if sync else (False, False)
                wanted = wanted or asked  # asked before the first step, it is done after it
                save = save or (wanted and step > first)

                if self._pending and (evaluate or save or step % SYNC_STEPS == 0):
                    *earlier, row = self._fetch()
                    self._log(*earlier)
                    if not (evaluate or save):
                        self._log(row)
                if save:
                    self._save(step, row)
                    wanted = False
                if stop:
                    name = signal.Signals(self.signals.stop).name
                    self.say(f"step {step}: stopped by {name}; the same command goes on")
                    return self.signals.stop
                if evaluate:
                    row = {**row, **self.evaluate(self.shared.whole_model())}
                    self.say(f"step {step}: {_describe(row)}")
                if evaluate or save or step == first > 0:
                    self._log(row)
                    self._clock = time.perf_counter()
                if last:
                    return 0
                self._pending.append(self._step(step + 1, next(sequences)))
        raise AssertionError("the loop returns")

    def _step(self, step: int, sequences: np.ndarray) -> "Pending":
        """One update from this rank's sequences, (slots, T + 1) uint16. Nobody waits for the device here."""
        total, world = self.batches.sequences_per_step, self.world
        parts = list(micro_batches(sequences, self._micro_steps, self._micro_batch, world.device))
        loss = torch.zeros((), device=world.device)
        for number, (tokens, weights) in enumerate(parts):
            # Gradients add up here and are exchanged between ranks once, with the last micro-step.
            with self.shared.micro_step(last=number == len(parts) - 1):
                with autocast(world.device, self.recipe.dtype):
                    part = self._forward(tokens[:, :-1], tokens[:, 1:], weights) / total
                # The exchange divides by the ranks; the loss is a mean over sequences, not over ranks.
                (part * world.world_size).backward()
            loss += part.detach()
        norm = self.shared.clip_gradients(self.recipe.grad_clip)
        factor = self.recipe.learning_rate_factor(step)
        row = {
            "step": step,
            "tokens": step * total * self.batches.seq_len,
            "learning_rate": self.recipe.learning_rate * factor,
        }
        if self.recipe.on_nan == "skip":
            row["skipped"] = self._skipped = self._skipped + self._skip(step, loss, norm)
        self.optimizers.step(factor)
        return Pending(row, loss, norm)

    def _skip(self, step: int, loss: torch.Tensor, norm: torch.Tensor) -> bool:
        """Drop the gradients where loss or norm is not finite on any rank. Waits for the device, in each step."""
        if torch.isfinite(self.world.sum(loss + norm)).item():
            self._skipped_in_a_row = 0
            return False
        self.optimizers.drop_gradients()
        self._skipped_in_a_row += 1
        self.say(f"step {step}: loss or gradient is not finite, update skipped; {self._skipped + 1} so far")
        if self._skipped_in_a_row == SKIPS_IN_A_ROW:
            raise Error(
                f"step {step}: expected a finite loss, {SKIPS_IN_A_ROW} steps one after the other had none; "
                'lower train.learning_rate or use train.dtype = "float32"'
            )
        return True

    def _fetch(self) -> list[dict[str, Any]]:
        """Rows of the steps since the last fetch; the one place where the host waits for the device."""
        pending, self._pending = self._pending, []
        losses = self.world.sum(torch.stack([p.loss for p in pending])).tolist()
        norms = torch.stack([p.norm for p in pending]).tolist()
        seconds = (time.perf_counter() - self._clock) / len(pending)
        rate = self.batches.sequences_per_step * self.batches.seq_len / seconds
        speed = {"seconds": seconds, "tokens_per_second": rate}
        if self.recipe.peak_tokens_per_second:
            speed["mfu"] = rate / self.recipe.peak_tokens_per_second
        rows = [
            {**p.row, "train_loss": loss, "grad_norm": norm, **speed}
            for p, loss, norm in zip(pending, losses, norms, strict=True)
        ]
        for row in rows if self.recipe.on_nan == "stop" else ():
            if not (math.isfinite(row["train_loss"]) and math.isfinite(row["grad_norm"])):
                # Fetched before a checkpoint is written, so none has seen this step.
                raise Error(
                    f"step {row['step']}: expected a finite loss and gradient, got {row['train_loss']} and "
                    f"{row['grad_norm']}; nothing was saved since the last checkpoint: lower train.learning_rate, use "
                    'train.dtype = "float32", or pass over such steps with train.on_nan = "skip"'
                )
        self.progress(len(rows), _describe(rows[-1]))
        self._clock = time.perf_counter()
        return rows

    def _save(self, step: int, row: dict[str, Any]) -> None:
        model = self.shared.whole_model()
        tensors = self.shared.whole_tensors(self.optimizers.state(self.shared.model))
        if self.world.is_main:
            state = {"row": row, "batches": self.batches.state_dict()}
            try:
                path = save_checkpoint(
                    self.run.checkpoints,
                    step,
                    model,
                    tensors,
                    state,
                    keep=self.recipe.checkpoint_keep,
                    beside=self.beside_weights,
                )
            except OSError as error:
                problem = f"step {step}: the checkpoint could not be written ({error.strerror or error})"
                if self.recipe.checkpoint_on_error == "stop":
                    raise Error(f"{problem}; make room, then the same command goes on from the one before") from None
                self.say(f"WARNING: {problem}; going on, the one before is kept")
            else:
                self.say(f"step {step}: saved {path}")
        self.world.barrier()

    @contextmanager
    def _naming_memory(self) -> Iterator[None]:
        """Turn "out of memory" into one line that says what to lower."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            known = (MemoryError, torch.OutOfMemoryError)
            if not isinstance(error, known) and "can't allocate memory" not in str(error):
                raise
            size = self._micro_batch
            remedy = (
                f"try train.micro_batch_sequences={size // 2}, which changes no loss"
                if size > 1
                else "lower data.seq_len or take a smaller model"
            )
            raise Error(f"out of memory with micro-batches of {size} sequence(s): {remedy}") from None

    def _log(self, *rows: dict[str, Any]) -> None:
        if self.world.is_main:
            for row in rows:
                self.run.append(row)

    def _compiled(self, module: torch.nn.Module) -> Callable[..., torch.Tensor]:
        if not self.recipe.compile:
            return module
        if self.world.device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
            self.say("train.compile: no C++ compiler here, going on without it (the same mathematics, slower)")
            return module
        return torch.compile(module, dynamic=False)


@dataclass
class Pending:
    """A step whose loss and gradient norm are still on the device."""

    row: dict[str, Any]
    loss: torch.Tensor  # this rank's share of the mean
    norm: torch.Tensor


def _describe(row: dict[str, Any]) -> str:
    parts = []
    for key, form in (
        ("train_loss", "loss {:.4f}"),
        ("val_loss", "validation loss {:.4f}"),
        ("hella_acc", "accuracy {:.4f}"),
        ("grad_norm", "norm {:.2f}"),
        ("tokens_per_second", "{:,.0f} tokens/s"),
        ("mfu", "MFU {:.1%}"),
    ):
        if row.get(key) is not None:
            parts.append(form.format(row[key]))
    return ", ".join(parts)
