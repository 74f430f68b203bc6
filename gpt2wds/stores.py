"""Questions to the store behind a URL, through fsspec: asked again while it is busy, one line when it refuses."""

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, TypeVar

import fsspec

from .errors import Error, reason

Answer = TypeVar("Answer")
Question = Callable[[fsspec.AbstractFileSystem, str], Answer]  # the file system, and the path there

CONNECTIONS = 64  # to a store, of one process
GO_ON = "the same command goes on"
WAITS = (1, 2, 4, 8, 16, 30)  # seconds before a store that did not answer is asked again
_PASSING_ERRORS = {errno.EBUSY, errno.ETIMEDOUT, errno.ENETUNREACH, getattr(errno, "EREMOTEIO", errno.ETIMEDOUT)}
_PASSING_STATUS = {408, 409, 429, 500, 502, 503, 504}
# Of HTTP clients, whose exceptions have no base in common.
_PASSING_NAMES = {
    "ClientPayloadError",
    "ConnectTimeoutError",
    "ConnectionClosedError",
    "EndpointConnectionError",
    "HTTPClientError",
    "IncompleteRead",
    "ReadTimeoutError",
    "ServerDisconnectedError",
}
_LOG = logging.getLogger(__name__)


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """fsspec's file system for a URL, and the URL's path there. Each process has its own: clients survive no fork."""
    return _filesystem(url, os.getpid())


@lru_cache(maxsize=8)
def _filesystem(url: str, _: int) -> tuple[fsspec.AbstractFileSystem, str]:
    # Bytes as they are, and never unpacked: a small answer could unfold to gigabytes.
    plain = {"client_kwargs": {"headers": {"Accept-Encoding": "identity"}, "auto_decompress": False}}
    options: dict[str, Any] = {name: plain for name in ("http", "https") if f"{name}://" in url}
    if "s3://" in url and "config_kwargs" not in fsspec.config.conf.get("s3", {}):
        options["s3"] = {"config_kwargs": {"max_pool_connections": CONNECTIONS}}  # botocore has 10 if nothing is said
    try:
        return fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        raise Error(f"{url}: expected a URL that fsspec can read ({reason(error)})") from None


def fresh(system: fsspec.AbstractFileSystem) -> fsspec.AbstractFileSystem:
    """A file system that asks its store, and remembers no listing: others write there, too."""
    system.invalidate_cache()
    return system


def ask(url: str, question: Question[Answer], name: str = "", what: str = "it") -> Answer:
    """The answer to a question about a URL, or about the file `name` below it.

    A store that is busy or away is asked again for about a minute.

    Raises FileNotFoundError and FileExistsError as the store does, and Error for all else it says.
    """
    where = f"{url}/{name}" if name else url
    for wait in (*WAITS, None):
        system, path = filesystem(url)
        try:
            return question(system, f"{path}/{name}" if name else path)
        except FileExistsError:
            raise
        except FileNotFoundError as error:
            if "bucket does not exist" in str(error):
                raise Error(f"{where}: {reason(error).rstrip('.')}; check its name, or make it first") from None
            raise
        except Error as error:
            raise Error(f"{where}: {error}") from None
        except Exception as error:  # of whatever library reads such URLs
            if wait is None or not _may_pass(error):
                raise Error(f"{where}: {what} did not arrive ({reason(error)}); {_remedy(error)}") from None
            _LOG.warning("%s: %s did not arrive (%s), asking again in %d s", where, what, reason(error), wait)
            time.sleep(wait)
    raise AssertionError


def _may_pass(error: BaseException) -> bool:
    """Whether a store may answer when it is asked again: it is busy or away, or a connection broke."""
    return any(
        isinstance(cause, (ConnectionError, TimeoutError))
        or type(cause).__name__ in _PASSING_NAMES
        or (isinstance(cause, OSError) and cause.errno in _PASSING_ERRORS)
        or _status(cause) in _PASSING_STATUS
        for cause in _causes(error)
    )


def _remedy(error: BaseException) -> str:
    causes = list(_causes(error))
    # Asked for the head of a file only, S3 says 400 of credentials that expired, and no more.
    refused = any(isinstance(cause, PermissionError) or _status(cause) in (400, 401, 403) for cause in causes)
    if refused or "Credential" in type(error).__name__:
        return f"check your credentials and what they may do, then {GO_ON}"
    return GO_ON


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _status(error: BaseException) -> object:
    """The HTTP status that an exception of some client tells, None if it tells none."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if response is not None:  # requests, httpx
        return getattr(response, "status_code", None)
    return getattr(error, "status", None) or getattr(error, "code", None)  # aiohttp, gcsfs
