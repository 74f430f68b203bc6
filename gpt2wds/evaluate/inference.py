"""Reading texts with a model that does not learn from them: what validation and scoring share."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..errors import Error
from ..model import GPT2, VOCAB_SIZE, autocast

# Positions whose logits exist at a time. On a CPU the 26 MB of float32 come from memory that malloc keeps: larger ones
# are new pages each time, which cost as much as the softmax. On a GPU few large products are better than many small.
HEAD_POSITIONS, HEAD_POSITIONS_CPU = 1024, 128


@contextmanager
def inference(device: torch.device, dtype: str) -> Iterator[None]:
    """No gradients, and matrix products in `dtype`, "float32" or "bfloat16".

    On a CPU each weight is copied once into the layout that oneDNN wants. So do not change weights in here.
    """
    packed = _PackedWeights() if device.type == "cpu" and _can_pack(dtype) else nullcontext()
    with torch.no_grad(), autocast(device, dtype), packed:
        yield


def target_log_probabilities(model: GPT2, hidden: Tensor, targets: Tensor) -> Tensor:
    """(P,) float32 log-probabilities in nats of `targets`, (P,), after the final hidden states (P, C)."""
    positions = HEAD_POSITIONS_CPU if hidden.device.type == "cpu" else HEAD_POSITIONS
    parts = []
    for h, target in zip(hidden.split(positions), targets.split(positions), strict=True):
        logits = model.logits(h).float()  # (positions, V)
        chosen, highest = logits.gather(1, target[:, None]), logits.amax(dim=1, keepdim=True)
        # In place: a second array of this size costs more than the arithmetic.
        parts.append(chosen - highest - logits.sub_(highest).exp_().sum(dim=1, keepdim=True).log())
    return torch.cat(parts)[:, 0]


def check_vocabulary(model: GPT2) -> None:
    """Raises Error for a model with another vocabulary than GPT-2's, of which all our tokens are."""
    vocab_size, gpt2 = model.config.vocab_size, VOCAB_SIZE
    # Some publish a model with the rows that pad its vocabulary in memory; more than that is another vocabulary.
    padded = math.ceil(gpt2 / 128) * 128
    if not gpt2 <= vocab_size <= padded:
        raise Error(
            f"model: expected GPT-2's vocabulary, {gpt2:,} tokens (padded: at most {padded:,}), got {vocab_size:,}; "
            "texts are GPT-2's tokens here, use a model that was trained on them"
        )


class NotFinite(Error):
    """A model whose numbers are not finite."""


def not_finite(model: GPT2, what: str, dtype: str) -> NotFinite:
    """The error for results that are not finite: the first weight that is not, if it is one."""
    for name, parameter in model.named_parameters():
        bad = int((~torch.isfinite(parameter)).sum())
        if bad:
            return NotFinite(f"model: expected finite weights, {bad} of {name} are not; use an earlier checkpoint")
    hint = 'compute in dtype "float32"' if dtype != "float32" else "use an earlier checkpoint"
    return NotFinite(f"model: expected finite {what}, got some that are not; {hint}")


class _PackedWeights(TorchFunctionMode):
    """`F.linear` by oneDNN, each parameter brought into its blocked layout when it is first met.

    The same float32 products and sums in another order. torch itself takes MKL for float32, and for bfloat16 oneDNN
    with the weight brought into that layout at every call.
    """

    def __init__(self) -> None:
        super().__init__()
        self._packed: dict[nn.Parameter, tuple[Tensor, Tensor | None]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is not F.linear or not isinstance(args[1], nn.Parameter):
            return func(*args, **(kwargs or {}))
        x, weight, bias = args if len(args) == 3 else (*args, None)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if weight not in self._packed:
            blocked = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype), None)
            self._packed[weight] = blocked, None if bias is None else bias.detach().to(dtype)
        return torch.ops.mkldnn._linear_pointwise(x.to(dtype), *self._packed[weight], "none", [], "")


def _can_pack(dtype: str) -> bool:
    # What torch's own compiler calls; not all builds have it, and bfloat16 wants a processor that knows it (AVX-512).
    return (
        torch.backends.mkldnn.is_available()
        and all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
        and (dtype != "bfloat16" or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )
