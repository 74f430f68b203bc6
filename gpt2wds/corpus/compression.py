"""Sources as streams of bytes, compressed or not, in which one can go forward cheaply."""

import bz2
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO, cast

import zstandard

from ..errors import Error, reason
from ..locations import Location, SeekableReader
from .documents import Digest

Decompressor = Callable[[BinaryIO], BinaryIO]
PIECE_BYTES = 1 << 18  # read at once of what is only hashed
_DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstandard.ZstdError)


def _gunzip(raw: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, gzip.GzipFile(fileobj=raw))


def _unzstd(raw: BinaryIO) -> BinaryIO:
    return io.BufferedReader(_Frames(raw, _ZstdFrame), 1 << 16)


def _unxz(raw: BinaryIO) -> BinaryIO:
    return io.BufferedReader(_Frames(raw, lzma.LZMADecompressor, padding=b"\0"), 1 << 16)


def _bunzip2(raw: BinaryIO) -> BinaryIO:
    return io.BufferedReader(_Frames(raw, bz2.BZ2Decompressor), 1 << 16)


BY_SUFFIX: dict[str, Decompressor] = {
    ".gz": _gunzip,
    ".zst": _unzstd,
    ".zstd": _unzstd,
    ".xz": _unxz,
    ".bz2": _bunzip2,
}


@contextmanager
def naming_damage(location: Location, *, is_trusted: bool = False) -> Iterator[None]:
    """Turn damage that shows while a file is decompressed into one line that names the file.

    is_trusted: what was read of it before was taken as it came, held to no hash.
    """
    try:
        yield
    except _DAMAGE as error:
        remedy = "restore the file, and give the command again"
        if is_trusted:
            remedy = (
                "restore the file, and make the dataset anew in an empty directory: what was read of it before the "
                "damage showed may be wrong"
            )
        raise Error(f"{location}: it does not decompress to its end ({error}); {remedy}") from None


class _ZstdFrame:
    """A zstd frame as Python's own decompressors are, but that it gives all there is, however much is asked."""

    needs_input = True

    def __init__(self) -> None:
        self._frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()

    def decompress(self, data: bytes, at_most: int) -> bytes:
        return self._frame.decompress(data)

    @property
    def eof(self) -> bool:
        return self._frame.eof

    @property
    def unused_data(self) -> bytes:
        return self._frame.unused_data


class _Frames(SeekableReader):
    """What a file of any number of frames (zstd) or streams (xz, bzip2) decompresses to.

    A file that ends within a frame is an error, and so is one that goes on with something else after it: Python's own
    readers of xz and bzip2 take that for the end, and what follows would be lost. padding: what may be between two.
    """

    PIECE_BYTES = 1 << 10  # small, because four bytes of zstd may decompress to 128 KiB
    AT_MOST = 1 << 18  # decompressed at once, where that can be said

    def __init__(self, raw: BinaryIO, begin: Callable[[], Any], padding: bytes = b""):
        self._raw, self._begin, self._padding = raw, begin, padding
        self._rewind()

    def _rewind(self) -> None:
        self._raw.seek(0)
        self._at = 0
        self._ready, self._rest = memoryview(b""), b""
        self._frame: Any = None

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            data = b""
            if self._frame is None or self._frame.needs_input:
                data = self._rest or self._raw.read(self.PIECE_BYTES)
                self._rest = b""
                if not data:
                    if self._frame is not None:
                        raise EOFError("the file ends too early")
                    return 0
            if self._frame is None:
                data = data.lstrip(self._padding)
                if not data:
                    continue
                self._frame = self._begin()
            self._ready = memoryview(self._decompressed(data))
            if self._frame.eof:
                self._rest, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        self._at += count
        return count

    def _decompressed(self, data: bytes) -> bytes:
        try:
            return cast(bytes, self._frame.decompress(data, self.AT_MOST))
        except OSError as error:  # bz2 has no exception of its own
            raise EOFError(reason(error)) from None

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        assert whence == io.SEEK_SET
        if offset < self._at:
            self._rewind()
        dropped = memoryview(bytearray(1 << 16))
        while self._at < offset and self.readinto(dropped[: offset - self._at]):
            pass
        return self._at


class Stream:
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
        if self._decompressor and not self.location.size:
            raise EOFError("it is empty")  # even of nothing there would be a header
        return self._decompressor(self._raw) if self._decompressor else self._raw

    def seek(self, place: int) -> None:
        if place != self.place:
            self.place, self._unread = self._file.seek(place), b""

    def skip(self, place: int, seen: Digest) -> bool:
        """Go forward to a place. True where the bytes on the way had to be read, as a compressed file's: `seen` got
        them."""
        if self._decompressor is None:
            self.seek(place)
            return False
        self.hash(place, seen)
        return True

    def hash(self, end: int, seen: Digest) -> None:
        """Read from here up to a place, or to the end, for `seen` alone."""
        while self.place < end and (piece := self.read(min(PIECE_BYTES, end - self.place))):
            seen.update(piece)

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
class InBytes:
    """A format whose runs are in bytes, of a file that may be compressed."""

    decompressor: Decompressor | None = None
    unit = "byte"

    @property
    def is_streamed(self) -> bool:
        return self.decompressor is not None


@dataclass
class OpenInBytes:
    """A source of such a format, held open: what is the same wherever its documents end."""

    source: Stream
    size: int | None  # bytes of the whole, decompressed; None where only walking it would tell

    def hash(self, first: int, count: int, seen: Digest) -> None:
        with naming_damage(self.source.location):
            self.source.seek(first)
            self.source.hash(first + count, seen)

    def close(self) -> None:
        self.source.close()
