"""Files that are created in an object store: whole or not at all, once, and with nothing left of what failed."""

import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from stores import Fault, FaultyProxy, ObjectStore

from gpt2wds import stores as clients
from gpt2wds.folder import Folder

pytestmark = pytest.mark.slow  # a real server

PART = 5 << 20  # the least that S3 takes, but for the last
LARGE = random.Random(1).randbytes(2 * PART + 1000)
OTHER = random.Random(2).randbytes(2 * PART + 1000)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "PART_BYTES", PART)


@pytest.fixture
def folder(store: ObjectStore, request: pytest.FixtureRequest) -> Iterator[Folder]:
    """A directory of the test's own in the store."""
    with store.found():
        yield Folder(store.url(f"uploads/{request.node.name}"))
    assert not store.unfinished()


def create(folder: Folder, data: bytes) -> bool:
    return folder.create("a", lambda file: file.write(data))[1]


def key(folder: Folder) -> str:
    """Its name in the bucket."""
    return folder.path.removeprefix("s3://corpus/")


def is_completion(method: str, path: str) -> bool:
    """Whether a request is the last of an upload in parts."""
    return method == "POST" and "uploadId=" in path


def through(store: ObjectStore, folder: Folder, proxy: FaultyProxy, data: bytes = LARGE) -> bool:
    """Create a file by way of a proxy."""
    with store.found(proxy.url):
        return create(Folder(folder.path), data)


def test_a_large_file_goes_in_parts_few_at_once_and_is_seen_when_it_is_whole(
    store: ObjectStore, folder: Folder
) -> None:
    seen = []

    def look(method: str, path: str) -> None:
        seen.append((method, path.partition("?")[2].partition("=")[0], store.names(key(folder)) != []))

    data = LARGE + OTHER
    with FaultyProxy(store, look) as proxy:
        assert through(store, folder, proxy, data)
    parts = len(data) // PART + 1
    assert seen[0] == ("POST", "uploads", False) and seen[-1] == ("POST", "uploadId", False)
    assert seen[1:-1] == [("PUT", "partNumber", False)] * parts
    assert folder.read("a") == data
    small, requests = b"small" * 1000, []
    with FaultyProxy(store, lambda *request: requests.append(request)) as proxy, store.found(proxy.url):
        Folder(folder.path).create("b", lambda file: file.write(small))
    assert [method for method, _ in requests] == ["PUT"]


def test_of_two_that_complete_their_parts_the_first_stays(store: ObjectStore, folder: Folder) -> None:
    def be_first(method: str, path: str) -> None:
        if is_completion(method, path):
            store.put(f"{key(folder)}/a", OTHER)

    with FaultyProxy(store, be_first) as proxy:
        assert not through(store, folder, proxy)
    assert folder.read("a") == OTHER
    assert not create(folder, LARGE)
    assert folder.read("a") == OTHER


@pytest.mark.parametrize(
    ("where", "fault"),
    [
        ("uploads", Fault(503, "SlowDown")),
        ("partNumber=2", Fault(503, "SlowDown")),
        ("partNumber=3", Fault()),
        ("uploadId=", Fault(503, "SlowDown")),
        ("uploadId=", Fault(409, "ConditionalRequestConflict")),
    ],
)
def test_of_an_upload_that_fails_nothing_is_left_and_it_is_sent_again(
    store: ObjectStore, folder: Folder, where: str, fault: Fault
) -> None:
    left = [fault]

    def fail_once(method: str, path: str) -> Fault | None:
        return left.pop() if left and where in path and method != "DELETE" else None

    with FaultyProxy(store, fail_once) as proxy:
        assert through(store, folder, proxy)
    assert not left and folder.read("a") == LARGE


def test_an_answer_that_is_lost_when_all_is_there_is_no_failure(store: ObjectStore, folder: Folder) -> None:
    """The parts are complete, and cannot be removed any more: that is neither a missing place nor another's file."""

    def lose(method: str, path: str) -> Fault | None:
        return Fault(cuts=True) if is_completion(method, path) else None

    with FaultyProxy(store, lose) as proxy:
        assert not through(store, folder, proxy)  # "another was first": whose it is, its content tells
    assert folder.read("a") == LARGE


KILLED = """
import sys
from gpt2wds import stores
from gpt2wds.folder import Folder
stores.PART_BYTES = int(sys.argv[2])
Folder(sys.argv[1]).create("a", lambda file: file.write(bytes(3 * stores.PART_BYTES)))
"""


def test_a_kill_leaves_parts_that_nobody_sees(store: ObjectStore, folder: Folder) -> None:
    killed: list[subprocess.Popen] = []

    def kill(method: str, path: str) -> Fault | None:
        if "partNumber=3" not in path:
            return None
        killed[0].kill()
        return Fault()

    with FaultyProxy(store, kill) as proxy:
        environment = os.environ | store.environment | {"AWS_ENDPOINT_URL": proxy.url}
        killed.append(subprocess.Popen([sys.executable, "-c", KILLED, folder.path, str(PART)], env=environment))
        assert killed[0].wait(60) == -signal.SIGKILL
    assert folder.sizes() == {} and not folder.exists("a")
    assert len(store.unfinished()) == 1
    assert create(folder, LARGE) and folder.read("a") == LARGE
    store.remove_unfinished()


def test_the_rule_that_the_documents_name_is_one(store: ObjectStore) -> None:
    text = (Path(__file__).parents[1] / "docs" / "sharding.md").read_text(encoding="utf-8")
    (rule,) = re.findall(r"--lifecycle-configuration \\\n +'(.*)'$", text, flags=re.MULTILINE)
    store.client.put_bucket_lifecycle_configuration(Bucket="corpus", LifecycleConfiguration=json.loads(rule))
    (found,) = store.client.get_bucket_lifecycle_configuration(Bucket="corpus")["Rules"]
    assert found["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 2}
    store.client.delete_bucket_lifecycle(Bucket="corpus")


def test_a_store_that_cannot_create_exclusively_is_looked_at_before(
    store: ObjectStore, folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    with FaultyProxy(store, is_exclusive=False) as proxy, store.found(proxy.url):
        there = Folder(folder.path)
        assert create(there, LARGE) and there.create_text("b", "b")
        assert not create(there, OTHER) and not there.create_text("b", "c")
        assert (there.read("a"), there.read("b")) == (LARGE, b"b")
    (said,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert said.startswith(f"{folder.path}: this store does not create files exclusively (If-None-Match)")
