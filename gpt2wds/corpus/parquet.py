"""Parquet: a document per row. Only the text column's bytes are read, some row groups at a time."""

import io
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..dataset.directory import LOOK
from ..errors import Error, counted, reason
from ..locations import LocalFile, Location, RangedFile
from .compression import Stream
from .documents import (
    BATCH_BYTES,
    BATCH_DOCUMENTS,
    MAX_DOCUMENT_BYTES,
    Digest,
    Document,
    Run,
    Size,
    as_document,
    check_delivered,
    decoded,
    no_column,
    too_long,
)

FOOTER_BYTES = 1 << 16  # asked for first: most footers fit, a longer one takes a second request
STRETCH_BYTES = 1 << 24  # of text read in one go: as many row groups as fit, at least one
HOLE_BYTES = 1 << 20  # row groups farther apart are asked for one by one

_TEXT_KINDS = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_null,
)

Range = tuple[int, int]  # first byte, and the one after the last


class Parquet:
    """The format. Byte sizes are estimates: rows times the mean size of the text column, as the footer has it."""

    unit, is_streamed = "row", False

    def measure(self, location: Location, text_column: str, max_bytes: int = MAX_DOCUMENT_BYTES) -> Size:
        metadata = _footer(location)
        column = _column(metadata, location, text_column)
        groups = range(metadata.num_row_groups)
        text_bytes = sum(metadata.row_group(i).column(column).total_uncompressed_size for i in groups)
        return Size(metadata.num_rows, text_bytes)

    def open(
        self, location: Location, size: Size, text_column: str, max_bytes: int = MAX_DOCUMENT_BYTES
    ) -> "_OpenParquet":
        return _OpenParquet(location, size, text_column, max_bytes)


