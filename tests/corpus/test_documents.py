"""How long a document may be: longer ones are skipped and named whatever their format, a text file is cut."""

import io
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from making import plan_files, texts_of, write_jsonl
from reading import COMPRESS, check_runs, read_run

from gpt2wds import Cut, Files, make_dataset
from gpt2wds.corpus import json_lines
from gpt2wds.corpus.documents import MAX_DOCUMENT_BYTES, Size, Skipped, in_batches, is_longer, too_long
from gpt2wds.corpus.readers import BY_SUFFIX
from gpt2wds.errors import Error
from gpt2wds.locations import local_file

LIMIT = 1000
DOCUMENTS = ["short", "x" * 3000, "é" * 450, "é" * 501, "", "x" * 900, "after"]
TOO_LONG = Skipped("longer than max_document_bytes (1,000)")
EXPECTED = ["short", TOO_LONG, "é" * 450, TOO_LONG, Skipped("empty text"), "x" * 900, "after"]


def write(path: Path) -> Path:
    kind = {".dictionary": pa.dictionary(pa.int32(), pa.string()), ".binary": pa.binary(), ".view": pa.string_view()}
    if path.suffix == ".parquet":
        column = pa.array(DOCUMENTS, pa.string()).cast(kind.get(Path(path.stem).suffix, pa.string()))
        pq.write_table(pa.table({"text": column}), path, row_group_size=4)
    else:
        lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in DOCUMENTS)
        path.write_bytes(COMPRESS[path.suffix.replace(".jsonl", "")](lines.encode()))
    return path


NAMES = ["a.jsonl", "a.jsonl.zst", "a.parquet", "a.dictionary.parquet", "a.binary.parquet", "a.view.parquet"]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_longer_is_skipped_and_the_others_are_read(tmp_path, name):
    location = local_file(write(tmp_path / name))
    reader = BY_SUFFIX[next(suffix for suffix in BY_SUFFIX if name.endswith(suffix))]
    source = reader.open(location, reader.measure(location, "text", LIMIT), "text", LIMIT)
    assert read_run(source) == EXPECTED
    at, found = 0, []
    for wanted in (1, 1, 2, 1, 9):
        run = source.cut(at, wanted, None)
        part = read_run(source, at, run.end - at)
        assert len(part) == run.documents
        found, at = found + part, run.end
    assert found == EXPECTED
    check_runs(reader, tmp_path / name, "text", [2, 3])  # without a limit of ours


def test_the_limit_is_of_bytes():
    assert not is_longer("é" * 500, 1000) and is_longer("é" * 500 + "x", 1000) and is_longer("x" * 1001, 1000)
    assert is_longer("\ud800" * 334, 1000) and not is_longer(too_long(7), 1)


@pytest.mark.parametrize("content", ["one line " * 2000, "line\n" * 3000, "é" * 5000, "paragraph\n\n" * 800])
@pytest.mark.parametrize("suffix", [".txt", ".txt.zst"])
def test_a_text_is_cut(tmp_path, content, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(COMPRESS[suffix.removeprefix(".txt")](content.encode()))
    reader, location = BY_SUFFIX[suffix], local_file(path)
    size = reader.measure(location, "text", LIMIT)
    pieces = read_run(reader.open(location, size, "text", LIMIT))
    assert "".join(pieces) == content and len(pieces) == size.documents
    assert max(len(piece.encode()) for piece in pieces) <= LIMIT


class Watched(io.BytesIO):
    """A file that knows the most that was asked of it at once."""

    most = 0

    def readline(self, size: int | None = -1) -> bytes:
        line = super().readline(size)
        self.most = max(self.most, len(line))
        return line


@dataclass
class InMemory:
    """A file that is nowhere."""

    file: Watched

    def open(self) -> Watched:
        return self.file


def test_a_long_line_is_never_held(monkeypatch):
    monkeypatch.setattr(json_lines, "REST_BYTES", 500)
    lines = [b'{"text": "a"}', b'{"text": "' + b"x" * 50_000 + b'"}', b" " * 20_000, b'{"text": "b"}']
    file = Watched(b"\n".join(lines))
    source = BY_SUFFIX[".jsonl"].open(InMemory(file), Size(4, len(file.getvalue())), "text", LIMIT)
    assert read_run(source) == ["a", TOO_LONG, TOO_LONG, "b"]
    run = source.cut(0, 2, None)
    assert run.end == len(lines[0]) + len(lines[1]) + 2
    assert source.cut(0, None, 30).end == run.end  # within the long line: to its end
    assert read_run(source, run.end) == [TOO_LONG, "b"]
    assert file.most <= LIMIT + 1
    for at_once in (1, 20, 3000):
        monkeypatch.setattr(json_lines, "BATCH_BYTES", at_once)
        assert read_run(source) == ["a", TOO_LONG, TOO_LONG, "b"]
        assert file.most <= LIMIT + 1


def test_documents_that_come_one_by_one_are_handled_in_bounded_batches():
    assert [len(batch) for batch in in_batches(["a"] * 2500)] == [1000, 1000, 500]
    assert [len(batch) for batch in in_batches(["x" * 400_000, TOO_LONG] * 4)] == [5, 3]


def test_the_limit_is_in_the_plan_where_it_is_not_the_default(tmp_path, monkeypatch):
    source = write_jsonl(tmp_path / "a.jsonl", ["short", "x" * 3000, "after"])
    source.write_text(source.read_text() + " " * 2000)  # blank, and too long to be seen to be
    assert "max_document_bytes" not in plan_files(tmp_path / "default", source, val_docs=0).request
    made = {}
    for engine in (True, False):
        if not engine:
            monkeypatch.setattr("gpt2wds.corpus.sharding.prove", lambda tokenizer: None)
        out = tmp_path / f"engine {engine}"
        dataset = make_dataset(out, Files((str(source),), max_document_bytes=LIMIT), Cut(val_docs=0), workers=1)
        assert json.loads((out / "plan.json").read_text())["request"]["max_document_bytes"] == LIMIT
        assert dataset.shards("train")[0].skipped == {TOO_LONG.reason: [1, 3]}
        assert texts_of(out) == ["short", "after"]
        made[engine] = dataset.id
    assert made[True] == made[False]
    for other in (MAX_DOCUMENT_BYTES, 2000):
        with pytest.raises(Error, match=rf"its plan has max_document_bytes = 1000, this command {other}"):
            make_dataset(out, Files((str(source),), max_document_bytes=other), Cut(val_docs=0), workers=1)
    with pytest.raises(Error, match="max_document_bytes: expected 1,000 to 1,099,511,627,776, got 7"):
        Files(("a.jsonl",), max_document_bytes=7)


HELD = """
import resource, sys
from gpt2wds import Cut, Files, make_dataset
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
made = make_dataset(sys.argv[1], Files(tuple(sys.argv[2:])), Cut(val_docs=0), workers=1)
assert made.total("train", "documents") == 2, made.total("train", "documents")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)
"""


@pytest.mark.slow
def test_a_small_file_that_unfolds_to_one_huge_line_takes_little_memory(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    with path.open("wb") as file, zstandard.ZstdCompressor().stream_writer(file) as packed:
        packed.write(b'{"text": "before"}\n{"text": "')
        for _ in range(500):
            packed.write(b"a" * 1_000_000)
        packed.write(b'"}\n{"text": "after"}\n')
    assert path.stat().st_size < 100_000
    command = [sys.executable, "-c", HELD, str(tmp_path / "out"), str(path)]
    kilobytes = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert kilobytes < 500_000
