"""A dataset directory, opened for reading: manifest, block indices, and what the blocks hold.

    manifest.json        written last: a directory without one is unfinished
    train.blocks.npy     one shards.BLOCK_ROW per block, opened with mmap
    train-00000.tar.zst  shards, densely numbered
    val…                 the same for the validation split

The directory is local or any fsspec URL (s3://…, hf://…, https://…). Nothing is read short or wrong in silence: what
is read is held to index and manifest, and what is wrong is one line that says where.
"""

import hashlib
import io
import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..arguments import whole
from ..errors import Error, counted, reason
from ..folder import Folder
from ..tokenizer import END_OF_TEXT
from ..vocabulary import VOCABULARY_SHA256
from . import members, prompts, shards
from .manifest import MULTIPLE_CHOICE, SPLITS, TOKENS, LaterFormat, Manifest, ShardEntry

REBUILD = "run its gpt2wds-shard command again: only what is missing is made; of a copy, fetch the file again"
REPAIR = f"delete the file and {REBUILD}"
GPT2_VOCABULARY = VOCABULARY_SHA256["vocab.bpe"]
MAX_MANIFEST_BYTES = 1 << 28  # twenty times that of 15,000 shards
COUNTS = ("documents", "tokens", "text_bytes", "blocks", "bytes")  # of a shard, which a split's add up
LOOK = "look at the disk and at the file's permissions"


