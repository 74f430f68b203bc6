"""Asking what is far: again while that may help, no longer than a minute or two, and by whatever client."""

import errno
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from threading import Event, Timer
from types import SimpleNamespace

import fsspec
import pytest
from test_ranges import DATA, Reader, hub, read  # noqa: F401  (the same file, through each door)

from gpt2wds import patience
from gpt2wds.errors import Error
from gpt2wds.folder import Folder
from gpt2wds.patience import patiently


class Refusing:
    """A question that raises the same each time, and counts."""

    def __init__(self, error: Exception):
        self.error, self.times = error, 0

    def __call__(self) -> None:
        self.times += 1
        raise self.error


def test_a_server_that_wants_an_hour_is_one_line_through_each_door(hub, read: Reader) -> None:  # noqa: F811
    hub.faults = ["hour"] * 50
    started = time.monotonic()
    with pytest.raises(Error, match="this one says to come back in 3,600 s") as said:
        read(100, 300)
    assert len(hub.faults) == 49 and time.monotonic() - started < 5 and "\n" not in str(said.value)


def test_a_server_that_drips_is_given_up_through_each_door(
    hub,  # noqa: F811
    read: Reader,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(patience, "GRACE_SECONDS", 0.3)
    hub.faults = ["drip", ""]
    assert read(100, 300) == DATA[100:300]
    hub.faults = ["drip"] * 50
    with pytest.raises(Error, match="bytes 100 to 300 did not arrive .no whole answer in 0 s.; the same command goes"):
        read(100, 300)


@pytest.mark.parametrize("read", ["http", "s3"], indirect=True)
def test_no_thread_is_made_for_a_range(hub, read: Reader, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """It would take as much processor time again as half of the request."""
    read(0, 77)
    monkeypatch.setattr(patience, "Thread", None)
    assert read(100, 300) == DATA[100:300]


def test_a_short_wait_that_a_server_asks_for_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    class Recording(Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0)
            return False

    monkeypatch.setattr(patience, "WAITS", (1, 2))
    patience.UNWANTED.set(Recording())
    busy = OSError("busy")
    busy.__cause__ = Exception()
    busy.__cause__.response = {"ResponseMetadata": {"HTTPStatusCode": 503, "HTTPHeaders": {"Retry-After": "7"}}}  # type: ignore[attr-defined]
    with pytest.raises(OSError, match="busy"):
        patiently(Refusing(busy), "it")
    patience.UNWANTED.set(Event())
    assert waits == [7, 7]


def test_what_nobody_wants_any_more_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither at once nor after a pause that it is in."""
    monkeypatch.setattr(patience, "WAITS", (60, 60))
    unwanted = Event()
    patience.UNWANTED.set(unwanted)
    question: Callable[[], None] = Refusing(ConnectionResetError("reset"))
    Timer(0.2, unwanted.set).start()
    started = time.monotonic()
    for _ in range(2):
        with pytest.raises(ConnectionResetError):
            patiently(question, "it")
    patience.UNWANTED.set(Event())
    assert question.times == 2 and time.monotonic() - started < 30  # type: ignore[attr-defined]


@pytest.mark.parametrize("url", ["s3://corpus/data", "http://127.0.0.1:9/data"])
def test_where_nothing_listens_is_given_up_soon_by_name(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    pytest.importorskip("s3fs", reason="needs the extra 's3'")
    for name, value in (("ENDPOINT_URL", "http://127.0.0.1:9"), ("ACCESS_KEY_ID", "k"), ("SECRET_ACCESS_KEY", "s")):
        monkeypatch.setenv(f"AWS_{name}", value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    monkeypatch.setattr(patience, "WAITS", (0.05,) * 1000)
    monkeypatch.setattr(patience, "ABSENT_SECONDS", 0.2)
    started = time.monotonic()
    with pytest.raises(Error, match=r"127\.0\.0\.1:9.*; the same command goes on"):
        Folder(f"{url}").read("a")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("error", [Error("no"), PermissionError("no"), ValueError("no"), FileNotFoundError("no")])
def test_what_another_answer_cannot_mend_is_asked_once(error: Exception) -> None:
    question: Callable[[], None] = Refusing(error)
    with pytest.raises(type(error)):
        patiently(question, "it")
    assert question.times == 1  # type: ignore[attr-defined]


class ReadTimeoutError(Exception):
    """As urllib3's, which clients do not derive from TimeoutError."""


class ConnectTimeout(Exception):
    """As that of requests."""


class Answered(Exception):
    """As what clients raise of an answer: with its status, in one of their ways."""

    def __init__(self, **members: object):
        for name, value in members.items():
            setattr(self, name, value)


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def told_by_botocore(status: int) -> Answered:
    return Answered(response={"ResponseMetadata": {"HTTPStatusCode": status}})


def told_by_requests(status: int) -> Answered:
    return Answered(response=SimpleNamespace(status_code=status))


BUSY = [408, 409, 429, 500, 502, 503, 504]


@pytest.mark.parametrize(
    ("error", "may"),
    [
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (ReadTimeoutError(), True),
        (ConnectTimeout(), True),
        (socket.gaierror(-2, "no such name"), True),
        (OSError(errno.EBUSY, "busy"), True),
        (OSError(errno.ENETUNREACH, "no way there"), True),
        (OSError(errno.ENOSPC, "full"), False),
        (caused(OSError("it broke"), TimeoutError()), True),
        (caused(ValueError("it broke"), caused(OSError("and why"), told_by_requests(503))), True),
        (caused(Error("said to the user"), TimeoutError()), False),
        (ValueError("ours"), False),
        *((tell(status), True) for tell in (told_by_botocore, told_by_requests) for status in BUSY),
        *((Answered(**{name: 503}), True) for name in ("status", "code")),
        *((told_by_botocore(status), False) for status in (400, 401, 403, 404, 412, 416, 501)),
    ],
    ids=repr,
)
def test_what_another_answer_may_mend_is_asked_again(error: Exception, may: bool) -> None:
    assert patience.may_pass(error) == may


class NoCredentialsError(Exception):
    """As botocore's."""


@pytest.mark.parametrize(
    ("error", "is_about_who"),
    [
        *((tell(status), True) for tell in (told_by_botocore, told_by_requests) for status in (400, 401, 403)),
        (PermissionError("no"), True),
        (caused(OSError("no"), PermissionError("no")), True),
        (NoCredentialsError(), True),
        (told_by_botocore(404), False),
        (FileNotFoundError("no"), False),
    ],
    ids=repr,
)
def test_what_is_about_who_asks(error: Exception, is_about_who: bool) -> None:
    assert patience.is_refused(error) == is_about_who


@pytest.mark.parametrize("value", ["soon", "-5", "Wed, 99 Oct 2015", "1e3", "\x00"])
def test_a_retry_after_that_says_nothing_counts_as_none(value: str) -> None:
    assert patience.retry_after(value) == 0


def test_a_retry_after_may_be_a_date() -> None:
    assert 50 < patience.retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=60))) <= 60


def test_a_question_that_timed_out_itself_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "WAITS", ())
    with pytest.raises(TimeoutError, match="of the question's own"):
        patiently(Refusing(TimeoutError("of the question's own")), "it", 20)


def test_many_that_ask_at_once_say_it_once(caplog: pytest.LogCaptureFixture) -> None:
    """All blocks that are read ahead, when the store is away; one that asks alone tells each time."""

    class Alone(ConnectionRefusedError):
        """A class that nothing was told of yet."""

    class Together(ConnectionRefusedError):
        """The same."""

    def ask(error: Exception) -> None:
        with pytest.raises(type(error)):
            patiently(Refusing(error), "a block")

    ask(Alone())
    alone = len(caplog.records)
    assert alone == len(patience.WAITS)
    caplog.clear()
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(ask, [Together()] * 16))
    assert 0 < len(caplog.records) <= 2 * alone
