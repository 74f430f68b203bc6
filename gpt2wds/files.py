"""Files that are whole or not there, at whatever moment a process is killed.

A file is written under a temporary name (host, process, random), brought to the disk, and then given its final name.
"""

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import Error

TEMPORARY = ".*.tmp"  # matches what killed processes leave


def local_path(path: str | Path) -> Path:
    """A path of this machine. Raises Error for a URL, which would become a directory called "s3:"."""
    if "://" in str(path):
        raise Error(f"expected a path of this machine, got the URL {path}; give a local directory")
    return Path(path)


def temporary_name(final: Path) -> Path:
    return final.with_name(f".{final.name}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


@contextmanager
def synced(path: Path) -> Iterator[BinaryIO]:
    """A new file for writing, on the disk when the context ends."""
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Bring a file, or a directory's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def commit(temporary: Path, final: Path) -> bool:
    """Give a finished file its final name unless that is taken; False when another was there first."""
    try:
        os.link(temporary, final)
        first = True
    except FileExistsError:
        first = False
    except FileNotFoundError:
        if not final.exists():  # else another process finished all, and removed what it took for a stray
            raise
        first = False
    temporary.unlink(missing_ok=True)
    sync(final.parent)
    return first


def create(final: Path, text: str) -> bool:
    """Write a file unless it is there already; False when another was there first."""
    temporary = temporary_name(final)
    with synced(temporary) as file:
        file.write(text.encode("utf-8"))
    return commit(temporary, final)


@contextmanager
def replacing(final: Path) -> Iterator[BinaryIO]:
    """A file for writing that takes the place of `final` when the context ends: a reader sees the old or the new."""
    temporary = temporary_name(final)
    with synced(temporary) as file:
        yield file
    try:
        temporary.replace(final)
    except FileNotFoundError:
        # Two that finish at once write the same, and the first may have taken our file for a stray.
        if not final.exists():
            raise
    sync(final.parent)


def replace(final: Path, text: str) -> None:
    """Replace a file by `text` in one step."""
    with replacing(final) as file:
        file.write(text.encode("utf-8"))
