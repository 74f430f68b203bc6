"""What readers of all formats share: a document, the size of a source, a run of its documents."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import xxhash

from ..arguments import whole
from ..errors import Error, counted
from ..locations import Location

BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # of UTF-8, before a text and no part of it
_UTF_16 = "UTF-16 or binary; convert it, for example with iconv"
_NAMED = "; give it the name of its format"
_MARKS = {
    b"\xff\xfe": _UTF_16,
    b"\xfe\xff": _UTF_16,
    b"\x1f\x8b": f"gzip{_NAMED}, .gz",
    b"\x28\xb5\x2f\xfd": f"zstd{_NAMED}, .zst",
    b"\xfd7zXZ\0": f"xz{_NAMED}, .xz",
    b"BZh": f"bzip2{_NAMED}, .bz2",
    b"PAR1": f"parquet{_NAMED}, .parquet",
    b"PK\x03\x04": "a zip archive; unpack it",
}


MAX_DOCUMENT_BYTES = 64_000_000  # if nothing else is said
BATCH_DOCUMENTS, BATCH_BYTES = 1000, 1 << 20  # read, decoded and tokenized at once, whichever is less
LEAST_DOCUMENT_BYTES = 1000  # what may be asked for: the smallest pieces of text
LARGEST_DOCUMENT_BYTES = 1 << 40
# Takes bytes, gives their hash: against rot and mistakes, not malice; far faster than any disk.
Digest = xxhash.xxh3_128


@dataclass(frozen=True)
class Skipped:
    """Stands for a document that cannot be used, and says why: nothing is dropped without being counted."""

    reason: str


Document = str | bytes | Skipped  # bytes are valid UTF-8; a str may have surrogates, which no UTF-8 has


@dataclass(frozen=True)
class Size:
    """What planning learns of a source. `text_bytes` is None where only reading all of it would tell."""

    documents: int
    text_bytes: int | None
    is_exact: bool = True  # whether `documents` was counted, not estimated


@dataclass(frozen=True)
class Run:
    """A run of a source's documents, from where it was asked for to `end`, in the reader's unit.

    `end` is None for the source's end where its place is not known, `documents` where they were not counted.
    `hash` is that of its bytes (see Digest), "" where finding its end did not read them all.
    """

    end: int | None
    documents: int | None
    text_bytes: int
    hash: str = ""


class OpenSource(Protocol):
    """A source held open by whoever walks it, so that what it costs to reach a place is paid once."""

    def cut(self, first: int, documents: int | None, text_bytes: int | None) -> Run | None:
        """The run from `first` on that ends after so many documents or bytes, whichever comes first, or at the end.

        None is no limit, and a byte limit counts the document that reaches it. Documents are counted only where their
        number is a limit. None when nothing is left.
        """

    def batches(self, first: int, count: int | None, seen: Digest | None = None) -> Iterator[list[Any]]:
        """The documents of one run, in order, some at a time; of all that is left where `count` is None.

        seen: gets the bytes that the documents are made of.
        Raises Error where its end is reached and it held more or less than `count` (see check_delivered).
        """

    def hash(self, first: int, count: int, seen: Digest) -> None:
        """Give `seen` the bytes that `batches` would, without making documents of them."""

    def close(self) -> None: ...


class Reader(Protocol):
    """A format. `unit` is what its runs are counted in; `is_streamed`: a place is reached through all before it."""

    @property
    def unit(self) -> str: ...

    @property
    def is_streamed(self) -> bool: ...

    def measure(self, location: Any, text_column: str, max_bytes: int = MAX_DOCUMENT_BYTES) -> Size:
        """Ask a source once. Raises Error when it is not what its name says, or has no such column."""

    def open(self, location: Any, size: Size, text_column: str, max_bytes: int = MAX_DOCUMENT_BYTES) -> OpenSource:
        """A source to walk. max_bytes: of a document; longer ones are skipped, and not held whole where that can be."""


def as_document(value: Any) -> Document:
    """What a text column holds, as a document."""
    if not isinstance(value, str):
        return Skipped("no text" if value is None else f"text is a {type(value).__name__}, no string")
    return value if value else Skipped("empty text")


def utf8(text: str | bytes) -> bytes:
    """A document's text in UTF-8; surrogates are written as if they were characters."""
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")


def is_longer(document: Document, max_bytes: int) -> bool:
    """Whether a document has more bytes of UTF-8 than it may."""
    if isinstance(document, Skipped) or 4 * len(document) <= max_bytes:
        return False
    return len(document) > max_bytes or len(utf8(document)) > max_bytes


def in_batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents that come one by one, so many together that handling them costs little, and memory is bounded."""
    batch: list[Document] = []
    held = 0
    for document in documents:
        batch.append(document)
        held += 0 if isinstance(document, Skipped) else len(document)
        if len(batch) == BATCH_DOCUMENTS or held >= BATCH_BYTES:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def document_limit(name: str, value: object) -> int:
    """A caller's max_document_bytes, as Python's own int. Raises Error for what is none, or out of bounds."""
    number = whole(name, value)
    if not LEAST_DOCUMENT_BYTES <= number <= LARGEST_DOCUMENT_BYTES:
        raise Error(f"{name}: expected {LEAST_DOCUMENT_BYTES:,} to {LARGEST_DOCUMENT_BYTES:,}, got {number:,}")
    return number


def too_long(max_bytes: int) -> Skipped:
    return Skipped(f"longer than max_document_bytes ({max_bytes:,})")


def decoded(data: bytes | None) -> Document:
    """UTF-8 as a document."""
    try:
        return as_document(None if data is None else data.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Skipped(f"not UTF-8 (byte {error.start} of the document)")


def refuse_binary(location: Location, head: bytes) -> None:
    """Raise Error for a file whose first bytes say that it is not UTF-8 text: each document would be wrong, or none."""
    for mark, found in _MARKS.items():
        if head.startswith(mark):
            raise Error(f"{location}: expected UTF-8 text, got what looks like {found}")
    if 4 * head[:64].count(0) >= len(head[:64]) > 0:  # of ASCII every second byte is 0 in UTF-16
        raise Error(f"{location}: expected UTF-8 text, got what looks like {_UTF_16}")


def check_delivered(location: Location, unit: str, first: int, planned: int | None, delivered: int) -> None:
    """What a reader calls at the end of a run: raises Error where it gave more or less than was planned."""
    if planned is not None and planned != delivered:
        raise Error(
            f"source {location}: expected {counted(planned, unit)} from {first:,} on as planned, got "
            f"{max(0, delivered):,}; the file is damaged or another: restore it, or plan again in an empty directory"
        )


def no_column(location: Location, wanted: str, names: list[str]) -> Error:
    found = ", ".join(names) or "none"
    return Error(f"{location}: expected a column {wanted!r}, got {found}; choose one with text_column")
