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
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

TEXT_PIECE_BYTES = 65_536


@dataclass(frozen=True)
class Skipped:
    """Stands for a document that cannot be used."""

    reason: str


Document = str | Skipped


class Reader(Protocol):
    unit: str  # "row" or "byte"
    may_share: bool  # many small files in one shard

    def size(self, path: Path) -> int:
        """Units in the file."""

    def count_documents(self, path: Path) -> int:
        """Documents in the file; an estimate where counting would mean reading all of it."""

    def after(self, path: Path, first: int, documents: int) -> tuple[int, int]:
        """Where `documents` documents from `first` end, at most the file's end, and how many those are."""

    def after_bytes(self, path: Path, first: int, count: int) -> int:
        """The first document's end at or after `count` bytes of text from `first`."""

    def check(self, path: Path, text_column: str) -> None:
        """Raise ValueError when the file is not what its name says or has no such column."""

    def read(self, path: Path, first: int, count: int, text_column: str) -> Iterator[Document]:
        """The documents of one part, in order."""


class Parquet:
    """One document per row. Only the text column is read, a batch at a time."""

    unit, may_share = "row", False

    def size(self, path: Path) -> int:
        return pq.read_metadata(path).num_rows

    count_documents = size

    def after(self, path: Path, first: int, documents: int) -> tuple[int, int]:
        end = min(self.size(path), first + documents)
        return end, end - first

    def after_bytes(self, path: Path, first: int, count: int) -> int:
        metadata = pq.read_metadata(path)
        total = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
        return min(metadata.num_rows, first + max(1, count * metadata.num_rows // max(1, total)))

    def check(self, path: Path, text_column: str) -> None:
        try:
            names = pq.read_schema(path).names
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{path}: expected a parquet file ({str(error).splitlines()[0]})") from None
        if text_column not in names:
            raise ValueError(_no_column(path, text_column, names))

    def read(self, path: Path, first: int, count: int, text_column: str) -> Iterator[Document]:
        with pq.ParquetFile(path) as file:
            groups, start = [], 0
            skip = first
            for i in range(file.num_row_groups):
                rows = file.metadata.row_group(i).num_rows
                if start + rows <= first:
                    skip -= rows
                elif start < first + count:
                    groups.append(i)
                start += rows
            for batch in file.iter_batches(batch_size=1000, row_groups=groups, columns=[text_column]):
                column = batch.column(0)[skip : skip + count]
                skip = max(0, skip - batch.num_rows)
                count -= len(column)
                try:
                    yield from map(_document, column.to_pylist())
                except UnicodeDecodeError:  # before the first is given out: all are converted at once
                    yield from map(_decode, column.cast(pa.large_binary()).to_pylist())


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


def _document(value: Any) -> Document:
    if not isinstance(value, str):
        return Skipped("no text" if value is None else f"text is a {type(value).__name__}, no string")
    return value if value else Skipped("empty text")


def _decode(data: bytes | None) -> Document:
    try:
        return _document(None if data is None else data.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Skipped(f"not UTF-8 (byte {error.start} of the document)")


def _no_column(path: Path, wanted: str, names: list[str]) -> str:
    return f"{path}: expected a column {wanted!r}, got {', '.join(names) or 'none'}; choose one with --text-column"
