"""What a frame holds, read strictly: anything but plain files and rows of numbers is one expected error."""

import contextlib
import io
import tarfile
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2wds.dataset import members, shards
from gpt2wds.errors import Error


def npy(array: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, version=version, allow_pickle=True)
    return out.getvalue()


TOKENS = np.arange(10, dtype="<u2")
HEADER = npy(TOKENS)[:128]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy(np.array([1, "a", None], dtype=object)), "one dimension of numbers, got object"),
        (npy(TOKENS.astype("<i4")), "got int32"),
        (npy(TOKENS.astype("<i2")), "got int16"),
        (npy(TOKENS.astype(">u2")), "got >u2"),
        (npy(TOKENS.reshape(2, 5)), r"of shape \(2, 5\)"),
        (npy(TOKENS[0]), r"of shape \(\)"),
        (npy(TOKENS)[:-1], "expected 10 numbers of 2 bytes, got 19 bytes"),
        (npy(TOKENS) + b"\0\0", "expected 10 numbers of 2 bytes, got 22 bytes"),
        (npy(TOKENS, version=(2, 0)), "npy format 1.0"),
        (HEADER.replace(b"(10,)", b"(-1,)") + bytes(8), "expected -1 numbers"),
        (HEADER.replace(b"'<u2'", b"'|V0'"), "one dimension of numbers"),
        (b"", "magic"),
        (b"no array at all", "magic"),
    ],
)
def test_only_a_row_of_tokens_is_read_from_npy(data, message):
    with pytest.raises(ValueError, match=message):
        members.npy_tokens(data)


def test_npy_is_numpys_own():
    assert shards.npy_bytes(TOKENS) == npy(TOKENS)
    np.testing.assert_array_equal(np.load(io.BytesIO(shards.npy_bytes(TOKENS))), TOKENS)
    np.testing.assert_array_equal(members.npy_tokens(shards.npy_bytes(TOKENS)), TOKENS)
    assert len(shards.tar_member("a", npy(TOKENS))) == shards.token_frame_bytes(len(TOKENS))


@settings(max_examples=300)
@given(st.integers(0, 127), st.integers(0, 255))
def test_a_damaged_npy_header_is_an_expected_error(at, byte):
    data = bytearray(npy(TOKENS))
    data[at] = byte
    with contextlib.suppress(ValueError):
        np.testing.assert_array_equal(members.npy_tokens(bytes(data)), TOKENS)


def test_tokens_are_held_to_their_count_and_to_the_vocabulary():
    np.testing.assert_array_equal(members.checked_tokens(npy(TOKENS), 10, 9), TOKENS)
    with pytest.raises(Error, match="expected 11 tokens, got 10"):
        members.checked_tokens(npy(TOKENS), 11, 50_256)
    with pytest.raises(Error, match="expected token ids up to 8, got 9"):
        members.checked_tokens(npy(TOKENS), 10, 8)


# Tar


def tar(*infos: tarfile.TarInfo, tar_format: int = tarfile.USTAR_FORMAT, payload: bytes = b"") -> bytes:
    """Members as Python's tarfile writes them, without tar's end."""
    return b"".join(info.tobuf(tar_format) + payload + bytes(-len(payload) % 512) for info in infos)


def info(name: str = "a.txt", kind: bytes = tarfile.REGTYPE, size: int = 0, **more: str) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.size = kind, size
    for field, value in more.items():
        setattr(found, field, value)
    return found


def with_header(at: int, value: bytes) -> bytes:
    """A member of three bytes whose header has other bytes at a place, and the checksum that fits them."""
    header = bytearray(shards.tar_member("a.txt", b"abc")[:512])
    header[at : at + len(value)] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + b"abc".ljust(512, b"\0")


@given(st.dictionaries(st.text("abc./é", min_size=1, max_size=40).filter(lambda n: n[-1] != "/"), st.binary()))
def test_plain_members_are_read_as_tarfile_reads_them(files: dict[str, bytes]):
    content = b"".join(shards.tar_member(name, payload) for name, payload in files.items())
    assert members.read_members(content) == files


def test_a_name_in_two_fields_is_put_together():
    name = "f" * 100 + "/" + "n" * 50
    assert list(members.read_members(tar(info(name)))) == [name]


SPARSE = info(kind=tarfile.GNUTYPE_SPARSE, size=0).tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (tar(info(kind=tarfile.SYMTYPE, linkname="/etc/passwd")), "expected regular files"),
        (tar(info(kind=tarfile.LNKTYPE, linkname="b.txt")), "expected regular files"),
        (tar(info(kind=tarfile.DIRTYPE)), "expected regular files"),
        (tar(info("a/")), "expected regular files"),
        (tar(info(kind=tarfile.CHRTYPE)), "expected regular files"),
        (SPARSE, "expected regular files"),
        (tar(info("é" * 200), tar_format=tarfile.PAX_FORMAT), "expected regular files"),
        (tar(info("a" * 200), tar_format=tarfile.GNU_FORMAT), "expected regular files"),
        (tar(info(size=1 << 40), tar_format=tarfile.GNU_FORMAT), "expected regular files"),
        (with_header(124, b"-0000000003\0"), "expected regular files"),
        (with_header(124, b"00000_00003\0"), "expected regular files"),
        (with_header(124, bytes(12)), "expected regular files"),
        (with_header(0, bytes(100)), "expected regular files"),
        (with_header(0, b"\xff"), "not UTF-8"),
        (with_header(124, b"77777777777\0"), "is cut short"),
        (with_header(124, b"00000001001\0"), "is cut short"),
        (shards.tar_member("a.txt", b"abc")[:-1], "is cut short"),
        (shards.tar_member("a.txt", b"abc") * 2, "is there twice"),
        (bytes(1024), "no tar members"),
        (b"x" * 512, "no tar members"),
        (b"x", "no tar members"),
    ],
)
def test_what_no_shard_has_is_refused_before_anything_large_is_allocated(content: bytes, said: str):
    tracemalloc.start()
    try:
        with pytest.raises(Error, match=said) as caught:
            members.read_members(content)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


@settings(max_examples=300)
@given(st.integers(0, 511), st.integers(0, 255))
def test_a_damaged_header_is_an_expected_error(at: int, byte: int):
    content = bytearray(shards.tar_member("a.txt", b"abc"))
    content[at] = byte
    with contextlib.suppress(Error):
        assert members.read_members(bytes(content)) == {"a.txt": b"abc"}
