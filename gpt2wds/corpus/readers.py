"""File formats: a source, or a run of its documents → the documents.

Runs of parquet are in rows; runs of JSON lines and text in bytes (of compressed files: of what they decompress to).
They begin and end between documents, so that any run can be read without what is before it.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO
from urllib.parse import urlsplit

from ..errors import Error
from ..locations import Location
from . import compression
from .compression import Decompressor, naming_damage
from .documents import Document, Reader, Run, Size, Skipped, as_document, decoded, no_column
from .parquet import Parquet

TEXT_PIECE_BYTES = 65_536
BLANK_LINE_WITHIN = 1 << 20  # bytes in which a piece of text looks for a blank line to end at
HEAD_BYTES = 1 << 20  # read of a file of JSON lines to estimate how many it has
COUNTED_BYTES = 1 << 26  # a text file up to this size is walked to count its pieces
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
BLANK_LINES = (b"\n", b"\r\n")


class _Bytes:
    """A file, decompressed where it is compressed; opened when first needed, and kept where it was left.

    It goes forward cheaply. Going back begins anew where the file is compressed: what was read too far is handed back.
    """

    def __init__(self, location: Location, decompressor: Decompressor | None):
        self.location, self._decompressor = location, decompressor
        self.place = 0
        self._unread = b""

    @cached_property
    def _raw(self) -> BinaryIO:
        return self.location.open()

    @cached_property
    def _file(self) -> BinaryIO:
        return self._decompressor(self._raw) if self._decompressor else self._raw

    def seek(self, place: int) -> None:
        if place != self.place:
            self.place, self._unread = self._file.seek(place), b""

    def read(self, count: int) -> bytes:
        data = self._again(count)
        data += self._file.read(count - len(data))
        self.place += len(data)
        return data

    def readline(self, at_most: int = sys.maxsize) -> bytes:
        line = self._again(min(at_most, self._unread.find(b"\n") + 1 or at_most))
        if len(line) < at_most and not line.endswith(b"\n"):
            line += self._file.readline(at_most - len(line))
        self.place += len(line)
        return line

    def unread(self, data: bytes) -> None:
        self._unread = data + self._unread
        self.place -= len(data)

    def _again(self, count: int) -> bytes:
        data, self._unread = self._unread[:count], self._unread[count:]
        return data

    def read_share(self) -> float:
        """Which share of the file was read so far, by its own bytes."""
        return self._raw.tell() / max(1, self.location.size)

    def close(self) -> None:
        if "_raw" in self.__dict__:
            self._raw.close()


@dataclass(frozen=True)
class _InBytes:
    """A format whose runs are in bytes, of a file that may be compressed."""

    decompressor: Decompressor | None = None
    unit = "byte"

    @property
    def is_streamed(self) -> bool:
        return self.decompressor is not None


class JSONLines(_InBytes):
    """One JSON object per line. Blank lines are no documents; they go with what is before them."""

    def measure(self, location: Location, text_column: str) -> Size:
        source = _Bytes(location, self.decompressor)
        try:
            with naming_damage(location):
                head = source.read(HEAD_BYTES)
                is_whole = not source.read(1)
                _check_first_line(location, head, text_column)
                lines = sum(1 for line in head.split(b"\n") if line.strip())
                if is_whole:
                    return Size(lines, len(head))
                share = source.read_share() if self.decompressor else len(head) / location.size
                return Size(max(1, round(lines / share)), None if self.decompressor else location.size, is_exact=False)
        finally:
            source.close()

    def open(self, location: Location, size: Size, text_column: str) -> "_OpenJSONLines":
        return _OpenJSONLines(_Bytes(location, self.decompressor), size.text_bytes, text_column)


@dataclass
class _OpenJSONLines:
    source: _Bytes
    bytes: int | None  # of the whole, decompressed; None where only walking it would tell
    text_column: str

    def cut(self, first: int, documents: int | None, text_bytes: int | None) -> Run | None:
        if self.bytes is not None and first >= self.bytes:
            return None
        if documents is None and self.bytes is not None and (text_bytes is None or first + text_bytes >= self.bytes):
            return Run(self.bytes, None, self.bytes - first)
        with naming_damage(self.source.location):
            if documents is None:
                assert text_bytes is not None, "the whole of a stream is not asked for in one run"
                return self._cut_by_bytes(first, text_bytes)
            return self._cut_by_documents(first, documents, text_bytes)

    def _cut_by_bytes(self, first: int, text_bytes: int) -> Run | None:
        self.source.seek(first + max(0, text_bytes - 1))  # the line this byte is in ends the run
        self.source.readline()
        end = self._past_blank_lines()
        return Run(end, None, end - first) if end > first else None

    def _cut_by_documents(self, first: int, documents: int, text_bytes: int | None) -> Run | None:
        self.source.seek(first)
        found = 0
        while found < documents and (text_bytes is None or self.source.place - first < text_bytes or not found):
            line = self.source.readline()
            if not line:
                break
            found += bool(line.strip())
        end = self._past_blank_lines()
        return Run(end, found, end - first) if end > first else None

    def _past_blank_lines(self) -> int:
        while line := self.source.readline():
            if line.strip():
                self.source.unread(line)
                break
        return self.source.place

    def read(self, first: int, count: int | None) -> Iterator[Document]:
        with naming_damage(self.source.location):
            self.source.seek(first)
            while (count is None or self.source.place < first + count) and (line := self.source.readline()):
                if line.strip():
                    yield _json_document(line, self.text_column)

    def close(self) -> None:
        self.source.close()


class Text(_InBytes):
    """A text file, cut at the first blank line after every 64 KiB; the pieces joined are the file.

    So a small file is one document, and a large one can be split into training and validation. Where no blank line
    comes within a mebibyte a piece ends at a line's end, or at a character's: memory is bounded.
    """

    def measure(self, location: Location, text_column: str) -> Size:
        size = None if self.decompressor else location.size
        if location.size > COUNTED_BYTES:
            return Size(location.size // TEXT_PIECE_BYTES, size, is_exact=False)
        with closing(self.open(location, Size(0, size), text_column)) as source:
            run = source.cut(0, sys.maxsize, None)
        return Size(run.documents or 0 if run else 0, run.text_bytes if run else 0)

    def open(self, location: Location, size: Size, text_column: str) -> "_OpenText":
        return _OpenText(_Bytes(location, self.decompressor), size.text_bytes)


@dataclass
class _OpenText:
    source: _Bytes
    bytes: int | None  # of the whole, decompressed; None where only walking it would tell

    def cut(self, first: int, documents: int | None, text_bytes: int | None) -> Run | None:
        size = self.bytes
        if size is not None and documents is None and (text_bytes is None or first + text_bytes >= size):
            return Run(size, None, size - first) if first < size else None
        end, found = first, 0
        with naming_damage(self.source.location):
            while found != documents and (text_bytes is None or end - first < text_bytes):
                # Skipped, not read: only where a piece ends needs looking at.
                self.source.seek(end + TEXT_PIECE_BYTES if size is None else min(end + TEXT_PIECE_BYTES, size))
                _rest_of_piece(self.source)
                if self.source.place <= end:
                    break
                end = self.source.place
                found += 1
        return Run(end, found, end - first) if found else None

    def read(self, first: int, count: int | None) -> Iterator[Document]:
        at = first
        with naming_damage(self.source.location):
            while count is None or at < first + count:
                self.source.seek(at)
                piece = self.source.read(TEXT_PIECE_BYTES)
                piece += _rest_of_piece(self.source)
                if not piece:
                    break
                yield decoded(piece.removeprefix(BYTE_ORDER_MARK) if at == 0 else piece)
                at += len(piece)

    def close(self) -> None:
        self.source.close()


@dataclass(frozen=True)
class WholeFile:
    """A text file that is one document, whatever its size."""

    unit, is_streamed = "byte", False

    def measure(self, location: Location, text_column: str) -> Size:
        return Size(1, location.size)

    def open(self, location: Location, size: Size, text_column: str) -> "_OpenWholeFile":
        return _OpenWholeFile(_Bytes(location, None), location.size)


@dataclass
class _OpenWholeFile(_OpenText):
    def cut(self, first: int, documents: int | None, text_bytes: int | None) -> Run | None:
        size = self.source.location.size
        return Run(size, 1, size) if first < size else None

    def read(self, first: int, count: int | None) -> Iterator[Document]:
        if first < self.source.location.size and count != 0:
            self.source.seek(first)
            yield decoded(self.source.read(self.source.location.size))


BY_SUFFIX: dict[str, Reader] = {".parquet": Parquet()}
for _compressed, _decompressor in {"": None, **compression.BY_SUFFIX}.items():
    BY_SUFFIX |= {f"{plain}{_compressed}": JSONLines(_decompressor) for plain in (".jsonl", ".ndjson", ".json")}
    BY_SUFFIX[f".txt{_compressed}"] = Text(_decompressor)


def suffix_of(name: str) -> str | None:
    """The end of a file name that says its format, None for none that is known.

    >>> suffix_of("texts/a.jsonl.zst"), suffix_of("https://host/a.parquet?download=true")
    ('.jsonl.zst', '.parquet')
    """
    path = urlsplit(name).path if "://" in name else name
    return next((suffix for suffix in BY_SUFFIX if path.endswith(suffix)), None)


def _check_first_line(location: Location, head: bytes, text_column: str) -> None:
    line = head.removeprefix(BYTE_ORDER_MARK).partition(b"\n")[0].strip()
    if b"\0" in line[:64]:
        raise Error(f"{location}: expected UTF-8, got what looks like UTF-16; convert it, for example with iconv")
    if not line or (len(line) == len(head) == HEAD_BYTES):
        return  # nothing to judge by, or a first line of more than the head
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise Error(f"{location}: expected one JSON object per line, got {line[:40]!r}")
    if text_column not in record:
        raise no_column(location, text_column, list(record))


def _json_document(line: bytes, text_column: str) -> Document:
    try:
        record = json.loads(line.removeprefix(BYTE_ORDER_MARK).decode("utf-8"))
    except UnicodeDecodeError:
        return Skipped("not UTF-8")
    except (ValueError, RecursionError):
        return Skipped("no JSON")
    if not isinstance(record, dict):
        return Skipped("no JSON object")
    return as_document(record.get(text_column))


def _rest_of_piece(file: _Bytes) -> bytes:
    """From 64 KiB after a piece's begin to its end: through a blank line, or as Text says where none comes."""
    rest = bytearray(file.readline(BLANK_LINE_WITHIN))
    lines_end = len(rest) if rest.endswith(b"\n") else 0
    while len(rest) < BLANK_LINE_WITHIN:
        line = file.readline(BLANK_LINE_WITHIN - len(rest))
        rest += line
        if not line or (line in BLANK_LINES and lines_end == len(rest) - len(line)):
            return bytes(rest)
        if line.endswith(b"\n"):
            lines_end = len(rest)
    end = lines_end
    if not end:
        end = len(rest) - 1
        while end > 0 and rest[end] & 0xC0 == 0x80:  # a byte that continues a character
            end -= 1
    file.unread(bytes(rest[end:]))
    return bytes(rest[:end])
