"""A source: one file of a corpus, where it is, how it is read, and what planning learned of it. Many are a corpus."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from ..dataset.manifest import TOKENS, CorpusName, member, others
from ..errors import Error, shown
from ..folder import Folder
from ..locations import Location, UrlFile, located
from ..strict_json import Record
from .documents import MAX_DOCUMENT_BYTES, OpenSource, Reader, Size
from .examples import Examples
from .hub import HubRows
from .readers import BY_SUFFIX
from .text import WholeFile

WHOLE, EXAMPLES, DATASETS = "whole", "examples", "datasets"  # readers that no suffix says
NOT_MEASURED = Size(0, None, is_exact=False)
ASKED_AT_ONCE = 32  # sources measured at the same time: most of it is waiting

_LOG = logging.getLogger(__name__)

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")

_LOCATION = {**dict.fromkeys(("path", "repo", "revision", "etag", "url", "mark"), str), "size": int, "mtime_ns": int}


@dataclass(frozen=True)
class Source:
    """One file. `reader` is the suffix of its format or WHOLE, EXAMPLES or DATASETS; `text_column` and
    `max_document_bytes` are the corpus'."""

    name: str
    reader: str
    location: Location
    size: Size = NOT_MEASURED
    text_column: str = "text"
    max_document_bytes: int = MAX_DOCUMENT_BYTES
    extras: Record = field(default_factory=dict)  # for DATASETS: config and split

    @property
    def format(self) -> Reader:
        if self.reader == DATASETS:
            return HubRows(self.extras.get("config"), self.extras["split"])
        if self.reader == EXAMPLES:
            return Examples()
        return WholeFile() if self.reader == WHOLE else BY_SUFFIX[self.reader]

    @property
    def unit(self) -> str:
        """What its spans are counted in: "row", "byte" or "example"."""
        return self.format.unit

    def open(self) -> OpenSource:
        return self.format.open(self.location, self.size, self.text_column, self.max_document_bytes)

    def record(self) -> Record:
        learned: Record = {"documents": self.size.documents}
        if self.size.text_bytes is not None:
            learned["text_bytes"] = self.size.text_bytes
        if not self.size.is_exact:
            learned["is_estimate"] = True
        fixed = {"name": self.name, "reader": self.reader, "unit": self.unit}
        return {**fixed, **self.location.record(), **learned, **self.extras}

    @classmethod
    def from_record(cls, record: Any, text_column: str, max_document_bytes: int = MAX_DOCUMENT_BYTES) -> "Source":
        """Raises Error that says which member is not as it must be."""
        name, reader = member(record, "name", str), member(record, "reader", str)
        if reader not in (WHOLE, EXAMPLES, DATASETS, *BY_SUFFIX):
            raise Error(f"'reader': expected a format, got {reader[:40]!r}")
        said = {key: member(record, key, kind) for key, kind in _LOCATION.items() if key in record}
        try:
            location = located(said)
        except KeyError as error:
            raise Error(f"source {name[:80]!r}: expected a member {error}, got none") from None
        text_bytes = member(record, "text_bytes", int) if "text_bytes" in record else None
        size = Size(member(record, "documents", int), text_bytes, not record.get("is_estimate"))
        extras = others(record, *_LOCATION, "name", "reader", "unit", "documents", "text_bytes", "is_estimate")
        if reader == DATASETS:
            member(extras, "split", str)
        source = cls(name, reader, location, size, text_column, max_document_bytes, extras)
        if member(record, "unit", str) != source.unit:
            raise Error(f"'unit': expected {source.unit} for {reader}, got {record['unit'][:40]!r}")
        return source


@dataclass(frozen=True)
class Corpus:
    """A corpus as it was found: its name, and its sources with their sizes.

    val_docs: its own number of validation documents, None for a share of all. spread: whether each source gives some
    of them, or the first documents of all are taken.
    """

    name: CorpusName
    sources: tuple[Source, ...]
    val_docs: int | None = None
    spread: bool = True
    kind: str = TOKENS


def warn_of_unmarked(found: Sequence[Source]) -> None:
    """Say, once, that files changed in the middle of a run would go unnoticed, where their servers tell no mark.

    Compressed files are known by the hashes of their spans.
    """
    names = [
        source.name
        for source in found
        if isinstance(source.location, UrlFile) and not source.location.mark and not source.format.is_streamed
    ]
    if names:
        more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
        _LOG.warning(
            "source %s%s: its server tells neither an ETag nor a time of change; do not change it before the dataset "
            "is finished, a change that keeps its size goes unnoticed",
            shown(names[0]),
            more,
        )


def measured(found: list[Source]) -> list[Source]:
    """The sources with their sizes, each asked once, many at a time. Raises Error for one that cannot be read."""

    def ask(source: Source) -> Source:
        return replace(
            source, size=source.format.measure(source.location, source.text_column, source.max_document_bytes)
        )

    return at_once(ask, found)


def at_once(ask: Callable[[Asked], Answer], things: list[Asked]) -> list[Answer]:
    """The answers in order, many asked at the same time. Raises what the first that fails raises."""
    with ThreadPoolExecutor(ASKED_AT_ONCE) as threads:
        return list(threads.map(ask, things))


def kept_in(folder: Folder, corpus: str) -> Path:
    """A dataset's directory, to keep a download that every worker and every later call reads. Raises Error at a URL."""
    if not folder.is_local:
        raise Error(
            f"{corpus}: expected a local copy, to make a dataset at a URL, got none; give it with --source FILE"
        )
    return Path(folder.path)
