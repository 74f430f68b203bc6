"""GPT-2 against `transformers`, and its loss against PyTorch's own."""

import copy
import math

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from gpt2wds.model import GPT2, SIZES, GPT2Config, autocast, hf_config
from gpt2wds.train.optim import OPTIMIZERS, make_optimizers

TINY = GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=64)
# A small vocabulary that is no multiple of 128, so that there are padding rows.
SMALL = GPT2Config(n_layer=2, n_head=4, n_embd=32, n_positions=128, vocab_size=300)


def disturb(model: torch.nn.Module) -> None:
    """Move every parameter, so that biases of 0 and gains of 1 hide nothing."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        if isinstance(model, GPT2):
            model.wte.weight[model.config.vocab_size :] = 0


def theirs(config: GPT2Config) -> transformers.GPT2LMHeadModel:
    settings = transformers.GPT2Config(**hf_config(config), attn_implementation="eager")
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(settings).eval()


def tokens(config: GPT2Config, *shape: int) -> Tensor:
    return torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(2))


def our_logits(model: GPT2, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model.logits(model.hidden(ids)[0])


@pytest.mark.parametrize("disturbed", [False, True])
def test_their_weights_give_their_logits(disturbed: bool) -> None:
    reference = theirs(TINY)
    if disturbed:
        disturb(reference)
    model = GPT2(TINY)
    model.load_hf_state_dict(reference.state_dict())
    ids = tokens(TINY, 2, 64)
    with torch.no_grad():
        expected = reference(ids).logits
    torch.testing.assert_close(our_logits(model, ids), expected, rtol=0, atol=1e-5)


def test_our_weights_give_our_logits_in_theirs() -> None:
    model = GPT2(TINY, seed=5)
    disturb(model)
    reference = theirs(TINY)
    problems = reference.load_state_dict(model.hf_state_dict(), strict=False)
    assert problems.unexpected_keys == []
    assert problems.missing_keys == ["lm_head.weight"]  # tied to wte
    ids = tokens(TINY, 2, 64)
    with torch.no_grad():
        expected = reference(ids).logits
    torch.testing.assert_close(our_logits(model, ids), expected, rtol=0, atol=1e-5)


def test_gradients_are_theirs() -> None:
    model, reference = GPT2(SMALL), theirs(SMALL)
    disturb(reference)
    model.load_hf_state_dict(reference.state_dict())
    ids = tokens(SMALL, 3, 50)
    (model(ids[:, :-1], ids[:, 1:], torch.ones(3)) / 3).backward()
    reference(ids, labels=ids).loss.backward()
    # Their gradients have their weights' layout, so ours can take them as weights.
    model.load_hf_state_dict({name: p.grad for name, p in reference.named_parameters()})
    expected = {name: p.detach() for name, p in model.named_parameters()}
    assert_same_gradients({name: p.grad for name, p in model.named_parameters()}, expected)


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080), ("gpt2-xl", 1_557_611_200)],
)
def test_the_published_sizes(size: str, parameters: int) -> None:
    with torch.device("meta"):
        model = GPT2(GPT2Config(*SIZES[size]))
    assert model.parameter_count() == parameters
    assert model.wte.weight.shape[0] == 50_304


def test_initial_weights_are_gpt2s() -> None:
    model = GPT2(GPT2Config(n_layer=8, n_head=2, n_embd=64, n_positions=64, vocab_size=1000), seed=3)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif parameter.dim() == 1:
            assert (parameter == 1).all(), name
        else:
            expected = 0.02 / math.sqrt(16) if name.endswith("c_proj.weight") else 0.02
            real = parameter[:1000] if name == "wte.weight" else parameter
            assert real.std().item() == pytest.approx(expected, rel=0.05), name
    again, other = GPT2(model.config, seed=3), GPT2(model.config, seed=4)
    assert all((a == b).all() for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert not (model.wpe.weight == other.wpe.weight).any()


def plain_loss(model: GPT2, inputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """What the loss is, in PyTorch's own words."""
    logits = model.logits(model.hidden(inputs)[0]).float()  # (B, T, V)
    per_token = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")  # (B, T)
    return (per_token.mean(dim=1) * weights).sum()


