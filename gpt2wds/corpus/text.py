"""Text files, cut into pieces or whole. Runs are in bytes, of compressed files of what they decompress to."""

import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from ..locations import Location
from .compression import InBytes, OpenInBytes, Stream, naming_damage
from .documents import (
    BYTE_ORDER_MARK,
    MAX_DOCUMENT_BYTES,
    Digest,
    Document,
    Run,
    Size,
    check_delivered,
    decoded,
    refuse_binary,
)

HEAD_BYTES = 64  # read of a file to see whether it is text at all
TEXT_PIECE_BYTES = 65_536
BLANK_LINE_WITHIN = 1 << 20  # bytes in which a piece of text looks for a blank line to end at
COUNTED_BYTES = 1 << 26  # a text file up to this size is walked to count its pieces
BLANK_LINES = (b"\n", b"\r\n")


class Text(InBytes):
    """A text file, cut at the first blank line after every 64 KiB; the pieces joined are the file.

    So a small file is one document, and a large one can be split into training and validation. Where no blank line
    comes within a mebibyte a piece ends at a line's end, or at a character's: memory is bounded. No piece is longer
    than a document may be.
    """

    def measure(self, location: Location, text_column: str, max_bytes: int = MAX_DOCUMENT_BYTES) -> Size:
        size = None if self.decompressor else location.size
        with closing(Stream(location, self.decompressor)) as source, naming_damage(location):
            refuse_binary(location, source.read(HEAD_BYTES))
        if location.size > COUNTED_BYTES:
            return Size(location.size // TEXT_PIECE_BYTES, size, is_exact=False)
        with closing(self.open(location, Size(0, size), text_column, max_bytes)) as source:
            run = source.cut(0, sys.maxsize, None)
        return Size(run.documents or 0 if run else 0, run.text_bytes if run else 0)

    def open(
        self, location: Location, size: Size, text_column: str, max_bytes: int = MAX_DOCUMENT_BYTES
    ) -> "_OpenText":
        return _OpenText(Stream(location, self.decompressor), size.text_bytes, max_bytes)


@dataclass
class _OpenText(OpenInBytes):
    max_bytes: int  # of a piece

    @property
    def piece_bytes(self) -> int:
        """Of a piece, at least, where the file is not at its end."""
        return min(TEXT_PIECE_BYTES, self.max_bytes // 2)

    def _rest_of_piece(self) -> bytes:
        return _rest_of_piece(self.source, min(BLANK_LINE_WITHIN, self.max_bytes - self.piece_bytes))

    def cut(self, first: int, documents: int | None, text_bytes: int | None) -> Run | None:
        size = self.size
        if size is not None and documents is None and (text_bytes is None or first + text_bytes >= size):
            return Run(size, None, size - first) if first < size else None
        end, found, seen, is_read = first, 0, Digest(), True
        with naming_damage(self.source.location):
            self.source.seek(first)
            while found != documents and (text_bytes is None or end - first < text_bytes):
                # Skipped, not read: only where a piece ends needs looking at.
                to = end + self.piece_bytes
                is_read &= self.source.skip(to if size is None else min(to, size), seen)
                seen.update(self._rest_of_piece())
                if self.source.place <= end:
                    break
                end = self.source.place
                found += 1
        return Run(end, found, end - first, seen.hexdigest() if is_read else "") if found else None

    def batches(self, first: int, count: int | None, seen: Digest | None = None) -> Iterator[list[Document]]:
        at = first
        with naming_damage(self.source.location, is_trusted=seen is None):
            while count is None or at < first + count:
                self.source.seek(at)
                piece = self.source.read(self.piece_bytes)
                piece += self._rest_of_piece()
                if not piece:
                    break
                if seen is not None:
                    seen.update(piece)
                yield [decoded(piece.removeprefix(BYTE_ORDER_MARK) if at == 0 else piece)]
                at += len(piece)
        check_delivered(self.source.location, "byte", first, count, at - first)


@dataclass(frozen=True)
class WholeFile:
    """A text file that is one document, whatever its size."""

    unit, is_streamed = "byte", False

    def measure(self, location: Location, text_column: str, max_bytes: int = MAX_DOCUMENT_BYTES) -> Size:
        return Size(1, location.size)

    def open(
        self, location: Location, size: Size, text_column: str, max_bytes: int = MAX_DOCUMENT_BYTES
    ) -> "_OpenWholeFile":
        return _OpenWholeFile(Stream(location, None), location.size, max_bytes)


@dataclass
class _OpenWholeFile(_OpenText):
    def cut(self, first: int, documents: int | None, text_bytes: int | None) -> Run | None:
        size = self.source.location.size
        return Run(size, 1, size) if first < size else None

    def batches(self, first: int, count: int | None, seen: Digest | None = None) -> Iterator[list[Document]]:
        if first < self.source.location.size and count != 0:
            self.source.seek(first)
            data = self.source.read(self.source.location.size)
            if seen is not None:
                seen.update(data)
            yield [decoded(data)]
        check_delivered(self.source.location, "byte", first, count, self.source.place - first)


def _rest_of_piece(file: Stream, within: int) -> bytes:
    """From 64 KiB after a piece's begin to its end: through a blank line, or as Text says where none is `within`."""
    rest = bytearray(file.readline(within))
    lines_end = len(rest) if rest.endswith(b"\n") else 0
    while len(rest) < within:
        line = file.readline(within - len(rest))
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
