"""Files of the Hub: what is uploaded and when it is seen, who comes second, and what a reader finds."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from writable_hub import WritableHub

from gpt2wds.errors import Error
from gpt2wds.folder import Folder
from gpt2wds.repository import Repository


def test_what_a_url_names() -> None:
    assert Repository.of("hf://datasets/me/mine") == Repository("hf://datasets/me/mine", "me/mine")
    assert Repository.of("hf://datasets/me/mine/a/b").below == "a/b/"
    for url in ("hf://datasets/me/mine@v1", "hf://datasets/me/mine@v1/a", "hf://buckets/me/mine", "s3://a/b", "/a/b"):
        assert Repository.of(url) is None


def test_who_comes_second_keeps_the_firsts_file(hub: WritableHub) -> None:
    there = hub.make()
    folder, below = Folder(hub.mine), Folder(f"{hub.mine}/below")
    assert folder.create("a", lambda file: file.write(b"first")) == (5, True)
    assert folder.create("a", lambda file: file.write(b"another")) == (7, False)
    assert below.create_text("a", "below") and not below.create_text("a", "another")
    assert (there / "a").read_bytes() == folder.read("a") == b"first"
    assert (there / "below/a").read_bytes() == below.read("a") == b"below"
    assert hub.commits == [["a"], ["below/a"]]


def test_of_two_at_the_same_moment_one_wins(hub: WritableHub) -> None:
    there = hub.make()
    hub.delay = 0.02  # so that both have looked before one commits
    folder = Folder(hub.mine)
    with ThreadPoolExecutor(2) as threads:
        for name in ("a", "b", "c"):
            said = list(threads.map(lambda text, name=name: folder.create_text(name, text), ("one", "two")))
            assert sorted(said) == [False, True]
            assert (there / name).read_text() == ("one", "two")[said.index(True)]
    assert len(hub.commits) == 3


def test_a_commit_whose_answer_was_lost_is_found(hub: WritableHub) -> None:
    there = hub.make()
    hub.unsaid = 1
    assert not Folder(hub.mine).create_text("a", "text")  # of whom it is, the Hub does not tell
    assert (there / "a").read_text() == "text" and hub.commits == [["a"]]


def test_what_is_small_for_the_hub_travels_in_the_commit(hub: WritableHub) -> None:
    hub.make()
    assert Folder(hub.mine).create_text("a.json", "text") and hub.puts == []
    assert Folder(hub.mine).read("a.json") == b"text"


def test_what_is_not_there_is_removed_without_a_commit(hub: WritableHub) -> None:
    hub.make()
    folder = Folder(hub.mine)
    folder.create_text("a", "text")
    folder.remove("a")
    folder.remove("a")
    assert not folder.exists("a") and hub.commits == [["a"], ["a"]]


def test_a_repository_that_is_not_there_is_one_line(hub: WritableHub) -> None:
    with pytest.raises(Error, match=r"got none that your login sees; make it first \(hf repos create me/"):
        Folder(hub.mine).create_text("a", "text")


def test_a_reader_finds_what_another_wrote_since(hub: WritableHub) -> None:
    reader = Folder(hub.mine)
    with pytest.raises(FileNotFoundError):
        reader.read("plan.json")
    there = hub.make()
    (there / "a").write_bytes(b"0123456789")
    assert reader.size("a") == 10 and reader.sizes() == {"a": 10}  # what the client lists it keeps
    (there / "b").write_bytes(b"new")
    (there / "a").write_bytes(b"0123456789abcdef")
    assert reader.read("b") == b"new"
    assert reader.read("a", 12, 14) == b"cd" and reader.read("a")[-1:] == b"f"


def test_no_more_is_read_than_was_asked_for(hub: WritableHub) -> None:
    there = hub.make()
    (there / "a").write_bytes(bytes(range(100)))
    folder = Folder(hub.mine)

    def asked() -> int:
        return sum("agent-harnesses" not in line for line in hub.requests)  # a client's first request of all

    assert folder.read("a", 10, 12) == bytes([10, 11])
    assert hub.ranges == [("a", 10, 2)] and asked() == 2  # is it there, and its bytes
    assert folder.read("a", 98, 200) == bytes([98, 99]) and folder.read("a", 98) == bytes([98, 99])
    assert folder.read("a", 100, 200) == folder.read("a", 5, 5) == b""
    # Nothing else but how long the file is, where fewer bytes came than were asked for.
    assert asked() == 5 + 2 * 2 and len(hub.ranges) <= 4


@pytest.mark.parametrize("fault", ["whole", "elsewhere", "short", "reset", "503"])
def test_an_answer_to_another_question_is_asked_for_again(hub: WritableHub, fault: str) -> None:
    (hub.make() / "a").write_bytes(bytes(range(100)))
    hub.faults = [fault]
    assert Folder(hub.mine).read("a", 10, 20) == bytes(range(10, 20))
