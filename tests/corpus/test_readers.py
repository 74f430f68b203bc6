"""File readers: parts joined are the whole file, and what is no document is counted with its reason."""

import base64
import gzip
import io
import itertools
import json
import random
import re
import struct
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2wds.corpus import readers
from gpt2wds.corpus.compression import open_stream
from gpt2wds.corpus.readers import BY_SUFFIX, Skipped, WholeFile
from gpt2wds.locations import LocalFile, local_file

JSONL, PARQUET, TEXT = BY_SUFFIX[".jsonl"], BY_SUFFIX[".parquet"], BY_SUFFIX[".txt"]
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """For files that every example of a property test writes again."""
    return tmp_path_factory.mktemp("readers")


def read_all(reader, path: Path, text_column: str = "text") -> list:
    return list(reader.read(local_file(path), 0, None, text_column))


def check_parts(reader, path: Path, text_column: str, steps: list[int]) -> None:
    """Walk the file in parts of `steps` documents: what the parts give is what the whole file gives."""
    whole, location = read_all(reader, path, text_column), local_file(path)
    parts, at = [], 0
    for step in steps:
        end, found = reader.advance(location, at, step, None)
        part = list(reader.read(location, at, end - at, text_column))
        assert len(part) == found == min(step, len(whole) - len(parts))
        parts, at = parts + part, end
    assert parts + list(reader.read(location, at, None, text_column)) == whole


def check_byte_parts(reader, path: Path, limits: list[int]) -> None:
    """Walk the file in parts of `limits` bytes: each part is as short as whole documents allow."""
    whole, location = read_all(reader, path), local_file(path)
    parts, at = [], 0
    for limit in limits:
        end, _ = reader.advance(location, at, None, limit)
        last = not list(reader.read(location, end, None, "text"))
        assert last or end - at >= limit
        both, found = reader.advance(location, at, 1_000_000, limit)  # documents limited too: the same, but counted
        assert len(list(reader.read(location, at, both - at, "text"))) == found
        if end > at:
            count = len(part := list(reader.read(location, at, end - at, "text")))
            if count > 1 and end - at > limit:
                assert reader.advance(location, at, count - 1, None)[0] - at < limit
            parts += part
        at = end
    assert parts + list(reader.read(location, at, None, "text")) == whole


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
    assert PARQUET.count_documents(local_file(path)) == len(texts)
    check_parts(PARQUET, path, "text", steps)


def test_parquet_parts_across_row_groups_and_batches(tmp_path):
    path = tmp_path / "a.parquet"
    texts = [str(n) for n in range(5000)]
    for row_group in (700, 2500):  # batches of 1,000 rows
        pq.write_table(pa.table({"text": texts}), path, row_group_size=row_group)
        for first, count in ((0, 1), (699, 2), (700, 700), (650, 2000), (2300, 400), (4999, 1), (0, 5000), (4999, 0)):
            assert list(PARQUET.read(local_file(path), first, count, "text")) == texts[first : first + count]


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
    location = local_file(path)
    assert PARQUET.advance(location, 0, None, 1) == (1, 1)
    assert 8 <= PARQUET.advance(location, 0, None, 10_000)[0] <= 12
    assert PARQUET.advance(location, 95, None, 1 << 30) == (100, 5)


def test_a_parquet_file_is_checked(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": ["a"], "id": [1]}), path)
    PARQUET.check(local_file(path), "body")
    with pytest.raises(ValueError, match="expected a column 'text', got body, id; choose one with --text-column"):
        PARQUET.check(local_file(path), "text")
    for content in (b"", b"PAR1", b"no parquet file, but more than twelve bytes"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.parquet: expected a parquet file"):
            PARQUET.check(local_file(path), "text")


# JSON lines


def zstd_frames(data: bytes) -> bytes:
    """Two frames with a skippable one between them, as parallel compressors and seekable files have them."""
    half, compress = len(data) // 2, zstandard.ZstdCompressor(write_checksum=True).compress
    return compress(data[:half]) + struct.pack("<II", 0x184D2A50, 3) + b"abc" + compress(data[half:])


def gzip_members(data: bytes) -> bytes:
    half = len(data) // 2
    return gzip.compress(data[:half]) + gzip.compress(data[half:])


COMPRESSED = {".jsonl": bytes, ".jsonl.gz": gzip_members, ".jsonl.zst": zstd_frames}
NUMBERS = itertools.count()  # a new name each time, as a changed file would have another time of change


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["", "  ", "\r"]) | TEXTS.map(lambda t: json.dumps({"text": t}))),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    STEPS,
    LIMITS,
)
def test_jsonl_parts_joined_are_the_whole_file(folder, lines, line_end, ends_in_line_end, steps, limits):
    data = (line_end.join(lines) + line_end * ends_in_line_end).encode()
    texts = [json.loads(line)["text"] for line in lines if line.strip()]
    for suffix, compress in COMPRESSED.items():
        path = folder / f"{next(NUMBERS)}{suffix}"
        path.write_bytes(compress(data))
        reader = BY_SUFFIX[suffix]
        assert read_all(reader, path) == [text or Skipped("empty text") for text in texts]
        assert reader.count_documents(local_file(path)) == len(texts)
        check_parts(reader, path, "text", steps)
        check_byte_parts(reader, path, limits)
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