class Dataset:
    """A finished dataset directory.

    Attributes: `manifest`, its `kind` ("tokens" or "multiple-choice"), its `id`, by which a checkpoint knows its data,
    `corpus`, the corpus's name, and for each split `blocks[split]`: (blocks,) of shards.BLOCK_ROW, mapped from disk.

    Raises Error when the directory is missing, unfinished, damaged, of a later major format, or not of GPT-2's tokens.

    >>> dataset = Dataset("data/mine")  # doctest: +SKIP
    >>> dataset.total("train", "tokens"), dataset.read_tokens("train", 0)[:3]  # doctest: +SKIP
    (1718838, array([50256,  1174, 40713], dtype=uint16))
    """

    def __init__(self, path: str | Path | Folder):
        self.folder = Folder(path)
        self.path = self.folder.path
        self.manifest = self._manifest()
        self._sound: dict[str, bool] = {}
        self.kind, self.id, self.corpus = self.manifest.kind, self.manifest.dataset_id, self.manifest.corpus.name
        self.blocks = {split: self._index(split) for split in SPLITS}
        self._first_block = {s: np.cumsum([0] + [entry.blocks for entry in self.shards(s)]) for s in SPLITS}

    def shards(self, split: str) -> tuple[ShardEntry, ...]:
        """The manifest's entries of a split, in order."""
        if split not in SPLITS:
            raise Error(f"split: expected {' or '.join(SPLITS)}, got {repr(split)[:80]}")
        return self.manifest.shards[split]

    def total(self, split: str, field: str) -> int:
        """Sum of one of COUNTS over a split."""
        if field not in COUNTS:
            raise Error(f"field: expected {', '.join(COUNTS[:-1])} or {COUNTS[-1]}, got {repr(field)[:80]}")
        return sum(getattr(entry, field) for entry in self.shards(split))

    def shard_blocks(self, split: str, shard: int) -> range:
        """The blocks of one shard."""
        _one_of("shard", shard, len(self.shards(split)), split)
        return range(int(self._first_block[split][shard]), int(self._first_block[split][shard + 1]))

    def locate(self, split: str, block: int) -> tuple[ShardEntry, int]:
        """The shard a block is in, and its number there. Raises Error for a block that the split does not have."""
        entries = self.shards(split)
        _one_of("block", block, len(self.blocks[split]), split)
        shard = int(self.blocks[split]["shard"][block])
        return entries[shard], block - int(self._first_block[split][shard])

    def block_key(self, split: str, block: int) -> str:
        """WebDataset key of a token block."""
        entry, number = self.locate(split, block)
        return shards.block_key(entry.name, number)

    def read_frame(self, split: str, block: int) -> bytes:
        """Decompressed tar members of one block, checked against the index."""
        entry, number = self.locate(split, block)
        row = self.blocks[split][block]
        start, where = int(row["offset"]), f"{self.path}/{entry.file} block {number}"
        try:
            frame = self._read(where, entry.file, start, start + int(row["length"]))
        except (FileNotFoundError, NotADirectoryError):
            raise Error(f"{where}: the file is missing; {REBUILD}") from None
        with self._naming(split, block, by_index=True):
            expected = shards.token_frame_bytes(int(row["tokens"])) if self.kind == TOKENS else None
            return shards.decompress_frame(frame, row, expected)

    def read_members(self, split: str, block: int) -> dict[str, bytes]:
        """The tar members of a block, by name; of a token block just its own sample."""
        content = self.read_frame(split, block)
        with self._naming(split, block, by_index=True):
            found = members.read_members(content)
            wanted = shards.token_member(self.block_key(split, block))
            if self.kind == TOKENS and list(found) != [wanted]:
                raise Error(f"expected the member {wanted}, got {', '.join(found)[:80] or 'none'}")
            return found

    def read_tokens(self, split: str, block: int) -> np.ndarray:
        """(tokens,) uint16 of one block, the overlapping last token included, held to the index."""
        self._expect(TOKENS)
        content, count = self.read_frame(split, block), int(self.blocks[split]["tokens"][block])
        start = shards.token_frame_start(self.block_key(split, block), count)
        with self._naming(split, block):
            if content.startswith(start):
                return members.checked_ids(np.frombuffer(content, "<u2", count, len(start)), END_OF_TEXT)
        # Headers that our writer does not write may be sound all the same, or say what is wrong.
        (payload,) = self.read_members(split, block).values()
        with self._naming(split, block):
            return members.checked_tokens(payload, count, END_OF_TEXT)

    def own_tokens(self, split: str, block: int) -> np.ndarray:
        """(tokens,) uint16 of one block, without the last where the next block of its shard begins with it."""
        entry, number = self.locate(split, block)
        tokens = self.read_tokens(split, block)
        return tokens if number == entry.blocks - 1 else tokens[:-1]

    def iterate_tokens(self, split: str, shard: int) -> Iterator[np.ndarray]:
        """One shard's tokens in order, as blocks without their overlap."""
        for block in self.shard_blocks(split, shard):
            yield self.own_tokens(split, block)

    def examples(self, split: str) -> Iterator[prompts.StoredExample]:
        """Multiple-choice samples in order: the example's fields in HellaSwag's schema, and under "prompts" its tokens
        by prompt mode, (tokens,) uint16 (see prompts.split_prompt).
        """
        self.shards(split)  # refuses what is no split
        for block in range(len(self.blocks[split])):
            yield from self.block_examples(split, block)

    def block_examples(self, split: str, block: int) -> list[prompts.StoredExample]:
        """The examples of one block."""
        self._expect(MULTIPLE_CHOICE)
        samples: dict[str, dict[str, bytes]] = {}
        for name, payload in self.read_members(split, block).items():
            key, _, member = name.partition(".")
            samples.setdefault(key, {})[member] = payload
        entry, number = self.locate(split, block)
        documents = self.blocks[split]["documents"]
        before = int(documents[block - number : block].sum())
        with self._naming(split, block):
            if len(samples) != documents[block]:
                raise Error(f"expected {documents[block]} examples, got {len(samples)}")
            for ordinal, key in enumerate(samples, before):
                if key != shards.block_key(entry.name, ordinal):
                    raise Error(f"expected sample {shards.block_key(entry.name, ordinal)}, got {key[:80]}")
            return [prompts.stored_example(key, sample) for key, sample in samples.items()]

    def _expect(self, kind: str) -> None:
        if self.kind != kind:
            raise Error(f"dataset {self.path}: expected {kind}, got {self.kind}")

    @contextmanager
    def _naming(self, split: str, block: int, by_index: bool = False) -> Iterator[None]:
        """Say of damage where it is and what to do; `by_index`: what was read may differ from the index alone."""
        try:
            yield
        except Error as error:
            entry, number = self.locate(split, block)
            where = f"{self.path}/{entry.file} block {number}"
            if by_index and not self.manifest.blocks_sha256 and self._is_sound(entry):
                where = f"{self.path}/{split}.blocks.npy row {block}, of {entry.file} block {number}"
            raise Error(f"{where}: {error}; {REPAIR}") from None

    def _is_sound(self, entry: ShardEntry) -> bool:
        """Whether a shard's every byte is what the manifest says. Asked once of each shard, for it reads all of it."""
        if entry.file not in self._sound:
            try:
                fits = self.folder.size(entry.file) == entry.bytes
                self._sound[entry.file] = fits and self.folder.sha256(entry.file, entry.bytes) == entry.sha256
            except (Error, OSError):
                self._sound[entry.file] = False
        return self._sound[entry.file]

    def _manifest(self) -> Manifest:
        where = f"dataset {self.path}"
        try:
            with _no_damage(where, "manifest.json"):
                too_large = self.folder.is_local and self.folder.size("manifest.json") > MAX_MANIFEST_BYTES
            if too_large:
                raise Error(f"{where}: expected at most {MAX_MANIFEST_BYTES:,} bytes in manifest.json; {REPAIR}")
            text = self._read(where, "manifest.json")
        except (FileNotFoundError, NotADirectoryError):
            if self.folder.exists("plan.json"):
                found = "one in the making: run its gpt2wds-shard command again"
            else:
                found = "none; make one with gpt2wds-shard"
            raise Error(f"{where}: expected a finished dataset (manifest.json), got {found}") from None
        try:
            manifest = Manifest.from_json(text)
            manifest.check_names()
        except LaterFormat as error:
            raise Error(f"{where}: {error}") from None
        except Error as error:
            raise Error(f"{where}: manifest.json is damaged: {error}; {REPAIR}") from None
        if manifest.kind not in (TOKENS, MULTIPLE_CHOICE):
            raise Error(f"{where}: expected {TOKENS} or {MULTIPLE_CHOICE}, got {manifest.kind[:80]!r}; update gpt2wds")
        name, vocabulary = manifest.tokenizer.get("name"), manifest.tokenizer.get("vocabulary_sha256", GPT2_VOCABULARY)
        if name != "gpt2" or vocabulary != GPT2_VOCABULARY:
            found = f"{repr(name)[:80]} with the vocabulary {repr(vocabulary)[:80]}"
            raise Error(f"{where}: expected tokens of the tokenizer 'gpt2', got {found}; make it with gpt2wds-shard")
        return manifest

    def _index(self, split: str) -> np.ndarray:
        name, where = f"{split}.blocks.npy", f"dataset {self.path}"
        try:
            data = self._map(where, name) if self.folder.is_local else self._read(where, name)
        except FileNotFoundError:
            raise Error(f"{where}: {name} is missing; {REBUILD}") from None
        try:
            index = members.npy_row(data)
            check_index(index, self.shards(split), self.kind)
            said = self.manifest.blocks_sha256.get(split)
            if said is not None and hashlib.sha256(data).hexdigest() != said:
                raise Error("its SHA-256 is not the manifest's")
        except Error as error:
            raise Error(f"{where}: {name}: {error}; {REPAIR}") from None
        return index

    def _read(self, where: str, name: str, start: int = 0, end: int | None = None) -> bytes:
        with _no_damage(where, name):
            return self.folder.read(name, start, end)

    def _map(self, where: str, name: str) -> mmap.mmap | bytes:
        """A local file's bytes, read when they are looked at, and not copied for each process."""
        with _no_damage(where, name), self.folder.open(name) as file:
            is_empty = not file.seek(0, io.SEEK_END)
            return b"" if is_empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _one_of(name: str, number: int, count: int, split: str) -> None:
    """Refuse what is no number from 0 on, `count` left out: of an array -1 would be the last, and is a mistake here."""
    if whole(name, number, 0) >= count:
        raise Error(f"{name}: expected one of the {counted(count, name)} of {split}, from 0 on, got {number}")


