"""Ranges from servers that answer another question: noticed whoever fetches, asked again, or one line."""

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from loopback_hub import COMMIT, LoopbackHub

from gpt2wds import patience
from gpt2wds.errors import Error, NoRanges
from gpt2wds.folder import Folder
from gpt2wds.locations import HubFile, UrlFile, url_file
from gpt2wds.ranges import Range, WrongRange
from gpt2wds.stores import forget

DATA = bytes(range(256)) * 40
PLACE = f"datasets/owner/name/resolve/{COMMIT}/a.bin"
WRONG = ["elsewhere", "total", "unsaid", "empty", "short", "whole", "changed"]
Reader = Callable[[int, int], bytes]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.bin").write_bytes(DATA)
    with LoopbackHub({"datasets/owner/name": tmp_path / "data"}) as running:
        template = f"{running.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(patience, "WAITS", (0.01, 0.01, 0.01))
        yield running


@pytest.fixture(params=["hub", "http", "s3"])
def read(request: pytest.FixtureRequest, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> Reader:
    """The same file through each door."""
    if request.param == "hub":
        return HubFile("owner/name", COMMIT, "a.bin", len(DATA), hashlib.sha256(DATA).hexdigest()).read_range
    if request.param == "http":
        return url_file(f"{hub.url}/{PLACE}").read_range
    pytest.importorskip("s3fs", reason="needs the extra 's3'")
    for name, value in (("AWS_ENDPOINT_URL", hub.url), ("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", "s")):
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    # Any revision is the same file there, and a URL's client is kept.
    return url_file(f"s3://{PLACE.replace(COMMIT, hub.url.rpartition(':')[2])}").read_range


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_answer_is_asked_again(hub: LoopbackHub, read: Reader, fault: str) -> None:
    # A server that ignores ranges does so for good: once more, and no more.
    hub.faults = [fault, "", fault, "" if fault == "whole" else fault]
    assert read(100, 300) == DATA[100:300]
    assert read(0, 77) == DATA[:77]
    assert hub.faults == [] and read(10_000, len(DATA)) == DATA[10_000:]


@pytest.mark.parametrize("fault", ["empty", "short", "elsewhere", "unsaid"])
@pytest.mark.parametrize("door", ["hub", "http"])
def test_a_wrong_answer_of_a_file_of_unknown_size_is_asked_again(
    hub: LoopbackHub, door: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": hub.url})
    forget()  # the client of the test before, which has another address
    above = PLACE.removesuffix("/a.bin")
    folder = Folder(f"{hub.url}/{above}" if door == "http" else f"hf://datasets/owner/name@{COMMIT}")
    folder.read("a.bin", 0, 1)
    hub.faults = [fault, "", fault]
    assert folder.read("a.bin", 100, 300) == DATA[100:300]
    assert folder.read("a.bin", 200, None) == DATA[200:]
    assert hub.faults == []


@pytest.mark.parametrize("fault", WRONG)
def test_a_server_that_answers_wrong_each_time_is_one_line(hub: LoopbackHub, read: Reader, fault: str) -> None:
    hub.faults = [fault] * 50
    remedy = "take another server" if fault == "whole" else "the same command goes on$"
    with pytest.raises(Error, match=remedy) as said:
        read(100, 300)
    assert len(hub.faults) == (48 if fault == "whole" else 46)
    reasons = {
        "elsewhere": f"expected bytes 100-299/{len(DATA)}, the server says bytes 99-298/{len(DATA)}",
        "total": f"the server says bytes 100-299/{len(DATA) + 1}",
        "unsaid": "the server says nothing",
        "whole": "expected status 206, got 200: the server or a proxy ignores byte ranges",
        "changed": "the file changed",
    }
    assert reasons.get(fault, "") in str(said.value) and "\n" not in str(said.value)


def test_what_is_not_there_is_not_asked_again(hub: LoopbackHub) -> None:
    gone = UrlFile(f"{hub.url}/{PLACE.replace('a.bin', 'b.bin')}", 10, "ETag x")
    with pytest.raises(Error, match=r"bytes 0 to 10 did not arrive"):
        gone.read_range(0, 10)
    assert len(hub.requests) == 1


def test_a_whole_small_file_needs_no_server_of_ranges() -> None:
    Range(0, 10, 10).check_answer(200, {"Content-Length": "10"})
    for wanted, status, headers in (
        (Range(0, 9, 10), 200, {}),
        (Range(0, 10, 10), 200, {"Content-Length": "11"}),
        (Range(0, 10, 10), 206, {"Content-Range": "bytes 0-9/10", "Content-Encoding": "gzip"}),
        (Range(0, 10, 10), 206, {"Content-Range": "bytes=0-9/10"}),
        (Range(0, 10, 10, "ETag a"), 206, {"Content-Range": "bytes 0-9/10"}),
        (Range(0, 10, 10, "Last-Modified a"), 206, {"Content-Range": "bytes 0-9/10", "Last-Modified": "b"}),
    ):
        with pytest.raises(NoRanges if status == 200 and wanted.end == 9 else WrongRange):
            wanted.check_answer(status, headers)
    same = Range(0, 10, 10, 'ETag "a"')
    same.check_answer(206, {"Content-Range": "bytes 0-9/*", "ETag": 'W/"a"'})


def test_a_file_is_known_by_what_its_file_system_tells(hub: LoopbackHub) -> None:
    assert re.fullmatch(r'ETag "[0-9a-f]{64}"', url_file(f"{hub.url}/{PLACE}").mark)
    fsspec.filesystem("memory").pipe("/known.bin", b"0123456789")
    found = url_file("memory://known.bin")
    assert found.mark.startswith("created ")
    found.check_unchanged()
    fsspec.filesystem("memory").pipe("/known.bin", b"9876543210")
    with pytest.raises(Error, match="the file changed since the plan was made"):
        found.check_unchanged()
    # A plan of before, when this mark was not known, goes on.
    UrlFile("memory://known.bin", 10, "").check_unchanged()
