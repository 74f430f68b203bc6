"""A range of a file's bytes as a server gives it, held to what was asked: its place, the file's size and identity."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import NoRanges, reason
from .patience import late, status, within

if TYPE_CHECKING:  # fsspec and asyncio are imported when the first URL is read
    from fsspec import AbstractFileSystem
    from fsspec.asyn import AsyncFileSystem

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class WrongRange(ConnectionError):
    """An answer that is not the range that was asked for; the next one may be."""


class WrongAnswer(WrongRange):
    """It says itself that it is another: mostly for good, so it is not asked for as long as what broke on the way."""


@dataclass(frozen=True)
class Range:
    """Bytes start … end - 1 of a file of `size`. mark: "ETag …" or "Last-Modified …" where that tells its content."""

    start: int
    end: int
    size: int
    mark: str = ""

    @property
    def headers(self) -> dict[str, str]:
        """What asks for it: as it is, because a compressed answer has other places."""
        return {"Range": f"bytes={self.start}-{self.end - 1}", "Accept-Encoding": "identity"}

    def check_answer(self, status: int, headers: Mapping[str, str | None]) -> None:
        """Raise WrongAnswer or NoRanges for an answer to other questions, before its body is read."""
        is_whole = status == 200 and (self.start, self.end) == (0, self.size)
        if status != 206 and not is_whole:
            raise _ignored(status)
        found = _CONTENT_RANGE.fullmatch(headers.get("Content-Range") or "")
        if not is_whole and (
            not found
            or (int(found[1]), int(found[2])) != (self.start, self.end - 1)
            or found[3] not in ("*", str(self.size))
        ):
            raise WrongAnswer(
                f"expected bytes {self.start}-{self.end - 1}/{self.size}, "
                f"the server says {headers.get('Content-Range') or 'nothing'}"
            )
        length, encoding = headers.get("Content-Length"), headers.get("Content-Encoding")
        if length not in (None, str(self.end - self.start)) or encoding not in (None, "", "identity"):
            raise WrongAnswer(
                f"expected {self.end - self.start} bytes as they are, got {length} {encoding or ''}".rstrip()
            )
        name, _, mark = self.mark.partition(" ")
        if name in ("ETag", "Last-Modified") and plain_etag(headers.get(name)) != plain_etag(mark):
            raise WrongAnswer(f"the file changed, expected {name} {mark}, got {headers.get(name) or 'none'}")

    def checked(self, data: bytes) -> bytes:
        """The body of an answer. Raises WrongRange where it is cut short, or too long."""
        if len(data) != self.end - self.start:
            raise WrongRange(f"expected {self.end - self.start} bytes from {self.start}, got {len(data)}")
        return data


def _ignored(status: int) -> NoRanges:
    return NoRanges(f"expected status 206, got {status}: the server or a proxy ignores byte ranges")


def plain_etag(mark: str | None) -> str:
    """An ETag without quotes, and whether weak or not: a proxy that compresses elsewhere calls it weak."""
    return (mark or "").removeprefix("W/").strip('"')


def fetch(system: AbstractFileSystem, path: str, wanted: Range, seconds: float) -> bytes:
    """A range through fsspec, in so many seconds. Of HTTP, S3 and the Hub the whole answer is checked, of others what
    fsspec gives: the length.

    Raises WrongRange, NoRanges, TimeoutError, and what the file system's library raises.
    """
    kinds = protocols(system)
    if kinds & {"http", "https"}:
        return _on_loop(system, seconds, _over_http, system, path, wanted)
    if "s3" in kinds and hasattr(system, "call_s3"):
        return _on_loop(system, seconds, _from_s3, system, path, wanted)
    if system.async_impl:
        return wanted.checked(_on_loop(system, seconds, system._cat_file, path, start=wanted.start, end=wanted.end))
    return within(seconds, lambda: _from_others(system, path, wanted))


def _from_others(system: AbstractFileSystem, path: str, wanted: Range) -> bytes:
    if url := _hub_url(system, path):
        return wanted.checked(hub_answer(url, wanted.headers, lambda a: wanted.check_answer(a.status_code, a.headers)))
    return wanted.checked(bytes(system.cat_file(path, start=wanted.start, end=wanted.end)))


def fetch_some(system: AbstractFileSystem, path: str, start: int, end: int | None, seconds: float | None) -> bytes:
    """Bytes start … end - 1 of a file of unknown size, fewer where it is shorter; all from `start` on for None.

    seconds: that it may take, None for any number. Raises FileNotFoundError, and as `fetch` does.
    """
    if end is not None and end <= start:
        return b""
    data = _some(system, path, start, end, seconds)
    if end is not None and len(data) > end - start:
        raise NoRanges(
            f"expected {end - start} bytes from {start}, got {len(data)}: the server or a proxy ignores byte ranges"
        )
    return data


def _some(system: Any, path: str, start: int, end: int | None, seconds: float | None) -> bytes:
    first = None if start == 0 and end is None else start  # asked without a range, S3 needs no size
    if protocols(system) & {"http", "https"} and (start, end) != (0, None):
        try:
            return _on_loop(system, seconds, _some_over_http, system, path, start, end)
        except Exception as error:  # of the HTTP client
            if status(error) == 416:  # it ends before
                return b""
            raise
    if system.async_impl:
        return _on_loop(system, seconds, system._cat_file, path, start=first, end=end)

    def asked() -> bytes:
        if url := _hub_url(system, path):
            return _some_of_hub(url, start, end)
        return bytes(system.cat_file(path, start=first, end=end))

    return within(seconds, asked)


def _on_loop(
    system: AsyncFileSystem, seconds: float | None, ask: Callable[..., Coroutine], *arguments: Any, **options: Any
) -> bytes:
    """What a coroutine on a file system's loop returns in time: cancelled after that. A thread for each question, as
    others need, would take as much processor time again as half of the question itself."""
    from fsspec.asyn import sync
    from fsspec.exceptions import FSTimeoutError

    try:
        return bytes(sync(system.loop, ask, *arguments, timeout=seconds, **options))
    except FSTimeoutError as error:  # which says nothing; of a client's own there is more to say
        raise TimeoutError(str(error.__cause__ or "") or late(seconds or 0)) from None


def _some_of_hub(url: str, start: int, end: int | None) -> bytes:
    """As `fetch_some`, without fsspec, which takes a file's size from a listing that it keeps, finds no file that
    another writer made since, and reads 5 MB further than asked."""
    is_whole = start == 0 and end is None
    asked = {"Accept-Encoding": "identity"} if is_whole else _asking(start, end)

    def check(answer: Any) -> None:
        if not is_whole:
            _check_some(start, end, answer.status_code, answer.headers)

    try:
        return hub_answer(url, asked, check)
    except Exception as error:  # of a client that huggingface_hub may change
        if status(error) == 416:  # it ends before
            return b""
        raise


def _asking(start: int, end: int | None) -> dict[str, str]:
    return {"Accept-Encoding": "identity", "Range": f"bytes={start}-{'' if end is None else end - 1}"}


def _check_some(start: int, end: int | None, status: int, headers: Mapping[str, str]) -> None:
    """As Range.check_answer, of a file of unknown size: all of one that is no longer is what was asked for, too."""
    if status != 206:
        length = headers.get("Content-Length")
        if status != 200 or start or (end is not None and length is not None and int(length) > end):
            raise _ignored(status)
        return
    found = _CONTENT_RANGE.fullmatch(headers.get("Content-Range") or "")
    if not found or int(found[1]) != start or (end is not None and int(found[2]) >= end):
        raise WrongAnswer(f"expected bytes from {start}, got {headers.get('Content-Range') or 'others'}")


def _uncut(data: bytes, headers: Mapping[str, str]) -> bytes:
    """A body that is as long as its headers say. Raises WrongRange for one that is cut short."""
    found = _CONTENT_RANGE.fullmatch(headers.get("Content-Range") or "")
    if found and len(data) != (said := int(found[2]) - int(found[1]) + 1):
        raise WrongRange(f"expected {said} bytes from {found[1]}, got {len(data)}")
    return data


def hub_answer(url: str, headers: Mapping[str, str], check: Callable[[Any], None]) -> bytes:
    """The body of the Hub's answer, which `check` is shown before.

    Raises FileNotFoundError, WrongRange, and what the Hub's client raises.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import EntryNotFoundError
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        hf_raise_for_status,
        http_stream_backoff,
    )

    broken: Exception | None = None
    options: dict[str, Any] = {"timeout": constants.HF_HUB_DOWNLOAD_TIMEOUT, "max_retries": 0}
    with http_stream_backoff("GET", url, headers={**build_hf_headers(), **headers}, **options) as answer:
        try:  # what is raised in here must not reach http_stream_backoff, which would take it for its own
            hf_raise_for_status(answer)
            check(answer)
        except EntryNotFoundError as error:
            broken = FileNotFoundError(reason(error))
        except Exception as error:
            broken = error
        else:
            try:
                data = _uncut(bytes(answer.read()), answer.headers)
            except WrongRange as error:
                broken = error
            except Exception as error:
                broken = WrongRange(f"its body broke off: {reason(error)}")
    if broken:
        raise broken
    return data


