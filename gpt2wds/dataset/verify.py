"""Every byte of a dataset against its manifest: what is wrong, a line each.

Nothing is raised for damage, so that one call reports all of it.
"""

import hashlib

import numpy as np

from ..errors import Error, reason
from ..tokenizer import END_OF_TEXT
from . import members
from .directory import LOOK, REBUILD, REPAIR, Dataset
from .manifest import MULTIPLE_CHOICE, SPLITS, ShardEntry, dataset_id

PIECE_BYTES = 1 << 23  # of a file, read at once


def verify_dataset(dataset: Dataset) -> list[str]:
    """What the manifest says of all shards together: their names, and the dataset_id that follows from them."""
    problems = []
    for split in SPLITS:
        for number, entry in enumerate(dataset.shards(split)):
            expected = f"{split}-{number:05d}.tar.zst"
            if entry.file != expected:
                problems.append(f"manifest.json: expected {expected}, got {entry.file}; {REPAIR}")
    expected = dataset_id(dataset.manifest.shards)
    if dataset.id != expected:
        problems.append(f"manifest.json: expected dataset_id {expected} for its shards, got {dataset.id}; {REPAIR}")
    return problems


def verify_shard(dataset: Dataset, split: str, number: int) -> list[str]:
    """Every byte of one shard against index and manifest: what is wrong, one line each, [] if nothing."""
    entry = dataset.shards(split)[number]
    try:
        size = dataset.folder.size(entry.file)
    except FileNotFoundError:
        return [f"{entry.file}: the file is missing; {REBUILD}"]
    except (Error, OSError) as error:
        return [f"{entry.file}: {reason(error)}; {LOOK}"]
    problems: list[str] = []
    digest = hashlib.sha256()
    counts = {"tokens": 0, "documents": 0}
    for block in dataset.shard_blocks(split, number):
        try:
            pieces, documents = _contents(dataset, split, block)
        except Error as error:
            problems.append(str(error).removeprefix(f"{dataset.path}/"))
            continue
        for piece in pieces:
            digest.update(piece.tobytes())
            counts["tokens"] += len(piece)
        counts["documents"] += documents
        expected = int(dataset.blocks[split]["documents"][block])
        if documents != expected:
            place = dataset.place(split, block)[1]
            problems.append(f"{entry.file} block {place}: expected {expected} documents, got {documents}; {REPAIR}")
    problems += _verify_file(dataset, entry, size)
    if not problems and digest.hexdigest() != entry.tokens_sha256:
        problems.append(f"{entry.file}: its tokens are not the manifest's (SHA-256 differs)")
    for name, count in counts.items():
        if not problems and count != getattr(entry, name):
            problems.append(f"{entry.file}: expected {getattr(entry, name)} {name}, got {count}")
    return problems


def _verify_file(dataset: Dataset, entry: ShardEntry, size: int) -> list[str]:
    if size != entry.bytes:
        return [f"{entry.file}: expected {entry.bytes} bytes, got {size}; {REPAIR}"]
    digest = hashlib.sha256()
    try:
        for start in range(0, size, PIECE_BYTES):
            digest.update(dataset.folder.read(entry.file, start, min(size, start + PIECE_BYTES)))
    except (Error, OSError) as error:
        return [f"{entry.file}: {reason(error)}; {LOOK}"]
    if digest.hexdigest() != entry.sha256:
        return [f"{entry.file}: expected SHA-256 {entry.sha256}, got {digest.hexdigest()}; {REPAIR}"]
    return []


def _contents(dataset: Dataset, split: str, block: int) -> tuple[list[np.ndarray], int]:
    """The tokens of a block that are its own, in pieces of (tokens,) uint16, and how many documents start in it."""
    if dataset.kind == MULTIPLE_CHOICE:
        examples = dataset.block_examples(split, block)
        found = dataset.read_members(split, block)
        return [members.npy_tokens(data) for name, data in found.items() if name.endswith(".npy")], len(examples)
    tokens = dataset.own_tokens(split, block)
    return [tokens], int((tokens == END_OF_TEXT).sum())
