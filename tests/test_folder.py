"""Folder: one behaviour for a local directory and for a URL. An S3 server has corpus/test_object_store.py."""

import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from making import shard_plays

from gpt2wds import stores
from gpt2wds.dataset.directory import Dataset
from gpt2wds.errors import Error
from gpt2wds.folder import Folder


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    folder = Folder(tmp_path / "data") if request.param == "local" else Folder(f"memory://{tmp_path}/data")
    folder.make()
    yield folder
    if not folder.is_local:
        fsspec.filesystem("memory").store.clear()


def test_who_comes_second_keeps_the_firsts_file(folder: Folder) -> None:
    assert folder.create("a", lambda file: file.write(b"first")) == (5, True)
    assert folder.create("a", lambda file: file.write(b"another")) == (7, False)
    assert folder.create_text("below/b", "text") and not folder.create_text("below/b", "other")
    assert folder.read("a") == b"first" and folder.read("below/b") == b"text"
    folder.replace("a", b"new")
    assert folder.read("a") == b"new" and folder.size("a") == 3


def test_files_are_listed_and_removed(folder: Folder) -> None:
    assert folder.sizes() == folder.sizes("below") == {}
    folder.create_text("a", "12345")
    folder.create_text("below/b", "1")
    assert folder.sizes()["a"] == 5 and folder.sizes("below") == {"b": 1}
    assert folder.exists("a") and not folder.exists("b")
    folder.remove("a")
    folder.remove("a")
    assert not folder.exists("a")
    for question in (folder.read, folder.size, folder.open):
        with pytest.raises(FileNotFoundError):
            question("a")


def test_ranges_and_seeking(folder: Folder) -> None:
    folder.create("a", lambda file: file.write(bytes(range(100))))
    assert folder.read("a", 10, 12) == bytes([10, 11]) and folder.read("a", 98) == bytes([98, 99])
    with folder.open("a") as file:
        assert file.seek(-3, os.SEEK_END) == 97 and file.read() == bytes([97, 98, 99])


def test_what_it_holds(folder: Folder) -> None:
    assert folder.holds(f"{folder}/a.jsonl") and folder.holds(f"{folder}/below/a.jsonl")
    assert not folder.holds(f"{folder}s/a.jsonl") and not folder.holds("other://x/a.jsonl")


def test_a_dataset_at_a_url_has_the_bytes_of_a_local_one(tmp_path: Path) -> None:
    here = shard_plays(tmp_path / "here", docs_per_shard=12)
    there = shard_plays("memory://plays-there", docs_per_shard=12)
    names = [*here.folder.sizes(), *(f"receipts/{name}" for name in here.folder.sizes("receipts"))]
    names.remove("receipts")
    assert {name: there.folder.read(name) for name in names} == {name: here.folder.read(name) for name in names}
    there.folder.remove("train-00001.tar.zst")
    shard_plays("memory://plays-there", docs_per_shard=12)
    assert there.folder.read("train-00001.tar.zst") == here.folder.read("train-00001.tar.zst")


def test_a_store_that_is_busy_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "WAITS", (0, 0))
    answers: list[object] = [TimeoutError("slow"), OSError(16, "busy"), b"data"]

    def question(*_: object) -> object:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert stores.ask("memory://x", question) == b"data"
    answers[:] = [ConnectionResetError("reset")] * 3
    with pytest.raises(Error, match="memory://x/a: it did not arrive .reset.; the same command goes on"):
        stores.ask("memory://x", question, "a")
    answers[:] = [PermissionError("denied"), b"data"]
    with pytest.raises(Error, match="denied.; check your credentials"):
        stores.ask("memory://x", question)
    assert answers == [b"data"]  # what is refused is not asked again


def _own_filesystem(pipe: "multiprocessing.connection.Connection") -> None:
    pipe.send(id(stores.filesystem("https://127.0.0.1/a")[0].loop))  # raises where it is the parent's


def test_a_forked_process_has_a_client_of_its_own() -> None:
    stores.filesystem("https://127.0.0.1/a")[0].loop  # noqa: B018
    ours, theirs = multiprocessing.get_context("fork").Pipe()
    process = multiprocessing.get_context("fork").Process(target=_own_filesystem, args=(theirs,))
    process.start()
    process.join(60)
    assert process.exitcode == 0 and ours.poll()


def test_a_cache_of_fsspec_stands_before_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = shard_plays("memory://cached", docs_per_shard=12)
    monkeypatch.setitem(fsspec.config.conf, "filecache", {"cache_storage": str(tmp_path)})
    cached = Dataset("filecache::memory://cached")
    assert cached.id == made.id and (cached.read_tokens("train", 3) == made.read_tokens("train", 3)).all()
    assert len(list(tmp_path.iterdir())) > 1
    for name in made.folder.sizes():
        if name.startswith("train-"):
            made.folder.remove(name)
    assert (Dataset("filecache::memory://cached").read_tokens("train", 3) == cached.read_tokens("train", 3)).all()