def _hub_url(system: Any, path: str) -> str:
    """The address of a file in a repository of the Hub, "" for any other. Asks at most whether that is there."""
    if "hf" not in protocols(system):
        return ""
    from huggingface_hub import hf_hub_url

    try:
        place = system.resolve_path(path)
    except FileNotFoundError:  # what it remembers; the repository may be there by now
        system.invalidate_cache()
        place = system.resolve_path(path)
    if not hasattr(place, "repo_id"):  # a bucket
        return ""
    options = {"repo_type": place.repo_type, "revision": place.revision, "endpoint": system.endpoint}
    return str(hf_hub_url(place.repo_id, place.path_in_repo, **options))


def protocols(system: AbstractFileSystem) -> set[str]:
    """What a file system is called in URLs."""
    return {system.protocol} if isinstance(system.protocol, str) else set(system.protocol)


async def _over_http(system: Any, path: str, wanted: Range) -> bytes:
    return wanted.checked(await _http_answer(system, path, wanted.headers, wanted.check_answer))


async def _some_over_http(system: Any, path: str, start: int, end: int | None) -> bytes:
    def check(status: int, headers: Mapping[str, str]) -> None:
        _check_some(start, end, status, headers)

    return await _http_answer(system, path, _asking(start, end), check)


async def _http_answer(
    system: Any, path: str, headers: Mapping[str, str], check: Callable[[int, Mapping[str, str]], None]
) -> bytes:
    """The body of a server's answer, whose status and headers `check` is shown before."""
    session = await system.set_session()
    options = {**system.kwargs, "headers": {**system.kwargs.get("headers", {}), **headers}}
    async with session.get(system.encode_url(path), **options) as answer:
        if answer.status == 404:
            raise FileNotFoundError(path)
        answer.raise_for_status()
        check(answer.status, answer.headers)
        try:
            data = bytes(await answer.read())
        except Exception as error:  # of the HTTP client
            raise WrongRange(f"its body broke off: {reason(error)}") from None
        return _uncut(data, answer.headers)


async def _from_s3(system: Any, path: str, wanted: Range) -> bytes:
    bucket, key, version = system.split_path(path)
    of_version = {"VersionId": version} if version else {}
    answer = await system._call_s3("get_object", Bucket=bucket, Key=key, Range=wanted.headers["Range"], **of_version)
    try:
        headers = {"Content-Range": answer.get("ContentRange"), "ETag": answer.get("ETag")}
        wanted.check_answer(answer["ResponseMetadata"]["HTTPStatusCode"], headers)
        try:
            data = await answer["Body"].read()
        except Exception as error:  # of the HTTP client
            raise WrongRange(f"its body broke off: {reason(error)}") from None
        return wanted.checked(data)
    finally:
        answer["Body"].close()
