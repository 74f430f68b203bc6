"""A rank's sequences of a step → micro-batches on its device."""

import math
from collections.abc import Iterator

import numpy as np
import torch


def micro_batch_shape(total: int, world_size: int, at_most: int) -> tuple[int, int]:
    """(micro-steps, sequences in each) of every rank, of a step of `total` sequences.

    The same for every rank, whether or not the ranks divide the step: as few as `at_most` sequences each allow.

    >>> micro_batch_shape(512, 3, 64)
    (3, 57)
    """
    most = math.ceil(total / world_size)  # sequences of the rank that has most
    parts = math.ceil(most / at_most)
    return parts, math.ceil(most / parts)


def micro_batches(
    sequences: np.ndarray, parts: int, size: int, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """A rank's sequences in `parts` of `size`: (B, T + 1) int64 tokens and (B,) weights, 0 for padding."""
    padded = np.zeros((parts * size, sequences.shape[1]), dtype=np.uint16)
    padded[: len(sequences)] = sequences
    tokens = torch.from_numpy(padded)
    weights = torch.from_numpy((np.arange(parts * size) < len(sequences)).astype(np.float32))
    if device.type == "cuda":
        # Pinned, so that the copy goes on while the step before is still computed.
        tokens, weights = tokens.pin_memory(), weights.pin_memory()
    tokens = tokens.to(device, non_blocking=True)
    weights = weights.to(device, non_blocking=True)
    for part in range(parts):
        rows = slice(part * size, (part + 1) * size)
        yield tokens[rows].long(), weights[rows]
