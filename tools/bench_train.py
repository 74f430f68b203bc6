"""One training step: gpt2wds's against a plain loop as in "let's reproduce GPT-2", on the same model and tokens.

The plain loop: logits of all positions and F.cross_entropy under autocast, gradients accumulated over micro-batches,
clipping, fused AdamW; compiled as ours is, with TF32, scaled dot-product attention and the padded vocabulary. With
--ways ours is measured once more with documents read singly (of 300 tokens) and once with blocks computed again. Rounds
alternate, medians are compared, of wall time and of processor time, which other work moves less; all must
give the same losses, but for documents read singly. Several --shape are measured one after the other.

    python tools/bench_train.py                                              # the demo's model, on a CPU
    python tools/bench_train.py --size gpt2 --shape 1x128 --shape 2x256 --shape 2x1024 --rounds 5   # 124M, on a CPU
    python tools/bench_train.py --size gpt2 --sequences 512 --micro-batch 64 --seq-len 1024 --compile   # on a GPU
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import click
import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpt2wds.commands.overview import device_name
from gpt2wds.distributed import World, join_world
from gpt2wds.malloc import keep_pages
from gpt2wds.model import GPT2, SIZES, GPT2Config, autocast
from gpt2wds.train.cost import flops_per_token, peak_flops
from gpt2wds.train.optim import make_optimizers
from gpt2wds.train.recipe import Train
from gpt2wds.train.update import Update

SHAPES = SIZES | {"demo": (4, 4, 128)}
DOCUMENT_TOKENS = 300
ATTENTION = {"auto": [], "cudnn": [SDPBackend.CUDNN_ATTENTION], "flash": [SDPBackend.FLASH_ATTENTION]}
Step = Callable[[], float]  # one update; its loss
Timed = tuple[float, float, int, float]


class SameBatch:
    """The same random sequences in each step."""

    def __init__(self, sequences: int, seq_len: int):
        self.sequences_per_step, self.seq_len = sequences, seq_len
        rows = np.random.default_rng(0).integers(0, 50257, (sequences, seq_len + 1))
        rows.reshape(-1)[::DOCUMENT_TOKENS] = 50256  # which matters to one who looks for documents only
        self.rows = rows.astype(np.uint16)


def ours(
    model: GPT2, data: SameBatch, world: World, micro_batch: int, dtype: str, compiled: bool, again: bool = False
) -> Step:
    train = Train(
        micro_batch_sequences=micro_batch,
        schedule="constant",
        warmup_steps=0,
        dtype=dtype,
        compile=compiled,
        activation_checkpointing=again,
    )
    update = Update(model, train, world, sequences_per_step=data.sequences_per_step)
    return lambda: update(1, data.rows).loss.item()


def plain(model: GPT2, data: SameBatch, world: World, micro_batch: int, dtype: str, compiled: bool) -> Step:
    def logits(inputs: torch.Tensor) -> torch.Tensor:
        return F.linear(model.hidden(inputs)[0], model.wte.weight)  # (B, T, padded vocabulary)

    forward = torch.compile(logits, dynamic=False) if compiled else logits
    rate, decay = Train.learning_rate, Train.weight_decay
    optimizer = make_optimizers(model, "adamw", learning_rate=rate, weight_decay=decay, muon_learning_rate=0.0).all[0]
    tokens = torch.from_numpy(data.rows.astype(np.int64))
    parts = len(tokens) // micro_batch

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=world.device)
        for part in tokens.split(micro_batch):
            part = part.to(world.device, non_blocking=True)
            with autocast(world.device, dtype):
                loss = F.cross_entropy(forward(part[:, :-1]).flatten(0, 1), part[:, 1:].flatten()) / parts
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return total.item()

    return step


def masked(model: GPT2, data: SameBatch, world: World, micro_batch: int, dtype: str, compiled: bool) -> Step:
    model.config = dataclasses.replace(model.config, document_masking=True)
    return ours(model, data, world, micro_batch, dtype, compiled)


def timed(step: Step, world: World) -> Timed:
    """(seconds, loss, peak bytes on a GPU, processor seconds) of one step; reading the loss waits for the device."""
    on_gpu = world.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start, processor = time.perf_counter(), time.process_time()
    loss = step()
    if on_gpu:
        torch.cuda.synchronize()
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    return seconds, loss, torch.cuda.max_memory_allocated() if on_gpu else 0, processor


def compare(
    makers: dict[str, Callable[..., Step]], size: str, data: SameBatch, world: World, rounds: int, **options: Any
) -> None:
    models = {name: GPT2(GPT2Config(*SHAPES[size], n_positions=data.seq_len)).to(world.device) for name in makers}
    steps = {name: make(models[name], data, world, **options) for name, make in makers.items()}
    found: dict[str, list[Timed]] = {name: [] for name in steps}
    for number in range(rounds + 2):
        for name, step in steps.items():
            one = timed(step, world)
            if number >= 2:  # the first compile and warm up
                found[name].append(one)
    tell(found, models["plain"], data, options["dtype"], world)


def tell(found: dict[str, list[Timed]], model: GPT2, data: SameBatch, dtype: str, world: World) -> None:
    peak = peak_flops(device_name(world), dtype)
    medians = {
        name: [statistics.median(run[number] for run in runs) for number in (0, 3)] for name, runs in found.items()
    }
    for name, runs in found.items():
        seconds, processor = medians[name]
        rate = data.sequences_per_step * data.seq_len / seconds
        shares = [
            f"{way} {rate * flops_per_token(model, data.seq_len, way) / peak:.1%}" if peak else f"{way} –"
            for way in ("palm", "nanogpt")
        ]
        memory = f", peak {max(run[2] for run in runs) / 1e9:.1f} GB" if world.device.type == "cuda" else ""
        took = f"{seconds * 1e3:9.1f} ms (processor {processor * 1e3:9.1f})"
        print(f"  {name:8} {took}, {rate:12,.0f} tokens/s, MFU {', '.join(shares)}{memory}")
    wall, processor = (theirs / mine for theirs, mine in zip(medians["plain"], medians["gpt2wds"], strict=True))
    print(f"  plain / gpt2wds: {wall:.2f} (processor {processor:.2f})")
    same = [runs for name, runs in found.items() if name != "singly"]
    apart = max(max(run[1] for run in each) - min(run[1] for run in each) for each in zip(*same, strict=True))
    print(f"  largest difference of a loss: {apart:.2g}")


@click.command()
@click.option("--size", type=click.Choice(list(SHAPES)), default="demo", show_default=True)
@click.option("--seq-len", type=click.IntRange(1), default=128, show_default=True)
@click.option("--sequences", type=click.IntRange(1), default=8, show_default=True, help="Of one step.")
@click.option("--micro-batch", type=click.IntRange(1), default=8, show_default=True, help="Must divide them.")
@click.option("--shape", "shapes", multiple=True, help="SEQUENCESxLENGTH, in one micro-batch; in place of the three.")
@click.option("--rounds", type=click.IntRange(1), default=10, show_default=True)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="bfloat16", show_default=True)
@click.option("--compile", "compiled", is_flag=True)
@click.option("--attention", type=click.Choice(list(ATTENTION)), default="auto", show_default=True, help="Of a GPU.")
@click.option("--device", default="auto", show_default=True)
@click.option("--ways", is_flag=True, help="Ours in other ways too: documents read singly, blocks computed again.")
@click.option(
    "--keep-pages/--leave-pages", "keep", default=True, show_default=True, help="Of a CPU's memory, all ways."
)
def main(
    size: str,
    seq_len: int,
    sequences: int,
    micro_batch: int,
    shapes: tuple[str, ...],
    rounds: int,
    dtype: str,
    compiled: bool,
    attention: str,
    device: str,
    ways: bool,
    keep: bool,
) -> None:
    torch.set_float32_matmul_precision("high")
    backends = ATTENTION[attention]
    makers: dict[str, Callable[..., Step]] = {"gpt2wds": ours, "plain": plain}
    if ways:
        makers |= {"singly": masked, "again": partial(ours, again=True)}
    several = [tuple(map(int, shape.split("x"))) for shape in shapes] or [(sequences, seq_len)]
    with join_world(device) as world, sdpa_kernel(backends) if backends else nullcontext():
        if keep and world.device.type == "cpu":
            keep_pages()
        for count, length in several:
            part = count if shapes else micro_batch
            print(f"{size}, {count} × {length} in micro-batches of {part}, {dtype}, {device_name(world)}")
            print(f"  compiled: {compiled}; attention: {attention}; torch {torch.__version__}")
            print(f"  median of {rounds} alternating rounds", flush=True)
            compare(
                makers, size, SameBatch(count, length), world, rounds, micro_batch=part, dtype=dtype, compiled=compiled
            )


if __name__ == "__main__":
    main()
