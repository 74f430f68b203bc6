"""One shard: tar members in independent zstd frames, with a seek table. The bytes, and nothing else.

Four standards put together, so that other people's tools read a shard as it is:

* POSIX ustar with WebDataset names: the members of one sample share the name up to the first dot;
* zstd, one frame per run of whole samples, with content size and checksum; a last frame holds tar's end;
* zstd's seekable format: a skippable frame at the end lists all frames, so that one can be read by byte range;
* NumPy's npy 1.0 for tokens: `<u2`, one dimension.

A token shard has one block per frame: 65,536 tokens and the one that follows, so that consecutive blocks overlap
by one and every sequence finds its inputs and targets within one block.
"""

import hashlib
import io
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain, islice
from typing import Any, BinaryIO

import numpy as np
import zstandard

from ..errors import Error

BLOCK_TOKENS = 65_536
COMPRESSION_LEVEL = 3
RUN_BLOCKS = 8  # compressed by a thread before it asks for more: a block alone takes half a millisecond
MAX_FRAME_BYTES = 1 << 26  # no writer of ours makes a larger one: a reader refuses to allocate more

# One row of a block index. `documents` start in the block; `checksum` is the frame's last 4 bytes: the low half
# of XXH64 of its content, which zstd itself checks.
BLOCK_ROW = np.dtype(
    [
        ("shard", "<u4"),
        ("offset", "<u8"),
        ("length", "<u4"),
        ("tokens", "<u4"),
        ("documents", "<u4"),
        ("checksum", "<u4"),
    ]
)

_SEEK_TABLE_MAGIC, _SEEK_FOOTER_MAGIC, _CHECKSUM_FLAG = 0x184D2A5E, 0x8F92EAB1, 0x80
_TAR_END = bytes(1024)
_NPY_HEADER_BYTES = 128
_OF_THREAD = threading.local()  # a thread's compressor and decompressor
Map = Callable[..., Iterator[Any]]  # Python's `map`, or one like it


@dataclass(frozen=True)
class ShardSummary:
    """What was written: totals, hashes (hex SHA-256 of the file and of its tokens) and the index rows."""

    bytes: int
    sha256: str
    tokens_sha256: str
    tokens: int
    documents: int
    rows: np.ndarray  # (blocks,) BLOCK_ROW, `shard` left 0


def tar_member(name: str, payload: bytes) -> bytes:
    """Header, payload and padding of one regular file; the same bytes for the same input, always."""
    return _tar_header(name, len(payload)) + payload + bytes(-len(payload) % 512)


def _tar_header(name: str, size: int) -> bytes:
    assert len(name) < 100
    header = bytearray(512)
    for offset, field in (
        (0, name.encode()),
        (100, b"0000644\0"),  # mode
        (108, b"0000000\0"),  # uid
        (116, b"0000000\0"),  # gid
        (124, b"%011o\0" % size),
        (136, b"%011o\0" % 0),  # mtime
        (148, b" " * 8),  # the checksum counts itself as blanks
        (156, b"0"),  # a regular file
        (257, b"ustar\0" + b"00"),
    ):
        header[offset : offset + len(field)] = field
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def npy_bytes(tokens: np.ndarray) -> bytes:
    """(tokens,) uint16 as an npy 1.0 file."""
    out = io.BytesIO()
    np.lib.format.write_array(out, np.ascontiguousarray(tokens, dtype="<u2"), version=(1, 0), allow_pickle=False)
    return out.getvalue()


def token_frame_bytes(tokens: int) -> int:
    """Decompressed size of a block's frame: a tar header, and an npy file padded to 512 bytes."""
    payload = _NPY_HEADER_BYTES + 2 * tokens
    return 512 + payload + -payload % 512


def token_frame(key: str, tokens: np.ndarray) -> bytes:
    """What a block's frame holds: a tar member, an npy file of (tokens,) uint16."""
    data = np.ascontiguousarray(tokens, dtype="<u2").data
    return b"".join((token_frame_start(key, len(tokens)), data, bytes(-(_NPY_HEADER_BYTES + data.nbytes) % 512)))


def token_frame_start(key: str, tokens: int) -> bytes:
    """What a block's frame holds before its tokens, as `write_token_shard` writes it: a tar and an npy header."""
    return _tar_header(token_member(key), _NPY_HEADER_BYTES + 2 * tokens) + _npy_header(tokens)