def loss_and_gradients(model: GPT2, loss: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    (loss * 0.7).backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_same_gradients(gradients: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """To float error, which is of the size of the largest terms."""
    for name, gradient in gradients.items():
        largest = expected[name].abs().max()
        assert largest > 0, name
        assert (gradient - expected[name]).abs().max() < 3e-6 * largest, name


@pytest.mark.parametrize(("sequences", "length"), [(1, 1), (2, 128), (3, 100), (5, 103)])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_chunked_loss_is_cross_entropy(sequences: int, length: int, weighted: bool) -> None:
    # 300 and 515 positions are no multiple of the chunk of 256.
    model = GPT2(SMALL)
    disturb(model)
    ids = tokens(SMALL, sequences, length + 1)
    weights = torch.tensor([1.0, 0.0, 2.5, 0.3, 1.0])[:sequences] if weighted else torch.ones(sequences)
    arguments = (ids[:, :-1], ids[:, 1:], weights)
    loss, gradients = loss_and_gradients(model, model(*arguments))
    expected, expected_gradients = loss_and_gradients(model, plain_loss(model, *arguments))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    assert_same_gradients(gradients, expected_gradients)


def test_the_chunked_loss_of_the_whole_vocabulary() -> None:
    model = GPT2(TINY)
    ids = tokens(TINY, 5, 62)
    arguments = (ids[:, :-1], ids[:, 1:], torch.ones(5))
    loss, gradients = loss_and_gradients(model, model(*arguments))
    expected, expected_gradients = loss_and_gradients(model, plain_loss(model, *arguments))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    assert_same_gradients(gradients, expected_gradients)


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


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_padding_rows_stay_zero(optimizer: str) -> None:
    model = GPT2(SMALL)
    optimizers = make_optimizers(model, optimizer, learning_rate=1e-2, weight_decay=0.1, muon_learning_rate=0.02)
    before = copy.deepcopy(model.state_dict())
    for step in range(3):
        ids = tokens(SMALL, 2, 40 + step)
        model(ids[:, :-1], ids[:, 1:], torch.ones(2)).backward()
        optimizers.step(1.0)
    assert model.wte.weight.shape == (384, 32)
    assert (model.wte.weight[300:] == 0).all()
    assert all((model.state_dict()[name] != value).any() for name, value in before.items())


def test_keys_and_values_give_the_same_logits_one_at_a_time() -> None:
    model = GPT2(SMALL)
    disturb(model)
    ids = tokens(SMALL, 3, 40)
    expected = our_logits(model, ids)
    with torch.no_grad():
        hidden, past = model.hidden(ids[:, :7])
        steps = [model.logits(hidden)]
        for i in range(7, 40):
            hidden, past = model.hidden(ids[:, i : i + 1], past)
            steps.append(model.logits(hidden))
    torch.testing.assert_close(torch.cat(steps, dim=1), expected, rtol=0, atol=1e-5)


def test_texts_side_by_side_in_a_row_do_not_see_each_other() -> None:
    model = GPT2(SMALL)
    disturb(model)
    one, other = tokens(SMALL, 1, 30), tokens(SMALL, 1, 50)[:, 30:]
    text = torch.tensor([[0] * 30 + [1] * 20])
    visible = (text[:, :, None] == text[:, None, :]).tril()[:, None]  # (B, 1, T, T)
    positions = torch.cat((torch.arange(30), torch.arange(20)))[None]
    with torch.no_grad():
        hidden, _ = model.hidden(torch.cat((one, other), dim=1), positions=positions, visible=visible)
    expected = torch.cat((our_logits(model, one), our_logits(model, other)), dim=1)
    torch.testing.assert_close(model.logits(hidden).detach(), expected, rtol=0, atol=1e-5)


def test_a_state_dict_comes_back() -> None:
    model, other = GPT2(SMALL, seed=1), GPT2(SMALL, seed=2)
    disturb(model)
    state = model.hf_state_dict()
    assert state["transformer.wte.weight"].shape == (300, 32)
    assert state["transformer.h.0.attn.c_attn.weight"].shape == (32, 96)
    other.load_hf_state_dict(state)
    assert all((a == b).all() for a, b in zip(model.parameters(), other.parameters(), strict=True))
    without_prefix = {name.removeprefix("transformer."): value for name, value in state.items()}
    third = GPT2(SMALL, seed=3)
    third.load_hf_state_dict(without_prefix)
    assert all((a == b).all() for a, b in zip(model.parameters(), third.parameters(), strict=True))


def test_weights_that_do_not_fit() -> None:
    model = GPT2(SMALL)
    state = model.hf_state_dict()
    missing = {name: value for name, value in state.items() if name != "transformer.h.1.mlp.c_fc.bias"}
    with pytest.raises(ValueError, match=r"expected a GPT-2 tensor 'h.1.mlp.c_fc.bias', which the file does not have"):
        model.load_hf_state_dict(missing)
    for name, value in state.items():
        with pytest.raises(ValueError, match=r"must be \(.*\), got \(.*\)") as error:
            model.load_hf_state_dict(state | {name: value[..., :-1]})
        assert name.removeprefix("transformer.") in str(error.value)


def test_shapes_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="n_embd=100 and n_head=12; try n_embd=108"):
        GPT2Config(n_layer=1, n_head=12, n_embd=100)
    with pytest.raises(ValueError, match="n_layer must be at least 1, got 0"):
        GPT2Config(n_layer=0, n_head=1, n_embd=8)
