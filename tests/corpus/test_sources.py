"""Sources that give other than the plan says: noticed by every reader, at the end of every span."""

import bz2
import gzip
import json
import lzma
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from making import CHOICES
from reading import read_run

from gpt2wds.corpus.corpora import Files
from gpt2wds.corpus.cutting import Cut
from gpt2wds.corpus.documents import Size
from gpt2wds.corpus.plan import Plan, Span, Task
from gpt2wds.corpus.readers import BY_SUFFIX
from gpt2wds.corpus.sharding import make_plan
from gpt2wds.corpus.sources import EXAMPLES, WHOLE, Source
from gpt2wds.corpus.writing import TaskRunner
from gpt2wds.errors import Error
from gpt2wds.folder import Folder
from gpt2wds.locations import LocalFile, local_file

COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".zstd": zstandard.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}


def text(number: int, length: int = 70_000) -> str:
    """A piece of a text file, which ends at a blank line after 64 KiB."""
    return f"text {number} ".ljust(length - 2, "x") + "\n\n"


def write(path: Path, reader: str, numbers: list[int], lengths: Sequence[int] = (70_000,) * 10) -> None:
    if reader == EXAMPLES:
        lines = CHOICES.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[n] for n in numbers))
    elif reader == ".parquet":
        pq.write_table(pa.table({"text": [text(n) for n in numbers]}), path, row_group_size=3)
    else:
        plain = [text(n, length) for n, length in zip(numbers, lengths, strict=False)]
        if "txt" not in reader and reader != WHOLE:
            plain = [json.dumps({"text": one}) + "\n" for one in plain]
        data = "".join(plain).encode()
        path.write_bytes(next((pack(data) for end, pack in COMPRESSED.items() if reader.endswith(end)), data))


def source(path: Path, reader: str) -> Source:
    found = Source(path.name, reader, local_file(path))
    return replace(found, size=found.format.measure(found.location, "text"))


def read(source: Source, span: Span) -> list[str]:
    opened = source.open()
    try:
        return read_run(opened, span.first, span.count)
    finally:
        opened.close()


@pytest.mark.parametrize("reader", [*BY_SUFFIX, WHOLE, EXAMPLES])
def test_a_span_that_ends_early_is_an_error_of_every_reader(tmp_path: Path, reader: str) -> None:
    path = tmp_path / f"a{reader}"
    write(path, reader, list(range(8)))
    planned = source(path, reader)
    run = planned.open().cut(0, 1 if reader == WHOLE else 6, None)
    assert run is not None and run.end is not None
    span = Span(0, 0, run.end)
    assert len(read(planned, span)) == run.documents
    write(path, reader, list(range(4)))
    four = source(path, reader)
    delivered = four.size.documents if planned.unit != "byte" else run.end if reader == WHOLE else None
    shorter = replace(planned, location=four.location)
    with pytest.raises(Error) as said:
        read(shorter, span)
    found = re.fullmatch(
        rf"source {path}: expected ([\d,]+) {planned.unit}s from 0 on as planned, got ([\d,]+); "
        "the file is damaged or another: restore it, or plan again in an empty directory",
        str(said.value),
    )
    assert found, said.value
    assert int(found[1].replace(",", "")) == run.end
    if reader != WHOLE:
        assert delivered in (None, int(found[2].replace(",", "")))
    # What begins behind the end gave nothing, in silence.
    with pytest.raises(Error, match=r"got 0; the file is damaged or another"):
        read(shorter, Span(0, 7 if planned.unit != "byte" else run.end + 10, 1))


@pytest.mark.parametrize("reader", [".jsonl", ".jsonl.gz", ".txt", ".txt.zst"])
def test_documents_that_lie_elsewhere_are_an_error(tmp_path: Path, reader: str) -> None:
    """As many bytes, but a span that was cut between two documents ends within one."""
    path = tmp_path / f"a{reader}"
    write(path, reader, [1, 2, 3])
    planned = source(path, reader)
    run = planned.open().cut(0, 2, None)
    write(path, reader, [1, 2, 3], lengths=[71_000, 70_000, 69_000])
    with pytest.raises(Error, match=r"bytes from 0 on as planned, got "):
        read(replace(planned, location=local_file(path)), Span(0, 0, run.end))


