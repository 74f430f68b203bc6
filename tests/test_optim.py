"""Parameter groups, the lesson's schedule, and optimizer state that comes back exactly."""

import math

import pytest
import torch
from safetensors.torch import load, save

from gpt2wds.model import GPT2, GPT2Config
from gpt2wds.optim import OPTIMIZERS, Optimizers, learning_rate_factor, make_optimizers

SMALL = GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=32, vocab_size=300)
RATES = {"learning_rate": 1e-2, "weight_decay": 0.1, "muon_learning_rate": 0.02}


def by_name(model: GPT2, optimizers: Optimizers) -> dict[str, tuple[str, float, float]]:
    """Parameter name → (optimizer's class, learning rate, weight decay)."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: (type(optimizer).__name__, group["lr"], group["weight_decay"])
        for optimizer in optimizers.all
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_adamw_decays_matrices_and_not_vectors() -> None:
    model = GPT2(SMALL)
    optimizers = make_optimizers(model, "adamw", **RATES)
    (adamw,) = optimizers.all
    assert (adamw.defaults["betas"], adamw.defaults["eps"]) == ((0.9, 0.95), 1e-8)
    assert by_name(model, optimizers) == {
        name: ("AdamW", 1e-2, 0.1 if parameter.dim() == 2 else 0.0) for name, parameter in model.named_parameters()
    }


def test_muon_takes_the_matrices_inside_the_blocks() -> None:
    model = GPT2(SMALL)
    found = by_name(model, make_optimizers(model, "muon", **RATES))
    assert set(found) == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            assert found[name] == ("AdamW", 1e-2, 0.0)
        else:
            assert found[name] == (("Muon", 0.02, 0.1) if name.startswith("h.") else ("AdamW", 1e-2, 0.1))


def test_a_step_is_adamws_at_the_factors_rate() -> None:
    model = GPT2(SMALL)
    optimizers = make_optimizers(model, "adamw", **RATES)
    matrix, vector = model.h[0].mlp.c_fc.weight, model.h[0].mlp.c_fc.bias
    before = matrix.detach().clone(), vector.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    optimizers.step(0.5)
    # The first update of Adam is the sign of the gradient times the rate; decay is decoupled.
    torch.testing.assert_close(matrix.detach(), before[0] * (1 - 0.005 * 0.1) - 0.005)
    torch.testing.assert_close(vector.detach(), before[1] - 0.005)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [group["lr"] for group in optimizers.all[0].param_groups] == [0.005, 0.005]
    optimizers.step(1.0)
    assert [group["lr"] for group in optimizers.all[0].param_groups] == [0.01, 0.01]


def lesson(it: int) -> float:
    """The lesson's get_lr, step counted from 0."""
    max_lr, min_lr, warmup_steps, max_steps = 6e-4, 6e-5, 715, 19_073
    if it < warmup_steps:
        return max_lr * (it + 1) / warmup_steps
    if it > max_steps:
        return min_lr
    decay_ratio = (it - warmup_steps) / (max_steps - warmup_steps)
    assert 0 <= decay_ratio <= 1
    return min_lr + 0.5 * (1 + math.cos(math.pi * decay_ratio)) * (max_lr - min_lr)


def test_the_schedule_is_the_lessons() -> None:
    factor = learning_rate_factor("cosine", warmup_steps=715, max_steps=19_073, min_factor=6e-5 / 6e-4)
    for step in range(1, 19_200):
        assert 6e-4 * factor(step) == pytest.approx(lesson(step - 1), rel=1e-12, abs=0), step
    assert factor(715) == factor(716) == 1.0


def test_other_schedules() -> None:
    linear = learning_rate_factor("linear", warmup_steps=10, max_steps=110, min_factor=0.1)
    assert [linear(step) for step in (1, 5, 10, 11)] == [0.1, 0.5, 1.0, 1.0]
    assert linear(61) == pytest.approx(0.55)
    assert linear(111) == linear(500) == pytest.approx(0.1)
    constant = learning_rate_factor("constant", warmup_steps=4, max_steps=10, min_factor=0.1)
    assert [constant(step) for step in (1, 4, 5, 10)] == [0.25, 1.0, 1.0, 1.0]
    without_warmup = learning_rate_factor("cosine", warmup_steps=0, max_steps=10, min_factor=0.0)
    assert without_warmup(1) == 1.0
    only_warmup = learning_rate_factor("cosine", warmup_steps=10, max_steps=10, min_factor=0.0)
    assert [only_warmup(step) for step in (5, 10)] == [0.5, 1.0]


def train(model: GPT2, optimizers: Optimizers, steps: range) -> None:
    for step in steps:
        ids = torch.randint(300, (2, 21), generator=torch.Generator().manual_seed(step))
        model(ids[:, :-1], ids[:, 1:], torch.ones(2)).backward()
        optimizers.step(1 / (1 + step))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_state_comes_back_exactly(kind: str) -> None:
    model = GPT2(SMALL)
    optimizers = make_optimizers(model, kind, **RATES)
    train(model, optimizers, range(3))
    stored = save({name: tensor.contiguous() for name, tensor in optimizers.state(model).items()})
    other = GPT2(SMALL, seed=9)
    other.load_state_dict(model.state_dict())
    resumed = make_optimizers(other, kind, **RATES)
    resumed.load_state(other, load(stored))
    assert save(resumed.state(other)) == stored
    train(model, optimizers, range(3, 6))
    train(other, resumed, range(3, 6))
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
    # It is the state that makes the difference.
    forgetful = GPT2(SMALL)
    forgetful.load_state_dict(model.state_dict())
    train(model, optimizers, range(6, 7))
    train(forgetful, make_optimizers(forgetful, kind, **RATES), range(6, 7))
    assert not any(torch.equal(a, b) for a, b in zip(model.parameters(), forgetful.parameters(), strict=True))


def test_loaded_state_is_a_copy() -> None:
    model = GPT2(SMALL)
    optimizers = make_optimizers(model, "adamw", **RATES)
    train(model, optimizers, range(1))
    state = {name: tensor.clone() for name, tensor in optimizers.state(model).items()}
    kept = {name: tensor.clone() for name, tensor in state.items()}
    optimizers.load_state(model, state)
    train(model, optimizers, range(1, 2))
    assert all(torch.equal(state[name], kept[name]) for name in kept)


def test_names_that_are_unknown() -> None:
    with pytest.raises(ValueError, match=r"train.optimizer: expected adamw or muon, got 'adam'"):
        make_optimizers(GPT2(SMALL), "adam", **RATES)
    with pytest.raises(ValueError, match=r"train.schedule: expected cosine, linear, constant, got 'cosinus'"):
        learning_rate_factor("cosinus", warmup_steps=1, max_steps=2, min_factor=0.1)
    for warmup_steps in (-1, 3):
        with pytest.raises(ValueError, match=f"warmup_steps: expected 0 to max_steps = 2, got {warmup_steps}"):
            learning_rate_factor("cosine", warmup_steps=warmup_steps, max_steps=2, min_factor=0.1)
