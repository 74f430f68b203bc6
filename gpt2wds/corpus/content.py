"""What a plan knows of its sources' bytes: a hash of each span, which every reading of the span is held to.

A time of change says neither that a file is another (copies have their own) nor that it is the same (who renames one
over it, or a disk that rots, may keep the time). So the bytes decide. A file that planning reads anyway, as a
compressed one, is hashed on the way; any other file of this machine is read once more for it.
"""

import logging
from collections.abc import Collection, Iterable, Sequence
from contextlib import closing
from dataclasses import replace

from ..errors import Error
from ..locations import LocalFile, Location, UrlFile
from .documents import Digest
from .plan import Plan, Span, Task
from .sources import Source, at_once

LONG_BYTES = 1 << 34  # from so much on, what is read for hashes is said

_LOG = logging.getLogger(__name__)


def hashed(sources: Sequence[Source], tasks: Sequence[Task], *, trust_times: bool = False) -> list[Task]:
    """The tasks with a hash of each span of a local file, many files read at a time.

    trust_times: local files that are not compressed are not read for it. A compressed one was read up to its last span,
    and its time says nothing of how it unfolds. Raises Error for a file that changed since it was first looked at.
    """
    missing = _by_source(span for task in tasks for span in task.spans if not span.hash)

    def is_read(source: Source) -> bool:
        return _is_unmarked(source) or (_has_time(source) and (source.format.is_streamed or not trust_times))

    wanted = [number for number in missing if is_read(sources[number])]
    size = sum(sources[number].location.size for number in wanted)
    if size >= LONG_BYTES:
        _LOG.warning("reading %d GB of sources to know their content; trust_times leaves it out", size / 1e9)

    def hash_spans(number: int) -> list[tuple[Span, str]]:
        return list(_hashes(sources[number], missing[number]))

    found = dict(pair for pairs in at_once(hash_spans, wanted) for pair in pairs)
    for number in _by_source(span for task in tasks for span in task.spans):
        if _has_time(sources[number]):
            sources[number].location.check_unchanged()
    return [
        replace(task, spans=tuple(replace(span, hash=found.get(span, span.hash)) for span in task.spans))
        for task in tasks
    ]


def refuse_other_content(plan: Plan, meant: Collection[int]) -> None:
    """Raise Error where one of these sources, by number, has another time than planned, and other bytes.

    Only local files are asked. One that is gone is not missed, and one without hashes may have any time.
    """

    def compare(number: int) -> None:
        source = plan.sources[number]
        if not _has_other_time(source.location):
            return
        source.location.check_unchanged(by_time=False)
        for span, found in _hashes(source, spans[number]):
            refuse_other(source, span, found)

    spans = _by_source(span for task in plan.tasks for span in task.spans if span.hash)
    at_once(compare, [number for number in spans if number in meant and _has_time(plan.sources[number])])


def refuse_other(source: Source, span: Span, found: str) -> None:
    """Raise Error where the bytes of a span are not those that were planned."""
    if found != span.hash:
        raise Error(
            f"source {source.name}: the file changed since the plan was made, expected hash {span.hash} of the span "
            f"from {source.unit} {span.first:,} on, got {found}; put it back, or plan again in an empty directory"
        )


def _hashes(source: Source, spans: Sequence[Span]) -> Iterable[tuple[Span, str]]:
    with closing(source.open()) as opened:
        for span in spans:
            seen = Digest()
            assert span.count is not None, "only of the Hub's files it may be unknown where a span ends"
            opened.hash(span.first, span.count, seen)
            yield span, seen.hexdigest()


def _by_source(spans: Iterable[Span]) -> dict[int, list[Span]]:
    """Spans in order, those of each source together."""
    found: dict[int, list[Span]] = {}
    for span in spans:
        found.setdefault(span.source, []).append(span)
    return found


def _has_time(source: Source) -> bool:
    """Whether it is a file of this machine. A package's are known by its version."""
    return isinstance(source.location, LocalFile) and source.location.mtime_ns is not None


def _is_unmarked(source: Source) -> bool:
    """Whether it is a compressed file at a URL that nothing else tells from another; short ones were not hashed yet."""
    return isinstance(source.location, UrlFile) and not source.location.mark and source.format.is_streamed


def _has_other_time(location: Location) -> bool:
    assert isinstance(location, LocalFile)
    return location.here.exists() and location.here.stat().st_mtime_ns != location.mtime_ns
