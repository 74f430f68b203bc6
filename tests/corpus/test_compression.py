"""Compressed files as streams: forward and back, damage told, and one pass for runs in order."""

import base64
import io
import json
import random
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import COMPRESS, opened, read_all, read_run

from gpt2wds.corpus.compression import BY_SUFFIX as DECOMPRESSORS
from gpt2wds.corpus.compression import Stream, naming_damage
from gpt2wds.corpus.readers import BY_SUFFIX
from gpt2wds.errors import Error
from gpt2wds.locations import LocalFile, local_file

DATA = b"".join(b"line %d %s\n" % (n, b"x" * (n * 37 % 101)) for n in range(4000))


def stream(folder: Path, suffix: str) -> Stream:
    path = folder / f"data{suffix}"
    if not path.exists():
        path.write_bytes(COMPRESS[suffix](DATA))
    return Stream(local_file(path), DECOMPRESSORS.get(suffix))


@pytest.mark.parametrize("suffix", COMPRESS)
@settings(deadline=None, max_examples=10)
@given(st.lists(st.tuples(st.sampled_from(["seek", "read", "readline", "unread"]), st.integers(0, len(DATA)))))
def test_a_stream_is_the_file_wherever_one_goes(tmp_path_factory, suffix, walk):
    source = stream(tmp_path_factory.getbasetemp(), suffix)
    at = 0
    for step, number in walk:
        if step == "seek":
            source.seek(number)
            at = number
        elif step == "readline":
            end = DATA.find(b"\n", at) + 1 or len(DATA)
            assert source.readline() == DATA[at:end]
            at = max(at, end)
        else:
            found = source.read(number % 70_000)
            assert found == DATA[at : at + number % 70_000]
            if step == "unread":
                source.unread(found)
            else:
                at += len(found)
        assert source.place == at
    source.close()


def test_a_line_is_read_in_pieces(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abcdef\nrest")
    source = Stream(local_file(path), None)
    assert [source.readline(4) for _ in range(4)] == [b"abcd", b"ef\n", b"rest", b""]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_the_share_read_is_of_the_files_own_bytes(tmp_path, suffix):
    source = stream(tmp_path, suffix)
    assert source.read_share() == 0
    source.read(len(DATA) + 1)
    assert source.read_share() == 1


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst", ".jsonl.xz", ".jsonl.bz2"])
def test_a_compressed_file_that_is_cut_short_or_damaged_is_no_shorter_file(tmp_path, suffix):
    lines = [json.dumps({"text": f"{n} {random.Random(n).randbytes(40).hex()}"}) + "\n" for n in range(3000)]
    data = COMPRESS[suffix.removeprefix(".jsonl")]("".join(lines).encode())
    for number, damaged in enumerate((data[:-1], data[: len(data) // 3], data[:5000] + b"x" + data[5001:])):
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{number}{suffix}: it does not decompress to its end \("):
            read_all(BY_SUFFIX[suffix], path)
    path.write_bytes(data)
    assert len(read_all(BY_SUFFIX[suffix], path)) == 3000


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".xz", ".bz2"])
def test_what_follows_a_stream_is_read_or_damage(tmp_path, suffix):
    """Python's own readers of xz and bzip2 take anything else for the end, and what follows would be lost."""
    plain = BY_SUFFIX[f".jsonl{suffix}"]
    one, two = (COMPRESS[suffix](b'{"text": "%s"}\n' % text) for text in (b"one", b"two"))
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(one + two)
    assert read_all(plain, path) == ["one", "two"]
    for between in (b"x", b"x" * 40, bytes([two[0] ^ 1]) + two[1:]):
        path.write_bytes(one + between + two)
        with pytest.raises(Error, match=r"a.jsonl\S+: it does not decompress to its end \("):
            read_all(plain, path)
    path.write_bytes(b"")
    with pytest.raises(Error, match=r"it does not decompress to its end \(it is empty\)"):
        read_all(plain, path)
    if suffix == ".xz":  # its format has zeros between streams
        path.write_bytes(one + bytes(2048) + two + bytes(4))
        assert read_all(plain, path) == ["one", "two"]


@pytest.mark.parametrize("suffix", [".xz", ".bz2"])
def test_a_small_file_of_much_text_takes_little_memory(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(COMPRESS[suffix](bytes(30_000_000)))
    tracemalloc.start()
    source = Stream(local_file(path), DECOMPRESSORS[suffix])
    assert source.read(10) == bytes(10) and source.read(10_000) == bytes(10_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000  # xz has a window of eight megabytes


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_runs_of_a_compressed_file_in_order_cost_one_pass(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"a{suffix}"
    lines = [
        json.dumps({"text": base64.b64encode(random.Random(n).randbytes(7500)).decode()}) + "\n" for n in range(300)
    ]
    path.write_bytes(COMPRESS[suffix.removeprefix(".jsonl")]("".join(lines).encode()))
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
        found = [document for first, end in ends for document in read_run(source, first, end - first)]
        assert sum(reads) <= 1.1 * location.size
        assert found == [json.loads(line)["text"] for line in lines]
        # Back to the beginning costs another pass, and gives the same.
        assert read_run(source, 0, len(lines[0])) == found[:1]


def test_what_was_read_before_the_damage_showed_is_trusted_only_where_it_was_held_to_a_hash(tmp_path):
    for is_trusted, remedy in ((False, "the file, and give the command again"), (True, "make the dataset anew")):
        said = f"it does not decompress to its end .*{remedy}"
        with pytest.raises(Error, match=said), naming_damage(LocalFile("a.gz", 3), is_trusted=is_trusted):
            raise EOFError("the file ends")
