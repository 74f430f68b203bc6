"""How ranks share the training of one model: each has all of it, or each a shard.

Either way a step's gradient is the mean over all ranks' sequences, and checkpoints are the same.
"""

import contextlib
import warnings
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..distributed import World
from ..model import GPT2

KINDS = ("ddp", "fsdp")


class Replicas:
    """Every rank has the whole model; gradients are averaged with the last micro-step. One rank exchanges nothing.

    settles: whether the first exchange decides how the later ones are done. DDP then puts gradients into other buckets,
    by the order in which they were ready, and where one is in its bucket decides in which order the ranks' are added.
    """

    def __init__(self, model: GPT2, world: World):
        self.model = model
        self.settles = world.world_size > 1
        self.module: nn.Module = model  # what a micro-step calls
        if world.world_size > 1:
            device_ids = [world.device.index] if world.device.type == "cuda" else None
            self.module = DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)

    def micro_step(self, last: bool) -> AbstractContextManager[Any]:
        """Around a micro-step: its gradients are exchanged only if it is the last of its step."""
        if last or not isinstance(self.module, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.module.no_sync()

    def clip_gradients(self, highest: float) -> Tensor:
        """Scale the gradients so that their norm is at most `highest`; the norm they had, a scalar."""
        return nn.utils.clip_grad_norm_(self.model.parameters(), highest)

    def whole_model(self) -> GPT2:
        """The model with all its weights, to evaluate and save."""
        return self.model

    def whole_tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """An optimizer's tensors as they are without ranks."""
        return tensors


class Sharded:
    """Every rank has a shard of each parameter, its gradient and its optimizer state (FSDP, torch's `fully_shard`).

    A block's weights are put together when its turn comes. All ranks must call each method alike.
    """

    settles = False

    def __init__(self, model: GPT2, world: World):
        from torch.distributed.fsdp import fully_shard  # with SymPy, so it takes as long as half of torch

        self.model = self.module = model
        self._device = world.device
        # Blocks return keys and values, views that nobody writes to.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
        for block in model.h:
            fully_shard(block)
        fully_shard(model)

    def micro_step(self, last: bool) -> AbstractContextManager[Any]:
        self.model.set_requires_gradient_sync(last)  # type: ignore[operator]
        return contextlib.nullcontext()

    def clip_gradients(self, highest: float) -> Tensor:
        return _whole(nn.utils.clip_grad_norm_(self.model.parameters(), highest))

    def whole_model(self) -> GPT2:
        # A copy, because evaluation gives ranks unequal work, and a sharded model waits for all ranks at each block.
        with torch.device("meta"):
            copy = GPT2(self.model.config)
        copy.to_empty(device=self._device)
        with torch.no_grad():
            for target, shard in zip(copy.parameters(), self.model.parameters(), strict=True):
                target.copy_(_whole(shard))
        return copy

    def whole_tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: _whole(tensor).cpu() for name, tensor in tensors.items()}


Shared = Replicas | Sharded


def share(model: GPT2, world: World, kind: str) -> Shared:
    """Share a model, the same on every rank, by `kind` "ddp" or "fsdp"; its parameters may be others afterwards."""
    return Sharded(model, world) if kind == "fsdp" and world.world_size > 1 else Replicas(model, world)


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # a DTensor has it
