"""File readers: parts joined are the whole file, and what is no document is counted with its reason."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2wds import readers
from gpt2wds.readers import BY_SUFFIX, Skipped, WholeFile

JSONL, PARQUET, TEXT = BY_SUFFIX[".jsonl"], BY_SUFFIX[".parquet"], BY_SUFFIX[".txt"]
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """For files that every example of a property test writes again."""
    return tmp_path_factory.mktemp("readers")


def read_all(reader, path: Path, text_column: str = "text") -> list:
    return list(reader.read(path, 0, reader.size(path), text_column))


def check_parts(reader, path: Path, text_column: str, steps: list[int]) -> None:
    """Walk the file in parts of `steps` documents: what the parts give is what the whole file gives."""
    whole = read_all(reader, path, text_column)
    parts, at = [], 0
    for step in steps:
        end, found = reader.after(path, at, step)
        part = list(reader.read(path, at, end - at, text_column))
        assert len(part) == found == min(step, len(whole) - len(parts))
        parts, at = parts + part, end
    rest = list(reader.read(path, at, reader.size(path) - at, text_column))
    assert parts + rest == whole


def check_byte_parts(reader, path: Path, limits: list[int]) -> None:
    """Walk the file in parts of `limits` bytes: each part is as short as whole documents allow."""
    whole = read_all(reader, path)
    parts, at, size = [], 0, reader.size(path)
    for limit in limits:
        end = reader.after_bytes(path, at, limit)
        assert end == size or end - at >= limit
        if end > at:
            count = len(part := list(reader.read(path, at, end - at, "text")))
            if count > 1 and end - at > limit:
                assert reader.after(path, at, count - 1)[0] - at < limit
            parts += part
        at = end
    rest = list(reader.read(path, at, size - at, "text"))
    assert parts + rest == whole


STEPS = st.lists(st.integers(1, 5), max_size=6)
LIMITS = st.lists(st.integers(1, 90), max_size=6)


# Parquet


@settings(deadline=None)
@given(st.lists(TEXTS, max_size=30), st.integers(1, 10), STEPS)
def test_parquet_parts_joined_are_the_whole_file(folder, texts, row_group, steps):
    path = folder / "a.parquet"
    table = pa.table({"id": pa.array(range(len(texts)), pa.int64()), "text": pa.array(texts, pa.string())})
    pq.write_table(table, path, row_group_size=row_group)
    assert read_all(PARQUET, path) == [text or Skipped("empty text") for text in texts]
    assert PARQUET.size(path) == PARQUET.count_documents(path) == len(texts)
    check_parts(PARQUET, path, "text", steps)


def test_parquet_parts_across_row_groups_and_batches(tmp_path):
    path = tmp_path / "a.parquet"
    texts = [str(n) for n in range(5000)]
    for row_group in (700, 2500):  # batches of 1,000 rows
        pq.write_table(pa.table({"text": texts}), path, row_group_size=row_group)
        for first, count in ((0, 1), (699, 2), (700, 700), (650, 2000), (2300, 400), (4999, 1), (0, 5000), (4999, 0)):
            assert list(PARQUET.read(path, first, count, "text")) == texts[first : first + count]


def test_parquet_takes_text_of_any_string_type(tmp_path):
    path = tmp_path / "a.parquet"
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        pq.write_table(pa.table({"text": pa.array(["a", "b", None], pa.string()).cast(kind)}), path)
        assert read_all(PARQUET, path) == ["a", "b", Skipped("no text")]


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        (pa.array([None], pa.string()), "no text"),
        (pa.array([""]), "empty text"),
        (pa.array([7]), "text is a int, no string"),
        (pa.array([b"bytes"]), "text is a bytes, no string"),
        (pa.array([["a"]]), "text is a list, no string"),
    ],
)
def test_parquet_rows_without_text_are_counted(tmp_path, column, reason):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": column}), path)
    assert read_all(PARQUET, path) == [Skipped(reason)]


def test_a_parquet_row_that_is_no_utf8_does_not_stop_the_others(tmp_path):
    path = tmp_path / "a.parquet"
    column = pa.array([b"good", b"\xff", b"", None, b"also"]).cast(pa.string(), safe=False)
    for kind in (pa.string(), pa.large_string()):
        pq.write_table(pa.table({"text": column.cast(kind)}), path)
        no_utf8 = Skipped("not UTF-8 (byte 0 of the document)")
        assert read_all(PARQUET, path) == ["good", no_utf8, Skipped("empty text"), Skipped("no text"), "also"]


def test_parquet_bytes_per_part_follow_the_files_size(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"{n:01000d}" for n in range(100)]}), path, row_group_size=10)
    assert PARQUET.after_bytes(path, 0, 1) == 1
    assert 8 <= PARQUET.after_bytes(path, 0, 10_000) <= 12
    assert PARQUET.after_bytes(path, 95, 1 << 30) == 100


def test_a_parquet_file_is_checked(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": ["a"], "id": [1]}), path)
    PARQUET.check(path, "body")
    with pytest.raises(ValueError, match="expected a column 'text', got body, id; choose one with --text-column"):
        PARQUET.check(path, "text")
    for content in (b"", b"PAR1", b"no parquet file, but more than twelve bytes"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.parquet: expected a parquet file"):
            PARQUET.check(path, "text")


# JSON lines


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["", "  ", "\r"]) | TEXTS.map(lambda t: json.dumps({"text": t}))),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    STEPS,
    LIMITS,
)
def test_jsonl_parts_joined_are_the_whole_file(folder, lines, line_end, ends_in_line_end, steps, limits):
    path = folder / "a.jsonl"
    path.write_bytes((line_end.join(lines) + line_end * ends_in_line_end).encode())
    texts = [json.loads(line)["text"] for line in lines if line.strip()]
    assert read_all(JSONL, path) == [text or Skipped("empty text") for text in texts]
    assert JSONL.count_documents(path) == len(texts)
    check_parts(JSONL, path, "text", steps)
    check_byte_parts(JSONL, path, limits)


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
        (b'{"text": "\xff"}', Skipped("no JSON")),
        (b"[" * 100_000, Skipped("no JSON")),
        (b'["text"]', Skipped("no JSON object")),
        (b"null", Skipped("no JSON object")),
    ],
)
def test_every_line_is_a_document_or_says_why_not(tmp_path, line, document):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "before"}\n' + line + b'\n\n{"text": "after"}')
    assert read_all(JSONL, path) == ["before", document, "after"]


def test_documents_of_a_large_jsonl_file_are_estimated(tmp_path):
    path = tmp_path / "a.jsonl"
    line = json.dumps({"text": "x" * 1000}) + "\n"
    path.write_text(line * 3000)
    assert 2900 < JSONL.count_documents(path) < 3100


def test_a_jsonl_file_is_checked(tmp_path):
    path = tmp_path / "a.jsonl"
    for content in ('{"text": "a"}\nno JSON\n', "", "\n"):
        path.write_text(content)
        JSONL.check(path, "text")
    for content in ("no JSON\n", '["text"]\n', "[" * 100_000):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"a\.jsonl: expected one JSON object per line, got b'"):
            JSONL.check(path, "text")
    path.write_text('{"body": "a", "id": 1}\n')
    with pytest.raises(ValueError, match="expected a column 'text', got body, id; choose one with --text-column"):
        JSONL.check(path, "text")


# Text


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["\n", "\r\n", "\n\n", "\r\n\r\n", "a", "bc", " ", "é", "\r"]), min_size=1, max_size=60),
    st.integers(1, 30),
    STEPS,
    LIMITS,
)
def test_text_pieces_joined_are_the_file(folder, parts, piece_bytes, steps, limits):
    path = folder / "a.txt"
    path.write_bytes("".join(parts).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "TEXT_PIECE_BYTES", piece_bytes)
        pieces = read_all(TEXT, path)
        assert "".join(pieces).encode() == path.read_bytes()
        for piece, _ in pairwise(pieces):
            data = piece.encode()
            assert piece_bytes + re.search(rb"\n\r?\n", data[piece_bytes:]).end() == len(data)
        assert TEXT.count_documents(path) == len(pieces)
        check_parts(TEXT, path, "text", steps)
        check_byte_parts(TEXT, path, limits)


def test_text_of_real_size_is_cut_at_blank_lines(tmp_path):
    path = tmp_path / "a.txt"
    paragraph = "A line with CRLF.\r\nAnother one: é.\r\n\r\n"
    path.write_bytes(paragraph.encode() * 10_000)
    pieces = read_all(TEXT, path)
    assert "".join(pieces).encode() == path.read_bytes()
    assert len(pieces) == 6
    for piece in pieces[:-1]:
        assert 65_536 < len(piece.encode()) <= 65_536 + len(paragraph.encode())
        assert piece.endswith("\r\n\r\n")


def test_a_small_text_is_one_document(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo\n\n")
    assert read_all(TEXT, path) == ["one\n\ntwo\n\n"]


def test_a_whole_file_is_one_document(tmp_path):
    path = tmp_path / "a.md"
    path.write_text("paragraph\n\n" * 20_000)
    assert read_all(WholeFile(), path) == [path.read_text()]
    assert WholeFile().after(path, 0, 5) == (path.stat().st_size, 1)


def test_an_empty_text_is_no_document(tmp_path):
    path = tmp_path / "a.txt"
    path.touch()
    for reader in (TEXT, WholeFile(), JSONL):
        assert (read_all(reader, path), reader.count_documents(path), reader.after(path, 0, 3)) == ([], 0, (0, 0))


def test_a_text_that_is_no_utf8_is_counted(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9")
    assert read_all(TEXT, path) == [Skipped("not UTF-8 (byte 3 of the document)")]
