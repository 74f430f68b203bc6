"""Text files: pieces joined are the file, cut where a reader would cut."""

import gzip
import re
from itertools import pairwise
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import COMPRESS, check_byte_runs, check_runs, count, opened, read_all

from gpt2wds.corpus import text as text_module
from gpt2wds.corpus.documents import Skipped
from gpt2wds.corpus.readers import BY_SUFFIX
from gpt2wds.corpus.text import WholeFile
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


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["\n", "\r\n", "\n\n", "\r\n\r\n", "a", "bc", " ", "é", "\r"]), min_size=1, max_size=60),
    st.integers(1, 30),
    STEPS,
    LIMITS,
)
def test_text_pieces_joined_are_the_file(folder, pieces, piece_bytes, steps, limits):
    path = folder / "a.txt"
    path.write_bytes("".join(pieces).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_module, "TEXT_PIECE_BYTES", piece_bytes)
        pieces = read_all(TEXT, path)
        assert "".join(pieces).encode() == path.read_bytes()
        for piece, _ in pairwise(pieces):
            data = piece.encode()
            assert piece_bytes + re.search(rb"\n\r?\n", data[piece_bytes:]).end() == len(data)
        assert count(TEXT, path) == len(pieces)
        check_runs(TEXT, path, "text", steps)
        check_byte_runs(TEXT, path, limits)


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
    run = opened(WholeFile(), path).cut(0, 5, None)
    assert (run.end, run.documents) == (path.stat().st_size, 1)


def test_an_empty_text_is_no_document(tmp_path):
    path = tmp_path / "a.txt"
    path.touch()
    for reader in (TEXT, JSONL):
        assert (read_all(reader, path), count(reader, path)) == ([], 0)
    for reader in (TEXT, WholeFile(), JSONL):
        source = opened(reader, path)
        assert source.cut(0, 3, None) is source.cut(0, 3, 10) is source.cut(0, None, 10) is None


def test_a_text_that_is_no_utf8_is_counted(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9")
    assert read_all(TEXT, path) == [Skipped("not UTF-8 (byte 3 of the document)")]


def test_a_byte_order_mark_is_no_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfHello\n\n\xef\xbb\xbfworld")
    assert read_all(TEXT, path) == ["Hello\n\n\ufeffworld"]


@pytest.mark.parametrize("unit", ["é", "line\n", "é\r\n", "x"])
def test_without_blank_lines_pieces_end_at_a_line_or_a_character(tmp_path, monkeypatch, unit):
    """In bounded memory, and joined they are the file."""
    monkeypatch.setattr(text_module, "TEXT_PIECE_BYTES", 100)
    monkeypatch.setattr(text_module, "BLANK_LINE_WITHIN", 50)
    path = tmp_path / "a.txt"
    path.write_text("start " + unit * 700, newline="")
    pieces = read_all(TEXT, path)
    assert "".join(pieces).encode() == path.read_bytes()
    assert len(pieces) == count(TEXT, path) > 4
    assert max(len(piece.encode()) for piece in pieces) <= 150
    assert all(piece.endswith("\n") for piece in pieces) or "\n" not in unit
    check_runs(TEXT, path, "text", [1, 2, 3])


@pytest.mark.parametrize("suffix", [".txt.gz", ".txt.zst", ".txt.xz", ".txt.bz2"])
def test_a_compressed_text_is_cut_as_a_plain_one(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(text_module, "TEXT_PIECE_BYTES", 4000)
    monkeypatch.setattr(text_module, "BLANK_LINE_WITHIN", 50_000)
    paragraph = "A line with é.\nAnother one.\n\n"
    data = (paragraph * 1000 + "no blank line here\n" * 6000).encode()
    plain, packed = tmp_path / "a.txt", tmp_path / f"a{suffix}"
    plain.write_bytes(data)
    packed.write_bytes(COMPRESS[suffix.removeprefix(".txt")](data))
    assert read_all(BY_SUFFIX[suffix], packed) == read_all(TEXT, plain)
    assert count(BY_SUFFIX[suffix], packed) == count(TEXT, plain)
    check_runs(BY_SUFFIX[suffix], packed, "text", [3, 1, 4])


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("text\n".encode("utf-16"), "UTF-16 or binary; convert it"),
        ("text\n".encode("utf-16-le"), "UTF-16 or binary; convert it"),
        (gzip.compress(b"text", mtime=0), r"gzip; give it the name of its format, \.gz"),
        (zstandard.compress(b"text"), r"zstd; give it the name of its format, \.zst"),
        (b"PAR1....", r"parquet; give it the name of its format, \.parquet"),
    ],
)
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".txt.gz"])
def test_what_is_no_text_is_refused(tmp_path, suffix, content, found):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    with pytest.raises(Error, match=rf"a{suffix}: expected UTF-8 text, got what looks like {found}"):
        BY_SUFFIX[suffix].measure(local_file(path), "text")


def test_a_zero_byte_is_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a\0b and much more text")
    assert read_all(TEXT, path) == ["a\0b and much more text"]
