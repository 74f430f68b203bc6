"""Validation loss and samples."""

from collections.abc import Iterable

import numpy as np
import torch

from ..distributed import World
from ..model import GPT2
from ..tokenizer import END_OF_TEXT, Tokenizer
from .inference import check_vocabulary, inference, target_log_probabilities


def validation_loss(model: GPT2, batches: Iterable[np.ndarray], world: World, dtype: str) -> float:
    """Mean loss in nats per token over all ranks' batches of (B, T + 1) uint16 sequences, one or more in all.

    Tokens' losses are added up in float64 (float32 on MPS, which has no more), so that neither their number nor how
    they are shared out shows in the sum. Raises Error for a model with another vocabulary than GPT-2's.
    """
    check_vocabulary(model)
    exact = torch.float64 if world.device.type != "mps" else torch.float32
    total = torch.zeros(2, dtype=exact, device=world.device)
    with inference(world.device, dtype):
        for batch in batches:
            tokens = torch.from_numpy(batch.astype(np.int64)).to(world.device)
            hidden, _ = model.hidden(tokens[:, :-1])
            log_p = target_log_probabilities(model, hidden.flatten(0, 1), tokens[:, 1:].flatten())  # (B T,)
            total[0] -= log_p.to(exact).sum()
            total[1] += len(log_p)
    loss_sum, count = world.sum(total).tolist()
    return loss_sum / count


def unigram_entropy(tokens: Iterable[np.ndarray]) -> float:
    """Entropy in nats of the tokens' own frequencies: what knowing only how common each token is would cost."""
    counts = np.zeros(1 << 16, dtype=np.int64)
    for part in tokens:
        counts += np.bincount(part, minlength=1 << 16)
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


@torch.no_grad()
def generate(
    model: GPT2,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    tokens: int,
    temperature: float = 1.0,
    top_k: int = 50,
    seed: int = 0,
    device: torch.device | None = None,
    use_cache: bool = True,
) -> str:
    """The prompt and what the model makes of it: at most `tokens` more tokens, or until `<|endoftext|>`.

    temperature 0 always takes the likeliest token; top_k 0 considers all. The same seed gives the same text, with
    and without the cache of keys and values. When the model's positions are full, it goes on from the last half.
    Raises Error for a model with another vocabulary than GPT-2's.
    """
    check_vocabulary(model)
    generator = torch.Generator().manual_seed(seed)
    ids = tokenizer.encode(prompt).tolist() or [END_OF_TEXT]
    given, positions = len(ids), model.config.n_positions
    start, past = max(0, given - positions), None
    for _ in range(tokens):
        if len(ids) - start > positions:
            start, past = len(ids) - max(1, positions // 2), None
        fresh = ids[start:] if past is None else ids[-1:]
        hidden, present = model.hidden(torch.tensor([fresh], device=device), past)
        past = present if use_cache else None
        token = _choose(model.logits(hidden[0, -1])[: END_OF_TEXT + 1].float().cpu(), temperature, top_k, generator)
        if token == END_OF_TEXT:
            break
        ids.append(token)
    return prompt + tokenizer.decode(np.array(ids[given:], dtype=np.uint16))


def _choose(logits: torch.Tensor, temperature: float, top_k: int, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    if top_k:
        threshold = logits.topk(min(top_k, len(logits))).values[-1]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    return int(torch.multinomial(torch.softmax(logits / temperature, dim=0), 1, generator=generator))
