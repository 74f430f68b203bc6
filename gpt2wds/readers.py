"""File formats: a file, or a part of one → its documents.

A part is `first` and `count`, in the reader's unit: rows of a parquet file, bytes of the others. Parts begin and
end between documents, so that any part can be read without what is before it.

A document is its text (str), or why there is none (Skipped): nothing is dropped without being counted.
"""

import json
import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .hub import HubFile, RangedFile

TEXT_PIECE_BYTES = 65_536


@dataclass(frozen=True)
class Skipped:
    """Stands for a document that cannot be used."""

    reason: str


Document = str | Skipped
Location = Path | HubFile


class Reader(Protocol):
    unit: str  # "row" or "byte"
    may_share: bool  # many small files in one shard

    def size(self, path: Any) -> int:
        """Units in the file."""

    def count_documents(self, path: Any) -> int:
        """Documents in the file; an estimate where counting would mean reading all of it."""

    def after(self, path: Any, first: int, documents: int) -> tuple[int, int]:
        """Where `documents` documents from `first` end, at most the file's end, and how many those are."""

    def after_bytes(self, path: Any, first: int, count: int) -> int:
        """The first document's end at or after `count` bytes of text from `first`."""

    def check(self, path: Any, text_column: str) -> None:
        """Raise ValueError when the file is not what its name says or has no such column."""

    def read(self, path: Any, first: int, count: int, text_column: str) -> Iterator[Document]:
        """The documents of one part, in order."""


