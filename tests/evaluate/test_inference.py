"""The head and the matrix products of scoring against plain torch; and scoring in the middle of compiled training."""

import shutil

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

from gpt2wds.dataset.directory import Dataset
from gpt2wds.distributed import World
from gpt2wds.evaluate import inference as inference_module
from gpt2wds.evaluate.hellaswag import ending_log_probabilities
from gpt2wds.evaluate.inference import inference, target_log_probabilities
from gpt2wds.evaluate.questions import load_questions
from gpt2wds.evaluate.text import Sampling, generate, validation_loss
from gpt2wds.model import GPT2, GPT2Config, autocast
from gpt2wds.tokenizer import load_tokenizer

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture
def model() -> GPT2:
    """A tiny model with strong preferences."""
    model = GPT2(GPT2Config(2, 2, 32, n_positions=256)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        model.wte.weight[model.config.vocab_size :] = 0
    return model


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 50257, (3, 101)))


def log_probabilities(model: GPT2, tokens: torch.Tensor, dtype: str) -> torch.Tensor:
    with inference(ALONE.device, dtype):
        hidden, _ = model.hidden(tokens[:, :-1])
        return target_log_probabilities(model, hidden.flatten(0, 1), tokens[:, 1:].flatten())


@torch.no_grad()
def plain(model: GPT2, tokens: torch.Tensor, dtype: str) -> torch.Tensor:
    with autocast(ALONE.device, dtype):
        logits = model.logits(model.hidden(tokens[:, :-1])[0])
    return -F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("positions", [1, 7, 128, 1000])
def test_the_head_is_cross_entropy(
    model: GPT2, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch, packed: bool, positions: int
) -> None:
    if not packed:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(inference_module, "HEAD_POSITIONS_CPU", positions)
    expected = plain(model, tokens, "float32")
    assert expected.std() > 1
    torch.testing.assert_close(log_probabilities(model, tokens, "float32"), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("packed", [True, False])
def test_bfloat16_is_autocasts(
    model: GPT2, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    if not packed:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    expected, found = plain(model, tokens, "bfloat16"), log_probabilities(model, tokens, "bfloat16")
    exact = plain(model, tokens, "float32")
    assert found.dtype == torch.float32
    # As far from float32 as autocast is, and nearer to autocast than both are to float32.
    assert 0.5 < (found - exact).abs().mean() / (expected - exact).abs().mean() < 2
    assert (found - expected).abs().mean() < 0.5 * (expected - exact).abs().mean()


def test_packed_products_are_used_where_torch_has_them(
    model: GPT2, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        pytest.skip("this torch has no oneDNN")
    with torch.profiler.profile() as profile:
        log_probabilities(model, tokens, "float32")
    calls = {event.key: event.count for event in profile.key_averages()}
    assert calls["mkldnn::_reorder_linear_weight"] == 2 * 4 + 1  # each weight once
    assert calls["mkldnn::_linear_pointwise"] == 2 * 4 + 3  # the head in chunks of 128 positions
    assert "aten::linear" not in calls


def test_changed_weights_are_seen_the_next_time(model: GPT2, tokens: torch.Tensor) -> None:
    log_probabilities(model, tokens, "float32")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 0.9
    expected = plain(model, tokens, "float32")
    torch.testing.assert_close(log_probabilities(model, tokens, "float32"), expected, rtol=1e-5, atol=1e-4)


def test_no_gradients_inside_and_all_as_before_outside(model: GPT2, tokens: torch.Tensor) -> None:
    assert not log_probabilities(model, tokens, "bfloat16").requires_grad
    assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    with pytest.raises(KeyError), inference(ALONE.device, "bfloat16"):
        raise KeyError
    assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    model(tokens[:, :-1], tokens[:, 1:], torch.ones(3)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


# --- while a compiled model trains


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "backend"), [("float32", "eager"), ("bfloat16", "eager"), ("float32", "inductor")])
def test_scoring_compiles_nothing(model: GPT2, choices: Dataset, plays: Dataset, dtype: str, backend: str) -> None:
    if backend == "inductor" and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("needs a C++ compiler")
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    step = torch.compile(model, backend=counter, dynamic=False)  # as the training loop does it
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 50257, (2, 33)))
    questions = load_questions(choices, "completion", 256, limit=6)
    tokenizer = load_tokenizer()
    validation = [plays.read_tokens("val", 0)[:65].reshape(1, -1)]

    def train() -> None:
        model.train()
        with autocast(ALONE.device, dtype):
            step(tokens[:, :-1], tokens[:, 1:], torch.ones(2)).backward()
        optimizer.step()
        optimizer.zero_grad()

    train()
    train()
    compiled = counter.frame_count
    assert compiled == 1
    seen = []
    for _ in range(2):
        model.eval()
        sums = ending_log_probabilities(model, questions, ALONE, dtype)
        loss = validation_loss(model, validation, ALONE, dtype)
        text = generate(model, tokenizer, "To be", Sampling(3, temperature=0))
        seen.append((sums, loss))
        assert np.isfinite(sums).all() and np.isfinite(loss) and text.startswith("To be")
        train()
    assert counter.frame_count == compiled
    # The scores are those of the weights as they are now.
    assert (seen[0][0] != seen[1][0]).any() and seen[0][1] != seen[1][1]
