"""The loss in chunks against PyTorch's own."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import SMALL, TINY, assert_same_gradients, disturb, tokens
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gpt2wds.head import chunk_positions, head_loss
from gpt2wds.model import GPT2, autocast

CPU = torch.device("cpu")


def plain_loss(model: GPT2, inputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """What the loss is, in PyTorch's own words."""
    logits = model.logits(model.hidden(inputs)[0]).float()  # (B, T, V)
    per_token = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")  # (B, T)
    return (per_token.mean(dim=1) * weights).sum()


def loss_and_gradients(model: GPT2, loss: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    (loss * 0.7).backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_same_as_plain(model: GPT2, *arguments: Tensor) -> None:
    """The chunked loss and its gradients are PyTorch's own."""
    loss, gradients = loss_and_gradients(model, model(*arguments))
    expected, expected_gradients = loss_and_gradients(model, plain_loss(model, *arguments))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    assert_same_gradients(gradients, expected_gradients)


@pytest.mark.parametrize(("sequences", "length"), [(1, 1), (2, 128), (3, 100), (5, 103)])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_chunked_loss_is_cross_entropy(sequences: int, length: int, weighted: bool) -> None:
    # 300 positions are two chunks, 515 three, of which the last is shorter.
    model = GPT2(SMALL)
    disturb(model)
    ids = tokens(SMALL, sequences, length + 1)
    weights = torch.tensor([1.0, 0.0, 2.5, 0.3, 1.0])[:sequences] if weighted else torch.ones(sequences)
    arguments = (ids[:, :-1], ids[:, 1:], weights)
    assert_same_as_plain(model, *arguments)


def test_the_chunked_loss_of_the_whole_vocabulary() -> None:
    model = GPT2(TINY)
    ids = tokens(TINY, 5, 62)
    arguments = (ids[:, :-1], ids[:, 1:], torch.ones(5))
    assert_same_as_plain(model, *arguments)


def test_the_chunked_loss_where_probabilities_vanish() -> None:
    model = GPT2(SMALL)
    with torch.no_grad():
        model.ln_f.weight *= 3000  # logits so far apart that softmax is 0 in float32 for most tokens
    ids = tokens(SMALL, 2, 65)
    arguments = (ids[:, :-1], ids[:, 1:], torch.ones(2))
    loss, expected = model(*arguments).detach(), plain_loss(model, *arguments).detach()
    assert expected > 200
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)


def test_the_chunked_loss_in_bfloat16() -> None:
    model = GPT2(SMALL)
    ids = tokens(SMALL, 3, 101)
    arguments = (ids[:, :-1], ids[:, 1:], torch.ones(3))
    with autocast(CPU, "bfloat16"):
        loss, gradients = loss_and_gradients(model, model(*arguments))
        plain, plain_gradients = loss_and_gradients(model, plain_loss(model, *arguments))
    exact, exact_gradients = loss_and_gradients(model, model(*arguments))
    assert loss.dtype == torch.float32
    assert loss != exact  # it did compute in bfloat16
    torch.testing.assert_close(loss, exact, rtol=2e-3, atol=0)
    torch.testing.assert_close(loss, plain, rtol=2e-3, atol=0)
    for name, gradient in gradients.items():
        exact_gradient = exact_gradients[name]
        assert gradient.dtype == torch.float32
        assert (gradient - exact_gradient).norm() < 0.05 * exact_gradient.norm(), name
        assert (plain_gradients[name] - exact_gradient).norm() < 0.05 * exact_gradient.norm(), name


def test_the_loss_needs_no_gradient() -> None:
    model = GPT2(SMALL)
    ids = tokens(SMALL, 2, 31)
    arguments = (ids[:, :-1], ids[:, 1:], torch.ones(2))
    with torch.no_grad():
        alone = model(*arguments)
    assert alone.item() == model(*arguments).item()
    assert not alone.requires_grad


VOCABULARY, PADDED = 300, 384


