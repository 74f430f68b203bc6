"""JSON lines: runs joined are the whole file, and what is no document is counted with its reason."""

import base64
import gzip
import io
import itertools
import json
import random
import struct
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import check_byte_runs, check_runs, count, opened, read_all

from gpt2wds.corpus.documents import Skipped
from gpt2wds.corpus.readers import BY_SUFFIX
from gpt2wds.errors import Error
from gpt2wds.locations import LocalFile, local_file

JSONL, PARQUET, TEXT = BY_SUFFIX[".jsonl"], BY_SUFFIX[".parquet"], BY_SUFFIX[".txt"]
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
STEPS = st.lists(st.integers(1, 5), max_size=6)
LIMITS = st.lists(st.integers(1, 90), max_size=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """For files that every example of a property test writes again."""
    return tmp_path_factory.mktemp("readers")


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
    assert 2500 < count(BY_SUFFIX[suffix], path) < 3300


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
def test_runs_of_a_compressed_file_in_order_cost_one_pass(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"a{suffix}"
    lines = [
        json.dumps({"text": base64.b64encode(random.Random(n).randbytes(7500)).decode()}) + "\n" for n in range(300)
    ]
    path.write_bytes(COMPRESSED[suffix]("".join(lines).encode()))
    reads = []

    class Counting(io.FileIO):
        def readinto(self, buffer):
            reads.append(super().readinto(buffer))
            return reads[-1]

    monkeypatch.setattr(LocalFile, "open", lambda self: io.BufferedReader(Counting(self.path)))
    location = local_file(path)
    for limits in ((30, None), (None, 250_000)):
        source = opened(BY_SUFFIX[suffix], path)
        reads.clear()
        at, ends = 0, []
        while run := source.cut(at, *limits):
            ends.append((at, run.end))
            at = run.end
        assert len(ends) >= 9 and sum(reads) <= 1.1 * location.size
        source = opened(BY_SUFFIX[suffix], path)
        reads.clear()
        found = [document for first, end in ends for document in source.read(first, end - first)]
        assert sum(reads) <= 1.1 * location.size
        assert found == [json.loads(line)["text"] for line in lines]
        # Back to the beginning costs another pass, and gives the same.
        assert list(source.read(0, len(lines[0]))) == found[:1]


def test_a_jsonl_file_is_checked(tmp_path):
    path = tmp_path / "a.jsonl"
    for content in ('{"text": "a"}\nno JSON\n', "", "\n"):
        path.write_text(content)
        JSONL.measure(local_file(path), "text")
    for content in ("no JSON\n", '["text"]\n', "[" * 100_000):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"a\.jsonl: expected one JSON object per line, got b'"):
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
