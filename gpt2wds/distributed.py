"""Rank, world size and device of this process. Nothing happens at import."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed as dist

from .errors import Error


@dataclass(frozen=True)
class World:
    """This process among all that train together; one process is a world of one."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over all ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank: all ranks get the same answer."""
        if self.world_size == 1:
            return flag
        return bool(self.sum(torch.tensor([float(flag)], device=self.device)).item())

    def least(self, number: int) -> int:
        """The smallest of all ranks' numbers: all ranks get the same answer."""
        if self.world_size == 1:
            return number
        tensor = torch.tensor(number, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
        return int(tensor.item())

    def gather(self, value: Any) -> list[Any]:
        """Each rank's value, by rank: all ranks get the same list."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def join_world(device: str) -> Iterator[World]:
    """Join the ranks that torchrun started, if it did, and leave them at the end.

    device: "auto" (CUDA, then MPS, then CPU), "cpu", "cuda", "cuda:1" or "mps". Raises Error when it is absent.
    """
    rank, world_size = _place()
    here = _device(device, int(os.environ.get("LOCAL_RANK", 0)))
    if here.type == "cuda":
        torch.cuda.set_device(here)
    if world_size > 1:
        _init_process_group("nccl" if here.type == "cuda" else "gloo")
    try:
        yield World(rank, world_size, here)
    finally:
        if world_size > 1:
            dist.destroy_process_group()


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether a device computes bfloat16 faster than float32: it has instructions for it, and does not emulate them."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if platform.machine().lower() in ("x86_64", "amd64"):  # oneDNN takes bfloat16 from AVX-512 on, where it is emulated
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _place() -> tuple[int, int]:
    """(rank, world size) as the environment says; alone where it says nothing."""
    names = ["RANK", "WORLD_SIZE"]
    if os.environ.get("WORLD_SIZE", "1") != "1":
        names += ["MASTER_ADDR", "MASTER_PORT"]
    given = [name for name in names if name in os.environ]
    if "RANK" not in given and len(names) == 2:
        return 0, 1
    if given != names:
        missing = " and ".join(name for name in names if name not in given)
        raise Error(
            f"environment: expected {missing} beside {' and '.join(given)}; let torchrun set them, or unset all of them"
        )
    try:
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except ValueError:
        rank = world_size = -1
    if not 0 <= rank < world_size:
        raise Error(
            "environment: expected a RANK from 0 to WORLD_SIZE - 1, got "
            f"RANK={os.environ['RANK']} and WORLD_SIZE={os.environ['WORLD_SIZE']}"
        )
    return rank, world_size


def _init_process_group(backend: str) -> None:
    # Ranks that torchrun's agent starts again find its store as the ones before left it, and might take a dead rank's
    # address from it and wait for ever: so each start has names of its own. Agents of several nodes count starts each
    # for itself; there TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 gives each start a store of its own.
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if restart == "0" or os.environ.get("GROUP_WORLD_SIZE") != "1":
        dist.init_process_group(backend)
        return
    store, rank, world_size = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
    own = dist.PrefixStore(f"restart {restart}", store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=own, rank=rank, world_size=world_size)


def _device(wanted: str, local_rank: int) -> torch.device:
    kind = wanted.partition(":")[0]
    if kind == "auto":
        kind = wanted = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if kind not in ("cpu", "cuda", "mps"):
        raise Error(f"device: expected auto, cpu, cuda or mps, got {wanted!r}")
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise Error(f"device: expected a CUDA device, this torch ({torch.__version__}) sees none; use auto")
        number = int(wanted.partition(":")[2] or local_rank)
        if number >= torch.cuda.device_count():
            raise Error(f"device: expected one of {torch.cuda.device_count()} CUDA devices, got cuda:{number}")
        return torch.device("cuda", number)
    if kind == "mps" and not torch.backends.mps.is_available():
        raise Error("device: expected Apple's MPS, which is not available here; use auto")
    return torch.device(kind)
