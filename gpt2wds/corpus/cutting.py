"""Sources → spans → shards' worth of them.

Shards are filled across sources: one is closed when it has its bytes or documents, never because a source ends.
Validation is cut first, from the first documents of the sources; training is all that follows.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from ..arguments import at_least, keep_checked, or_none
from ..errors import Error, counted
from .documents import Run
from .plan import Span, Task
from .sources import Source

BYTES_PER_SHARD = 450_000_000
VAL_DOCS_SHARE, MOST_VAL_DOCS = 0.01, 12_000  # held out if nothing else is said
LARGEST_SHARE = 0.1  # of a source, of which more is only held out where it was asked for
NAMED_SOURCES = 100  # up to so many, each of two documents or more gives at least one to validation


@dataclass(frozen=True)
class Cut:
    """How a corpus is cut into shards.

    val_docs: documents held out for validation, exactly; None: the corpus' own number, or 1 % of what is used.
    limit_docs: documents used in all, validation included; None: all.
    docs_per_shard, bytes_per_shard: what closes a shard, whichever comes first; both None: 450 MB of text.
    """

    val_docs: int | None = None
    limit_docs: int | None = None
    docs_per_shard: int | None = None
    bytes_per_shard: int | None = None

    def __post_init__(self) -> None:
        some = or_none(at_least(1))
        keep_checked(self, val_docs=or_none(at_least(0)), limit_docs=some, docs_per_shard=some, bytes_per_shard=some)

    @property
    def shard_bytes(self) -> int | None:
        return self.bytes_per_shard or (None if self.docs_per_shard else BYTES_PER_SHARD)


@dataclass
class Cutting:
    """Shards' worth of spans; for each source where its last span ends (None: it is used up), and its documents as
    far as they were counted."""

    shards: list[list[Span]]
    ends: list[int | None]
    documents: list[int]


def tasks(sources: Sequence[Source], cut: Cut, *, val_docs: int | None, spread: bool) -> list[Task]:
    """Cut sources into tasks, validation first.

    val_docs: the corpus' own number of validation documents, which `cut.val_docs` overrides. spread: each source gives
    its share of them; else they are the first documents of all. Raises Error where nothing is left to train on.
    """
    held = _validation(sources, cut, val_docs, spread)
    taken = sum(held.documents)
    left = None if cut.limit_docs is None else cut.limit_docs - taken
    training = _fill(sources, held.ends, None, left, cut)
    return [
        Task(split, number, tuple(spans))
        for split, cutting in (("val", held), ("train", training))
        for number, spans in enumerate(cutting.shards)
    ]


def _validation(sources: Sequence[Source], cut: Cut, default: int | None, spread: bool) -> Cutting:
    start: list[int | None] = [0] * len(sources)
    counts = [source.size.documents for source in sources]
    asked = cut.val_docs if cut.val_docs is not None else default
    if cut.limit_docs is not None and asked is not None and asked > cut.limit_docs:
        raise Error(
            f"limit_docs: expected at least the {counted(asked, 'document')} of validation, got {cut.limit_docs}; "
            "raise it, or lower val_docs"
        )
    if asked is None and spread:
        return _fill(sources, start, _default_shares(counts, cut.limit_docs), None, cut)
    if asked is None:
        used = min(sum(counts), cut.limit_docs or sum(counts))
        asked = min(MOST_VAL_DOCS, max(1, int(used * VAL_DOCS_SHARE)))
    if not spread:
        return _fill(sources, start, None, asked, cut)
    known = {i for i, source in enumerate(sources) if source.size.is_exact}
    while True:
        given = shares(counts, asked)
        held = _fill(sources, start, given, asked, cut)
        # Numbers of documents that were estimated: where one is too high or too low, others give more or fewer.
        for i, share in enumerate(given):
            if held.documents[i] < share:
                counts[i] = held.documents[i]
                known.add(i)
        low = [i for i in range(len(counts)) if i not in known and counts[i] == given[i]]
        if sum(held.documents) >= asked or (sum(given) == sum(held.documents) and not low):
            return held
        for i in low:
            counts[i] = 2 * counts[i] + 1


def _default_shares(counts: Sequence[int], limit: int | None) -> list[int]:
    """Documents each source holds out if nothing is said: 1 % of what is used, of each about its share."""
    total = sum(counts)
    used = min(total, limit or total)
    wanted = min(MOST_VAL_DOCS, max(1, int(used * VAL_DOCS_SHARE)))
    given = shares(counts, wanted)
    if len(counts) > NAMED_SOURCES:
        return given
    # Few sources: each is represented, and none swallowed.
    most = [max(1, int(n * LARGEST_SHARE)) if n > 1 else 0 for n in counts]
    given = [min(limit, max(1, n)) if limit else 0 for n, limit in zip(given, most, strict=True)]
    return given if any(given) else shares(counts, min(wanted, max(0, total - 1)))


def shares(counts: Sequence[int], wanted: int) -> list[int]:
    """Divide `wanted` documents among sources in proportion to what they have, none giving more than that.

    Largest remainders decide, the earlier of equals first.

    >>> shares([1000, 100, 7], 11)
    [10, 1, 0]
    >>> shares([1, 1, 1], 2)
    [1, 1, 0]
    """
    total = sum(counts)
    wanted = min(wanted, total)
    if not wanted:
        return [0] * len(counts)
    given = [count * wanted // total for count in counts]
    by_remainder = sorted(range(len(counts)), key=lambda i: (-(counts[i] * wanted % total), i))
    for i in by_remainder[: wanted - sum(given)]:
        given[i] += 1
    return given


def _fill(
    sources: Sequence[Source],
    starts: Sequence[int | None],
    limits: Sequence[int] | None,
    total: int | None,
    cut: Cut,
) -> Cutting:
    """Cut sources, from `starts` on, into spans, and give these out, one shard's worth at a time.

    At most `limits` documents of each source and `total` of all.
    """
    done = Cutting([], [], [])
    shard = _Shard(cut)
    for number, source in enumerate(sources):
        is_empty = source.size.is_exact and not source.size.documents  # blank lines are not worth a span
        at = None if is_empty else starts[number]
        limit = least(
            None if limits is None else limits[number], None if total is None else total - sum(done.documents)
        )
        taken = 0
        with closing(source.open()) as opened:
            while at is not None and (limit is None or taken < limit):
                left = None if limit is None else limit - taken
                run = opened.cut(at, least(left, shard.documents_left), shard.bytes_left)
                if run is None:
                    break
                shard.add(Span(number, at, None if run.end is None else run.end - at, run.hash), run)
                taken += run.documents or 0
                at = run.end
                if shard.is_full:
                    done.shards.append(shard.spans)
                    shard = _Shard(cut)
        done.ends.append(at)
        done.documents.append(taken)
    if shard.spans:
        done.shards.append(shard.spans)
    return done


class _Shard:
    """The shard that is being filled, and what it still takes; None for no limit."""

    def __init__(self, cut: Cut):
        self.spans: list[Span] = []
        self.documents_left, self.bytes_left = cut.docs_per_shard, cut.shard_bytes

    def add(self, span: Span, run: Run) -> None:
        self.spans.append(span)
        if self.documents_left is not None:
            self.documents_left -= run.documents or 0
        if self.bytes_left is not None:
            self.bytes_left -= run.text_bytes

    @property
    def is_full(self) -> bool:
        return any(left is not None and left <= 0 for left in (self.documents_left, self.bytes_left))


def least(*limits: int | None) -> int | None:
    """The smallest limit; None means no limit."""
    return min((limit for limit in limits if limit is not None), default=None)
