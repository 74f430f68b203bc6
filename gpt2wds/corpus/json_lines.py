"""JSON lines: a document per line. Runs are in bytes, of compressed files of what they decompress to."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import Error
from ..locations import Location
from .compression import InBytes, Stream, naming_damage
from .documents import (
    Digest,
    Document,
    Run,
    Size,
    Skipped,
    as_document,
    check_delivered,
    no_column,
    refuse_other_content,
)

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
HEAD_BYTES = 1 << 20  # read of a file to estimate how many lines it has


class JSONLines(InBytes):
    """One JSON object per line. Blank lines are no documents; they go with what is before them."""

    def measure(self, location: Location, text_column: str) -> Size:
        source = Stream(location, self.decompressor)
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
        return _OpenJSONLines(Stream(location, self.decompressor), size.text_bytes, text_column)


@dataclass
class _OpenJSONLines:
    source: Stream
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
        seen = Digest()
        self.source.seek(first)
        is_read = self.source.skip(first + max(0, text_bytes - 1), seen)  # the line this byte is in ends the run
        seen.update(self.source.readline())
        end = self._past_blank_lines(seen)
        return Run(end, None, end - first, seen.hexdigest() if is_read else "") if end > first else None

    def _cut_by_documents(self, first: int, documents: int, text_bytes: int | None) -> Run | None:
        self.source.seek(first)
        found, seen = 0, Digest()
        while found < documents and (text_bytes is None or self.source.place - first < text_bytes or not found):
            line = self.source.readline()
            if not line:
                break
            seen.update(line)
            found += bool(line.strip())
        end = self._past_blank_lines(seen)
        return Run(end, found, end - first, seen.hexdigest()) if end > first else None

    def _past_blank_lines(self, seen: Digest) -> int:
        while line := self.source.readline():
            if line.strip():
                self.source.unread(line)
                break
            seen.update(line)
        return self.source.place

    def hash(self, first: int, count: int, seen: Digest) -> None:
        with naming_damage(self.source.location):
            self.source.seek(first)
            self.source.hash(first + count, seen)

    def read(self, first: int, count: int | None, seen: Digest | None = None) -> Iterator[Document]:
        with naming_damage(self.source.location, is_trusted=seen is None):
            self.source.seek(first)
            while (count is None or self.source.place < first + count) and (line := self.source.readline()):
                if seen is not None:
                    seen.update(line)
                if line.strip():
                    yield _json_document(line, self.text_column)
        check_delivered(self.source.location, "byte", first, count, self.source.place - first)

    def close(self) -> None:
        self.source.close()


def _check_first_line(location: Location, head: bytes, text_column: str) -> None:
    refuse_other_content(location, head)
    line = head.removeprefix(BYTE_ORDER_MARK).partition(b"\n")[0].strip()
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
    if not isinstance(record[text_column], str | None):
        kind = type(record[text_column]).__name__
        raise Error(f"{location}: expected text in column {text_column!r}, got a {kind}; choose one with text_column")


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
