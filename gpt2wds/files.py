"""Files that are whole or not there, at whatever moment a process is killed.

A file is written under a temporary name (host, its kernel, process, random), brought to the disk, and then given its
final name.
"""

import errno
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from .errors import Error

LOCK_SECONDS = 10  # a name is given in milliseconds: who takes longer was killed
# What link() says where a file system, or a FUSE mount, has no hard links.
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK, errno.EXDEV}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
TEMPORARY = ".*.tmp"  # matches what killed processes leave


def local_path(path: str | Path) -> Path:
    """A path of this machine. Raises Error for a URL, which would become a directory called "s3:", and for no name."""
    if not str(path).strip():
        raise Error("expected a path, got an empty name")
    if "://" in str(path):
        raise Error(f"expected a path of this machine, got the URL {path}; give a local directory")
    return Path(path)


def temporary_name(final: Path) -> Path:
    host = socket.gethostname().replace("/", "_")
    name = f".{final.name}.{host}.{_short_kernel()}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    return final.with_name(name)


def remove_dead(folder: Path) -> None:
    """Remove temporary files of processes that have ended, as far as this host can know: its own, since it started."""
    form = re.compile(rf"\..+\.{_short_kernel()}\.(\d+)\.[0-9a-f]{{8}}\.tmp")
    for path in folder.glob(TEMPORARY):
        found = form.fullmatch(path.name)
        if found and not _lives(int(found[1])) and not path.is_dir():
            path.unlink(missing_ok=True)


def kernel() -> str:
    """Which processes can be seen from here: those of this boot of this machine, and of this container."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + " " + os.readlink("/proc/self/ns/pid")
    except OSError:
        return socket.gethostname()


def _short_kernel() -> str:
    return sha256(kernel().encode()).hexdigest()[:8]


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # it is there, and another user's
    return True


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """A disk that gets full while a file is written does not say which file: say it."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from None


@contextmanager
def synced(path: Path) -> Iterator[BinaryIO]:
    """A new file for writing, on the disk when the context ends; gone where that fails, or a full disk stays full."""
    try:
        with naming_full_disk(path), path.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


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
        try:
            os.link(temporary, final)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return _commit_without_links(temporary, final)
        return True
    except FileExistsError:
        return False
    except FileNotFoundError:
        if not final.exists():  # else another process finished all, and removed what it took for a stray
            raise
        return False
    finally:
        temporary.unlink(missing_ok=True)
        sync(final.parent)


def _commit_without_links(temporary: Path, final: Path) -> bool:
    """The same where there are no hard links: who makes a directory beside the file may give it its name.

    Raises FileExistsError where another was first. A process that was killed in between leaves its directory, which
    counts for LOCK_SECONDS.
    """
    lock = final.with_name(f".{final.name}.lock.tmp")
    while not final.exists():
        try:
            lock.mkdir()
        except FileExistsError:
            with suppress(FileNotFoundError):
                if time.time() - lock.stat().st_mtime > LOCK_SECONDS:
                    lock.rmdir()
            time.sleep(0.05)
            continue
        try:
            if not final.exists():
                temporary.rename(final)
                return True
        finally:
            lock.rmdir()
    return False


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
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(final.parent)


def replace(final: Path, text: str) -> None:
    """Replace a file by `text` in one step."""
    with replacing(final) as file:
        file.write(text.encode("utf-8"))
