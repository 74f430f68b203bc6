"""Validation loss and samples."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch

from ..arguments import at_least, keep_checked, whole
from ..dataset.order import even_share
from ..distributed import World
from ..errors import Error
from ..model import GPT2
from ..tokenizer import END_OF_TEXT, Tokenizer
from .inference import check_vocabulary, inference, not_finite, target_log_probabilities

LIKELIEST_BELOW = 1e-5  # a temperature so near to 0 that logits divided by it are no numbers any more


class TextLoss(TypedDict):
    """A text's loss in nats per token, and what it means; bits per byte is None for a text without bytes."""

    tokens: int
    text_bytes: int
    loss: float
    perplexity: float
    bits_per_byte: float | None


def validation_loss(model: GPT2, batches: Iterable[np.ndarray], world: World, dtype: str) -> float:
    """Mean loss in nats per token over all ranks' batches of (B, T + 1) uint16 sequences, one or more in all.

    Tokens' losses are added up in float64 (float32 on MPS, which has no more), so that neither their number nor how
    they are shared out shows in the sum. Raises Error for a model with another vocabulary than GPT-2's.
    """
    loss_sum, tokens, _ = _totals(model, batches, world, dtype, np.zeros(1 << 16))
    return loss_sum / tokens


def text_loss(
    model: GPT2,
    batches: Iterable[np.ndarray],
    tokenizer: Tokenizer,
    world: World,
    dtype: str = "float32",
) -> TextLoss:
    """The loss of all ranks' (B, T + 1) uint16 sequences, and what it means: tokens, text_bytes, loss (nats per token),
    perplexity and bits_per_byte.

    Of the tokens that are predicted: what fills no sequence counts nowhere. Raises Error as validation_loss does, and
    NotFinite where the loss is not a number.
    """
    lengths = np.zeros(1 << 16)
    lengths[: len(tokenizer.byte_lengths)] = tokenizer.byte_lengths
    loss_sum, tokens, text_bytes = _totals(model, batches, world, dtype, lengths)
    loss = loss_sum / tokens
    if not math.isfinite(loss):
        raise not_finite(model, "loss", dtype)
    return {
        "tokens": int(tokens),
        "text_bytes": int(text_bytes),
        "loss": loss,
        "perplexity": math.exp(loss),
        "bits_per_byte": loss_sum / math.log(2) / text_bytes if text_bytes else None,
    }


def _totals(
    model: GPT2, batches: Iterable[np.ndarray], world: World, dtype: str, byte_lengths: np.ndarray
) -> tuple[float, float, float]:
    """Loss, tokens and bytes of what is predicted, over all ranks."""
    check_vocabulary(model)
    exact = torch.float64 if world.device.type != "mps" else torch.float32
    total = torch.zeros(3, dtype=exact, device=world.device)
    with inference(world.device, dtype):
        for batch in batches:
            tokens = torch.from_numpy(batch.astype(np.int64)).to(world.device)
            hidden, _ = model.hidden(tokens[:, :-1])
            log_p = target_log_probabilities(model, hidden.flatten(0, 1), tokens[:, 1:].flatten())  # (B T,)
            total[0] -= log_p.to(exact).sum()
            total[1] += len(log_p)
            total[2] += float(byte_lengths[batch[:, 1:]].sum())
    loss_sum, count, text_bytes = world.sum(total).tolist()
    return loss_sum, count, text_bytes


def sequence_losses(
    model: GPT2, sequences: np.ndarray, world: World, dtype: str = "float32", batch_sequences: int = 8
) -> np.ndarray:
    """(N,) float64: the mean loss in nats per token of each of (N, T + 1) uint16 sequences, which the ranks share.

    Raises Error for a model with another vocabulary than GPT-2's.
    """
    check_vocabulary(model)
    exact = torch.float64 if world.device.type != "mps" else torch.float32
    losses = torch.zeros(len(sequences), dtype=exact, device=world.device)
    mine = even_share(len(sequences), world.rank, world.world_size)
    with inference(world.device, dtype):
        for first in range(mine.start, mine.stop, batch_sequences):
            part = slice(first, min(first + batch_sequences, mine.stop))
            tokens = torch.from_numpy(sequences[part].astype(np.int64)).to(world.device)
            hidden, _ = model.hidden(tokens[:, :-1])
            log_p = target_log_probabilities(model, hidden.flatten(0, 1), tokens[:, 1:].flatten())  # (B T,)
            losses[part] = -log_p.to(exact).view(len(tokens), -1).mean(dim=1)
    return world.sum(losses).cpu().double().numpy()


