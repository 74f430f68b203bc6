"""Asking what is far: again while that may help, no longer than a minute or two, and by whatever client."""

import time
from collections.abc import Callable

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


def test_a_short_wait_that_a_server_asks_for_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(patience, "WAITS", (1, 2))
    monkeypatch.setattr("time.sleep", waits.append)
    busy = OSError("busy")
    busy.__cause__ = Exception()
    busy.__cause__.response = {"ResponseMetadata": {"HTTPStatusCode": 503, "HTTPHeaders": {"Retry-After": "7"}}}  # type: ignore[attr-defined]
    with pytest.raises(OSError, match="busy"):
        patiently(Refusing(busy), "it")
    assert [wait for wait in waits if wait >= 1] == [7, 7]  # other threads sleep too


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
