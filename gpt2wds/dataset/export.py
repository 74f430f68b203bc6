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
from .directory import SPLITS, TOKENS, Dataset

LLMC, NANOGPT = "llmc", "nanogpt"
_LLMC_MAGIC, _LLMC_VERSION = 20240520, 1


def export(dataset: Dataset, out: Path, file_format: str, progress: Callable[[int], None]) -> list[Path]:
    """Write all splits that have tokens to `out`; returns the files. `progress` hears of the tokens written.

    Raises Error for a dataset of anything but tokens, and what reading a damaged one raises.
    """
    if dataset.kind != TOKENS:
        raise Error(f"dataset {dataset.path}: expected tokens to export, got {dataset.kind}")
    if any(out.glob("*.bin")):
        # Left from another export they would be read as part of this one.
        raise Error(f"export {out}: expected a directory without .bin files; remove them, or choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for split in SPLITS:
        shards = [i for i, shard in enumerate(dataset.shards(split)) if shard["tokens"]]
        parts = [[shard] for shard in shards] if file_format == LLMC else [shards] if shards else []
        for number, part in enumerate(parts):
            path = out / (f"{split}_{number:06d}.bin" if file_format == LLMC else f"{split}.bin")
            with files.replacing(path) as file:
                if file_format == LLMC:
                    file.write(_llmc_header(dataset.shards(split)[part[0]]["tokens"]))
                for shard in part:
                    _write_tokens(file, dataset, split, shard, progress)
            written.append(path)
    return written


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
    expected = dataset.shards(split)[shard]["tokens"]
    if written != expected:
        file_name = dataset.shards(split)[shard]["file"]
        raise Error(f"{dataset.path}/{file_name}: expected {expected} tokens, got {written}")
