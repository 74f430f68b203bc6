"""The lesson's ladder of speed on one text: each rung keeps what the rungs before it brought.

float32 → TF32 → bfloat16 → compiled → fused attention → vocabulary padded to 50,304 → fused AdamW, and last this
package's own loss. A rung that the hardware lacks is passed over with a word. Time of a step, median; nothing is
saved. On a GPU: --size gpt2 --batch 16 --seq-len 1024.

    python tools/speed_ladder.py demo/plays
"""

import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice

import click
import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpt2wds.commands.overview import device_name
from gpt2wds.dataset.directory import Dataset
from gpt2wds.dataset.loader import StepBatches
from gpt2wds.distributed import World, join_world
from gpt2wds.model import GPT2, SIZES, VOCAB_SIZE, GPT2Config, autocast

SHAPES = SIZES | {"demo": (4, 4, 128)}


@dataclass(frozen=True)
class Rung:
    """What is switched on; the names are printed."""

    name: str
    tf32: bool = True
    dtype: str = "bfloat16"
    compiled: bool = True
    fused_attention: bool = True
    padded: bool = True
    fused_adamw: bool = True
    own_loss: bool = False


def rungs() -> Iterator[Rung]:
    plain = partial(Rung, compiled=False, fused_attention=False, padded=False, fused_adamw=False)
    yield plain("float32", tf32=False, dtype="float32")
    yield plain("TF32", dtype="float32")
    yield plain("bfloat16")
    yield plain("compiled", compiled=True)
    yield Rung("fused attention", padded=False, fused_adamw=False)
    yield Rung("padded vocabulary", fused_adamw=False)
    yield Rung("fused AdamW")
    yield Rung("gpt2wds's own loss, eager", compiled=False, own_loss=True)


def lacking(rung: Rung, world: World) -> str:
    """Why a rung cannot be climbed here, or nothing."""
    if rung.name == "TF32" and (world.device.type != "cuda" or torch.cuda.get_device_capability() < (8, 0)):
        return "needs an NVIDIA GPU of the Ampere generation or later"
    if rung.compiled and world.device.type == "cpu" and not shutil.which("g++"):
        return "needs a C++ compiler"
    if rung.own_loss and world.device.type != "cpu":
        return "is for CPUs"
    return ""


def attention(rung: Rung) -> AbstractContextManager[object]:
    return nullcontext() if rung.fused_attention else sdpa_kernel(SDPBackend.MATH)


def make_step(rung: Rung, shape: tuple[int, int, int], seq_len: int, world: World) -> Callable[[torch.Tensor], float]:
    torch.set_float32_matmul_precision("high" if rung.tf32 else "highest")
    model = GPT2(GPT2Config(*shape, n_positions=seq_len)).to(world.device)
    rows = model.config.padded_vocab_size if rung.padded else VOCAB_SIZE
    fused = rung.fused_adamw and world.device.type in ("cuda", "cpu")
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=fused)

    def logits(inputs: torch.Tensor) -> torch.Tensor:
        return F.linear(model.hidden(inputs)[0], model.wte.weight[:rows])

    forward = torch.compile(logits, dynamic=False) if rung.compiled else logits

    def step(tokens: torch.Tensor) -> float:
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        optimizer.zero_grad(set_to_none=True)
        with autocast(world.device, rung.dtype), attention(rung):
            if rung.own_loss:
                loss = model(inputs, targets, torch.ones(len(tokens))) / len(tokens)
            else:
                loss = F.cross_entropy(forward(inputs).flatten(0, 1), targets.flatten())
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()  # waits for the device

    return step


@click.command()
@click.argument("data")
@click.option("--size", type=click.Choice(list(SHAPES)), default="demo", show_default=True)
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True)
@click.option("--seq-len", type=click.IntRange(1), default=128, show_default=True)
@click.option("--steps", type=click.IntRange(1), default=20, show_default=True)
@click.option("--eager", is_flag=True, help="Leave out what is compiled.")
@click.option("--device", default="auto", show_default=True)
def main(data: str, size: str, batch: int, seq_len: int, steps: int, eager: bool, device: str) -> None:
    with join_world(device) as world:
        source = iter(StepBatches(Dataset(data), seq_len=seq_len, sequences_per_step=batch, seed=1))
        batches = [torch.from_numpy(rows.astype(np.int64)).to(world.device) for rows in islice(source, steps + 3)]
        print(f"{size}, {batch} × {seq_len} tokens, {device_name(world)}, torch {torch.__version__}, {steps} steps")
        first = 0.0
        for rung in rungs():
            if reason := "not asked for" if eager and rung.compiled else lacking(rung, world):
                print(f"  {rung.name:26} passed over: {reason}")
                continue
            torch.compiler.reset()
            step = make_step(rung, SHAPES[size], seq_len, world)
            taken = []
            for tokens in batches:
                start = time.perf_counter()
                loss = step(tokens)
                taken.append(time.perf_counter() - start)
            seconds = statistics.median(taken[3:])
            first = first or seconds
            print(
                f"  {rung.name:26} {seconds * 1e3:8.1f} ms {batch * seq_len / seconds:11,.0f} tokens/s "
                f"{first / seconds:5.2f} ×, last loss {loss:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
