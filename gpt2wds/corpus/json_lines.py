"""JSON lines: a document per line. Runs are in bytes, of compressed files of what they decompress to."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import Error
from ..locations import Location
from ..strict_json import is_deeper
from .compression import InBytes, OpenInBytes, Stream, naming_damage
from .documents import (
    BATCH_BYTES,
    BYTE_ORDER_MARK,
    MAX_DOCUMENT_BYTES,
    Digest,
    Document,
    Run,
    Size,
    Skipped,
    as_document,
    check_delivered,
    no_column,
    refuse_binary,
    too_long,
)

HEAD_BYTES = 1 << 20  # read of a file to estimate how many lines it has
REST_BYTES = 1 << 20  # read at once of a line that is not looked at
LEVELS = 500  # of lists and objects within one another; Python's own limit, near 1,000, depends on who calls
_TOO_DEEP = f"JSON nested more than {LEVELS} deep"


class JSONLines(InBytes):
    """One JSON object per line. Blank lines are no documents; they go with what is before them.

    A line longer than a document may be is one that is skipped, whatever is in it, and never held whole.
    """

    def measure(self, location: Location, text_column: str, max_bytes: int = MAX_DOCUMENT_BYTES) -> Size:
        source = Stream(location, self.decompressor)
        try:
            with naming_damage(location):
                head = source.read(HEAD_BYTES)
                is_whole = not source.read(1)
                _check_first_line(location, head, text_column)
                lines = sum(1 for line in io.BytesIO(head) if len(line) > max_bytes or line.strip())
                if is_whole:
                    return Size(lines, len(head))
                share = source.read_share() if self.decompressor else len(head) / location.size
                return Size(max(1, round(lines / share)), None if self.decompressor else location.size, is_exact=False)
        finally:
            source.close()

    def open(
        self, location: Location, size: Size, text_column: str, max_bytes: int = MAX_DOCUMENT_BYTES
    ) -> "_OpenJSONLines":
        return _OpenJSONLines(Stream(location, self.decompressor), size.text_bytes, text_column, max_bytes)


@dataclass
class _OpenJSONLines(OpenInBytes):
    text_column: str
    max_bytes: int  # of a line

    def cut(self, first: int, documents: int | None, text_bytes: int | None) -> Run | None:
        if self.size is not None and first >= self.size:
            return None
        if documents is None and self.size is not None and (text_bytes is None or first + text_bytes >= self.size):
            return Run(self.size, None, self.size - first)
        with naming_damage(self.source.location):
            if documents is None:
                assert text_bytes is not None, "the whole of a stream is not asked for in one run"
                return self._cut_by_bytes(first, text_bytes)
            return self._cut_by_documents(first, documents, text_bytes)

    def _cut_by_bytes(self, first: int, text_bytes: int) -> Run | None:
        seen = Digest()
        self.source.seek(first)
        is_read = self.source.skip(first + max(0, text_bytes - 1), seen)  # the line this byte is in ends the run
        self._to_line_end(self.source.readline(REST_BYTES), seen)
        end = self._past_blank_lines(seen)
        return Run(end, None, end - first, seen.hexdigest() if is_read else "") if end > first else None

    def _cut_by_documents(self, first: int, documents: int, text_bytes: int | None) -> Run | None:
        self.source.seek(first)
        found, seen = 0, Digest()
        while found < documents and (text_bytes is None or self.source.place - first < text_bytes or not found):
            line = self.source.readline(self.max_bytes + 1)
            if not line:
                break
            found += len(line) > self.max_bytes or bool(line.strip())
            self._to_line_end(line, seen)
        end = self._past_blank_lines(seen)
        return Run(end, found, end - first, seen.hexdigest()) if end > first else None

    def _past_blank_lines(self, seen: Digest) -> int:
        while line := self.source.readline(self.max_bytes + 1):
            if len(line) > self.max_bytes or line.strip():
                self.source.unread(line)
                break
            seen.update(line)
        return self.source.place

    def _to_line_end(self, begin: bytes, seen: Digest | None) -> None:
        """Go past the rest of a line of which `begin` was read; `seen` gets all of it."""
        while begin:
            if seen is not None:
                seen.update(begin)
            if begin.endswith(b"\n"):
                return
            begin = self.source.readline(REST_BYTES)

    def batches(self, first: int, count: int | None, seen: Digest | None = None) -> Iterator[list[Document]]:
        with naming_damage(self.source.location, is_trusted=seen is None):
            self.source.seek(first)
            while count is None or self.source.place < first + count:
                lines = self._lines(
                    BATCH_BYTES if count is None else min(BATCH_BYTES, first + count - self.source.place), seen
                )
                if not lines:
                    break
                yield self._documents(lines)
        check_delivered(self.source.location, "byte", first, count, self.source.place - first)

    def _lines(self, count: int, seen: Digest | None) -> bytes:
        """The lines that begin within so many bytes; of the last one no more than shows that it is too long."""
        lines = self.source.read(count)
        if seen is not None:
            seen.update(lines)
        if lines.endswith(b"\n"):
            return lines
        rest = self.source.readline(self.max_bytes + 1)
        self._to_line_end(rest, seen)
        return lines + rest

    def _documents(self, lines: bytes) -> list[Document]:
        return [
            too_long(self.max_bytes) if len(line) > self.max_bytes else _json_document(line, self.text_column)
            for line in io.BytesIO(lines)
            if len(line) > self.max_bytes or line.strip()
        ]


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _check_first_line(location: Location, head: bytes, text_column: str) -> None:
    refuse_binary(location, head)
    line = head.removeprefix(BYTE_ORDER_MARK).partition(b"\n")[0].strip()
    if not line or (len(line) == len(head) == HEAD_BYTES):
        return  # nothing to judge by, or a first line of more than the head
    record, got = None, ""
    try:
        record = _loaded(line.decode("utf-8", "surrogatepass"), text_column)
    except RecursionError:
        got = f"{_TOO_DEEP}, "
    except ValueError:
        pass
    if not isinstance(record, dict):
        what = "one JSON object per line" if _is_utf8(line) else "UTF-8"
        raise Error(
            f"{location}: expected {what}, got {got}{line[:40]!r} in its first; mend or remove that line, convert the "
            "file (`jq -c`), or leave it out"
        )
    if text_column not in record:
        raise no_column(location, text_column, list(record))
    if not isinstance(record[text_column], str | None):
        kind = type(record[text_column]).__name__
        raise Error(f"{location}: expected text in column {text_column!r}, got {kind}; choose one with text_column")


def _loaded(line: str, text_column: str) -> object:
    """The value of a line. Raises ValueError, and RecursionError for more than LEVELS, whoever calls."""
    value = json.loads(line)
    text = value.get(text_column) if isinstance(value, dict) else None
    beside = len(line) - (len(text) if isinstance(text, str) else 0)
    if beside > 2 * LEVELS and is_deeper(value, LEVELS):  # mostly there is no room for so many brackets
        raise RecursionError
    return value


def _json_document(line: bytes, text_column: str) -> Document:
    try:
        record = _loaded(line.removeprefix(BYTE_ORDER_MARK).decode("utf-8"), text_column)
    except UnicodeDecodeError:
        return Skipped("not UTF-8")
    except RecursionError:
        return Skipped(_TOO_DEEP)
    except ValueError:
        return Skipped("no JSON")
    if not isinstance(record, dict):
        return Skipped("no JSON object")
    return as_document(record.get(text_column))
