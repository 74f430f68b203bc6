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
SILENT_SECONDS = 3600  # untouched for so long, a file of another time may be taken for a dead process's
TEMPORARY = ".*.tmp"  # matches what killed processes leave


def local_path(path: str | Path) -> Path:
    """A path of this machine. Raises Error for a URL, which would become a directory called "s3:", and for no name."""
    if not str(path).strip():
        raise Error("expected a path, got an empty name")
    if "://" in str(path):
        raise Error(f"expected a path of this machine, got the URL {path}; give a local directory")
    refuse_no_path(str(path))
    return Path(path)


def refuse_no_path(path: str) -> None:
    """Raise Error for a URL that lost a slash or both: it would become a directory called "s3:". And for NUL in it."""
    if "\0" in path:  # a command line has none, TOML may
        raise Error(f"expected a path or a URL, got {path!r}; no name has a NUL")
    found = re.match(r"([a-z][a-z0-9+.-]+):/(?!/)", path) or re.match(r"(s3|gs|gcs|hf|https?):(?!//)", path)
    if found:
        raise Error(
            f"expected a path or a URL, got {path}; a URL begins with {found[1]}://, a directory of that name with ./"
        )


def temporary_name(final: Path) -> Path:
    name = f".{final.name}.{_host()}.{_short_kernel()}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    return final.with_name(name)


def remove_dead(folder: Path) -> None:
    """Remove temporary files of processes that have ended, as far as this host can know.

    Those of its own since it started; and of a host of its name those that nobody has touched since before it started,
    nor for SILENT_SECONDS: another host or container may have the same name, and a writer may wait for its source.
    """
    here, silent = _short_kernel(), min(host_began(), time.time() - SILENT_SECONDS)
    for path in folder.glob(TEMPORARY):
        found = re.fullmatch(r"\..+\.([0-9a-f]{8})\.(\d+)\.[0-9a-f]{8}\.tmp", path.name)
        if not found or path.is_dir():
            continue
        with suppress(FileNotFoundError):  # its writer has ended well, or another process removes it, too
            if found[1] == here:
                is_dead = not _lives(int(found[2]))
            else:
                is_dead = f".{_host()}.{found[1]}." in path.name and path.stat().st_mtime < silent
            if is_dead:
                path.unlink()


def kernel() -> str:
    """Which processes can be seen from here: those of this boot of this machine, and of this container."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + " " + os.readlink("/proc/self/ns/pid")
    except OSError:
        return socket.gethostname()


def _short_kernel() -> str:
    return sha256(kernel().encode()).hexdigest()[:8]


def _host() -> str:
    return socket.gethostname().replace("/", "_")


def host_began() -> float:
    """When this host, or this container, began: its first process, in seconds of its clock. 0 where that is unknown."""
    try:
        words = dict(line.partition(" ")[::2] for line in Path("/proc/stat").read_text().splitlines())
        ticks = int(Path("/proc/1/stat").read_text().rpartition(")")[2].split()[19])
        return int(words["btime"]) + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, LookupError, ValueError):
        return 0.0


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
def synced(path: Path, final: Path | None = None) -> Iterator[BinaryIO]:
    """A new file for writing, on the disk when the context ends; gone where that fails, or a full disk stays full.

    final: the name by which its user knows it.
    """
    try:
        with naming_full_disk(final or path), path.open("wb") as file:
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
    with synced(temporary, final) as file:
        file.write(text.encode("utf-8"))
    return commit(temporary, final)


@contextmanager
def replacing(final: Path) -> Iterator[BinaryIO]:
    """A file for writing that takes the place of `final` when the context ends: a reader sees the old or the new.

    What is not a file, as a pipe or /dev/null, is written to and stays what it is. So does a link to a file.
    """
    if final.exists() and not final.is_file():
        with naming_full_disk(final), final.open("wb") as file:
            yield file
        return
    final = final.resolve() if final.is_symlink() else final
    temporary = temporary_name(final)
    with synced(temporary, final) as file:
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
