"""Questions to the store behind a URL, through fsspec: asked again while it is busy, one line when it refuses."""

import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import fsspec

from .errors import Error, reason
from .patience import WHOLE_SECONDS, Answer, is_refused, patiently

Question = Callable[[fsspec.AbstractFileSystem, str], Answer]  # the file system, and the path there

CONNECTIONS = 64  # to a store, of one process; botocore has 10 if nothing is said
S3_CLIENT = {
    "max_pool_connections": CONNECTIONS,
    "connect_timeout": 10,
    "read_timeout": 30,
    "retries": {"total_max_attempts": 1},
}
GO_ON = "the same command goes on"


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """fsspec's file system for a URL, and the URL's path there. Each process has its own: clients survive no fork."""
    return _filesystem(url, os.getpid())


@lru_cache(maxsize=8)
def _filesystem(url: str, _: int) -> tuple[fsspec.AbstractFileSystem, str]:
    # Bytes as they are, and never unpacked: a small answer could unfold to gigabytes.
    plain = {"client_kwargs": {"headers": {"Accept-Encoding": "identity"}, "auto_decompress": False}}
    options: dict[str, Any] = {name: plain for name in ("http", "https") if f"{name}://" in url}
    if "s3://" in url and "config_kwargs" not in fsspec.config.conf.get("s3", {}):
        options["s3"] = {"config_kwargs": S3_CLIENT}
    try:
        system, path = fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        raise Error(f"{url}: expected a URL that fsspec can read ({reason(error)})") from None
    if hasattr(system, "call_s3"):
        system.retries = 1  # as botocore: who asks again is `ask`, and tries that multiply take minutes
    return system, path


def forget() -> None:
    """Make clients anew: for the next question, the environment may name another endpoint or other credentials."""
    _filesystem.cache_clear()


def fresh(system: fsspec.AbstractFileSystem) -> fsspec.AbstractFileSystem:
    """A file system that asks its store, and remembers no listing: others write there, too."""
    system.invalidate_cache()
    return system


def ask(
    url: str, question: Question[Answer], name: str = "", what: str = "it", seconds: float = WHOLE_SECONDS
) -> Answer:
    """The answer to a question about a URL, or about the file `name` below it, which may take so many seconds.

    A store that is busy or away is asked again for about two minutes, one that is not there at all for some seconds.

    Raises FileNotFoundError and FileExistsError as the store does, and Error for all else it says.
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
    except Error as error:
        raise Error(f"{where}: {error}") from None
    except Exception as error:  # of whatever library reads such URLs
        remedy = f"check your credentials and what they may do, then {GO_ON}" if is_refused(error) else GO_ON
        raise Error(f"{where}: {what} did not arrive ({reason(error)}); {remedy}") from None