@pytest.mark.parametrize("suffix", COMPRESSED)
def test_documents_of_a_large_jsonl_file_are_estimated(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    lines = [
        json.dumps({"text": base64.b64encode(random.Random(n).randbytes(750)).decode()}) + "\n" for n in range(3000)
    ]
    path.write_bytes(COMPRESSED[suffix]("".join(lines).encode()))
    assert 2500 < BY_SUFFIX[suffix].count_documents(local_file(path)) < 3300


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_a_compressed_file_that_is_cut_short_or_damaged_is_no_shorter_file(tmp_path, suffix):
    lines = [json.dumps({"text": f"{n} {random.Random(n).randbytes(40).hex()}"}) + "\n" for n in range(3000)]
    data = COMPRESSED[suffix]("".join(lines).encode())
    for number, damaged in enumerate((data[:-1], data[: len(data) // 3], data[:5000] + b"x" + data[5001:])):
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{number}{suffix}: it does not decompress to its end \("):
            read_all(BY_SUFFIX[suffix], path)
    path.write_bytes(data)
    assert len(read_all(BY_SUFFIX[suffix], path)) == 3000


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_parts_of_a_compressed_file_in_order_cost_one_pass(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    lines = [
        json.dumps({"text": base64.b64encode(random.Random(n).randbytes(750)).decode()}) + "\n" for n in range(3000)
    ]
    path.write_bytes(COMPRESSED[suffix]("".join(lines).encode()))
    reader, location, at, found = BY_SUFFIX[suffix], local_file(path), 0, []
    with pytest.MonkeyPatch.context() as patch:
        reads = []

        class Counting(io.FileIO):
            def readinto(self, buffer):
                reads.append(super().readinto(buffer))
                return reads[-1]

        patch.setattr(LocalFile, "open", lambda self: io.BufferedReader(Counting(self.path)))
        open_stream.cache_clear()
        for _ in range(10):
            end, _ = reader.advance(location, at, 300, None)
            at = end
        assert sum(reads) <= 1.1 * location.size
        reads.clear()
        open_stream.cache_clear()
        at = 0
        for _ in range(10):
            part = list(reader.read(location, at, at_next := 300 * len(lines[0]), "text"))
            at, found = at + at_next, found + part
        assert sum(reads) <= 1.1 * location.size
        # Back to the beginning costs another pass, and gives the same.
        assert list(reader.read(location, 0, len(lines[0]), "text")) == found[:1]
    open_stream.cache_clear()
    assert found == [json.loads(line)["text"] for line in lines]


def test_a_jsonl_file_is_checked(tmp_path):
    path = tmp_path / "a.jsonl"
    for content in ('{"text": "a"}\nno JSON\n', "", "\n"):
        path.write_text(content)
        JSONL.check(local_file(path), "text")
    for content in ("no JSON\n", '["text"]\n', "[" * 100_000):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"a\.jsonl: expected one JSON object per line, got b'"):
            JSONL.check(local_file(path), "text")
    path.write_text('{"body": "a", "id": 1}\n')
    with pytest.raises(ValueError, match="expected a column 'text', got body, id; choose one with --text-column"):
        JSONL.check(local_file(path), "text")


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
        assert TEXT.count_documents(local_file(path)) == len(pieces)
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
    assert WholeFile().advance(local_file(path), 0, 5, None) == (path.stat().st_size, 1)


def test_an_empty_text_is_no_document(tmp_path):
    path = tmp_path / "a.txt"
    path.touch()
    for reader in (TEXT, WholeFile(), JSONL):
        location = local_file(path)
        assert (read_all(reader, path), reader.count_documents(location)) == ([], 0)
        assert reader.advance(location, 0, 3, None) == reader.advance(location, 0, 3, 10) == (0, 0)


def test_a_text_that_is_no_utf8_is_counted(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9")
    assert read_all(TEXT, path) == [Skipped("not UTF-8 (byte 3 of the document)")]
