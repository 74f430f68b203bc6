"""Asking what is far, a store or the Hub: again while that may help, and never for ever."""

import contextlib
import errno
import logging
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextvars import ContextVar
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from threading import Event, Thread
from typing import TypeVar

from .errors import Error, NoRanges, reason, shown

Answer = TypeVar("Answer")

WAITS = (1, 2, 4, 8, 16, 30, 30)  # seconds before what did not answer is asked again
PATIENCE_SECONDS = 120.0  # after the first question nothing is asked again
ABSENT_SECONDS = 20.0  # the same where nothing listens at all, or another file's bytes come: often the address is wrong
GRACE_SECONDS = 30.0  # for any answer …
LEAST_RATE = 1 << 15  # … and bytes per second from then on: who is slower is given up
WHOLE_SECONDS = 300.0  # for an answer of unknown length
_PASSING_ERRORS = {errno.EBUSY, errno.ETIMEDOUT, errno.ENETUNREACH, getattr(errno, "EREMOTEIO", errno.ETIMEDOUT)}
_PASSING_STATUS = {408, 409, 429, 500, 502, 503, 504}
# Of HTTP clients, whose exceptions have no base in common.
_ABSENT_NAMES = {
    "ClientConnectorError",
    "ConnectError",
    "ConnectTimeout",
    "ConnectTimeoutError",
    "ConnectionTimeoutError",
    "EndpointConnectionError",
    "WrongAnswer",  # of ranges.py
}
_PASSING_NAMES = {
    "ClientPayloadError",
    "ConnectionClosedError",
    "HTTPClientError",
    "IncompleteRead",
    "ReadTimeoutError",
    "ServerDisconnectedError",
    "Timeout",
    "TransportError",
}
_LOG = logging.getLogger(__name__)
_TELLING = threading.Lock()
_told: dict[type, tuple[float, int]] = {}  # when, and by which thread
# Of a thread: when it is set, nobody waits for the thread's answers any more.
UNWANTED: ContextVar[Event] = ContextVar("UNWANTED")


def seconds_for(size: int) -> float:
    """How long an answer of so many bytes may take.

    >>> seconds_for(0), seconds_for(1 << 20)
    (30.0, 62.0)
    """
    return GRACE_SECONDS + size / LEAST_RATE


def patiently(question: Callable[[], Answer], what: str, seconds: float | None = WHOLE_SECONDS) -> Answer:
    """The answer to a question, asked again with growing pauses while its server is busy or away.

    what: for the log. seconds: that one answer may take, None for any number.
    Raises what the last question raised; Error where a server asks for more patience than PATIENCE_SECONDS.
    """
    begin, ignored = time.monotonic(), 0
    for pause in (*WAITS, None):
        try:
            return within(seconds, question)
        except Exception as error:  # of whatever library asks
            unwanted = UNWANTED.get(None) or Event()
            ignored += isinstance(error, NoRanges)  # a server that does so always will; a proxy may answer once so
            may = ignored == 1 if isinstance(error, NoRanges) else may_pass(error)
            if pause is None or not may or unwanted.is_set():
                raise
            asked = asked_to_wait(error)
            refuse_long_wait(asked)
            wait = max(pause, asked)
            most = ABSENT_SECONDS if _is_absent(error) else PATIENCE_SECONDS
            if time.monotonic() - begin + wait > most:
                raise
            if not isinstance(error, NoRanges) and _is_news(error):  # the former ends as an error, which says it
                _LOG.warning("%s did not arrive (%s), asking again in %g s", shown(what), reason(error), wait)
            if unwanted.wait(wait):
                raise
    raise AssertionError


def _is_news(error: Exception) -> bool:
    """Whether no other thread told of such an error within a second: when a store is away, 64 readers say the same."""
    kind, now, here = type(error), time.monotonic(), threading.get_ident()
    with _TELLING:
        when, who = _told.get(kind, (-math.inf, here))
        if who != here and now - when < 1:
            return False
        _told[kind] = now, here
    return True


def refuse_long_wait(seconds: float) -> None:
    """Raise Error where a server says that it wants to be asked again after so long."""
    if seconds > PATIENCE_SECONDS:
        raise Error(
            f"expected a server that answers within {PATIENCE_SECONDS:.0f} s, this one says to come back in "
            f"{seconds:,.0f} s; give the same command again then"
        )


def may_pass(error: BaseException) -> bool:
    """Whether there may be an answer to the same question later: who gives it is busy or away."""
    return not isinstance(error, Error) and any(
        isinstance(cause, (ConnectionError, TimeoutError))
        or _names(cause) & _PASSING_NAMES
        or (isinstance(cause, OSError) and cause.errno in _PASSING_ERRORS)
        or status(cause) in _PASSING_STATUS
        or _is_absent(cause)
        for cause in causes(error)
    )


def is_refused(error: BaseException) -> bool:
    """Whether it is about who asks. Asked for the head of a file, S3 says 400 of credentials that expired, no more."""
    is_known = any(isinstance(c, PermissionError) or status(c) in (400, 401, 403) for c in causes(error))
    return is_known or "Credential" in type(error).__name__


def asked_to_wait(error: BaseException) -> float:
    """The seconds after which a server wants to be asked again, by its Retry-After; 0 where it does not say."""
    return max((retry_after(_header(cause, "retry-after")) for cause in causes(error)), default=0.0)


def retry_after(value: str) -> float:
    """
    >>> retry_after("120"), retry_after(""), retry_after("Wed, 21 Oct 2015 07:28:00 GMT")
    (120.0, 0.0, 0.0)
    """
    if value.strip().isdecimal():
        return float(value[:12])
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    return 0.0


def causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def status(error: BaseException) -> object:
    """The HTTP status that an exception of some client tells, None if it tells none."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if response is not None:  # requests, httpx
        return getattr(response, "status_code", None)
    return getattr(error, "status", None) or getattr(error, "code", None)  # aiohttp, gcsfs


def _header(error: BaseException, name: str) -> str:
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        found = response.get("ResponseMetadata", {}).get("HTTPHeaders")
    else:
        found = getattr(error if response is None else response, "headers", None)
    return next((str(value) for key, value in dict(found or {}).items() if str(key).lower() == name), "")


def _is_absent(error: BaseException) -> bool:
    """Whether nothing listens there, or something else does, as far as can be told."""
    return any(
        isinstance(cause, (ConnectionRefusedError, socket.gaierror)) or _names(cause) & _ABSENT_NAMES
        for cause in causes(error)
    )


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def within(seconds: float | None, question: Callable[[], Answer]) -> Answer:
    """An answer that is there in time, None for any. A thread asks, and is left to itself after that: clients know no
    such limit, but only one for the silence between two bytes. Raises TimeoutError."""
    if seconds is None:
        return question()
    answer: Future[Answer] = Future()

    def ask() -> None:
        try:
            answer.set_result(question())
        except BaseException as error:
            answer.set_exception(error)

    Thread(target=ask, daemon=True).start()
    try:
        return answer.result(seconds)
    except TimeoutError:
        if answer.done():
            raise
        raise TimeoutError(late(seconds)) from None


def late(seconds: float) -> str:
    """What is said of an answer that is not there in time."""
    return f"no whole answer in {seconds:.0f} s"
