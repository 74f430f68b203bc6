"""The loss of the tied head with its gradients: ours against plain cross-entropy, of random hidden states, on a CPU.

The plain way: logits of all positions by F.linear, and F.cross_entropy, under autocast. Rounds alternate; medians of
processor time are compared, which other work moves less than the wall's. With --without-products a matrix product only
fills its result: what is left is what each way moves through memory, on a processor too that has no fast bfloat16.

    OMP_NUM_THREADS=1 python tools/bench_head.py --shape 512x768 --shape 1024x128
"""

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gpt2wds.commands.overview import device_name
from gpt2wds.distributed import join_world
from gpt2wds.head import chunk_positions, head_loss
from gpt2wds.model import VOCAB_SIZE, autocast

PADDED = 50304
CPU = torch.device("cpu")


class WithoutProducts(TorchDispatchMode):
    """A matrix product is memory that is written to, and no arithmetic."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        if func is aten.mm.default:
            return args[0].new_empty(args[0].shape[0], args[1].shape[1]).fill_(0.1)
        if func is aten.mm.out:
            return (kwargs or {})["out"].fill_(0.1)
        if func is aten.addmm_.default:
            return args[0].add_(0.1)
        return func(*args, **(kwargs or {}))


def plain(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, head), targets, reduction="sum") * weights[0]


def ours(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    return head_loss(hidden, head, targets, weights, VOCAB_SIZE)


def once(loss_of: Callable[..., Tensor], positions: int, head: nn.Parameter, dtype: str) -> tuple[float, float]:
    """(processor seconds, loss) of a loss and its gradients."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(positions, head.shape[1], generator=generator).requires_grad_()
    targets = torch.randint(VOCAB_SIZE, (positions,), generator=generator)
    head.grad = None
    start = time.process_time()
    with autocast(CPU, dtype):
        loss = loss_of(hidden, head, targets, torch.full((positions,), 1 / positions)) / 2
    loss.backward()
    return time.process_time() - start, loss.item()


@click.command()
@click.option("--shape", "shapes", multiple=True, default=["512x768", "1024x128"], help="POSITIONSxCHANNELS.")
@click.option("--dtype", "dtypes", multiple=True, default=["float32", "bfloat16"], show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--without-products", is_flag=True)
def main(shapes: tuple[str, ...], dtypes: tuple[str, ...], rounds: int, without_products: bool) -> None:
    products: Any = WithoutProducts() if without_products else nullcontext()
    with join_world("cpu") as world, products:
        print(f"{device_name(world)}, {torch.get_num_threads()} threads, torch {torch.__version__}")
        print(f"fast bfloat16: {torch.ops.mkldnn._is_mkldnn_bf16_supported()}; products: {not without_products}")
        for shape in shapes:
            positions, channels = map(int, shape.split("x"))
            head = nn.Parameter(0.02 * torch.randn(PADDED, channels))
            with torch.no_grad():
                head[VOCAB_SIZE:] = 0
            for dtype in dtypes:
                found: dict[Callable[..., Tensor], list[tuple[float, float]]] = {ours: [], plain: []}
                for number in range(rounds + 1):
                    for way, runs in found.items():
                        one = once(way, positions, head, dtype)
                        if number:
                            runs.append(one)
                mine, theirs = (1e3 * statistics.median(run[0] for run in runs) for runs in found.values())
                print(
                    f"  {shape:10} {dtype:8} in {chunk_positions(positions, channels):5}: gpt2wds {mine:7.0f} ms, "
                    f"plain {theirs:7.0f} ms of processor time, {theirs / mine:.2f} ×; "
                    f"losses apart by {abs(found[ours][0][1] - found[plain][0][1]):.1g}"
                )


if __name__ == "__main__":
    main()
