"""Questions to the store behind a URL, through fsspec: asked again while it is busy, one line when it refuses.

How a file goes there whole, and how fsspec's cache before it is read by many.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import Error, NoRanges, Unanswered, reason
from .files import remove_dead, temporary_name
from .patience import WHOLE_SECONDS, Answer, causes, is_refused, patiently, status
from .version import __version__

if TYPE_CHECKING:  # it and asyncio are imported when the first URL is opened
    import fsspec

Question = Callable[["fsspec.AbstractFileSystem", str], Answer]  # the file system, and the path there

CONNECTIONS = 64  # to a store, of one process; botocore has 10 if nothing is said
S3_CLIENT = {
    "max_pool_connections": CONNECTIONS,
    "connect_timeout": 10,
    "read_timeout": 30,
    "retries": {"total_max_attempts": 1},
    "user_agent": f"gpt2wds/{__version__}",  # botocore puts its own together for each request, in a tenth of its time
}
# Of two parts on, a file goes to S3 in parts, so many of them in memory: s3fs alone would hold ten of 50 MiB.
PART_BYTES, PARTS_AT_ONCE, MOST_PARTS = 1 << 25, 2, 10_000
_CACHED: set[tuple[str, str]] = set()  # files that this process knows to be in a cache: its directory, and their path
GO_ON = "the same command goes on"


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """fsspec's file system for a URL, and the URL's path there. Each process has its own: clients survive no fork.

    Raises Error for what fsspec cannot read, and what its library does where that asks its server already.
    """
    return _filesystem(url, os.getpid())


@lru_cache(maxsize=8)
def _filesystem(url: str, _: int) -> tuple[fsspec.AbstractFileSystem, str]:
    import fsspec

    # Bytes as they are, and never unpacked: a small answer could unfold to gigabytes.
    plain = {"client_kwargs": {"headers": {"Accept-Encoding": "identity"}, "auto_decompress": False}}
    options: dict[str, Any] = {name: plain for name in ("http", "https") if f"{name}://" in url}
    if "s3://" in url and "config_kwargs" not in fsspec.config.conf.get("s3", {}):
        options["s3"] = {"config_kwargs": S3_CLIENT}
    try:
        system, path = fsspec.core.url_to_fs(url, **options)
    except OSError:  # some ask their server now
        raise
    except Exception as error:  # of whatever library reads such URLs
        raise Error(f"expected a URL that fsspec can read ({reason(error)})") from None
    if is_cache(system):
        _keep_whole(url, system)
    store = system.fs if is_cache(system) else system
    if hasattr(store, "call_s3"):
        store.retries = 1  # as botocore: who asks again is `ask`, and tries that multiply take minutes
    return system, path


def is_cache(system: fsspec.AbstractFileSystem) -> bool:
    """Whether it is a cache of fsspec's before a store, as of a URL that begins with `simplecache::`."""
    from fsspec.implementations.cached import CachingFileSystem

    return isinstance(system, CachingFileSystem)


def _keep_whole(url: str, cache: Any) -> None:
    """Let a cache give a file its name when all of it is there: fsspec shows others what it has so far, and keeps
    that where a process is killed."""
    from fsspec.implementations.cached import SimpleCacheFileSystem

    if not isinstance(cache, SimpleCacheFileSystem):
        kind, _, rest = url.partition("::")
        raise Error(f"expected a cache that many may read at once, got {kind}; give simplecache::{rest}")
    remove_dead(Path(cache.storage[-1]))
    get = cache.fs.get_file
    if hasattr(get, "is_whole"):
        return

    def get_file(path: str, local: str, **options: Any) -> None:
        temporary = temporary_name(Path(local))
        try:
            get(path, str(temporary), **options)
            temporary.replace(local)
        finally:
            temporary.unlink(missing_ok=True)

    get_file.is_whole = True  # type: ignore[attr-defined]
    cache.fs.get_file = get_file


def fetch_to_cache(system: Any, path: str) -> None:
    """Where there is a cache, have this file in it: fetched by one of all threads and processes that share it."""
    if not is_cache(system) or (system.storage[-1], path) in _CACHED:
        return
    name = hashlib.sha256(path.encode()).hexdigest()[:16]
    with Path(system.storage[-1], f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        system.open(path, "rb").close()
    _CACHED.add((system.storage[-1], path))


def forget() -> None:
    """Make clients anew: for the next question, the environment may name another endpoint or other credentials."""
    _filesystem.cache_clear()


def fresh(system: fsspec.AbstractFileSystem) -> fsspec.AbstractFileSystem:
    """A file system that asks its store, and remembers no listing: others write there, too."""
    system.invalidate_cache()
    return system


def upload(system: fsspec.AbstractFileSystem, file: str, path: str, *, is_exclusive: bool) -> None:
    """Send a file of this machine in one piece: a store shows all of it or nothing.

    is_exclusive: only where none is there, which S3 holds to also when the last of several parts has come. Where an
    upload in parts fails, s3fs has its parts removed. Raises what the store says.
    """
    options: dict[str, Any] = {}
    if hasattr(system, "call_s3"):
        parts = max(PART_BYTES, -(-os.path.getsize(file) // MOST_PARTS))
        options = {"chunksize": parts, "max_concurrency": PARTS_AT_ONCE}
    system.put_file(file, path, mode="create" if is_exclusive else "overwrite", **options)


def lacks_exclusive(error: BaseException) -> bool:
    """Whether a store says that it does not know what was asked for, as `If-None-Match` of a PUT."""
    return any(
        status(cause) == 501 or (isinstance(cause, OSError) and cause.errno == errno.ENOSYS) for cause in causes(error)
    )


def ask(
    url: str, question: Question[Answer], name: str = "", what: str = "it", seconds: float | None = WHOLE_SECONDS
) -> Answer:
    """The answer to a question about a URL, or about the file `name` below it.

    seconds: that it may take, None for any number. A store that is busy or away is asked again for about two minutes,
    one that is not there at all for some seconds.

    Raises FileNotFoundError and FileExistsError as the store does, and Unanswered for all else it says; Error for a
    place that is wrong.
    """
    where = f"{url}/{name}" if name else url

    def asked() -> Answer:
        system, path = filesystem(url)
        return question(system, f"{path}/{name}" if name else path)

    try:
        return patiently(asked, f"{where}: {what}", seconds)
    except FileExistsError:
        raise
    except FileNotFoundError as error:
        if "bucket does not exist" in str(error):
            raise Error(f"{where}: {reason(error).rstrip('.')}; check its name, or make it first") from None
        raise
    except NoRanges as error:
        remedy = f"take another server, or give simplecache::{url}, which fetches whole files"
        raise NoRanges(f"{where}: {error}; {remedy}") from None
    except Error as error:
        kind = Unanswered if isinstance(error, Unanswered) else Error
        raise kind(f"{where}: {error}") from None
    except Exception as error:  # of whatever library reads such URLs
        remedy = f"check your credentials and what they may do, then {GO_ON}" if is_refused(error) else GO_ON
        raise Unanswered(f"{where}: {what} did not arrive ({reason(error)}); {remedy}") from None