@cache
def _npy_header(tokens: int) -> bytes:
    return npy_bytes(np.zeros(tokens, dtype=np.uint16))[:_NPY_HEADER_BYTES]


def token_member(key: str) -> str:
    """The name of a block's tar member."""
    return f"{key}.tokens.npy"


class FrameWriter:
    """Writes frames to an open binary file, then tar's end and the seek table."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._sha256 = hashlib.sha256()
        self._offset = 0
        self._seek_entries: list[bytes] = []
        self._rows: list[tuple[int, ...]] = []

    def add(self, content: bytes, *, tokens: int, documents: int) -> None:
        """Write one frame of whole samples."""
        self.add_frame(compress_frame(content), len(content), tokens=tokens, documents=documents)

    def add_frame(self, frame: bytes, content_bytes: int, *, tokens: int, documents: int) -> None:
        """The same of a frame that was compressed already."""
        self._rows.append((0, self._offset, len(frame), tokens, documents, int.from_bytes(frame[-4:], "little")))
        self._frame(frame, content_bytes)

    def finish(self, *, tokens_sha256: str, tokens: int, documents: int) -> ShardSummary:
        self._frame(compress_frame(_TAR_END), len(_TAR_END))
        table = b"".join(self._seek_entries)
        footer = struct.pack("<IBI", len(self._seek_entries), _CHECKSUM_FLAG, _SEEK_FOOTER_MAGIC)
        self._write(struct.pack("<II", _SEEK_TABLE_MAGIC, len(table) + len(footer)) + table + footer)
        rows = np.array(self._rows, dtype=BLOCK_ROW)
        return ShardSummary(self._offset, self._sha256.hexdigest(), tokens_sha256, tokens, documents, rows)

    def _frame(self, frame: bytes, content_bytes: int) -> None:
        assert content_bytes <= MAX_FRAME_BYTES
        self._seek_entries.append(struct.pack("<II", len(frame), content_bytes) + frame[-4:])
        self._write(frame)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self._offset += len(data)


def compress_frame(content: bytes) -> bytes:
    """One zstd frame with content size and checksum. Other threads run meanwhile."""
    if getattr(_OF_THREAD, "level", None) != COMPRESSION_LEVEL:
        _OF_THREAD.level = COMPRESSION_LEVEL
        _OF_THREAD.compressor = zstandard.ZstdCompressor(
            level=COMPRESSION_LEVEL, write_checksum=True, write_content_size=True
        )
    return _OF_THREAD.compressor.compress(content)


def block_key(shard: str, block: int) -> str:
    """WebDataset key of a block, unique in the dataset.

    >>> block_key("train-00000", 7)
    'train-00000-000007'
    """
    return f"{shard}-{block:06d}"


def write_token_shard(
    file: BinaryIO, shard: str, documents: Iterable[np.ndarray], boundary: int, map_blocks: Map = map
) -> ShardSummary:
    """Write one token shard; `documents` are (tokens,) uint16 arrays of whole documents, one or several end to end.

    boundary: the token that each document begins with, and that is nowhere else. map_blocks: what compresses blocks:
    `map`, or what gives the same and does some ahead, in threads. Memory holds one array, RUN_BLOCKS blocks and what is
    ahead, whatever the shard's size.
    """
    writer, digest, starts = FrameWriter(file), hashlib.sha256(), _Starts(boundary)

    def counted() -> Iterator[np.ndarray]:
        for document in documents:
            digest.update(np.ascontiguousarray(document, dtype="<u2").data)
            starts.add(document)
            yield document

    def compressed(run: list[tuple[int, np.ndarray]]) -> list[tuple[int, int, int, bytes]]:
        contents = ((n, len(block), token_frame(block_key(shard, n), block)) for n, block in run)
        return [(n, tokens, len(content), compress_frame(content)) for n, tokens, content in contents]

    blocks = enumerate(_blocks(counted()))
    runs = iter(lambda: list(islice(blocks, RUN_BLOCKS)), [])
    for number, tokens, size, frame in chain.from_iterable(map_blocks(compressed, runs)):
        writer.add_frame(frame, size, tokens=tokens, documents=starts.in_block(number))
    return writer.finish(tokens_sha256=digest.hexdigest(), tokens=starts.tokens, documents=starts.documents)


class _Starts:
    """Counts the documents that start in each block: a start at token t belongs to block t // 65,536."""

    def __init__(self, boundary: int):
        self._boundary = boundary
        self.tokens = self.documents = 0
        self._counts: dict[int, int] = {}

    def add(self, tokens: np.ndarray) -> None:
        starts = np.flatnonzero(tokens == self._boundary)
        blocks, counts = np.unique((self.tokens + starts) // BLOCK_TOKENS, return_counts=True)
        for block, count in zip(blocks.tolist(), counts.tolist(), strict=True):
            self._counts[block] = self._counts.get(block, 0) + count
        self.tokens += len(tokens)
        self.documents += len(starts)

    def in_block(self, number: int) -> int:
        return self._counts.pop(number, 0)


def _blocks(documents: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Blocks of 65,537 tokens that overlap by one; ceil((T - 1) / 65,536) of them, at least one if T > 0."""
    parts: list[np.ndarray] = []
    held, first = 0, True
    for document in documents:
        parts.append(document)
        held += len(document)
        if held > BLOCK_TOKENS:
            tokens, at = np.concatenate(parts), 0
            while held - at > BLOCK_TOKENS:
                yield tokens[at : at + BLOCK_TOKENS + 1]
                at, first = at + BLOCK_TOKENS, False
            parts, held = [tokens[at:].copy()], held - at
    # After a block one token is always held: the overlap, no block of its own.
    if held > (0 if first else 1):
        yield np.concatenate(parts)


def read_seek_table(file: BinaryIO) -> np.ndarray:
    """All frames of a shard from its seek table: (frames,) of BLOCK_ROW's offset, length and checksum.

    The last row is tar's end. Raises Error when the file does not end in a seek table.
    """
    size = file.seek(0, io.SEEK_END)
    if size < 17:
        raise Error(f"expected a zstd seek table at its end, got a file of {size} bytes")
    file.seek(size - 9)
    frames, flags, magic = struct.unpack("<IBI", file.read(9))
    start = size - 9 - 12 * frames - 8
    if magic != _SEEK_FOOTER_MAGIC or flags != _CHECKSUM_FLAG or start < 0:
        raise Error("expected a zstd seek table at its end: the file is truncated or no shard")
    file.seek(start)
    if struct.unpack("<II", file.read(8)) != (_SEEK_TABLE_MAGIC, 12 * frames + 9):
        raise Error("its seek table is damaged")
    entries = np.frombuffer(file.read(12 * frames), dtype=[("length", "<u4"), ("content", "<u4"), ("checksum", "<u4")])
    rows = np.zeros(frames, dtype=BLOCK_ROW)
    rows["length"], rows["checksum"] = entries["length"], entries["checksum"]
    rows["offset"][1:] = np.cumsum(entries["length"].astype(np.uint64))[:-1]
    if int(rows["length"].sum(dtype=np.uint64)) != start:
        raise Error("its seek table does not cover the file")
    return rows


def decompress_frame(frame: bytes, row: np.void, expected_bytes: int | None) -> bytes:
    """Content of one frame, held to its index row. `expected_bytes` is the content's size where it is known.

    Raises Error, saying what is wrong, before anything large is allocated.
    """
    if len(frame) != row["length"]:
        raise Error(f"expected {row['length']} bytes at {row['offset']}, got {len(frame)}: the file is truncated")
    if int.from_bytes(frame[-4:], "little") != row["checksum"]:
        raise Error("its checksum is not the index's")
    try:
        declared = zstandard.get_frame_parameters(frame).content_size
        if declared > MAX_FRAME_BYTES or (expected_bytes is not None and declared != expected_bytes):
            raise Error(f"expected {expected_bytes or 'at most 64 MiB'} decompressed bytes, got {declared}")
        return _decompressor().decompress(frame)
    except zstandard.ZstdError as error:
        raise Error(f"it does not decompress ({error})") from None


def _decompressor() -> zstandard.ZstdDecompressor:
    """A thread's own, used again: to make one costs a tenth of a block."""
    if not hasattr(_OF_THREAD, "decompressor"):
        _OF_THREAD.decompressor = zstandard.ZstdDecompressor()
    return _OF_THREAD.decompressor


def shard_versions() -> dict[str, str]:
    """Library versions that decide a shard's bytes."""
    return {"zstd": ".".join(map(str, zstandard.ZSTD_VERSION)), "zstandard": zstandard.__version__}
