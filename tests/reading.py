"""Files of every format for tests: written, read whole, and in runs."""

import bz2
import gzip
import lzma
import struct
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from making import texts, write_jsonl

from gpt2wds.corpus import text as text_module
from gpt2wds.corpus.documents import Document, OpenSource, Reader
from gpt2wds.locations import local_file


def write_parquet(path: Path, documents: Iterable[str]) -> Path:
    pq.write_table(pa.table({"text": pa.array(documents, pa.string())}), path, row_group_size=4)
    return path


def write_gz(path: Path, documents: Iterable[str]) -> Path:
    path.write_bytes(gzip.compress(write_jsonl(path, documents).read_bytes()))
    return path


def write_zst(path: Path, documents: Iterable[str]) -> Path:
    path.write_bytes(zstandard.compress(write_jsonl(path, documents).read_bytes()))
    return path


def write_txt(path: Path, count: int) -> Path:
    """A text of `count` documents: pieces that end at the first blank line after 64 KiB."""
    piece = ("line\n" * (text_module.TEXT_PIECE_BYTES // 5 + 1))[: text_module.TEXT_PIECE_BYTES]
    path.write_text("".join(f"{path.stem} {n} {piece}\n\n" for n in range(count)))
    return path


# By the last suffix: path and number of documents → the file.
WRITE = {
    "jsonl": lambda path, count: write_jsonl(path, texts(count, path.stem)),
    "parquet": lambda path, count: write_parquet(path, texts(count, path.stem)),
    "txt": write_txt,
    "gz": lambda path, count: write_gz(path, texts(count, path.stem)),
    "zst": lambda path, count: write_zst(path, texts(count, path.stem)),
}


def zstd_frames(data: bytes) -> bytes:
    """Two frames with a skippable one between them, as parallel compressors and seekable files have them."""
    half, compress = len(data) // 2, zstandard.ZstdCompressor(write_checksum=True).compress
    return compress(data[:half]) + struct.pack("<II", 0x184D2A50, 3) + b"abc" + compress(data[half:])


def gzip_members(data: bytes) -> bytes:
    half = len(data) // 2
    return gzip.compress(data[:half]) + gzip.compress(data[half:])


COMPRESS = {"": bytes, ".gz": gzip_members, ".zst": zstd_frames, ".xz": lzma.compress, ".bz2": bz2.compress}


def opened(reader: Reader, path: Path, text_column: str = "text") -> OpenSource:
    location = local_file(path)
    return reader.open(location, reader.measure(location, text_column), text_column)


def read_run(source: OpenSource, first: int = 0, count: int | None = None) -> list[Document]:
    """The documents of a run, those that can be as text."""
    read = (document for batch in source.batches(first, count) for document in batch)
    return [document.decode() if isinstance(document, bytes) else document for document in read]


def read_all(reader: Reader, path: Path, text_column: str = "text") -> list[Document]:
    return read_run(opened(reader, path, text_column))


def count(reader: Reader, path: Path) -> int:
    """Documents that planning counts or estimates."""
    return reader.measure(local_file(path), "text").documents


def check_runs(reader: Reader, path: Path, text_column: str, steps: list[int]) -> None:
    """Walk the file in runs of `steps` documents: what the runs give is what the whole file gives."""
    whole, source = read_all(reader, path, text_column), opened(reader, path, text_column)
    found: list[Document] = []
    at = 0
    for step in steps:
        run = source.cut(at, step, None)
        if run is None:
            break
        part = read_run(source, at, run.end - at)
        assert len(part) == run.documents == min(step, len(whole) - len(found))
        found, at = found + part, run.end
    assert found + read_run(source, at) == whole


def check_byte_runs(reader: Reader, path: Path, limits: list[int]) -> None:
    """Walk the file in runs of `limits` bytes: each is as short as whole documents allow."""
    whole, source = read_all(reader, path), opened(reader, path)
    found: list[Document] = []
    at = 0
    for limit in limits:
        run = source.cut(at, None, limit)
        if run is None:
            assert not read_run(source, at)
            break
        last = not read_run(source, run.end)
        assert last or run.end - at >= limit
        assert run.text_bytes == run.end - at
        both = source.cut(at, 1_000_000, limit)  # documents limited too: the same, but counted
        assert len(read_run(source, at, both.end - at)) == both.documents
        part = read_run(source, at, run.end - at)
        if len(part) > 1 and run.end - at > limit:
            assert source.cut(at, len(part) - 1, None).end - at < limit
        found, at = found + part, run.end
    assert found + read_run(source, at) == whole