def expect_dataset(value: object) -> None:
    """Raise Error for what is no Dataset: mostly a path, which is to be opened first."""
    if not isinstance(value, Dataset):
        raise Error(f"dataset: expected a Dataset, such as Dataset('data/mine'), got {repr(value)[:80]}")


@contextmanager
def _no_damage(where: str, name: str) -> Iterator[None]:
    """What a disk says becomes an Error. That there is no such file is for the caller to say."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise Error(f"{where}: cannot read {name} ({reason(error)}); {LOOK}") from None


def check_index(index: np.ndarray, entries: Sequence[ShardEntry], kind: str) -> None:
    """Hold a split's block index to the manifest's entries. Raises Error."""
    if index.dtype.names is None or not all(column in index.dtype.descr for column in shards.BLOCK_ROW.descr):
        raise Error(f"expected columns {', '.join(shards.BLOCK_ROW.names or ())}, got {str(index.dtype)[:200]}")
    count = sum(entry.blocks for entry in entries)
    if len(index) != count:
        raise Error(f"it has {len(index)} blocks, the manifest {count}")
    blocks = np.array([entry.blocks for entry in entries], dtype=np.int64)
    sizes = np.repeat(np.array([entry.bytes for entry in entries], dtype=np.uint64), blocks)
    if (index["shard"] != np.repeat(np.arange(len(blocks)), blocks)).any() or (index["offset"] > sizes).any():
        raise Error("it has blocks outside the manifest's shards")
    if (index["length"] > np.minimum(sizes, 2 * shards.MAX_FRAME_BYTES)).any():
        raise Error("it has blocks larger than a frame or its shard")
    if kind == TOKENS and not ((index["tokens"] > 0) & (index["tokens"] <= shards.BLOCK_TOKENS + 1)).all():
        raise Error(f"expected blocks of 1 to {shards.BLOCK_TOKENS + 1} tokens")
    first = np.cumsum(blocks) - blocks
    for column in ("tokens", "documents"):
        sums = np.zeros(len(blocks), dtype=np.int64)
        sums[blocks > 0] = np.add.reduceat(index[column], first[blocks > 0], dtype=np.int64) if count else 0
        if kind == TOKENS and column == "tokens":
            sums -= np.maximum(blocks - 1, 0)  # consecutive blocks overlap by one
        stated = np.array([getattr(entry, column) for entry in entries], dtype=np.int64)
        for shard in np.flatnonzero(sums != stated)[:1]:
            name = entries[shard].file
            raise Error(f"it has {sums[shard]} {column} in {name}, the manifest {stated[shard]}")
