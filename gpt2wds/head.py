"""The loss of the tied head: from final hidden states to a weighted sum of cross-entropies.

Shapes in comments: P positions, C = n_embd, V = vocabulary.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def head_loss(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, vocab_size: int) -> Tensor:
    """Sum of weight × cross-entropy in nats: a scalar.

    hidden: (P, C); head: (V or more, C), of which the first `vocab_size` rows count; targets: (P,) token ids;
    weights: (P,). The logits exist as a whole, (P, V), but on a CPU where nothing is compiled; there the
    loss has one backward pass.
    """
    if hidden.device.type == "cpu" and not torch.compiler.is_compiling():
        loss: Tensor = _ChunkedLoss.apply(hidden, head, targets, weights, vocab_size)
        return loss
    logits = F.linear(hidden, head)[..., :vocab_size]
    return (F.cross_entropy(logits.float(), targets, reduction="none") * weights).sum()


class _ChunkedLoss(torch.autograd.Function):
    """Weighted sum of cross-entropies of the tied head, whose logits exist for a chunk of positions at a time.

    With 50,257 classes the head is much of a model's time on a CPU, and most of that is moving logits through memory,
    into pages that are new each time. Here gradients take the place of logits, in pieces that stay in the processor's
    cache. The products are those of autograd, in its layouts, padding rows included. The same sums as
    F.cross_entropy, to float error. One backward pass only.
    """

    PIECE = 2**21  # logits of one softmax: 8 MB of float32

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, vocab_size: int) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype
        wanted = any(ctx.needs_input_grad)
        with torch.autocast("cpu", enabled=False):
            rows, total = head.to(dtype), hidden.new_zeros((), dtype=torch.float32)  # (V, C)
            chunk = chunk_positions(len(targets), head.shape[1])
            # Made once, and the copy of the head used again: new pages cost as much as the arithmetic in them.
            scores = torch.empty(chunk, len(rows), dtype=dtype)
            product = rows if dtype != head.dtype and chunk == len(targets) else torch.empty_like(rows)
            grad_hidden = torch.empty_like(hidden)
            grad_head: Tensor | None = None
            for start in range(0, len(targets), chunk):
                part = slice(start, start + chunk)
                x, scores = hidden[part].to(dtype), scores[: len(targets) - start]  # (chunk, C), (chunk, V)
                torch.mm(x, rows.T, out=scores)
                scores[:, vocab_size:] = -torch.inf
                total += _to_gradients(scores, targets[part, None], weights[part, None], wanted)
                if wanted:
                    grad_hidden[part] = scores @ rows
                    grad_head = _plus(grad_head, scores.T, x, product)
            ctx.gradients = grad_hidden, grad_head
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the loss of the head has one backward pass; compute the loss again for another")
        # In place, and let go of, so that nobody needs a second array of this size.
        (grad_hidden, grad_head), ctx.gradients = ctx.gradients, None
        return grad_hidden.mul_(grad_outputs[0]), grad_head.float().mul_(grad_outputs[0]), None, None, None


def chunk_positions(positions: int, channels: int) -> int:
    """How many positions' logits exist at a time: chunks of one size, as few as the bound allows.

    Each chunk more lays the head out anew for its products and adds up its gradient, which costs as `channels` do; each
    position more is logits in memory. The bound keeps logits in float32 to half of what the head, its gradient and
    AdamW's moments take.
    """
    most = max(256, 2 * channels)
    return math.ceil(positions / math.ceil(positions / most))


def _to_gradients(scores: Tensor, targets: Tensor, weights: Tensor, wanted: bool) -> Tensor:
    """The loss of scores (P, V), whose gradients take their place where they are `wanted`; targets, weights: (P, 1)."""
    size = max(1, _ChunkedLoss.PIECE // scores.shape[1])
    room = torch.empty(0 if scores.dtype == torch.float32 else min(size, len(scores)), scores.shape[1])
    loss = torch.zeros(())
    for part, target, weight in zip(*(each.split(size) for each in (scores, targets, weights)), strict=True):
        p = part if part.dtype == torch.float32 else room[: len(part)].copy_(part)
        highest, chosen = p.amax(dim=1, keepdim=True), p.gather(1, target)
        torch.softmax(p, dim=1, out=p)
        # log p[target], by way of the most likely token, whose p never underflows.
        loss -= ((chosen - highest + p.amax(dim=1, keepdim=True).log()) * weight).sum()
        if wanted:
            p.mul_(weight).scatter_add_(1, target, -weight)
            if p is not part:
                part.copy_(p)
    return loss


def _plus(so_far: Tensor | None, left: Tensor, right: Tensor, product: Tensor) -> Tensor:
    """so_far + left @ right, summed in float32. `product` is room for the product, and the first sum."""
    if so_far is None:
        return torch.mm(left, right, out=product)
    if product.dtype == torch.float32:
        return so_far.addmm_(left, right)
    total = so_far.float()
    torch.mm(left, right, out=product)
    # In pieces: PyTorch makes a copy in float32 first, and as a whole it would be new pages.
    for rows, more in zip(total.split(1024), product.split(1024), strict=True):
        rows += more
    return total