def test_a_whole_file_of_another_number_of_documents_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\n{"text": "c"}\n')
    plan = make_plan(Folder(tmp_path / "out"), Files((str(path),)), Cut(val_docs=0))
    # As earlier plans were, which had no hashes of spans.
    plan = replace(plan, tasks=(Task("train", 0, (Span(0, 0, 42),)),))
    path.write_text('{"text": "a"}\n{"text": "b", "c": "........."}'[:42].ljust(42))
    changed = replace(plan, sources=(replace(plan.sources[0], location=local_file(path)),))
    with pytest.raises(Error, match="expected 3 documents from 0 on as planned, got 2"):
        run(changed, Folder(tmp_path / "out"))


def test_urls_without_a_mark_of_change_are_named_once_when_planning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b", "c"):
        fsspec.filesystem("memory").pipe(f"/unmarked/{name}.jsonl", b'{"text": "a"}\n{"text": "b"}\n')
    request = Files(("memory://unmarked/*.jsonl",))
    make_plan(Folder(tmp_path / "marked"), request)
    assert not caplog.records
    monkeypatch.setattr("gpt2wds.locations.CHANGE_MARKS", ())
    plan = make_plan(Folder(tmp_path / "out"), request)
    make_plan(Folder(tmp_path / "out"), request)
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("source memory:///unmarked/a.jsonl and 2 more: its server tells neither an ETag nor a time")
    run(plan, Folder(tmp_path / "out"))


def test_a_plan_whose_directory_lost_its_cache_goes_on(tmp_path: Path) -> None:
    """As earlier versions made them."""
    for name in ("a", "b"):
        fsspec.filesystem("memory").pipe(f"/lost/{name}.jsonl", b'{"text": "a"}\n{"text": "b"}\n')
    plan = make_plan(Folder(tmp_path / "out"), Files(("memory://lost/",)))
    Files(("simplecache::memory://lost/",)).refuse_changes(plan.sources, False, Folder(tmp_path / "out"))
    with pytest.raises(Error, match="the paths now mean 1 file, the plan has 2 .'memory:///lost/b.jsonl' is gone"):
        Files(("simplecache::memory://lost/a*",)).refuse_changes(plan.sources, False, Folder(tmp_path / "out"))


def run(plan: Plan, out: Folder) -> None:
    runner = TaskRunner(Folder(out), plan, None)
    for task in plan.tasks:
        runner(task, lambda documents, tokens: None)


@pytest.mark.parametrize("reader", [name for name in BY_SUFFIX if name != ".parquet"] + [WHOLE])
def test_a_disk_that_fails_is_told_with_its_file_and_is_no_damage(tmp_path: Path, reader: str) -> None:
    path = tmp_path / f"a{reader}"
    path.symlink_to("/proc/self/mem")  # whose first bytes are EIO
    location = LocalFile(str(path), 1000)
    failing = replace(Source(path.name, reader, location), size=Size(1, 1000))
    said = re.escape(f"Input/output error: {str(path)!r}")
    if reader != WHOLE:  # which is not read to be measured
        with pytest.raises(OSError, match=said):
            failing.format.measure(location, "text")
    with pytest.raises(OSError, match=said):
        read(failing, Span(0, 0, 10))


def test_parquet_that_may_not_be_read_is_not_called_damaged() -> None:
    with TemporaryDirectory() as name:  # pytest's folders are their owner's alone
        path = Path(name, "a.parquet")
        Path(name).chmod(0o755)
        write(path, ".parquet", [1, 2])
        planned = source(path, ".parquet")
        path.chmod(0)
        is_root = os.geteuid() == 0  # who may read everything
        if is_root:
            os.seteuid(65_534)
        try:
            with pytest.raises(PermissionError, match=re.escape(str(path))):
                planned.format.measure(planned.location, "text")
            with pytest.raises(PermissionError, match=re.escape(str(path))):
                read(planned, Span(0, 0, 2))
        finally:
            if is_root:
                os.seteuid(0)
