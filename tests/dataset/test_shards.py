"""The bytes of a shard: blocks, tar headers, frames, seek table; and that damaged ones are refused."""

import io
import math
import struct
import tarfile
import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2wds.dataset import members, shards

EOT = 50256
LENGTHS = st.lists(st.integers(2, 40), max_size=20)  # a document has text, so at least two tokens


def make_documents(lengths: list[int]) -> list[np.ndarray]:
    """Documents of these lengths; their tokens count up, so that no two stretches are the same."""
    documents, number = [], 0
    for length in lengths:
        body = (number + np.arange(length - 1)) % 50_000
        documents.append(np.concatenate(([EOT], body)).astype(np.uint16))
        number += length - 1
    return documents


def write(documents: list[np.ndarray]) -> tuple[bytes, shards.ShardSummary]:
    file = io.BytesIO()
    summary = shards.write_token_shard(file, "train-00000", documents, EOT)
    return file.getvalue(), summary


def read(data: bytes, summary: shards.ShardSummary) -> list[np.ndarray]:
    """All blocks of a shard, each held to its index row."""
    blocks = []
    for number, row in enumerate(summary.rows):
        frame = data[row["offset"] : row["offset"] + row["length"]]
        content = shards.decompress_frame(frame, row, shards.token_frame_bytes(int(row["tokens"])))
        ((name, payload),) = members.read_members(content).items()
        assert name == f"{shards.block_key('train-00000', number)}.tokens.npy"
        blocks.append(members.checked_tokens(payload, int(row["tokens"]), EOT))
    return blocks


def check_shard(documents: list[np.ndarray]) -> None:
    """What section 4 of the design promises of a token shard, for the current shards.BLOCK_TOKENS."""
    size = shards.BLOCK_TOKENS
    data, summary = write(documents)
    blocks = read(data, summary)
    tokens = np.concatenate([np.empty(0, np.uint16), *documents])
    total = len(tokens)
    assert len(blocks) == (max(1, math.ceil((total - 1) / size)) if total else 0)
    assert all(len(block) == size + 1 for block in blocks[:-1])
    for number, block in enumerate(blocks):
        assert block.dtype == np.dtype("<u2")
        np.testing.assert_array_equal(block, tokens[number * size : (number + 1) * size + 1])
    starts = np.flatnonzero(tokens == EOT)
    assert summary.rows["documents"].tolist() == [int((starts // size == n).sum()) for n in range(len(blocks))]
    assert (summary.tokens, summary.documents) == (total, len(documents))
    assert summary.bytes == len(data)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 50))
def test_blocks_hold_the_documents_and_overlap_by_one(lengths, block_tokens):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "BLOCK_TOKENS", block_tokens)
        check_shard(make_documents(lengths))


