"""File formats: a file, or a part of one → its documents.

A part is `first` and `count`, in the reader's unit: rows of a parquet file, bytes of the others (of compressed ones:
of what they decompress to). Parts begin and end between documents, so that any part can be read without what is
before it; a part whose count is None goes to the file's end.

A document is its text (str), or why there is none (Skipped): nothing is dropped without being counted.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, BinaryIO, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import Error, reason
from ..locations import LocalFile, Location, RangedFile
from .compression import decompressing, gunzip, open_stream, unzstd

TEXT_PIECE_BYTES = 65_536


@dataclass(frozen=True)
class Skipped:
    """Stands for a document that cannot be used."""

    reason: str


Document = str | Skipped
Part = tuple[int | None, int | None]  # where it ends, None for the file's end; its documents, None if not counted


class Reader(Protocol):
    unit: str  # "row" or "byte"
    may_share: bool  # many small files in one shard
    in_order: bool  # a part can only be reached through what is before it
    one_task: bool  # not to be cut into several training shards

    def count_documents(self, location: Any) -> int:
        """Documents in the file; an estimate where counting would mean reading all of it."""

    def advance(self, location: Any, first: int, documents: int | None, text_bytes: int | None) -> Part:
        """The part from `first` on that ends after `documents` documents or `text_bytes` bytes, or with the file.

        Whichever comes first; None is no limit. It ends where it begins when nothing is left. Parts of no documents
        are only such as can be left out.
        """

    def check(self, location: Any, text_column: str) -> None:
        """Raise Error when the file is not what its name says or has no such column."""

    def read(self, location: Any, first: int, count: int | None, text_column: str) -> Iterator[Document]:
        """The documents of one part, in order."""


class Parquet:
    """One document per row. Only the text column is read, some row groups at a time."""

    unit, may_share, in_order, one_task = "row", False, False, False
    STRETCH_BYTES = 1 << 24  # read in one go: as many row groups as fit, at least one

    def count_documents(self, location: Location) -> int:
        return int(_metadata(location).num_rows)

    def advance(self, location: Location, first: int, documents: int | None, text_bytes: int | None) -> Part:
        metadata = _metadata(location)
        rows = metadata.num_rows - first if documents is None else documents
        if text_bytes is not None:  # as many rows as have so many bytes on average
            total = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
            rows = min(rows, max(1, text_bytes * metadata.num_rows // max(1, total)))
        end = min(metadata.num_rows, first + rows)
        return end, end - first

    def check(self, location: Location, text_column: str) -> None:
        try:
            names = _metadata(location).schema.to_arrow_schema().names
        except (pa.ArrowInvalid, OSError) as error:
            raise Error(f"{location}: expected a parquet file ({reason(error)})") from None
        if text_column not in names:
            raise Error(no_column(location, text_column, names))

    def read(self, location: Location, first: int, count: int | None, text_column: str) -> Iterator[Document]:
        metadata = _metadata(location)
        left = metadata.num_rows - first if count is None else count
        starts = np.cumsum([0] + [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)])
        groups = [i for i in range(metadata.num_row_groups) if starts[i + 1] > first and starts[i] < first + left]
        stretches = _stretches(metadata, groups, text_column, self.STRETCH_BYTES)
        raw: Any = (
            location.open() if isinstance(location, LocalFile) else RangedFile(location.read_range, location.size)
        )
        with raw, pq.ParquetFile(raw, metadata=metadata) as file:
            for row_groups, begin, data in _fetched(location, stretches):
                if isinstance(raw, RangedFile):
                    raw.hold(begin, data)
                skip = max(0, first - int(starts[row_groups[0]]))
                for batch in file.iter_batches(1000, row_groups=row_groups, columns=[text_column], use_threads=False):
                    column = batch.column(0)[skip : skip + left]
                    skip = max(0, skip - batch.num_rows)
                    left -= len(column)
                    yield from _documents(column)


class JSONLines:
    """One JSON object per line; parts end at line ends. Blank lines are no documents.

    A compressed file is read as a stream, and stays open where a part ended: parts in order cost one pass.
    """

    unit, may_share, one_task = "byte", False, False

    def __init__(self, decompressed: Callable[[BinaryIO], BinaryIO] | None = None):
        self._decompressed = decompressed
        self.in_order = decompressed is not None

    def count_documents(self, location: Location) -> int:
        raw = location.open()
        with raw, decompressing(location):
            file = self._decompressed(raw) if self._decompressed else raw
            head = file.read(1 << 20)
            lines = len([line for line in head.splitlines() if line.strip()])
            return lines * location.size // raw.tell() if file.read(1) else lines

    def advance(self, location: Location, first: int, documents: int | None, text_bytes: int | None) -> Part:
        if documents is None and text_bytes is None:
            return None, None
        with self._from(location, first) as file:
            if documents is None:
                assert text_bytes is not None
                last = first + max(0, text_bytes - 1)  # the line this byte is in ends the part
                file.seek(last if self.in_order else min(last, location.size))
                file.readline()
                return file.tell(), None
            found, at, end = 0, first, first
            while line := file.readline():
                if line.strip():
                    if found == documents or (found and text_bytes is not None and end - first >= text_bytes):
                        break
                    found += 1
                at += len(line)
                end = at  # blank lines go with what is before them, so that no part has only such
        return end, found

    def check(self, location: Location, text_column: str) -> None:
        with self._from(location, 0) as file:
            line = file.readline().strip()
        try:
            record = json.loads(line) if line else {text_column: ""}
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise Error(f"{location}: expected one JSON object per line, got {line[:40]!r}")
        if text_column not in record:
            raise Error(no_column(location, text_column, list(record)))

    def read(self, location: Location, first: int, count: int | None, text_column: str) -> Iterator[Document]:
        with self._from(location, first) as file:
            while (count is None or count > 0) and (line := file.readline()):
                count = None if count is None else count - len(line)
                if line.strip():
                    yield self._parse(line, text_column)

    @contextmanager
    def _from(self, location: Location, first: int) -> Iterator[BinaryIO]:
        if self._decompressed is None:
            with location.open() as file:
                file.seek(first)
                yield file
        else:
            with decompressing(location):
                file = open_stream(location, self._decompressed)
                file.seek(first)
                yield file

    def _parse(self, line: bytes, text_column: str) -> Document:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            return Skipped("no JSON")
        if not isinstance(record, dict):
            return Skipped("no JSON object")
        return as_document(record.get(text_column))


class Text:
    """A text file, cut at the first blank line after every 64 KiB; the pieces joined are the file, byte for byte.

    So a small file is one document, and a large one can be split into training and validation, and read in
    bounded memory.
    """

    unit, may_share, in_order, one_task = "byte", True, False, False

    def count_documents(self, location: Location) -> int:
        return self.advance(location, 0, None, location.size)[1] or 0

    def advance(self, location: Location, first: int, documents: int | None, text_bytes: int | None) -> Part:
        found, end = 0, first
        with location.open() as file:
            while (
                end < location.size
                and (documents is None or found < documents)
                and (text_bytes is None or end - first < text_bytes)
            ):
                # Skipped, not read: only where a piece ends needs looking at.
                end = min(end + TEXT_PIECE_BYTES, location.size)
                file.seek(end)
                end += len(_to_blank_line(file))
                found += 1
        return end, found

    def check(self, location: Location, text_column: str) -> None:
        pass

    def read(self, location: Location, first: int, count: int | None, text_column: str) -> Iterator[Document]:
        with location.open() as file:
            file.seek(first)
            while (count is None or count > 0) and (piece := file.read(TEXT_PIECE_BYTES)):
                piece += _to_blank_line(file)
                count = None if count is None else count - len(piece)
                yield _decode(piece)


class WholeFile(Text):
    """A text file that is one document, whatever its size."""

    def advance(self, location: Location, first: int, documents: int | None, text_bytes: int | None) -> Part:
        taken = first < location.size and documents != 0
        return (location.size, 1) if taken else (first, 0)

    def read(self, location: Location, first: int, count: int | None, text_column: str) -> Iterator[Document]:
        with location.open() as file:
            if first < location.size and count != 0:
                yield _decode(file.read())


BY_SUFFIX: dict[str, Reader] = {
    ".parquet": Parquet(),
    ".jsonl": JSONLines(),
    ".jsonl.gz": JSONLines(gunzip),
    ".jsonl.zst": JSONLines(unzstd),
    ".txt": Text(),
}


def suffix_of(name: str) -> str | None:
    """The end of a file name that says its format, None for none that is known.

    >>> suffix_of("texts/a.jsonl.zst")
    '.jsonl.zst'
    """
    return next((suffix for suffix in BY_SUFFIX if name.endswith(suffix)), None)


def as_document(value: Any) -> Document:
    """What a text column holds, as a document."""
    if not isinstance(value, str):
        return Skipped("no text" if value is None else f"text is a {type(value).__name__}, no string")
    return value if value else Skipped("empty text")


def no_column(location: Location, wanted: str, names: list[str]) -> str:
    return f"{location}: expected a column {wanted!r}, got {', '.join(names) or 'none'}; choose one with --text-column"


def _to_blank_line(file: BinaryIO) -> bytes:
    """From here through the next blank line, or to the file's end."""
    lines = [file.readline()]
    while lines[-1] and (len(lines) == 1 or lines[-1] not in (b"\n", b"\r\n")):
        lines.append(file.readline())
    return b"".join(lines)


