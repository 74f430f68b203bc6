"""A dataset directory: manifest, block indices, shards; reading a frame and verifying all of them.

    manifest.json        written last: a directory without one is unfinished
    train.blocks.npy     one shards.BLOCK_ROW per block, opened with mmap
    train-00000.tar.zst  shards, densely numbered
    val…                 the same for the validation split

The directory is local or any fsspec URL (s3://…, hf://…, https://…).
"""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import fsspec
import numpy as np

from ..errors import Error
from . import shards

FORMAT_VERSION = "1.0"
SPLITS = ("train", "val")
TOKENS, MULTIPLE_CHOICE = "tokens", "multiple-choice"  # what a dataset's samples are
REBUILD = "run its gpt2wds-shard command again: only what is missing is made"
REPAIR = f"delete the file and {REBUILD}"

_MANIFEST_FIELDS = {"kind": str, "dataset_id": str, "corpus": dict, "tokenizer": dict, "shards": dict}
_SHARD_FIELDS = {
    "file": str,
    "bytes": int,
    "sha256": str,
    "tokens_sha256": str,
    "tokens": int,
    "documents": int,
    "blocks": int,
    "text_bytes": int,
    "skipped": dict,
}


def dataset_id(splits: dict[str, list[dict[str, Any]]]) -> str:
    """A name for the content: hash of all shards' token hashes and block counts. Compression does not count."""
    lines = [f"{s['file'].split('.')[0]} {s['tokens_sha256']} {s['blocks']}\n" for name in SPLITS for s in splits[name]]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:32]