class Parquet:
    """One document per row, local or on the Hub. Only the text column is read, some row groups at a time."""

    unit, may_share = "row", False
    STRETCH_BYTES = 1 << 25  # read in one go: as many row groups as fit, at least one

    def size(self, path: Location) -> int:
        return int(_metadata(path).num_rows)

    count_documents = size

    def after(self, path: Location, first: int, documents: int) -> tuple[int, int]:
        end = min(self.size(path), first + documents)
        return end, end - first

    def after_bytes(self, path: Location, first: int, count: int) -> int:
        metadata = _metadata(path)
        total = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
        return min(metadata.num_rows, first + max(1, count * metadata.num_rows // max(1, total)))

    def check(self, path: Location, text_column: str) -> None:
        try:
            names = _metadata(path).schema.to_arrow_schema().names
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{path}: expected a parquet file ({str(error).splitlines()[0]})") from None
        if text_column not in names:
            raise ValueError(_no_column(path, text_column, names))

    def read(self, path: Location, first: int, count: int, text_column: str) -> Iterator[Document]:
        metadata = _metadata(path)
        starts = np.cumsum([0] + [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)])
        groups = [i for i in range(metadata.num_row_groups) if starts[i + 1] > first and starts[i] < first + count]
        with path.open("rb") as raw, pq.ParquetFile(raw, metadata=metadata) as file:
            for stretch, begin, end in _stretches(metadata, groups, text_column, self.STRETCH_BYTES):
                if isinstance(raw, RangedFile):
                    raw.prefetch(begin, end)
                skip = max(0, first - int(starts[stretch[0]]))
                for batch in file.iter_batches(batch_size=1000, row_groups=stretch, columns=[text_column]):
                    column = batch.column(0)[skip : skip + count]
                    skip = max(0, skip - batch.num_rows)
                    count -= len(column)
                    yield from _documents(column)


class JSONLines:
    """One JSON object per line; parts are byte ranges that end at line ends. Blank lines are no documents."""

    unit, may_share = "byte", False

    def size(self, path: Path) -> int:
        return path.stat().st_size

    def count_documents(self, path: Path) -> int:
        with path.open("rb") as file:
            head = file.read(1 << 20)
        lines = len([line for line in head.splitlines() if line.strip()])
        return lines if len(head) == self.size(path) else lines * self.size(path) // len(head)

    def after(self, path: Path, first: int, documents: int) -> tuple[int, int]:
        found, end = 0, first
        with path.open("rb") as file:
            file.seek(first)
            for line in file:
                if line.strip():
                    if found == documents:
                        break
                    found += 1
                end += len(line)  # blank lines go with what is before them, so that no part has only such
        return end, found

    def after_bytes(self, path: Path, first: int, count: int) -> int:
        with path.open("rb") as file:
            file.seek(first + max(0, count - 1))
            file.readline()
            return min(file.tell(), self.size(path))

    def check(self, path: Path, text_column: str) -> None:
        with path.open("rb") as file:
            line = file.readline().strip()
        try:
            record = json.loads(line) if line else {text_column: ""}
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise ValueError(f"{path}: expected one JSON object per line, got {line[:40]!r}")
        if text_column not in record:
            raise ValueError(_no_column(path, text_column, list(record)))

    def read(self, path: Path, first: int, count: int, text_column: str) -> Iterator[Document]:
        with path.open("rb") as file:
            file.seek(first)
            while count > 0 and (line := file.readline()):
                count -= len(line)
                if line.strip():
                    yield self._parse(line, text_column)

    def _parse(self, line: bytes, text_column: str) -> Document:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            return Skipped("no JSON")
        if not isinstance(record, dict):
            return Skipped("no JSON object")
        return _document(record.get(text_column))


class Text:
    """A text file, cut at the first blank line after every 64 KiB; the pieces joined are the file, byte for byte.

    So a small file is one document, and a large one can be split into training and validation, and read in
    bounded memory.
    """

    unit, may_share = "byte", True

    def size(self, path: Path) -> int:
        return path.stat().st_size

    def count_documents(self, path: Path) -> int:
        return sum(1 for _ in self._ends(path, 0))

    def after(self, path: Path, first: int, documents: int) -> tuple[int, int]:
        ends = list(islice(self._ends(path, first), documents))
        return ends[-1] if ends else first, len(ends)

    def after_bytes(self, path: Path, first: int, count: int) -> int:
        return next((end for end in self._ends(path, first) if end >= first + count), self.size(path))

    def check(self, path: Path, text_column: str) -> None:
        pass

    def read(self, path: Path, first: int, count: int, text_column: str) -> Iterator[Document]:
        with path.open("rb") as file:
            file.seek(first)
            for end in self._ends(path, first):
                if first >= end or count <= 0:
                    break
                piece = file.read(end - first)
                first, count = end, count - len(piece)
                yield _decode(piece)

    def _ends(self, path: Path, first: int) -> Iterator[int]:
        size = self.size(path)
        if size == 0:
            return
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            while first < size:
                blank = re.compile(rb"\n\r?\n").search(text, first + TEXT_PIECE_BYTES)
                first = blank.end() if blank else size
                yield first


class WholeFile(Text):
    """A text file that is one document, whatever its size."""

    def _ends(self, path: Path, first: int) -> Iterator[int]:
        if first < self.size(path):
            yield self.size(path)


BY_SUFFIX: dict[str, Reader] = {".parquet": Parquet(), ".jsonl": JSONLines(), ".txt": Text()}


def _documents(column: pa.Array) -> list[Document]:
    try:
        return [_document(value) for value in column.to_pylist()]
    except UnicodeDecodeError:  # all are converted at once
        return [_decode(value) for value in column.cast(pa.large_binary()).to_pylist()]


def _metadata(path: Location) -> pq.FileMetaData:
    return _read_metadata(path, path.stat().st_mtime_ns if isinstance(path, Path) else 0)


@lru_cache(maxsize=32)
def _read_metadata(path: Location, _: int) -> pq.FileMetaData:
    # Kept, because the footer of a large file is megabytes and every task of the file needs it.
    with path.open("rb") as file:
        return pq.read_metadata(file)


def _stretches(
    metadata: pq.FileMetaData, groups: list[int], column: str, limit: int
) -> Iterator[tuple[list[int], int, int]]:
    """Row groups that are read together, and the byte range that holds their text."""
    number = metadata.schema.to_arrow_schema().names.index(column)
    chosen: list[int] = []
    begin = end = 0
    for group in groups:
        chunk = metadata.row_group(group).column(number)
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        stop = start + chunk.total_compressed_size
        if chosen and stop - begin > limit:
            yield chosen, begin, end
            chosen = []
        begin, end = (begin if chosen else start), stop
        chosen.append(group)
    if chosen:
        yield chosen, begin, end


def _document(value: Any) -> Document:
    if not isinstance(value, str):
        return Skipped("no text" if value is None else f"text is a {type(value).__name__}, no string")
    return value if value else Skipped("empty text")


def _decode(data: bytes | None) -> Document:
    try:
        return _document(None if data is None else data.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Skipped(f"not UTF-8 (byte {error.start} of the document)")


def _no_column(path: Location, wanted: str, names: list[str]) -> str:
    return f"{path}: expected a column {wanted!r}, got {', '.join(names) or 'none'}; choose one with --text-column"
