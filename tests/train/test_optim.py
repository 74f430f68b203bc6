"""Parameter groups, learning-rate schedules, and optimizer states that come back exactly."""

import copy
import math
from typing import Any

import pytest
import safetensors.torch
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gpt2wds.model import GPT2, GPT2Config
from gpt2wds.train.optim import OPTIMIZERS, Optimizers, learning_rate_factor, make_optimizers, orthogonalized

SMALL = GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=64, vocab_size=300)


def optimizers_of(model: GPT2, kind: str) -> Optimizers:
    return make_optimizers(model, kind, learning_rate=1e-2, weight_decay=0.1, muon_learning_rate=0.02)


def train(model: GPT2, optimizers: Optimizers, steps: range) -> None:
    for step in steps:
        ids = torch.randint(300, (2, 65), generator=torch.Generator().manual_seed(step))
        model(ids[:, :-1], ids[:, 1:], torch.ones(2)).backward()
        optimizers.step(1 / (1 + step))


def groups(model: GPT2, optimizers: Optimizers) -> dict[str, tuple[str, float, float]]:
    """Parameter name → class of its optimizer, learning rate, weight decay; each parameter must be there once."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = [
        (names[parameter], (type(optimizer).__name__, group["lr"], group["weight_decay"]))
        for optimizer in optimizers.all
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    assert sorted(name for name, _ in found) == sorted(names.values())
    return dict(found)


def test_matrices_decay_and_vectors_do_not() -> None:
    model = GPT2(SMALL)
    for name, (kind, rate, decay) in groups(model, optimizers_of(model, "adamw")).items():
        vector = name.endswith("bias") or "ln_" in name
        assert (kind, rate, decay) == ("AdamW", 1e-2, 0.0 if vector else 0.1), name


def test_muon_has_the_matrices_inside_the_blocks() -> None:
    model = GPT2(SMALL)
    for name, (kind, rate, decay) in groups(model, optimizers_of(model, "muon")).items():
        if name.endswith("bias") or "ln_" in name:
            assert (kind, rate, decay) == ("AdamW", 1e-2, 0.0), name
        elif name in ("wte.weight", "wpe.weight"):
            assert (kind, rate, decay) == ("AdamW", 1e-2, 0.1), name
        else:
            assert (kind, rate, decay) == ("Muon", 0.02, 0.1), name


def test_muon_on_a_cpu_is_torchs_but_for_rounding() -> None:
    """torch's works in bfloat16, of eight bits."""
    ours, theirs = GPT2(SMALL), GPT2(SMALL)
    theirs.load_state_dict(ours.state_dict())
    optimizers, reference = optimizers_of(ours, "muon"), optimizers_of(theirs, "muon")
    hidden = reference.all[1].param_groups[0]["params"]
    reference = Optimizers([reference.all[0], torch.optim.Muon(hidden, lr=0.02, weight_decay=0.1)])
    start = {name: parameter.detach().clone() for name, parameter in ours.named_parameters()}
    train(ours, optimizers, range(3))
    train(theirs, reference, range(3))
    state, wanted = optimizers.state(ours), reference.state(theirs)
    assert state.keys() == wanted.keys()
    for key in filter(lambda key: key.endswith("momentum_buffer"), wanted):
        assert (state[key] - wanted[key]).norm() < 0.1 * wanted[key].norm(), key
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if name.startswith("h.") and one.dim() == 2:
            assert (one - other).norm() < 0.1 * (one - start[name]).norm(), name