class Dataset:
    """A finished dataset directory, opened for reading.

    Attributes: `manifest` (dict), `kind` ("tokens" or "multiple-choice"), `id`, and for each split
    `blocks[split]`: (blocks,) of shards.BLOCK_ROW, mapped from disk.

    Raises Error when the directory is missing, unfinished, or of a later major format version.
    """

    def __init__(self, path: str | Path):
        self.path = str(path).rstrip("/")
        try:
            manifest = json.loads(self._read("manifest.json"))
        except (FileNotFoundError, NotADirectoryError):
            started = self._exists("plan.json")
            raise Error(
                f"dataset {self.path}: expected a finished dataset (manifest.json), "
                + ("got one in the making: run its gpt2wds-shard command again" if started else "found none")
                + ("" if started else "; make one with gpt2wds-shard")
            ) from None
        except ValueError as error:
            raise Error(f"dataset {self.path}: manifest.json is no JSON ({error}); {REPAIR}") from None
        _check_fields(self.path, manifest, {"format_version": str})
        version = manifest["format_version"]
        if version.split(".")[0] != FORMAT_VERSION.split(".")[0]:
            raise Error(f"dataset {self.path}: expected format {FORMAT_VERSION}, got {version}; update gpt2wds")
        _check_fields(self.path, manifest, _MANIFEST_FIELDS)
        _check_fields(self.path, manifest["shards"], {split: list for split in SPLITS})
        for shard in [shard for split in SPLITS for shard in manifest["shards"][split]]:
            _check_fields(self.path, shard, _SHARD_FIELDS)
        self.manifest: dict[str, Any] = manifest
        self.kind: str = self.manifest["kind"]
        self.id: str = self.manifest["dataset_id"]
        self.corpus: str = self.manifest["corpus"].get("name", "corpus without a name")
        self.blocks = {split: self._index(split) for split in SPLITS}
        self._first_block = {s: np.cumsum([0] + [shard["blocks"] for shard in self.shards(s)]) for s in SPLITS}

    def shards(self, split: str) -> list[dict[str, Any]]:
        """The manifest's entries of a split, in order."""
        return self.manifest["shards"][split]

    def total(self, split: str, field: str) -> int:
        """Sum of "tokens", "documents", "text_bytes" or "bytes" over a split."""
        return sum(shard[field] for shard in self.shards(split))

    def place(self, split: str, block: int) -> tuple[str, int]:
        """The shard file a block is in, and its number there."""
        shard = int(self.blocks[split]["shard"][block])
        return self.shards(split)[shard]["file"], block - int(self._first_block[split][shard])

    def block_key(self, split: str, block: int) -> str:
        file, number = self.place(split, block)
        return shards.block_key(file.split(".")[0], number)

    def read_frame(self, split: str, block: int) -> bytes:
        """Decompressed tar members of one block, checked against the index.

        Raises Error that names shard and block: nothing is read short or wrong in silence.
        """
        row = self.blocks[split][block]
        expected = shards.token_frame_bytes(int(row["tokens"])) if self.kind == TOKENS else None
        with self.naming(split, block):
            frame = self._read(self.place(split, block)[0], int(row["offset"]), int(row["length"]))
            return shards.decompress_frame(frame, row, expected)

    def check_tokens(self, split: str, block: int, key: str, payload: bytes) -> np.ndarray:
        """(tokens,) uint16 of a block's sample (the overlapping last token included), held to the index."""
        with self.naming(split, block):
            expected = int(self.blocks[split]["tokens"][block])
            return shards.checked_tokens(key, payload, self.block_key(split, block), expected)

    def read_tokens(self, split: str, block: int) -> np.ndarray:
        """(tokens,) uint16 of one block, the overlapping last token included."""
        frame = self.read_frame(split, block)
        with self.naming(split, block):
            ((name, payload),) = shards.read_members(frame)
        return self.check_tokens(split, block, name.removesuffix(".tokens.npy"), payload)

    def iterate_tokens(self, split: str, shard: int) -> Iterator[np.ndarray]:
        """One shard's tokens in order, as blocks without their overlap."""
        start, count = int(self._first_block[split][shard]), self.shards(split)[shard]["blocks"]
        for block in range(start, start + count):
            tokens = self.read_tokens(split, block)
            yield tokens if block == start + count - 1 else tokens[:-1]

    def examples(self, split: str) -> Iterator[dict[str, Any]]:
        """Multiple-choice samples in order: the example's own fields, and under each prompt mode its tokens."""
        for block in range(len(self.blocks[split])):
            frame = self.read_frame(split, block)
            with self.naming(split, block):
                example: dict[str, Any] = {}
                for name, payload in shards.read_members(frame):
                    member = name.partition(".")[2]
                    if member == "json":
                        if example:
                            yield example
                        example = {**json.loads(payload), "prompts": {}}
                    elif member.endswith(".npy"):
                        example["prompts"][member.removesuffix(".npy")] = shards.npy_tokens(payload)
                if example:
                    yield example

    @contextmanager
    def naming(self, split: str, block: int) -> Iterator[None]:
        """Turn what goes wrong with a block into one line that says where and what to do."""
        try:
            yield
        except (OSError, Error) as error:
            file, number = self.place(split, block)
            reason = f"{error}; {REPAIR}"
            if isinstance(error, FileNotFoundError):
                reason = f"the file is missing; {REBUILD}"
            raise Error(f"{self.path}/{file} block {number}: {reason}") from None

    def _index(self, split: str) -> np.ndarray:
        name = f"{split}.blocks.npy"
        try:
            if "://" in self.path:
                index = np.load(io.BytesIO(self._read(name)), allow_pickle=False)
            else:
                index = np.load(f"{self.path}/{name}", mmap_mode="r", allow_pickle=False)
        except Exception as error:  # a damaged header goes through Python's tokenizer: SyntaxError, TokenError, …
            raise Error(f"dataset {self.path}: cannot read {name} ({error}); {REPAIR}") from None
        if index.ndim != 1 or not all(column in index.dtype.descr for column in shards.BLOCK_ROW.descr):
            raise Error(
                f"dataset {self.path}: expected {name} with columns {', '.join(shards.BLOCK_ROW.names or ())}, "
                f"got {index.dtype} of shape {index.shape}; {REPAIR}"
            )
        blocks = np.array([shard["blocks"] for shard in self.shards(split)], dtype=np.int64)
        if len(index) != blocks.sum():
            raise Error(f"dataset {self.path}: {name} has {len(index)} blocks, the manifest {blocks.sum()}; {REPAIR}")
        sizes = np.repeat(np.array([shard["bytes"] for shard in self.shards(split)], dtype=np.uint64), blocks)
        if (
            (index["shard"] != np.repeat(np.arange(len(blocks)), blocks)).any()
            or (index["offset"] > sizes).any()
            or (index["length"] > sizes).any()
        ):
            raise Error(f"dataset {self.path}: {name} has blocks outside the manifest's shards; {REPAIR}")
        return index

    def _read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if "://" in self.path:
            end = None if length is None else offset + length
            return _filesystem(self.path).cat_file(f"{self.path}/{name}", start=offset, end=end)
        with open(f"{self.path}/{name}", "rb", buffering=0) as file:
            file.seek(offset)
            return file.read(-1 if length is None else length)

    def _exists(self, name: str) -> bool:
        return _filesystem(self.path).exists(f"{self.path}/{name}")

    def verify_shard(self, split: str, shard: int) -> list[str]:
        """Every byte of one shard against index and manifest: what is wrong, one line each, [] if nothing.

        Raises nothing for damage, so that one call reports all of it.
        """
        entry = self.shards(split)[shard]
        if not self._exists(entry["file"]):
            return [f"{entry['file']}: the file is missing; {REBUILD}"]
        start = int(self._first_block[split][shard])
        problems: list[str] = []
        digest, counts = hashlib.sha256(), {"documents": 0, "tokens": 0}
        for block in range(start, start + entry["blocks"]):
            try:
                if self.kind == MULTIPLE_CHOICE:
                    members = list(shards.read_members(self.read_frame(split, block)))
                    pieces = [shards.npy_tokens(payload) for name, payload in members if name.endswith(".npy")]
                    documents = len({name.split(".")[0] for name, _ in members})
                else:
                    tokens = self.read_tokens(split, block)
                    pieces = [tokens if block == start + entry["blocks"] - 1 else tokens[:-1]]
                    documents = int((pieces[0] == 50256).sum())
            except Error as error:
                problems.append(str(error).removeprefix(self.path + "/"))
                continue
            for piece in pieces:
                digest.update(piece.tobytes())
                counts["tokens"] += len(piece)
            counts["documents"] += documents
            expected = self.blocks[split]["documents"][block]
            if documents != expected:
                problems.append(
                    f"{entry['file']} block {block - start}: expected {expected} documents, got {documents}"
                )
        problems += self._verify_file(split, shard)
        if not problems and digest.hexdigest() != entry["tokens_sha256"]:
            problems.append(f"{entry['file']}: its tokens are not the manifest's (SHA-256 differs)")
        for name, count in counts.items():
            if not problems and count != entry[name]:
                problems.append(f"{entry['file']}: expected {entry[name]} {name}, got {count}")
        return problems

    def _verify_file(self, split: str, shard: int) -> list[str]:
        entry = self.shards(split)[shard]
        with fsspec.open(f"{self.path}/{entry['file']}", "rb") as file:
            size = file.seek(0, io.SEEK_END)
            if size != entry["bytes"]:
                return [f"{entry['file']}: expected {entry['bytes']} bytes, got {size}; {REPAIR}"]
            file.seek(0)
            digest = hashlib.sha256()
            while piece := file.read(1 << 20):
                digest.update(piece)
        if digest.hexdigest() != entry["sha256"]:
            return [f"{entry['file']}: expected SHA-256 {entry['sha256']}, got {digest.hexdigest()}; {REPAIR}"]
        return []


def _check_fields(path: str, found: Any, fields: Mapping[str, type]) -> None:
    """Raise Error unless a part of the manifest has these fields, of these types."""
    for name, kind in fields.items():
        if not isinstance(found, dict) or not isinstance(found.get(name), kind):
            raise Error(f"dataset {path}: manifest.json is damaged, it lacks a {kind.__name__} {name!r}; {REPAIR}")


@lru_cache(maxsize=8)
def _filesystem(url: str) -> fsspec.AbstractFileSystem:
    return fsspec.core.url_to_fs(url)[0]
