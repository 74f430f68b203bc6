"""JSON lines: runs joined are the whole file, and what is no document is counted with its reason."""

import base64
import gzip
import itertools
import json
import random
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import COMPRESS, check_byte_runs, check_runs, count, opened, read_all, read_run

from gpt2wds.corpus import json_lines
from gpt2wds.corpus.documents import Digest, Size, Skipped, too_long
from gpt2wds.corpus.readers import BY_SUFFIX
from gpt2wds.errors import Error
from gpt2wds.locations import local_file

JSONL, PARQUET, TEXT = BY_SUFFIX[".jsonl"], BY_SUFFIX[".parquet"], BY_SUFFIX[".txt"]
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
STEPS = st.lists(st.integers(1, 5), max_size=6)
LIMITS = st.lists(st.integers(1, 90), max_size=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """For files that every example of a property test writes again."""
    return tmp_path_factory.mktemp("readers")


COMPRESSED = {f".jsonl{suffix}": COMPRESS[suffix] for suffix in ("", ".gz", ".zst")}
NUMBERS = itertools.count()  # a new name each time, as a changed file would have another time of change


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["", "  ", "\r"]) | TEXTS.map(lambda t: json.dumps({"text": t}))),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    STEPS,
    LIMITS,
)
def test_jsonl_runs_joined_are_the_whole_file(folder, lines, line_end, ends_in_line_end, steps, limits):
    data = (line_end.join(lines) + line_end * ends_in_line_end).encode()
    texts = [json.loads(line)["text"] for line in lines if line.strip()]
    for suffix, compress in COMPRESSED.items():
        path = folder / f"{next(NUMBERS)}{suffix}"
        path.write_bytes(compress(data))
        reader = BY_SUFFIX[suffix]
        assert read_all(reader, path) == [text or Skipped("empty text") for text in texts]
        assert count(reader, path) == len(texts)
        check_runs(reader, path, "text", steps)
        check_byte_runs(reader, path, limits)
        path.unlink()


@pytest.mark.parametrize(
    ("line", "document"),
    [
        (b'{"text": "a"}', "a"),
        (b'\xef\xbb\xbf{"text": "a"}', "a"),
        (b' {"id": 1, "text": "a", "text": "b"} \r', "b"),
        (b'{"text": "\\ud800"}', "\ud800"),
        (b'{"text": null}', Skipped("no text")),
        (b'{"body": "a"}', Skipped("no text")),
        (b'{"text": ""}', Skipped("empty text")),
        (b'{"text": 7}', Skipped("text is a int, no string")),
        (b'{"text": ["a"]}', Skipped("text is a list, no string")),
        (b'{"text": "a"', Skipped("no JSON")),
        (b'{"text": "a"}{"text": "b"}', Skipped("no JSON")),
        (b'{"text": "\xff"}', Skipped("not UTF-8")),
        (b"[" * 100_000, Skipped("JSON nested more than 500 deep")),
        (b'{"text": "a", "b": ' + b"[" * 499 + b"]" * 499 + b"}", "a"),
        (b'{"text": "a", "b": ' + b"[" * 500 + b"]" * 500 + b"}", Skipped("JSON nested more than 500 deep")),
        (b'{"text": "' + b"[{" * 999 + b'"}', "[{" * 999),
        (b'["text"]', Skipped("no JSON object")),
        (b"null", Skipped("no JSON object")),
    ],
)
def test_every_line_is_a_document_or_says_why_not(tmp_path, line, document):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "before"}\n' + line + b'\n\n{"text": "after"}')
    assert read_all(JSONL, path) == ["before", document, "after"]


LINES = [
    b'{"text": "a"}',
    b"",
    b'{"text": "' + b"x" * 90 + b'"}',
    b"  ",
    b"no JSON",
    b"\r",
    b'{"text": "\xc3\xa9"}',
    b"",
]


@pytest.mark.parametrize("at_once", [1, 2, 13, 14, 15, 50, 1000])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_lines_are_whole_wherever_reading_stops(tmp_path, monkeypatch, at_once, end):
    monkeypatch.setattr(json_lines, "BATCH_BYTES", at_once)
    path, data = tmp_path / "a.jsonl", b"\n".join(LINES * 3) + end
    path.write_bytes(data)
    assert read_all(JSONL, path) == ["a", "x" * 90, Skipped("no JSON"), "é"] * 3
    check_byte_runs(JSONL, path, [1, 20, 100, 40, 3])
    source, seen = opened(JSONL, path), Digest()
    whole = [document for batch in source.batches(0, len(data), seen) for document in batch]
    assert seen.hexdigest() == Digest(data).hexdigest() and len(whole) == 12
    limited = JSONL.open(local_file(path), Size(12, len(data)), "text", 50)
    assert read_run(limited) == ["a", too_long(50), Skipped("no JSON"), "é"] * 3


@pytest.mark.parametrize("suffix", COMPRESSED)
def test_documents_of_a_large_jsonl_file_are_estimated(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    lines = [
        json.dumps({"text": base64.b64encode(random.Random(n).randbytes(750)).decode()}) + "\n" for n in range(3000)
    ]
    path.write_bytes(COMPRESSED[suffix]("".join(lines).encode()))
    assert 2500 < count(BY_SUFFIX[suffix], path) < 3300


def test_a_jsonl_file_is_checked(tmp_path):
    path = tmp_path / "a.jsonl"
    for content in ('{"text": "a"}\nno JSON\n', "", "\n"):
        path.write_text(content)
        JSONL.measure(local_file(path), "text")
    for content, got in (("no JSON\n", ""), ('["text"]\n', ""), ("[" * 100_000, "JSON nested more than 500 deep, ")):
        path.write_text(content)
        with pytest.raises(ValueError, match=rf"a\.jsonl: expected one JSON object per line, got {got}b'"):
            JSONL.measure(local_file(path), "text")
    path.write_text('{"body": "a", "id": 1}\n')
    with pytest.raises(ValueError, match="expected a column 'text', got body, id; choose one with text_column"):
        JSONL.measure(local_file(path), "text")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf16_is_refused(tmp_path, encoding):
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"text": "a"}\n{"text": "b"}\n'.encode(encoding))
    with pytest.raises(Error, match=r"a\.jsonl: expected UTF-8 text, got what looks like UTF-16 or binary; convert it"):
        JSONL.measure(local_file(path), "text")


def test_a_byte_order_mark_is_no_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\n{"text": "b"}\n')
    assert read_all(JSONL, path) == ["a", "b"]


@pytest.mark.parametrize("suffix", [".ndjson", ".json", ".jsonl.zstd", ".json.gz", ".ndjson.xz", ".jsonl.bz2"])
def test_other_spellings_of_json_lines(tmp_path, suffix):
    import bz2
    import lzma

    data = b'{"text": "a"}\n{"text": "b"}\n'
    compress = {"gz": gzip.compress, "zstd": zstandard.compress, "xz": lzma.compress, "bz2": bz2.compress}
    path = tmp_path / f"a{suffix}"
    path.write_bytes(compress.get(suffix.rpartition(".")[2], bytes)(data))
    assert read_all(BY_SUFFIX[suffix], path) == ["a", "b"]
