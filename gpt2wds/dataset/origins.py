"""Documents of a dataset ↔ documents of its sources. The manifest alone says it: no source is opened."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..errors import Error, counted
from .directory import Dataset
from .manifest import SPLITS, ShardEntry, SourceSpan


@dataclass(frozen=True)
class Origin:
    """Where a document comes from.

    number: which of its source's documents it is, from 0: the row of a table, the line of a file of JSON lines (blank
    ones not counted), the piece of a text. None where an older writer did not say how many came before.
    """

    span: SourceSpan
    number: int | None

    @property
    def noun(self) -> str:
        """What `number` counts: "row", or "document" where a file is read by bytes."""
        return "document" if self.span.unit == "byte" else self.span.unit


@dataclass(frozen=True)
class Place:
    """A source's document in a dataset: the `document`-th of a shard; None where it was `skipped`, for that reason."""

    origin: Origin
    split: str
    shard: int
    document: int | None
    skipped: str = ""


@dataclass(frozen=True)
class _Stretch:
    """A span as it lies in its shard. Of the numbers that count skipped documents, None where it is not known."""

    split: str
    shard: int
    span: SourceSpan
    before: int  # documents of the shard before it, the skipped not counted
    documents: int  # in it, the skipped not counted
    first: int | None  # ordinal in the shard of its first document, the skipped counted
    taken: int | None  # documents of the source that it took, the skipped counted

    @property
    def is_known(self) -> bool:
        return self.first is not None and self.taken is not None


class Origins:
    """The origins of a dataset's documents. Raises Error for one whose manifest does not tell them.

    >>> origins = Origins(Dataset("data/mine"))  # doctest: +SKIP
    >>> origins.of("train", 0, 17).number, origins.find("a.parquet", 17).skipped  # doctest: +SKIP
    (18, 'empty text')
    """

    def __init__(self, dataset: Dataset):
        self._dataset = dataset
        self._ordinals = {s: [_ordinals(entry) for entry in dataset.shards(s)] for s in SPLITS}
        self._shards = {s: [_stretches(s, i, e) for i, e in enumerate(dataset.shards(s))] for s in SPLITS}
        self._numbers: dict[_Stretch, int | None] = {}  # of each stretch's first document in its source
        self._sources: dict[str, list[_Stretch]] = {}
        every = [stretch for split in SPLITS for stretches in self._shards[split] for stretch in stretches]
        for stretch in sorted(every, key=lambda stretch: stretch.span.first):
            self._numbers[stretch] = self._number(stretch)
            self._sources.setdefault(stretch.span.source, []).append(stretch)

    def of(self, split: str, shard: int, document: int) -> Origin:
        """Of the `document`-th of a shard, from 0, the skipped not counted."""
        stretch = next(s for s in self._shards[split][shard] if document < s.before + s.documents)
        number = self._numbers[stretch]
        if number is None or not stretch.is_known:
            return Origin(stretch.span, None)
        skipped, nth = self._skipped(stretch), document - stretch.before
        nth += int(np.searchsorted(skipped - np.arange(len(skipped)), nth, side="right"))
        return Origin(stretch.span, number + nth)

    def find(self, source: str, number: int) -> Place:
        """Where document `number` of a source is.

        source: its name in the manifest, or the end of it, from a "/" on. Raises Error where there is none or several
        of that name, or not that document.
        """
        name = self._named(source)
        end = 0
        for stretch in self._sources[name]:
            first = self._numbers[stretch]
            if first is None or stretch.taken is None or not stretch.is_known:
                raise Error(
                    f"source {name}: an older gpt2wds did not note which documents it took of it; make it again"
                )
            end = max(end, first + stretch.taken)
            if first <= number < end:
                origin, skipped, nth = Origin(stretch.span, number), self._skipped(stretch), number - first
                if nth in skipped:
                    return Place(origin, stretch.split, stretch.shard, None, self._reason(stretch, nth))
                document = stretch.before + nth - int((skipped < nth).sum())
                return Place(origin, stretch.split, stretch.shard, document)
        raise Error(f"source {name}: expected one of the documents 0 to {end - 1} that were taken of it, got {number}")

    def _named(self, source: str) -> str:
        found = [name for name in self._sources if name == source or name.endswith(f"/{source}")]
        if source in found:
            return source
        if not found:
            near = difflib.get_close_matches(source, self._sources, n=1, cutoff=0)
            there = f"{counted(len(self._sources), 'source')} of {self._dataset.path}"
            raise Error(
                f"source {source}: expected one of the {there}, got none of them; the nearest is "
                f"{', '.join(near)}, gpt2wds-shard info --json names all"
            )
        if len(found) > 1:
            named = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
            raise Error(
                f"source {source}: expected one source, got {len(found):,} of that name ({named}); give more of it"
            )
        return found[0]

    def _number(self, stretch: _Stretch) -> int | None:
        """Which document of its source a stretch begins with; those of the source before it are known by then."""
        if stretch.span.unit != "byte":
            return stretch.span.first
        earlier = self._sources.get(stretch.span.source)
        if not earlier:
            return 0 if stretch.span.first == 0 else None
        last, number = earlier[-1], self._numbers[earlier[-1]]
        is_next = last.span.first + last.span.count == stretch.span.first
        return number + last.taken if is_next and number is not None and last.taken is not None else None

    def _skipped(self, stretch: _Stretch) -> np.ndarray:
        """Of the documents that a stretch took, those that were skipped, counted from its first."""
        assert stretch.first is not None and stretch.taken is not None
        ordinals = self._ordinals[stretch.split][stretch.shard]
        first, end = np.searchsorted(ordinals, (stretch.first, stretch.first + stretch.taken))
        return ordinals[first:end] - stretch.first

    def _reason(self, stretch: _Stretch, nth: int) -> str:
        assert stretch.first is not None
        reasons = self._dataset.shards(stretch.split)[stretch.shard].skipped
        return next(why for why, ordinals in reasons.items() if stretch.first + nth in ordinals)


def _ordinals(entry: ShardEntry) -> np.ndarray:
    """Ordinals of a shard's skipped documents, in order."""
    return np.array(sorted(n for ordinals in entry.skipped.values() for n in ordinals), dtype=np.int64)


def _stretches(split: str, shard: int, entry: ShardEntry) -> list[_Stretch]:
    skipped = _ordinals(entry)
    stretches: list[_Stretch] = []
    before = 0
    first: int | None = 0
    for span, taken in zip(entry.spans, _taken(entry, len(skipped)), strict=True):
        documents = span.documents if len(entry.spans) > 1 else entry.documents
        if documents is None and taken is not None and first is not None:
            documents = taken - int(((skipped >= first) & (skipped < first + taken)).sum())
        if documents is None:
            raise Error(
                f"{entry.file}: an older gpt2wds did not note how many documents each source gave; make it again"
            )
        stretches.append(_Stretch(split, shard, span, before, documents, first, taken))
        before += documents
        first = None if first is None or taken is None else first + taken
    if before != entry.documents:
        wanted = counted(entry.documents, "document")
        raise Error(f"{entry.file}: expected spans of {wanted}, got {before:,}; verify the dataset")
    return stretches


def _taken(entry: ShardEntry, skipped: int) -> Iterator[int | None]:
    """How many documents of its source each span took, the skipped counted."""
    is_said = sum(span.skipped for span in entry.spans) == skipped  # an older writer did not say
    for span in entry.spans:
        if len(entry.spans) == 1:
            yield entry.documents + skipped
        elif is_said and span.documents is not None:
            yield span.documents + span.skipped
        else:
            yield None if span.unit == "byte" else span.count
