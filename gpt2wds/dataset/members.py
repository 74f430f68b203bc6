"""What a frame holds: tar members, and NumPy's npy files in them. Read strictly, because they may be anybody's."""

import io
import mmap
import re

import numpy as np

from ..errors import Error, reason

_NPY_HEADER_LIMIT = 1 << 14  # numpy itself reads no longer ones


def read_members(content: bytes) -> dict[str, bytes]:
    """Names and payloads of the tar members in one frame, in order.

    Raises Error for anything but whole regular files of different names: what tar can say beside (links, sparse files,
    sizes in other notations) no shard has, and a general reader would believe it.
    """
    members: dict[str, bytes] = {}
    at = 0
    while at < len(content):
        header = content[at : at + 512]
        name, size = _member(header)
        start, end = at + 512, at + 512 + size
        at = end + -size % 512
        if at > len(content):
            raise Error(f"its tar member {name[:80]} of {size} bytes is cut short")
        if name in members:
            raise Error(f"its tar member {name[:80]} is there twice")
        members[name] = content[start:end]
    return members


def _member(header: bytes) -> tuple[str, int]:
    """Name and size that a tar header gives of a regular file."""
    checksum = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    if len(header) < 512 or _octal(header[148:156]) != checksum:
        raise Error("it holds no tar members (a header is damaged)")
    name, folder = header[:100].partition(b"\0")[0], header[345:500].partition(b"\0")[0]
    try:
        full = (folder + b"/" + name if folder else name).decode("utf-8")
    except UnicodeDecodeError:
        raise Error("it holds a tar member whose name is not UTF-8") from None
    size = _octal(header[124:136])
    if header[156:157] not in (b"0", b"\0") or size is None or not full or full.endswith("/"):
        raise Error(f"expected regular files as tar members, got {full[:80]!r} of type {header[156:157]!r}")
    return full, size


def _octal(field: bytes) -> int | None:
    digits = field.strip(b"\0 ")
    return int(digits, 8) if re.fullmatch(rb"[0-7]+", digits) else None


def checked_tokens(payload: bytes, expected_tokens: int, largest_id: int) -> np.ndarray:
    """A block's tokens, (tokens,) uint16, once their count is the index's and they are ids. Raises Error."""
    tokens = npy_tokens(payload)
    if len(tokens) != expected_tokens:
        raise Error(f"expected {expected_tokens} tokens, got {len(tokens)}")
    return checked_ids(tokens, largest_id)


def checked_ids(tokens: np.ndarray, largest_id: int) -> np.ndarray:
    """(tokens,) uint16, once all are ids up to the largest. Raises Error."""
    if tokens.max(initial=0) > largest_id:
        raise Error(f"expected token ids up to {largest_id}, got {tokens.max()}")
    return tokens


def npy_row(data: bytes | mmap.mmap) -> np.ndarray:
    """The one-dimensional array of an npy 1.0 file, without a copy. Raises Error for anything else."""
    view = memoryview(data)
    file = io.BytesIO(view[:_NPY_HEADER_LIMIT])
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise Error("expected npy format 1.0")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # a damaged header goes through Python's tokenizer: SyntaxError, TokenError, …
        raise Error(f"its npy header is damaged ({reason(error)})") from None
    if len(shape) != 1 or dtype.hasobject or not dtype.itemsize:
        raise Error(f"expected one dimension of numbers, got {str(dtype)[:80]} of shape {str(shape)[:80]}")
    start = file.tell()
    if len(view) - start != dtype.itemsize * shape[0]:
        raise Error(f"expected {shape[0]} numbers of {dtype.itemsize} bytes, got {len(view) - start} bytes")
    return np.frombuffer(view[start:], dtype=dtype) if shape[0] else np.empty(0, dtype=dtype)


def npy_tokens(data: bytes) -> np.ndarray:
    """The (tokens,) uint16 of an npy file, without a copy. Raises Error for anything but a row of `<u2`."""
    tokens = npy_row(data)
    if tokens.dtype != np.dtype("<u2"):
        raise Error(f"expected one dimension of <u2, got {str(tokens.dtype)[:80]}")
    return tokens
