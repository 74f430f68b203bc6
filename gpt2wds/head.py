"""The loss of the tied head: from final hidden states to a weighted sum of cross-entropies.

Shapes in comments: P positions, C = n_embd, V = vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def head_loss(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, vocab_size: int) -> Tensor:
    """Sum of weight × cross-entropy in nats: a scalar.

    hidden: (P, C); head: (V or more, C), of which the first `vocab_size` rows count; targets: (P,) token ids;
    weights: (P,). The logits exist as a whole, (P, V), but on a CPU where nothing is compiled.
    """
    if hidden.device.type == "cpu" and not torch.compiler.is_compiling():
        loss: Tensor = _ChunkedLoss.apply(hidden, head, targets, weights, vocab_size)
        return loss
    logits = F.linear(hidden, head)[..., :vocab_size]
    return (F.cross_entropy(logits.float(), targets, reduction="none") * weights).sum()


class _ChunkedLoss(torch.autograd.Function):
    """Weighted sum of cross-entropies of the tied head, in chunks that stay in the processor's cache.

    With 50,257 classes and few channels the head is nearly all of a small model's time on a CPU, and most
    of that is moving logits through memory. Here each chunk's gradient is made while its logits are still
    in cache, so the (P, V) matrix never exists. The same sums as F.cross_entropy, to float error.
    """

    CHUNK = 256  # positions: 51 MB of float32 logits

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, vocab_size: int) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype
        with torch.autocast("cpu", enabled=False):
            rows = head[:vocab_size].to(dtype)  # (V, C)
            total = hidden.new_zeros((), dtype=torch.float32)
            grad_hidden, grad_head = torch.empty_like(hidden), torch.zeros_like(head, dtype=torch.float32)
            # Made once: fresh pages for each chunk would cost as much as the softmax.
            scores = torch.empty(min(len(targets), _ChunkedLoss.CHUNK), vocab_size, dtype=dtype)
            p, grad_rows = torch.empty_like(scores, dtype=torch.float32), torch.empty_like(rows)
            for start in range(0, len(targets), _ChunkedLoss.CHUNK):
                part = slice(start, start + _ChunkedLoss.CHUNK)
                x, target, weight = hidden[part].to(dtype), targets[part, None], weights[part, None]
                scores, p = scores[: len(x)], p[: len(x)]  # (chunk, V)
                torch.mm(x, rows.T, out=scores)
                highest, chosen = scores.amax(dim=1, keepdim=True), scores.gather(1, target)
                torch.softmax(p.copy_(scores), dim=1, out=p)
                # log p[target], by way of the most likely token, whose p never underflows.
                total -= ((chosen.float() - highest.float() + p.amax(dim=1, keepdim=True).log()) * weight).sum()
                if any(ctx.needs_input_grad):
                    scores.copy_(p.mul_(weight).scatter_add_(1, target, -weight))
                    grad_hidden[part] = scores @ rows
                    grad_head[:vocab_size] += torch.mm(scores.T, x, out=grad_rows)
            ctx.save_for_backward(grad_hidden, grad_head)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_head = ctx.saved_tensors
        return grad_hidden * grad_outputs[0], grad_head * grad_outputs[0], None, None, None