def head_and_hidden(positions: int, channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden, head (padding rows that are not 0), targets, weights."""
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(positions, channels, generator=generator).requires_grad_()
    head = (0.1 * torch.randn(PADDED, channels, generator=generator)).requires_grad_()
    targets = torch.randint(VOCABULARY, (positions,), generator=generator)
    return hidden, head, targets, torch.rand(positions, generator=generator)


def ours(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    return head_loss(hidden, head, targets, weights, VOCABULARY)


def plain(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    logits = F.linear(hidden, head).float()[:, :VOCABULARY]
    return (F.cross_entropy(logits, targets, reduction="none") * weights).sum()


@pytest.mark.parametrize(
    ("positions", "channels", "chunks"), [(256, 32, 1), (257, 32, 2), (384, 192, 1), (385, 192, 2)]
)
@pytest.mark.parametrize(("dtype", "close"), [("float32", 2e-6), ("bfloat16", 8e-3)])
def test_one_chunk_and_two_give_plain_gradients(
    positions: int, channels: int, chunks: int, dtype: str, close: float
) -> None:
    assert math.ceil(positions / chunk_positions(positions, channels)) == chunks
    exact, found = (head_and_hidden(positions, channels) for _ in range(2))
    expected = plain(*exact)
    (expected * 0.7).backward()
    with autocast(CPU, dtype):
        loss = ours(*found)
    (loss * 0.7).backward()
    torch.testing.assert_close(loss, expected, rtol=close, atol=0)
    for mine, theirs in zip(found[:2], exact[:2], strict=True):
        assert mine.grad is not None and theirs.grad is not None and mine.grad.dtype == torch.float32
        assert (mine.grad - theirs.grad).norm() < close * theirs.grad.norm()
    assert found[1].grad[VOCABULARY:].eq(0).all()  # padding rows took no part


@pytest.mark.parametrize("channels", [1, 128, 768, 1600])
def test_chunks_are_few_and_of_one_size(channels: int) -> None:
    most = max(256, 2 * channels)
    for positions in (1, 255, 256, 257, 1024, 1536, 1537, 65536):
        chunk = chunk_positions(positions, channels)
        chunks = math.ceil(positions / chunk)
        assert chunk <= most
        assert chunks == math.ceil(positions / most)
        assert chunk * chunks - positions < chunks  # they differ by less than a position each


def test_the_loss_has_one_backward_pass() -> None:
    loss = ours(*head_and_hidden(3, 8))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward pass"):
        loss.backward()


class Watched(TorchDispatchMode):
    """What a loss and its gradients make PyTorch do."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[tuple[Any, ...]] = []  # shape, strides and dtype of both factors
        self.made: dict[int, Tensor] = {}  # what was made, kept, so that no address is given twice
        self.logits = 0  # of the largest tensor with a column per token

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_):
            self.products.append(tuple((*one.shape, *one.stride(), one.dtype) for one in args[-2:]))
        for one in result if isinstance(result, tuple | list) else [result]:
            if isinstance(one, Tensor):
                self.made[one.untyped_storage().data_ptr()] = one
                if one.dim() == 2 and one.shape[1] in (VOCABULARY, PADDED):
                    self.logits = max(self.logits, one.shape[0])
        return result

    def megabytes(self) -> float:
        return sum(one.untyped_storage().nbytes() for one in self.made.values()) / 1e6


def watched(loss_of: Callable[..., Tensor], positions: int, channels: int, dtype: str) -> Watched:
    arguments = head_and_hidden(positions, channels)
    with Watched() as found:
        with autocast(CPU, dtype):
            loss = loss_of(*arguments)
        (loss * 0.7).backward()
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_chunk_costs_no_more_than_the_plain_way(dtype: str) -> None:
    """The same products of the same layouts, and less memory made for everything else."""
    mine, theirs = (watched(way, 512, 256, dtype) for way in (ours, plain))
    assert len(mine.products) == 3
    assert sorted(map(str, mine.products)) == sorted(map(str, theirs.products))
    assert mine.megabytes() < 0.8 * theirs.megabytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_many_positions_have_few_logits_at_a_time(dtype: str) -> None:
    assert watched(ours, 8192, 8, dtype).logits == 256
    assert watched(plain, 8192, 8, dtype).logits == 8192
