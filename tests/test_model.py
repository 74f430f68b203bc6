"""GPT-2 against `transformers`, and what else is the model's own."""

import copy
import json
import math

import numpy as np
import pytest
import torch
import transformers
from models import SMALL, TINY, assert_same_gradients, disturb, our_logits, tokens

from gpt2wds.errors import Error
from gpt2wds.model import GPT2, SIZES, GPT2Config, hf_config
from gpt2wds.train.optim import OPTIMIZERS, make_optimizers


def theirs(config: GPT2Config) -> transformers.GPT2LMHeadModel:
    settings = transformers.GPT2Config(**hf_config(config), attn_implementation="eager")
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(settings).eval()


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
    for value in (None, 1.5, "1"):
        with pytest.raises(Error, match=f"^model: n_layer: expected a whole number, got {value!r}"):
            GPT2Config(n_layer=value, n_head=1, n_embd=8)
    with pytest.raises(Error, match="^model: document_masking: expected True or False, got 'no'"):
        GPT2Config(n_layer=1, n_head=1, n_embd=8, document_masking="no")
    json.dumps(hf_config(GPT2Config(np.int64(1), np.int64(1), np.int64(8))))  # as a checkpoint has it
    with pytest.raises(Error, match="^model: expected a GPT2Config, such as .*, got 'gpt2'"):
        GPT2("gpt2")
    with pytest.raises(Error, match="^seed: expected a whole number, got None"):
        GPT2(GPT2Config(1, 1, 8), seed=None)