@pytest.mark.parametrize("shape", [(32, 32), (96, 32), (32, 128)])
def test_a_matrix_is_made_orthogonal(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    found = left.T @ orthogonalized(matrix) @ right.T
    assert (found - found.diag().diag()).abs().max() < 1e-4
    well_conditioned = found.diag()[values > 0.05 * values[0]]
    assert well_conditioned.min() > 0.6 and well_conditioned.max() < 1.3


def test_on_a_cpu_muon_computes_in_float32() -> None:
    """bfloat16 is emulated on most."""
    seen = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            seen.update(tensor.dtype for tensor in (*args, result) if isinstance(tensor, torch.Tensor))
            return result

    model = GPT2(SMALL)
    optimizers = optimizers_of(model, "muon")
    ids = torch.randint(300, (2, 65), generator=torch.Generator().manual_seed(1))
    model(ids[:, :-1], ids[:, 1:], torch.ones(2)).backward()
    with Watch():
        optimizers.all[1].step()
    assert seen == {torch.float32}


def test_adamw_has_gpt2s_constants() -> None:
    (adamw,) = optimizers_of(GPT2(SMALL), "adamw").all
    for group in adamw.param_groups:
        assert (group["betas"], group["eps"]) == ((0.9, 0.95), 1e-8)


def test_the_factor_scales_each_rate() -> None:
    model = GPT2(SMALL)
    optimizers = optimizers_of(model, "muon")
    for factor in (0.5, 0.25):  # of the configured rates, not of the last ones
        optimizers.step(factor)
        rates = {kind: rate for kind, rate, _ in groups(model, optimizers).values()}
        assert rates == {"AdamW": 1e-2 * factor, "Muon": 0.02 * factor}


def test_steps_drop_the_gradients() -> None:
    model = GPT2(SMALL)
    train(model, optimizers_of(model, "adamw"), range(1))
    assert all(parameter.grad is None for parameter in model.parameters())


def lessons_learning_rate(i: int) -> float:
    """The lesson's get_lr: steps counted from 0."""
    max_lr, min_lr, warmup_steps, max_steps = 6e-4, 6e-5, 715, 19073
    if i < warmup_steps:
        return max_lr * (i + 1) / warmup_steps
    if i > max_steps:
        return min_lr
    decay_ratio = (i - warmup_steps) / (max_steps - warmup_steps)
    coefficient = 0.5 * (1.0 + math.cos(math.pi * decay_ratio))
    return min_lr + coefficient * (max_lr - min_lr)


def test_cosine_is_the_lessons() -> None:
    factor = learning_rate_factor("cosine", warmup_steps=715, max_steps=19073, min_factor=0.1)
    for i in range(19073 + 100):
        assert math.isclose(6e-4 * factor(i + 1), lessons_learning_rate(i), rel_tol=1e-12), i


def test_the_other_schedules() -> None:
    linear = learning_rate_factor("linear", warmup_steps=10, max_steps=110, min_factor=0.0)
    assert [linear(step) for step in (1, 10, 11, 61, 111, 500)] == [0.1, 1.0, 1.0, 0.5, 0.0, 0.0]
    constant = learning_rate_factor("constant", warmup_steps=10, max_steps=110, min_factor=0.0)
    assert [constant(step) for step in (1, 5, 10, 11, 110, 500)] == [0.1, 0.5, 1.0, 1.0, 1.0, 1.0]
    assert learning_rate_factor("cosine", warmup_steps=0, max_steps=1, min_factor=0.1)(1) == 1.0
    assert learning_rate_factor("cosine", warmup_steps=5, max_steps=5, min_factor=0.1)(5) == 1.0


def test_warm_up_stable_decay() -> None:
    wsd = learning_rate_factor("wsd", warmup_steps=10, max_steps=110, min_factor=0.2, decay_steps=20)
    steps = (1, 10, 11, 50, 91, 101, 111, 500)
    assert [wsd(step) for step in steps] == pytest.approx([0.1, 1.0, 1.0, 1.0, 1.0, 0.6, 0.2, 0.2])
    # All of it decay: then it is linear.
    all_of_it = learning_rate_factor("wsd", warmup_steps=10, max_steps=110, min_factor=0.2, decay_steps=100)
    linear = learning_rate_factor("linear", warmup_steps=10, max_steps=110, min_factor=0.2)
    assert all(all_of_it(step) == linear(step) for step in range(1, 130))
    for steps in (0, 101):
        with pytest.raises(ValueError, match=rf"train.decay_steps: .* = 100, got {steps}; a fifth of max_steps"):
            learning_rate_factor("wsd", warmup_steps=10, max_steps=110, min_factor=0.2, decay_steps=steps)


def test_what_there_is_not() -> None:
    with pytest.raises(ValueError, match=r"train.optimizer: expected adamw or muon, got 'sgd'"):
        optimizers_of(GPT2(SMALL), "sgd")
    with pytest.raises(ValueError, match=r"train.schedule: expected cosine, linear, constant, wsd, got 'step'"):
        learning_rate_factor("step", warmup_steps=1, max_steps=2, min_factor=0.1)
    for warmup in (-1, 11):
        with pytest.raises(ValueError, match=rf"train.warmup_steps: expected 0 to max_steps = 10, got {warmup}"):
            learning_rate_factor("cosine", warmup_steps=warmup, max_steps=10, min_factor=0.1)


def test_betas_are_those_asked_for() -> None:
    rates = {"learning_rate": 1e-2, "weight_decay": 0.1, "muon_learning_rate": 0.02}
    (adamw,) = make_optimizers(GPT2(SMALL), "adamw", **rates).all
    assert {group["betas"] for group in adamw.param_groups} == {(0.9, 0.95)}
    (adamw,) = make_optimizers(GPT2(SMALL), "adamw", betas=(0.8, 0.99), **rates).all
    assert {group["betas"] for group in adamw.param_groups} == {(0.8, 0.99)}


def test_a_state_of_other_optimizers_is_refused() -> None:
    model = GPT2(SMALL)
    optimizers = optimizers_of(model, "adamw")
    train(model, optimizers, range(1))
    state = optimizers.state(model)
    with pytest.raises(ValueError, match="optimizer state: expected that of AdamW and Muon, got another's"):
        optimizers_of(model, "muon").load_state(model, state)
    del state["wte.weight:exp_avg"]
    with pytest.raises(ValueError, match=r"expected that of AdamW, got another's \(wte.weight:exp_avg, …\)"):
        optimizers_of(model, "adamw").load_state(model, state)


@pytest.mark.slow
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_state_comes_back_exactly(kind: str) -> None:
    model = GPT2(SMALL)
    optimizers = optimizers_of(model, kind)
    train(model, optimizers, range(3))
    state = optimizers.state(model)
    stored = safetensors.torch.load(safetensors.torch.save(state))

    other = copy.deepcopy(model)
    resumed = optimizers_of(other, kind)
    resumed.load_state(other, stored)
    assert resumed.state(other).keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in resumed.state(other).items())
    assert {name.rpartition(":")[0] for name in state} == {name for name, _ in model.named_parameters()}

    train(model, optimizers, range(3, 6))
    train(other, resumed, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))

    fresh = GPT2(SMALL)
    train(fresh, optimizers_of(fresh, kind), range(3))
    train(fresh, optimizers_of(fresh, kind), range(3, 6))
    assert not torch.equal(fresh.wte.weight, model.wte.weight)  # without the state it would be another run
