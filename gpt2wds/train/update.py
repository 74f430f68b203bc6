"""One update: a rank's sequences of a step → micro-batches → gradients, exchanged and clipped → the optimizers."""

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..distributed import World
from ..errors import Error, reason
from ..model import GPT2, autocast
from ..rows import Row
from .optim import make_optimizers
from .parallel import share
from .recipe import Train

SKIPS_IN_A_ROW = 10  # updates skipped one after the other, after which nothing is to be hoped for


@dataclass
class Pending:
    """A step whose loss and gradient norm are still on the device."""

    row: Row
    loss: Tensor  # this rank's share of the mean
    norm: Tensor
    is_left_out: bool = False  # a step that trained on nothing: loss and norm are 0, and mean nothing


class Update:
    """Updates a model from one rank's sequences of a step, the same on every rank.

    The model must be the same on every rank, on the rank's device; `train.parallel` says how ranks share it.
    `skipped` counts updates that were dropped because loss or gradient were not finite (`train.on_nan` = "skip").
    In `skip_steps` nothing is updated: their sequences are left out, and all other steps have theirs as ever.

    >>> from gpt2wds.model import GPT2Config
    >>> world = World(0, 1, torch.device("cpu"))
    >>> model = GPT2(GPT2Config(n_layer=1, n_head=2, n_embd=32, n_positions=16))
    >>> update = Update(model, Train(dtype="float32", compile=False), world, sequences_per_step=4)
    >>> pending = update(1, np.zeros((4, 17), dtype=np.uint16))
    >>> 10 < pending.loss.item() < 12
    True
    """

    def __init__(
        self,
        model: GPT2,
        train: Train,
        world: World,
        *,
        sequences_per_step: int,
        skip_steps: Sequence[range] = (),
        say: Callable[[str], None] = print,
    ):
        self.skip_steps = skip_steps
        self.train, self.world, self.say = train, world, say
        self.sequences_per_step = sequences_per_step
        model.activation_checkpointing = train.activation_checkpointing
        self.shared = share(model, world, train.parallel)
        self.optimizers = make_optimizers(
            model,
            train.optimizer,
            learning_rate=train.learning_rate,
            weight_decay=train.weight_decay,
            muon_learning_rate=train.muon_learning_rate,
            betas=(train.betas[0], train.betas[1]),
        )
        self.micro_steps, self.micro_batch = micro_batch_shape(
            sequences_per_step, world.world_size, train.micro_batch_sequences
        )
        self.skipped = self._skipped_in_a_row = 0
        self._is_rehearsed = not self.shared.settles
        self._rate_factor = train.rate_factor()
        self._forward = self._compiled()

    def __call__(self, step: int, sequences: np.ndarray) -> Pending:
        """Update number `step`, counted from 1, from (slots, T + 1) uint16 sequences.

        Does not synchronise with the device, unless on_nan is "skip".
        """
        total, world = self.sequences_per_step, self.world
        left_out = next((steps for steps in self.skip_steps if step in steps), None)
        if left_out is not None:
            return self._leave_out(step, left_out, sequences)
        batches = list(micro_batches(sequences, self.micro_steps, self.micro_batch, world.device))
        if not self._is_rehearsed:
            self._rehearse(*batches[0])
        loss = torch.zeros((), device=world.device)
        for number, (tokens, weights) in enumerate(batches):
            # Gradients add up here and are exchanged between ranks once, with the last micro-step.
            with self.shared.micro_step(last=number == len(batches) - 1):
                with autocast(world.device, self.train.dtype):
                    share_of_loss = self._forward(tokens[:, :-1], tokens[:, 1:], weights) / total
                # The exchange divides by the ranks; the loss is a mean over sequences, not over ranks.
                (share_of_loss * world.world_size).backward()
            loss += share_of_loss.detach()
        norm = self.shared.clip_gradients(self.train.grad_clip)
        factor = self._rate_factor(step)
        row = self._row(step, sequences)
        if self.train.on_nan == "skip":
            self._skip_if_not_finite(step, loss, norm)
            row["skipped"] = self.skipped
        self.optimizers.step(factor)
        return Pending(row, loss, norm)

    def _rehearse(self, tokens: Tensor, weights: Tensor) -> None:
        """A micro-step that counts for nothing: what ranks settle with their first exchange is settled before a step.

        Else the first step after a resume would add up the ranks' gradients in another order than the run would have
        that was not stopped, and its weights would be others in their last bits from then on.
        """
        with self.shared.micro_step(last=True):
            with autocast(self.world.device, self.train.dtype):
                nothing = self._forward(tokens[:, :-1], tokens[:, 1:], torch.zeros_like(weights))
            nothing.backward()
        self.optimizers.drop_gradients()
        self._is_rehearsed = True

    def _row(self, step: int, sequences: np.ndarray) -> Row:
        return {
            "step": step,
            "tokens": step * self.sequences_per_step * (sequences.shape[1] - 1),
            "learning_rate": self.train.learning_rate * self._rate_factor(step),
        }

    def _leave_out(self, step: int, steps: range, sequences: np.ndarray) -> Pending:
        """A step of `steps`, whose sequences nobody trains on."""
        if step == steps.start:
            several = f"steps {step} to {steps[-1]}: left out, their sequences are not trained on"
            self.say(several if len(steps) > 1 else f"step {step}: left out, its sequences are not trained on")
        row = self._row(step, sequences)
        row["left_out"] = True
        if self.train.on_nan == "skip":
            row["skipped"] = self.skipped
        nothing = torch.zeros((), device=self.world.device)
        return Pending(row, nothing, nothing, is_left_out=True)

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """The optimizers' state as it is without ranks. All ranks must call this alike."""
        return self.shared.whole_tensors(self.optimizers.state(self.shared.model))

    def load_optimizer_tensors(self, tensors: dict[str, Tensor]) -> None:
        self.optimizers.load_state(self.shared.model, tensors)

    def _skip_if_not_finite(self, step: int, loss: Tensor, norm: Tensor) -> None:
        """Drop the gradients where loss or norm is not finite on any rank. Waits for the device, in each step."""
        if torch.isfinite(self.world.sum(loss + norm)).item():
            self._skipped_in_a_row = 0
            return
        self.optimizers.drop_gradients()
        self.skipped += 1
        self._skipped_in_a_row += 1
        self.say(f"step {step}: loss or gradient is not finite, update skipped; {self.skipped} so far")
        if self._skipped_in_a_row == SKIPS_IN_A_ROW:
            raise Error(
                f"step {step}: expected a finite loss, {SKIPS_IN_A_ROW} steps one after the other had none; "
                "go on in another run.dir, with run.fork_from set to a checkpoint of this one, and a lower "
                'train.learning_rate or train.dtype = "float32"'
            )

    def _compiled(self) -> Callable[..., Tensor]:
        if not self.train.compile:
            return self.shared.module
        if self.world.device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
            self.say("train.compile: no C++ compiler here, going on without it (the same mathematics, slower)")
            return self.shared.module
        from torch._dynamo.exc import TorchDynamoException  # takes seconds to import

        compiled = torch.compile(self.shared.module, dynamic=False)

        def forward(*batch: Tensor) -> Tensor:
            # A compiler may be there and not work: no Python.h, a TMPDIR in which nothing may run, …
            try:
                loss: Tensor = compiled(*batch)
            except TorchDynamoException as error:
                why = reason(error)
                self.say(
                    f"WARNING: train.compile: it failed ({why}), going on without it (the same mathematics, slower)"
                )
                self._forward = self.shared.module
                loss = self.shared.module(*batch)
            return loss

        return forward


