"""A dataset's tokens in other people's formats.

llmc: what llm.c and modded-nanogpt read: a header of 256 int32 (magic 20240520, version 1, number of tokens, zeros),
then the tokens as uint16; one file per shard. nanogpt: nanoGPT's memory map: the tokens of a split as uint16, nothing
else. Both little-endian, as on every machine these run on. A document begins with `<|endoftext|>`, as in the shards.
"""

from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .. import files
from ..errors import Error
from .directory import Dataset
from .manifest import SPLITS, TOKENS

LLMC, NANOGPT = "llmc", "nanogpt"
MARK, DONE = ".export", ".done"  # names of which dataset this is an export; ends a finished file until all are
_REMEDY = "choose another directory"
_LLMC_MAGIC, _LLMC_VERSION = 20240520, 1


def export_dataset(
    dataset: Dataset, out: Path, file_format: str, progress: Callable[[int], None] = lambda tokens: None
) -> list[Path]:
    """Write all splits that have tokens to `out` as LLMC or NANOGPT; returns the files.

    Killed and called again with the same arguments it goes on after the last finished file; files get their `.bin`
    names when all are finished. What is there already is compared. `progress` hears of the tokens written, or found
    written. Raises Error for a dataset of anything but tokens, for an `out` that has a dataset or another export, and
    for a damaged dataset.
    """
    if dataset.kind != TOKENS:
        raise Error(f"dataset {dataset.path}: expected tokens to export, got {dataset.kind}")
    names = {name: (split, n) for split in SPLITS for name, n in _files(dataset, split, file_format).items()}
    _claim(out, f"{file_format} {dataset.id}\n", names)
    for name, (split, numbers) in names.items():
        tokens = sum(dataset.shards(split)[number].tokens for number in numbers)
        header = _llmc_header(tokens) if file_format == LLMC else b""
        parts = (part for number in numbers for part in dataset.iterate_tokens(split, number))
        done = next((path for path in (out / name, out / f"{name}{DONE}") if path.exists()), None)
        if done and _holds(done, header, parts):
            progress(tokens)
            continue
        with files.replacing(out / f"{name}{DONE}") as file:
            file.write(header)
            for number in numbers:
                _write_tokens(file, dataset, split, number, progress)
    for name in names:
        if (out / f"{name}{DONE}").exists():
            (out / f"{name}{DONE}").replace(out / name)
    for stray in out.glob(files.TEMPORARY):
        stray.unlink(missing_ok=True)
    return [out / name for name in names]


def _holds(path: Path, header: bytes, parts: Iterable[np.ndarray]) -> bool:
    """Whether a file is the header and these tokens, and no more."""
    with path.open("rb") as file:
        tokens = (part.astype("<u2", copy=False).tobytes() for part in parts)
        return all(file.read(len(data)) == data for data in chain([header], tokens)) and not file.read(1)


def _claim(out: Path, ours: str, names: Iterable[str]) -> None:
    """Refuse a directory that has anything but what this export puts there, else mark it as this export's."""
    if (out / "manifest.json").exists():
        raise Error(f"{out}: expected a directory of the export's own, got a dataset; choose another directory")
    mark = out / MARK
    if mark.exists() and mark.read_text(encoding="utf-8", errors="replace") != ours:
        raise Error(f"{out}: expected no other export, got {mark.read_text(errors='replace').strip()!r}; {_REMEDY}")
    found = sorted(path.name for path in out.glob("*.bin"))
    others = [name for name in found if name not in names or not mark.exists()]
    if others:
        # Left from another export they would be read as part of this one.
        raise Error(f"{out}: expected a directory without other .bin files, got {others[0]}; {_REMEDY}")
    out.mkdir(parents=True, exist_ok=True)
    if not mark.exists():
        files.replace(mark, ours)


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
