"""Self-attention, and what of a row each token sees: all that came before, or its own document only.

Shapes in comments: B sequences, T positions, C = n_embd.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

KeyValues = list[tuple[Tensor, Tensor]]  # per layer: keys and values, each (B, n_head, T, C / n_head)
Past = tuple[Tensor, Tensor] | None
Visible = Tensor | BlockMask | None  # None: all that came before


class Attention(nn.Module):
    """Multi-head self-attention with GPT-2's two projections, for a model with `n_head` heads of n_embd / n_head."""

    def __init__(self, n_head: int, n_embd: int):
        super().__init__()
        self.n_head = n_head
        self.c_attn = nn.Linear(n_embd, 3 * n_embd)
        self.c_proj = nn.Linear(n_embd, n_embd)

    def forward(self, x: Tensor, past: Past, visible: Visible) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(B, T, C) → (B, T, C), and keys and values to go on from. With a past T is 1."""
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for part in self.c_attn(x).split(C, dim=2)
        )  # each (B, n_head, T, C / n_head)
        if past is not None:
            k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
        if isinstance(visible, BlockMask):
            y = flex_attention(q, k, v, block_mask=visible)
        else:
            # With a past only one new position comes at a time; it may look at all of them.
            causal = past is None and visible is None
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=causal)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C)), (k, v)


def positions_in_documents(tokens: Tensor, boundary: int) -> Tensor:
    """(B, T) token ids → (B, T): each token's place in its document, which begins with the token `boundary`.

    What stands before a row's first boundary is the rest of a document that began earlier: it counts from 0 too.

    >>> positions_in_documents(torch.tensor([[7, 7, 9, 7, 7, 9, 9, 7]]), boundary=9)
    tensor([[0, 1, 0, 1, 2, 0, 0, 1]])
    """
    places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    return places - places.where(tokens == boundary, 0).cummax(dim=1).values


def visible_in_documents(tokens: Tensor, boundary: int, dtype: torch.dtype) -> Tensor | BlockMask:
    """Of (B, T) token ids, what each sees: its own document up to itself. `dtype` is that of the queries.

    In a graph that is compiled for CUDA a block mask for flex attention, which leaves out blocks of 128 × 128 that
    nobody sees. Elsewhere the mask as a whole: flex attention has no gradient on a CPU, and not compiled it is slow.
    """
    if tokens.is_cuda and torch.compiler.is_compiling():
        return document_blocks(tokens, boundary)
    return document_mask(tokens, boundary, dtype)


def document_mask(tokens: Tensor, boundary: int, dtype: torch.dtype) -> Tensor:
    """(B, 1, T, T): 0 where a token of the row sees one of the column, minus infinity elsewhere.

    Added to the scores. True and False would be turned into this once in each layer.
    """
    document = (tokens == boundary).cumsum(dim=1)
    visible = (document[:, :, None] == document[:, None, :]).tril()[:, None]
    return torch.zeros(visible.shape, dtype=dtype, device=tokens.device).masked_fill(~visible, -torch.inf)


def document_blocks(tokens: Tensor, boundary: int) -> BlockMask:
    """The same for flex attention."""
    document = (tokens == boundary).cumsum(dim=1)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (document[batch, query] == document[batch, key])

    B, T = tokens.shape
    return create_block_mask(sees, B, None, T, T, device=tokens.device)
