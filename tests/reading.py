"""Reading formats in tests: whole, and in runs."""

from pathlib import Path

from gpt2wds.corpus.documents import Document, OpenSource, Reader
from gpt2wds.locations import local_file


def opened(reader: Reader, path: Path, text_column: str = "text") -> OpenSource:
    location = local_file(path)
    return reader.open(location, reader.measure(location, text_column), text_column)


def read_all(reader: Reader, path: Path, text_column: str = "text") -> list[Document]:
    return list(opened(reader, path, text_column).read(0, None))


def count(reader: Reader, path: Path) -> int:
    """Documents that planning counts or estimates."""
    return reader.measure(local_file(path), "text").documents


def check_runs(reader: Reader, path: Path, text_column: str, steps: list[int]) -> None:
    """Walk the file in runs of `steps` documents: what the runs give is what the whole file gives."""
    whole, source = read_all(reader, path, text_column), opened(reader, path, text_column)
    found: list[Document] = []
    at = 0
    for step in steps:
        run = source.cut(at, step, None)
        if run is None:
            break
        part = list(source.read(at, run.end - at))
        assert len(part) == run.documents == min(step, len(whole) - len(found))
        found, at = found + part, run.end
    assert found + list(source.read(at, None)) == whole


def check_byte_runs(reader: Reader, path: Path, limits: list[int]) -> None:
    """Walk the file in runs of `limits` bytes: each is as short as whole documents allow."""
    whole, source = read_all(reader, path), opened(reader, path)
    found: list[Document] = []
    at = 0
    for limit in limits:
        run = source.cut(at, None, limit)
        if run is None:
            assert not list(source.read(at, None))
            break
        last = not list(source.read(run.end, None))
        assert last or run.end - at >= limit
        assert run.text_bytes == run.end - at
        both = source.cut(at, 1_000_000, limit)  # documents limited too: the same, but counted
        assert len(list(source.read(at, both.end - at))) == both.documents
        part = list(source.read(at, run.end - at))
        if len(part) > 1 and run.end - at > limit:
            assert source.cut(at, len(part) - 1, None).end - at < limit
        found, at = found + part, run.end
    assert found + list(source.read(at, None)) == whole
