"""What ends a run from outside, as one line: no memory, a rank that is gone, a loader's process that was killed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from ..errors import Error, counted, reason

_AGAIN = "the same command goes on from the last checkpoint"


@contextmanager
def naming_faults(micro_batch: int = 0) -> Iterator[None]:
    """Turn what torch raises of these, in pages, into Error. micro_batch: sequences of a forward pass, 0 before any."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        known = _known(error, micro_batch)
        if known is None:
            raise
        raise known from None


def _known(error: BaseException, micro_batch: int) -> Error | None:
    text = str(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text:
        if not micro_batch:
            return Error("out of memory: close other programs, take a smaller model or a larger machine")
        remedy = "lower data.seq_len or take a smaller model"
        if micro_batch > 1:
            remedy = f"try train.micro_batch_sequences={micro_batch // 2}, which changes no loss"
        return Error(f"out of memory with micro-batches of {counted(micro_batch, 'sequence')}: {remedy}")
    if isinstance(error, dist.DistError) or "/gloo/" in text:
        return Error(f"a rank is gone, see what it said last ({reason(error)[:160]}); {_AGAIN}")
    if text.startswith("DataLoader worker"):
        # torch knows the signal only where its own handler saw the child's end first.
        return Error(f"{reason(error).rstrip('.')}: often memory is why, lower data.num_workers; {_AGAIN}")
    return None