@dataclass
class _OpenParquet:
    location: Location
    size: Size
    text_column: str
    max_bytes: int  # of a row's text

    def cut(self, first: int, documents: int | None, text_bytes: int | None) -> Run | None:
        assert self.size.text_bytes is not None
        row_bytes = max(1.0, self.size.text_bytes / max(1, self.size.documents))
        rows = self.size.documents - first
        if documents is not None:
            rows = min(rows, documents)
        if text_bytes is not None:
            rows = min(rows, max(1, round(text_bytes / row_bytes)))
        return Run(first + rows, rows, round(rows * row_bytes)) if rows > 0 else None

    def hash(self, first: int, count: int, seen: Digest) -> None:
        for _ in self._stretches(first, count, seen):
            pass

    def batches(self, first: int, count: int | None, seen: Digest | None = None) -> Iterator[list[Document]]:
        planned = left = self._metadata.num_rows - first if count is None else count
        raw = (
            # Arrow's own file: with one of Python's its threads may want the interpreter after its end, and abort.
            pa.OSFile(str(self.location.here))
            if isinstance(self.location, LocalFile)
            else RangedFile(self.location.read_range, self.location.size)
        )
        with raw, pq.ParquetFile(raw, metadata=self._metadata, page_checksum_verification=True) as file:
            for stretch, pieces in _fetched(self.location, self._stretches(first, planned, seen)):
                if isinstance(raw, RangedFile):
                    raw.hold(pieces)
                skip = max(0, first - int(self._starts[stretch[0]]))
                for batch in self._batches(file, stretch):
                    rows = batch.column(0)[skip : skip + left]
                    skip = max(0, skip - batch.num_rows)
                    left -= len(rows)
                    yield _documents(rows, self.max_bytes)
        check_delivered(self.location, "row", first, planned, planned - left)

    def close(self) -> None:
        pass

    def _stretches(self, first: int, count: int, seen: Digest | None) -> Iterator[tuple[list[int], list[Range]]]:
        """Row groups that hold these rows and are read together, and the byte ranges of their text. `seen` gets these
        bytes, and which rows the groups begin with, just before."""
        starts, metadata = self._starts, self._metadata
        groups = [i for i in range(len(starts) - 1) if starts[i + 1] > first and starts[i] < first + count]
        column = _column(metadata, self.location, self.text_column)
        for stretch, ranges in _stretches(metadata, groups, column):
            if seen is not None:
                seen.update(str(starts[stretch].tolist()).encode())
                with closing(Stream(self.location, None)) as raw:
                    for start, stop in ranges:
                        raw.seek(start)
                        raw.hash(stop, seen)
            yield stretch, ranges

    @cached_property
    def _starts(self) -> np.ndarray:
        """The first row of each row group, and the number of all rows."""
        counts = [self._metadata.row_group(i).num_rows for i in range(self._metadata.num_row_groups)]
        return np.cumsum([0, *counts])

    @cached_property
    def _metadata(self) -> pq.FileMetaData:
        # Kept while the source is open, because the footer of a large file is megabytes.
        return _footer(self.location)

    def _batches(self, file: pq.ParquetFile, groups: list[int]) -> Iterator[pa.RecordBatch]:
        with _naming_damage(self.location, f"row groups {groups[0]} to {groups[-1]}"):
            column = _column(self._metadata, self.location, self.text_column)
            found = [self._metadata.row_group(group) for group in groups]
            text_bytes = sum(group.column(column).total_uncompressed_size for group in found)
            row_bytes = text_bytes / max(1, sum(group.num_rows for group in found))
            rows = int(min(BATCH_DOCUMENTS, max(1, BATCH_BYTES // max(1, row_bytes))))
            yield from file.iter_batches(rows, row_groups=groups, columns=[self.text_column], use_threads=False)


@contextmanager
def _naming_damage(location: Location, place: str) -> Iterator[None]:
    try:
        yield
    except Error:
        raise
    except (pa.ArrowException, OSError) as error:
        # Of damage Arrow says OSError too, but without a number: that is the disk's.
        remedy = LOOK if isinstance(error, OSError) and error.errno else "the file is damaged, restore it"
        raise Error(f"{location}: {place} cannot be read ({reason(error)}); {remedy}") from None


def _footer(location: Location) -> pq.FileMetaData:
    """A file's footer, by one request of what is not here, two where it is long."""
    size = location.size
    if isinstance(location, LocalFile):
        with location.open() as file:
            return _parsed(location, file)
    tail = location.read_range(max(0, size - FOOTER_BYTES), size)
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if tail[-4:] != b"PAR1" or length > size:
        raise Error(f"{location}: expected a parquet file, got one that does not end as one; mend it, or leave it out")
    if length > len(tail):
        tail = location.read_range(size - length, size - len(tail)) + tail
    return _parsed(location, io.BytesIO(b"PAR1" + tail[-length:]))


def _parsed(location: Location, file: object) -> pq.FileMetaData:
    try:
        metadata = pq.read_metadata(file)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise Error(f"{location}: its footer cannot be read ({reason(error)}); {LOOK}") from None
        raise Error(f"{location}: expected a parquet file ({reason(error)}); mend it, or leave it out") from None
    held = sum(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
    if held != metadata.num_rows:
        rows = counted(metadata.num_rows, "row")
        raise Error(f"{location}: its footer counts {rows}, its row groups hold {held:,}; restore it")
    return metadata


def _column(metadata: pq.FileMetaData, location: Location, name: str) -> int:
    """The number of a column of text among the file's leaves. A struct before it has several: so by path."""
    schema = metadata.schema.to_arrow_schema()
    if name not in schema.names:
        raise no_column(location, name, schema.names)
    kind = schema.field(name).type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not any(is_kind(value) for is_kind in _TEXT_KINDS):
        raise Error(f"{location}: expected text in column {name!r}, it has {kind}; choose another with text_column")
    return [metadata.schema.column(i).path for i in range(metadata.num_columns)].index(name)


def _stretches(metadata: pq.FileMetaData, groups: list[int], column: int) -> Iterator[tuple[list[int], list[Range]]]:
    """Row groups that are read together, and the byte ranges that hold their text."""
    chosen: list[int] = []
    ranges: list[Range] = []
    for group in groups:
        chunk = metadata.row_group(group).column(column)
        # Not every writer says where a dictionary is, and some say 0.
        start = min(chunk.dictionary_page_offset or chunk.data_page_offset, chunk.data_page_offset)
        stop = start + chunk.total_compressed_size
        held = sum(b - a for a, b in ranges)
        if chosen and held + stop - start > STRETCH_BYTES:
            yield chosen, ranges
            chosen, ranges = [], []
        chosen.append(group)
        if ranges and 0 <= start - ranges[-1][1] <= HOLE_BYTES:
            ranges[-1] = (ranges[-1][0], stop)
        else:
            ranges.append((start, stop))
    if chosen:
        yield chosen, ranges


def _fetched(
    location: Location, stretches: Iterable[tuple[list[int], list[Range]]]
) -> Iterator[tuple[list[int], list[tuple[int, bytes]]]]:
    """Row groups, and (first byte, bytes) of their text of a file that is not here, one stretch ahead."""
    if isinstance(location, LocalFile):
        yield from ((groups, []) for groups, _ in stretches)
        return

    def fetch(ranges: list[Range]) -> list[tuple[int, bytes]]:
        return [(start, location.read_range(start, stop)) for start, stop in ranges]

    with ThreadPoolExecutor(1) as thread:
        waiting = iter(stretches)
        ahead = [(groups, thread.submit(fetch, ranges)) for groups, ranges in islice(waiting, 1)]
        while ahead:
            groups, future = ahead.pop()
            pieces = future.result()
            ahead += [(g, thread.submit(fetch, r)) for g, r in islice(waiting, 1)]
            yield groups, pieces


def _documents(column: pa.Array, max_bytes: int) -> list[Document]:
    """A document for each value of a column of strings or bytes. Those that are UTF-8 stay bytes."""
    if column.nbytes > max_bytes:
        return [_document(value, max_bytes) for value in column]
    text, data = pa.large_string(), pa.large_binary()
    if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
        text, data = pa.string(), pa.binary()
    elif not (pa.types.is_large_string(column.type) or pa.types.is_large_binary(column.type)):
        column = column.cast(data)
    try:
        column.view(text).validate(full=True)  # of all values at once
    except pa.ArrowInvalid:
        return [decoded(value) for value in column.view(data).to_pylist()]
    values = column.view(data).to_pylist()  # a cast would give the same, and import pyarrow.compute: 40 ms
    return [value or as_document(None if value is None else "") for value in values]


def _document(value: pa.Scalar, max_bytes: int) -> Document:
    """One value of a column that may be too long: it is measured before it is copied."""
    if isinstance(value, pa.DictionaryScalar):
        value = value.value
    data = value.as_buffer() if value.is_valid else None
    if data is not None and data.size > max_bytes:
        return too_long(max_bytes)
    return decoded(None if data is None else data.to_pybytes())
