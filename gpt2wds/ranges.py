"""A range of a file's bytes as a server gives it, held to what was asked: its place, the file's size and identity."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import fsspec
from fsspec.asyn import sync

from .errors import reason

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

    def check_answer(self, status: int, headers: Mapping[str, Any]) -> None:
        """Raise WrongAnswer for an answer to other questions, before its body is read."""
        is_whole = status == 200 and (self.start, self.end) == (0, self.size)
        if status != 206 and not is_whole:
            raise WrongAnswer(f"expected status 206, got {status}: the server or a proxy ignores byte ranges")
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


def plain_etag(mark: str | None) -> str:
    """An ETag without quotes, and whether weak or not: a proxy that compresses elsewhere calls it weak."""
    return (mark or "").removeprefix("W/").strip('"')


def fetch(system: fsspec.AbstractFileSystem, path: str, wanted: Range) -> bytes:
    """A range through fsspec. Of HTTP and S3 the whole answer is checked, of others what fsspec gives: the length.

    Raises WrongRange, and what the file system's library raises.
    """
    protocols = {system.protocol} if isinstance(system.protocol, str) else set(system.protocol)
    if protocols & {"http", "https"}:
        return sync(system.loop, _over_http, system, path, wanted)
    if "s3" in protocols and hasattr(system, "call_s3"):
        return _from_s3(system, path, wanted)
    return wanted.checked(bytes(system.cat_file(path, start=wanted.start, end=wanted.end)))


async def _over_http(system: Any, path: str, wanted: Range) -> bytes:
    session = await system.set_session()
    options = {**system.kwargs, "headers": {**system.kwargs.get("headers", {}), **wanted.headers}}
    async with session.get(system.encode_url(path), **options) as answer:
        if answer.status == 404:
            raise FileNotFoundError(path)
        answer.raise_for_status()
        wanted.check_answer(answer.status, answer.headers)
        try:
            data = await answer.read()
        except Exception as error:  # of the HTTP client
            raise WrongRange(f"its body broke off: {reason(error)}") from None
        return wanted.checked(data)


def _from_s3(system: Any, path: str, wanted: Range) -> bytes:
    bucket, key, version = system.split_path(path)
    of_version = {"VersionId": version} if version else {}
    answer = system.call_s3("get_object", Bucket=bucket, Key=key, Range=wanted.headers["Range"], **of_version)
    try:
        headers = {"Content-Range": answer.get("ContentRange"), "ETag": answer.get("ETag")}
        wanted.check_answer(answer["ResponseMetadata"]["HTTPStatusCode"], headers)
        try:
            data = sync(system.loop, answer["Body"].read)
        except Exception as error:  # of the HTTP client
            raise WrongRange(f"its body broke off: {reason(error)}") from None
        return wanted.checked(data)
    finally:
        answer["Body"].close()