def unigram_entropy(tokens: Iterable[np.ndarray]) -> float:
    """Entropy in nats of the tokens' own frequencies: what knowing only how common each token is would cost."""
    counts = np.zeros(1 << 16, dtype=np.int64)
    for part in tokens:
        counts += np.bincount(part, minlength=1 << 16)
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


@dataclass(frozen=True)
class Sampling:
    """At most how many tokens a model appends to a prompt, and how it chooses each.

    temperature 0 always takes the likeliest token; top_k 0 considers all; top_p 0.9 only those likeliest ones that
    together have nine tenths of the probability. The same seed gives the same text. Raises Error for what means
    nothing.
    """

    tokens: int
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        keep_checked(self, tokens=at_least(0), top_k=at_least(0), seed=whole)
        numbers = {"temperature": self.temperature, "top_p": self.top_p}
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise Error(f"{name}: expected a number, got {repr(value)[:80]}")
        if not 0 <= self.temperature < math.inf:
            raise Error(f"temperature: expected a finite number of at least 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise Error(f"top_p: expected a number above 0 and at most 1, got {self.top_p}")
        if not 0 <= self.seed < 1 << 64:
            raise Error(f"seed: expected a whole number from 0 to 2^64 - 1, got {self.seed}")


def generate(
    model: GPT2,
    tokenizer: Tokenizer,
    prompt: str,
    sampling: Sampling,
    *,
    device: torch.device | None = None,
    use_cache: bool = True,
) -> str:
    """The prompt and what the model makes of it: `sampling.tokens` more tokens, fewer where `<|endoftext|>` comes.

    With and without the cache of keys and values it is the same text. When the model's positions are full, it goes on
    from the last half. Raises Error for a model with another vocabulary than GPT-2's, and NotFinite for a model whose
    numbers are not finite.
    """
    found = next_tokens(model, tokenizer, prompt, sampling, device=device, use_cache=use_cache)
    return prompt + tokenizer.decode(list(found))


@torch.no_grad()
def next_tokens(
    model: GPT2,
    tokenizer: Tokenizer,
    prompt: str,
    sampling: Sampling,
    *,
    device: torch.device | None = None,
    use_cache: bool = True,
) -> Iterator[int]:
    """The tokens that `generate` appends to a prompt, one after the other."""
    check_vocabulary(model)
    generator = torch.Generator().manual_seed(sampling.seed)
    ids, positions = tokenizer.encode(prompt).tolist() or [END_OF_TEXT], model.config.n_positions
    start, past = max(0, len(ids) - positions), None
    for _ in range(sampling.tokens):
        if len(ids) - start > positions:
            start, past = len(ids) - max(1, positions // 2), None
        fresh = ids[start:] if past is None else ids[-1:]
        hidden, present = model.hidden(torch.tensor([fresh], device=device), past)
        past = present if use_cache else None
        logits = model.logits(hidden[0, -1])[: END_OF_TEXT + 1].float().cpu()
        if not torch.isfinite(logits).all():
            raise not_finite(model, "logits", "float32")
        token = choose_token(logits, sampling, generator)
        if token == END_OF_TEXT:
            break
        ids.append(token)
        yield token


def choose_token(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    if sampling.temperature < LIKELIEST_BELOW:
        return int(logits.argmax())
    scaled = logits / sampling.temperature
    if sampling.top_k:
        threshold = logits.topk(min(sampling.top_k, len(logits))).values[-1]
        scaled = scaled.masked_fill(logits < threshold, -torch.inf)
    p = torch.softmax(scaled, dim=0)
    if sampling.top_p < 1:
        ordered, places = p.sort(descending=True)
        beyond = ordered.cumsum(dim=0) - ordered >= sampling.top_p  # the first one never is
        p[places[beyond]] = 0
    return int(torch.multinomial(p, 1, generator=generator))
