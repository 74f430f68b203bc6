"""The loss in chunks against PyTorch's own."""

import pytest
import torch
from models import SMALL, TINY, assert_same_gradients, disturb, tokens
from torch import Tensor
from torch.nn import functional as F

from gpt2wds.model import GPT2, autocast


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
    # 300 and 515 positions are no multiple of the chunk of 256.
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
    with autocast(torch.device("cpu"), "bfloat16"):
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
