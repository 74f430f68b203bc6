"""Multiple-choice examples as a source: JSON lines in HellaSwag's schema, one document per example."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

from ..dataset.prompts import Example, read_examples
from ..locations import LocalFile
from .compression import Stream
from .documents import MAX_DOCUMENT_BYTES, Digest, Run, Size, check_delivered


@dataclass(frozen=True)
class Examples:
    """The format. Unlike a text, an example cannot be skipped: the first that is not in the schema is an error."""

    unit, is_streamed = "example", False

    def measure(self, location: LocalFile, text_column: str, max_bytes: int = MAX_DOCUMENT_BYTES) -> Size:
        return Size(sum(1 for _ in read_examples(location.here)), location.size)

    def open(
        self, location: LocalFile, size: Size, text_column: str, max_bytes: int = MAX_DOCUMENT_BYTES
    ) -> "_OpenExamples":
        return _OpenExamples(location, size)


@dataclass
class _OpenExamples:
    location: LocalFile
    size: Size

    def cut(self, first: int, documents: int | None, text_bytes: int | None) -> Run | None:
        count = min(self.size.documents - first, self.size.documents if documents is None else documents)
        return Run(first + count, count, 0) if count > 0 else None

    def hash(self, first: int, count: int, seen: Digest) -> None:
        """Of the whole file: it is small."""
        with closing(Stream(self.location, None)) as raw:
            raw.hash(self.location.size, seen)

    def batches(self, first: int, count: int | None, seen: Digest | None = None) -> Iterator[list[Example]]:
        delivered = 0
        if seen is not None:
            self.hash(first, 0, seen)
        for example in islice(read_examples(self.location.here), first, None if count is None else first + count):
            yield [example]
            delivered += 1
        check_delivered(self.location, "example", first, count, delivered)

    def close(self) -> None:
        pass
