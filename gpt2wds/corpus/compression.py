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

from ..errors import Error
from ..locations import Location, SeekableReader
from .documents import Digest

Decompressor = Callable[[BinaryIO], BinaryIO]
PIECE_BYTES = 1 << 18  # read at once of what is only hashed
_DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstandard.ZstdError)


def _gunzip(raw: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, gzip.GzipFile(fileobj=raw))


def _unzstd(raw: BinaryIO) -> BinaryIO:
    return io.BufferedReader(_ZstdStream(raw), 1 << 16)


def _unxz(raw: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, lzma.LZMAFile(raw))


def _bunzip2(raw: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, bz2.BZ2File(raw))


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


class _ZstdStream(SeekableReader):
    """What a zstd file of any number of frames decompresses to; a file that ends within a frame is an error."""

    PIECE_BYTES = 1 << 10  # small, because four bytes may decompress to 128 KiB

    def __init__(self, raw: BinaryIO):
        self._raw = raw
        self._rewind()

    def _rewind(self) -> None:
        self._raw.seek(0)
        self._at = 0
        self._ready, self._rest = memoryview(b""), b""
        self._frame: Any = None

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            data = self._rest or self._raw.read(self.PIECE_BYTES)
            if not data:
                if self._frame is not None:
                    raise EOFError("the file ends in the middle of a zstd frame")
                return 0
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
            self._ready, self._rest = memoryview(self._frame.decompress(data)), b""
            if self._frame.eof:
                self._rest, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        self._at += count
        return count

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