def micro_batch_shape(total: int, world_size: int, at_most: int) -> tuple[int, int]:
    """(micro-steps, sequences in each) of every rank, of a step of `total` sequences.

    The same for every rank, whether or not the ranks divide the step: as few as `at_most` sequences each allow.

    >>> micro_batch_shape(512, 3, 64)
    (3, 57)
    """
    most = math.ceil(total / world_size)  # sequences of the rank that has most
    micro_steps = math.ceil(most / at_most)
    return micro_steps, math.ceil(most / micro_steps)


def micro_batches(
    sequences: np.ndarray, count: int, size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """A rank's sequences in `count` of `size`: (B, T + 1) int64 tokens and (B,) weights, 0 for padding."""
    padded = np.zeros((count * size, sequences.shape[1]), dtype=np.uint16)
    padded[: len(sequences)] = sequences
    tokens = torch.from_numpy(padded)
    weights = torch.from_numpy((np.arange(count * size) < len(sequences)).astype(np.float32))
    if device.type == "cuda":
        # Pinned, so that the copy goes on while the step before is still computed.
        tokens, weights = tokens.pin_memory(), weights.pin_memory()
    tokens = tokens.to(device, non_blocking=True)
    weights = weights.to(device, non_blocking=True)
    for number in range(count):
        rows = slice(number * size, (number + 1) * size)
        yield tokens[rows].long(), weights[rows]