def _documents(column: pa.Array) -> list[Document]:
    try:
        return [as_document(value) for value in column.to_pylist()]
    except UnicodeDecodeError:  # all are converted at once
        return [_decode(value) for value in column.cast(pa.large_binary()).to_pylist()]


@lru_cache(maxsize=32)
def _metadata(location: Location) -> pq.FileMetaData:
    # Kept, because the footer of a large file is megabytes and every task of the file needs it.
    with location.open() as file:
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


def _fetched(
    location: Location, stretches: Iterable[tuple[list[int], int, int]]
) -> Iterator[tuple[list[int], int, bytes]]:
    """Row groups, where their text begins, and the bytes themselves of a file that is not here, one stretch ahead."""
    if isinstance(location, LocalFile):
        yield from ((row_groups, begin, b"") for row_groups, begin, _ in stretches)
        return
    with ThreadPoolExecutor(1) as thread:
        waiting = iter(stretches)
        ahead = [(s, thread.submit(location.read_range, s[1], s[2])) for s in islice(waiting, 1)]
        while ahead:
            (row_groups, begin, _), future = ahead.pop()
            data = future.result()
            ahead += [(s, thread.submit(location.read_range, s[1], s[2])) for s in islice(waiting, 1)]
            yield row_groups, begin, data


def _decode(data: bytes | None) -> Document:
    try:
        return as_document(None if data is None else data.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Skipped(f"not UTF-8 (byte {error.start} of the document)")
