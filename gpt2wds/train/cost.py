"""What training costs: floating-point operations, memory, and how much of the hardware's peak a rate is."""

from ..model import GPT2, GPT2Config

# Published peaks of dense bfloat16 matrix products with float32 sums, in operations per second; more special names
# first. NVIDIA's data sheets (H100, H200, A100) and architecture white papers (GA102, Ada).
PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989.4e12,
    "H200": 989.4e12,
    "A100": 312e12,
    "RTX 3090 Ti": 80e12,
    "RTX 3090": 71e12,
    "RTX 4090": 165.2e12,
}


def flops_per_token(model: GPT2, seq_len: int, way: str = "palm") -> int:
    """Forward and backward, per token: 6 N + 12 L H Q T, with L layers, H heads of Q channels, T = `seq_len`.

    "palm": Chowdhery et al. 2022, appendix B, with all parameters as N. "nanogpt": the same without the position
    embeddings, as nanoGPT's estimate_mfu counts.
    """
    c = model.config
    parameters = model.parameter_count() - (c.n_positions * c.n_embd if way == "nanogpt" else 0)
    return 6 * parameters + 12 * c.n_layer * c.n_embd * seq_len


def peak_flops(device_name: str, dtype: str) -> float | None:
    """Published peak of one device in operations per second; None where we know of none.

    >>> peak_flops("NVIDIA H100 80GB HBM3", "bfloat16")
    989400000000000.0
    >>> peak_flops("CPU AMD EPYC", "bfloat16")
    """
    if dtype != "bfloat16":
        return None
    return next((peak for name, peak in PEAKS.items() if name in device_name), None)


def activation_bytes(
    config: GPT2Config, tokens: int, dtype: str, *, head: bool = True, checkpointing: bool = False
) -> int:
    """What one micro-step of `tokens` tokens keeps for its backward pass, with fused attention.

    Per layer and channel: the two normalisations' inputs in float32, and 15 values in `dtype` (both their outputs,
    queries, keys, values, what attention gives before and after its heads are joined, four times the channels before
    and after GELU). The head: logits, their float32 copy and its log-softmax; `head=False` for a CPU, where the loss
    is computed in chunks. With `checkpointing` each layer keeps its input in float32, the last its output
    too, and one layer at a time the rest.
    """
    width = 2 if dtype == "bfloat16" else 4
    layer = (2 * 4 + 15 * width) * config.n_embd
    logits = (width + 4 + 4) * config.padded_vocab_size if head else 0
    layers = (config.n_layer + 1) * 4 * config.n_embd + layer if checkpointing else config.n_layer * layer
    return tokens * (layers + logits)


def training_bytes(model: GPT2, ranks: int = 1) -> int:
    """Weights, gradients and AdamW's two moments in float32, each split over `ranks` (1 for whole copies)."""
    return 16 * sum(p.numel() for p in model.parameters()) // ranks