@pytest.mark.parametrize("total", [65_535, 65_536, 65_537, 65_538, 131_072, 131_073, 131_074])
def test_blocks_of_real_size(total):
    check_shard(make_documents([total]))
    check_shard(make_documents([total // 3, total - total // 3]))


def test_documents_may_come_one_by_one_or_end_to_end():
    documents = make_documents([3, 70_000, 2, 2, 70_000, 5, 1])
    one_by_one = write(documents)
    for cut in (1, 4, 7):
        pieces = [np.concatenate(documents[at : at + cut]) for at in range(0, len(documents), cut)]
        data, summary = write(pieces)
        assert data == one_by_one[0] and summary.documents == len(documents)
        assert summary.rows.tolist() == one_by_one[1].rows.tolist()


def test_one_document_may_span_blocks_and_a_block_many_documents():
    check_shard(make_documents([3, 200_000, 2, 2, 70_000, 5]))


def test_a_single_token_is_a_block():
    check_shard(make_documents([1]))


def test_a_shard_without_documents_is_a_valid_shard():
    data, summary = write([])
    assert (summary.tokens, summary.documents, len(summary.rows)) == (0, 0, 0)
    assert len(shards.read_seek_table(io.BytesIO(data))) == 1
    content = zstandard.ZstdDecompressor().decompressobj(read_across_frames=True).decompress(data)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        assert tar.getmembers() == []


def test_bytes_are_the_same_every_time():
    documents = make_documents([70_000, 5, 90_000])
    assert write(documents)[0] == write(documents)[0]


@given(st.text("abcdef.-0123456789", min_size=1, max_size=99), st.binary(max_size=2000))
def test_a_tar_member_is_what_pythons_tarfile_writes_and_reads(name, payload):
    member = shards.tar_member(name, payload)
    info = tarfile.TarInfo(name)
    info.size = len(payload)
    assert member == info.tobuf(tarfile.USTAR_FORMAT) + payload + bytes(-len(payload) % 512)
    with tarfile.open(fileobj=io.BytesIO(member), mode="r:") as tar:
        (found,) = tar.getmembers()
        assert tar.extractfile(found).read() == payload
    assert (found.name, found.size, found.type) == (name, len(payload), tarfile.REGTYPE)
    assert (found.mode, found.uid, found.gid, found.mtime) == (0o644, 0, 0, 0)
    assert (found.uname, found.gname) == ("", "")


def test_the_seek_table_agrees_with_the_frames():
    data, summary = write(make_documents([200_000]))
    table = shards.read_seek_table(io.BytesIO(data))
    assert (table[:-1][["offset", "length", "checksum"]] == summary.rows[["offset", "length", "checksum"]]).all()
    end = 0
    for row in table:
        assert row["offset"] == end
        end += int(row["length"])
        frame = data[row["offset"] : end]
        parameters = zstandard.get_frame_parameters(frame)
        assert parameters.has_checksum
        assert int.from_bytes(frame[-4:], "little") == row["checksum"]
        content = zstandard.ZstdDecompressor().decompress(frame)
        assert parameters.content_size == len(content)
    assert content == bytes(1024)
    magic, size = struct.unpack("<II", data[end : end + 8])
    assert (magic, size) == (0x184D2A5E, len(data) - end - 8)
    sizes = [struct.unpack("<I", data[end + 12 + 12 * n : end + 16 + 12 * n])[0] for n in range(len(table))]
    assert sizes == [*(shards.token_frame_bytes(int(tokens)) for tokens in summary.rows["tokens"]), 1024]
    assert data[-9:] == struct.pack("<IBI", len(table), 0x80, 0x8F92EAB1)


@given(st.data())
def test_a_truncated_file_has_no_seek_table(data):
    shard, _ = write(make_documents([300]))
    cut = data.draw(st.integers(0, len(shard) - 1))
    with pytest.raises(ValueError, match="seek table"):
        shards.read_seek_table(io.BytesIO(shard[:cut]))


def test_a_seek_table_that_does_not_cover_the_file_is_refused():
    shard, _ = write(make_documents([300]))
    with pytest.raises(ValueError, match="does not cover the file"):
        shards.read_seek_table(io.BytesIO(b"more" + shard))


def row_of(frame: bytes) -> np.void:
    row = np.zeros((), dtype=shards.BLOCK_ROW)
    row["length"], row["checksum"] = len(frame), int.from_bytes(frame[-4:], "little")
    return row[()]


def frame_that_declares(size: int) -> bytes:
    """A zstd frame of a few bytes whose header says that it holds `size` bytes."""
    single_segment_with_8_byte_size, last_empty_raw_block = bytes([0b11100000]), (1).to_bytes(3, "little")
    return b"\x28\xb5\x2f\xfd" + single_segment_with_8_byte_size + size.to_bytes(8, "little") + last_empty_raw_block


@pytest.mark.parametrize("expected", [None, shards.token_frame_bytes(65_537)])
@pytest.mark.parametrize("declared", [shards.MAX_FRAME_BYTES + 1, 1 << 40])
def test_a_frame_that_declares_too_much_is_refused_before_allocating(declared, expected):
    frame = frame_that_declares(declared)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=f"decompressed bytes, got {declared}"):
            shards.decompress_frame(frame, row_of(frame), expected)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_frame_of_another_size_is_refused():
    content = bytes(5000)
    compress = zstandard.ZstdCompressor(write_checksum=True).compress
    frame = compress(content)
    assert shards.decompress_frame(frame, row_of(frame), None) == content
    with pytest.raises(ValueError, match="expected 4999 decompressed bytes, got 5000"):
        shards.decompress_frame(frame, row_of(frame), 4999)
    unsized = zstandard.ZstdCompressor(write_checksum=True, write_content_size=False).compress(content)
    with pytest.raises(ValueError, match="decompressed bytes"):
        shards.decompress_frame(unsized, row_of(unsized), None)
    with pytest.raises(ValueError, match="truncated"):
        shards.decompress_frame(frame[:-1], row_of(frame), None)
    row = row_of(frame)
    row["checksum"] ^= 1
    with pytest.raises(ValueError, match="checksum"):
        shards.decompress_frame(frame, row, None)
    with pytest.raises(ValueError, match="does not decompress"):
        shards.decompress_frame(b"no zstd frame", row_of(b"no zstd frame"), None)
