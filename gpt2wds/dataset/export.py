"""A dataset's tokens in other people's formats.

llmc: what llm.c and modded-nanogpt read: a header of 256 int32 (magic 20240520, version 1, number of tokens, zeros),
then the tokens as uint16; one file per shard. nanogpt: nanoGPT's memory map: the tokens of a split as uint16, nothing
else. Both little-endian, as on every machine these run on. A document begins with `<|endoftext|>`, as in the shards.
"""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .. import files
from ..errors import Error
from .directory import Dataset
from .manifest import SPLITS, TOKENS

LLMC, NANOGPT = "llmc", "nanogpt"
_LLMC_MAGIC, _LLMC_VERSION = 20240520, 1


def export_dataset(
    dataset: Dataset, out: Path, file_format: str, progress: Callable[[int], None] = lambda tokens: None
) -> list[Path]:
    """Write all splits that have tokens to `out` as LLMC or NANOGPT; returns the files.

    `progress` hears of the tokens written. Raises Error for a dataset of anything but tokens, for an `out` that has
    .bin files, and for a damaged dataset.
    """
    if dataset.kind != TOKENS:
        raise Error(f"dataset {dataset.path}: expected tokens to export, got {dataset.kind}")
    if any(out.glob("*.bin")):
        # Left from another export they would be read as part of this one.
        raise Error(f"{out}: expected a directory without .bin files; remove them, or choose another directory")
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for split in SPLITS:
        for name, numbers in _files(dataset, split, file_format).items():
            with files.replacing(out / name) as file:
                if file_format == LLMC:
                    file.write(_llmc_header(sum(dataset.shards(split)[number].tokens for number in numbers)))
                for number in numbers:
                    _write_tokens(file, dataset, split, number, progress)
            written.append(out / name)
    return written


def _files(dataset: Dataset, split: str, file_format: str) -> dict[str, list[int]]:
    """Name of each file of a split, and the shards that it takes: those that have tokens."""
    numbers = [number for number, entry in enumerate(dataset.shards(split)) if entry.tokens]
    if file_format == LLMC:
        return {f"{split}_{i:06d}.bin": [number] for i, number in enumerate(numbers)}
    return {f"{split}.bin": numbers} if numbers else {}


def _llmc_header(tokens: int) -> bytes:
    if tokens > np.iinfo(np.int32).max:
        raise Error(f"export: expected at most {np.iinfo(np.int32).max:,} tokens in a shard, got {tokens:,}")
    header = np.zeros(256, dtype="<i4")
    header[:3] = _LLMC_MAGIC, _LLMC_VERSION, tokens
    return header.tobytes()


def _write_tokens(file: BinaryIO, dataset: Dataset, split: str, shard: int, progress: Callable[[int], None]) -> None:
    written = 0
    for tokens in dataset.iterate_tokens(split, shard):
        file.write(tokens.astype("<u2", copy=False).tobytes())
        written += len(tokens)
        progress(len(tokens))
    entry = dataset.shards(split)[shard]
    if written != entry.tokens:
        raise Error(f"{dataset.path}/{entry.file}: expected {entry.tokens} tokens, got {written}")
