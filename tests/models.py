"""Small models for tests, and what holds of their numbers."""

import torch
from torch import Tensor

from gpt2wds.model import GPT2, GPT2Config

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


def tokens(config: GPT2Config, *shape: int) -> Tensor:
    return torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(2))


def our_logits(model: GPT2, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model.logits(model.hidden(ids)[0])


def assert_same_gradients(gradients: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """To float error, which is of the size of the largest terms."""
    for name, gradient in gradients.items():
        largest = expected[name].abs().max()
        assert largest > 0, name
        assert (gradient - expected[name]).abs().max() < 3e-6 * largest, name
