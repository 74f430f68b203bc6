"""A split's text in storage order, for what is measured on it. Needs no torch."""

import math
from collections.abc import Iterator

import numpy as np

from ..arguments import whole
from ..errors import Error
from .directory import Dataset, expect_dataset
from .manifest import TOKENS
from .order import even_share, ranked


def validation_sequences(
    dataset: Dataset,
    *,
    seq_len: int,
    max_tokens: int,
    batch_sequences: int,
    rank: int = 0,
    world_size: int = 1,
    split: str = "val",
) -> Iterator[np.ndarray]:
    """The first `max_tokens` tokens of a split in storage order: (≤ batch_sequences, seq_len + 1) uint16 arrays.

    All ranks together give each batch of a single rank once, so what is computed from them does not depend on how many
    share the work. Raises Error for arguments that cannot be, and when there is not one sequence.
    """
    batch_sequences = whole("batch_sequences", batch_sequences, 1)
    rank, world_size = ranked(rank, world_size)
    per_block, total = _sequences(dataset, seq_len, max_tokens, split)
    dealt = even_share(math.ceil(total / batch_sequences), rank, world_size)
    mine = range(dealt.start * batch_sequences, min(dealt.stop * batch_sequences, total))
    return _batches(dataset, split, seq_len, per_block, mine, batch_sequences)


def _batches(
    dataset: Dataset, split: str, seq_len: int, per_block: np.ndarray, mine: range, batch_sequences: int
) -> Iterator[np.ndarray]:
    """The sequences of a range, batch by batch; per_block: (blocks,) how many there are in each."""
    starts = np.cumsum(per_block) - per_block
    batch: list[np.ndarray] = []
    for block in range(len(per_block)):
        first, end = max(mine.start, int(starts[block])), min(mine.stop, int(starts[block] + per_block[block]))
        if first >= end:
            continue
        values = dataset.read_tokens(split, block)
        for i in range(first - int(starts[block]), end - int(starts[block])):
            batch.append(values[i * seq_len : (i + 1) * seq_len + 1])
            if len(batch) == batch_sequences:
                yield np.stack(batch)
                batch = []
    if batch:
        yield np.stack(batch)


def refuse_too_short(dataset: Dataset, *, seq_len: int, max_tokens: int, split: str = "val") -> None:
    """Raise Error where validation_sequences would: where there is not one sequence."""
    _sequences(dataset, seq_len, max_tokens, split)


def _sequences(dataset: Dataset, seq_len: int, max_tokens: int, split: str) -> tuple[np.ndarray, int]:
    """(blocks,) sequences in each block, and how many of all are used. Raises Error where that is none."""
    seq_len, max_tokens = whole("seq_len", seq_len, 1), whole("max_tokens", max_tokens, 0)
    expect_dataset(dataset)
    dataset.shards(split)  # refuses what is no split
    if dataset.kind != TOKENS:
        raise Error(f"dataset {dataset.path}: expected tokens, got {dataset.kind}; make some with gpt2wds-shard files")
    tokens = dataset.blocks[split]["tokens"].astype(np.int64)
    per_block = np.maximum(tokens - 1, 0) // seq_len
    total = min(int(per_block.sum()), max_tokens // seq_len)
    held = dataset.total(split, "tokens")
    if not held:
        raise Error(f"dataset {dataset.path}: expected text for {split}, got none; take another split or dataset")
    if not total:
        got = f"{held:,}, of which max_tokens = {max_tokens:,} are used" if max_tokens < held else f"{held:,}"
        raise Error(
            f"dataset {dataset.path}: expected a {split} text of more than seq_len = {seq_len:,} tokens, got {got}"
        )
    return per_block, total
