"""A directory's files, read by name and by range and written whole, the same here and at a URL."""

import errno
import ftplib
import os
import tarfile
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import fsspec
import pytest
from making import shard_plays
from plain_server import PlainServer

from gpt2wds import patience
from gpt2wds.corpus.cutting import Cut
from gpt2wds.corpus.shakespeare import Plays
from gpt2wds.corpus.sharding import make_dataset
from gpt2wds.dataset.directory import Dataset
from gpt2wds.errors import Error, NoRanges, Unanswered
from gpt2wds.folder import Folder
from gpt2wds.locations import url_file


@pytest.fixture(params=["path", "file URL", "URL"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    """With a file "a" of ten bytes."""
    (tmp_path / "a").write_bytes(b"0123456789")
    memory = fsspec.filesystem("memory")
    memory.pipe("/folder/a", b"0123456789")
    yield Folder({"path": tmp_path, "file URL": f"file://{tmp_path}/", "URL": "memory://folder/"}[request.param])
    memory.rm("/folder", recursive=True)


def test_a_file_is_read_whole_and_by_range(folder: Folder) -> None:
    assert folder.read("a") == b"0123456789"
    assert folder.read("a", 3, 5) == b"34"
    assert folder.read("a", 7) == b"789"
    assert folder.read("a", 8, 20) == b"89"  # fewer where the file is shorter
    with folder.open("a") as file:
        assert (file.read(4), file.read()) == (b"0123", b"456789")


def test_size_and_existence(folder: Folder) -> None:
    assert folder.size("a") == 10
    assert folder.exists("a") and not folder.exists("b")


def test_a_file_that_is_not_there_is_told_from_one_that_did_not_arrive(folder: Folder) -> None:
    for ask in (folder.read, folder.size, folder.open):
        with pytest.raises(FileNotFoundError):
            ask("b")


def test_what_a_urls_library_says_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "WAITS", ())
    with pytest.raises(Error, match=r"^http://127.0.0.1:9/data/a: it did not arrive \(.*\); the same command goes on$"):
        Folder("http://127.0.0.1:9/data").read("a")


def test_a_folder_is_known_by_its_path_without_a_slash_at_its_end(tmp_path: Path) -> None:
    assert str(Folder(f"{tmp_path}/")) == str(Folder(tmp_path)) == str(Folder(f"file://{tmp_path}")) == str(tmp_path)
    assert (str(Folder("/")), Folder("/").is_local) == ("/", True)
    assert not Folder("memory://folder").is_local


def test_a_url_that_nothing_can_read_is_refused_at_once() -> None:
    with pytest.raises(Error, match=r"nosuch://x: expected a URL that fsspec can read"):
        Folder("nosuch://x")


@pytest.fixture(params=["local", "memory"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    folder = Folder(tmp_path / "data") if request.param == "local" else Folder(f"memory://{tmp_path}/data")
    folder.make()
    yield folder
    if not folder.is_local:
        fsspec.filesystem("memory").store.clear()


def test_who_comes_second_keeps_the_firsts_file(empty: Folder) -> None:
    assert empty.create("a", lambda file: file.write(b"first")) == (5, True)
    assert empty.create("a", lambda file: file.write(b"another")) == (7, False)
    assert empty.create_text("below/b", "text") and not empty.create_text("below/b", "other")
    assert empty.read("a") == b"first" and empty.read("below/b") == b"text"
    empty.replace("a", b"new")
    assert empty.read("a") == b"new" and empty.size("a") == 3


def test_files_are_listed_and_removed(empty: Folder) -> None:
    assert empty.sizes() == empty.sizes("below") == {}
    empty.create_text("a", "12345")
    empty.create_text("below/b", "1")
    assert empty.sizes()["a"] == 5 and empty.sizes("below") == {"b": 1}
    assert empty.exists("a") and not empty.exists("b")
    empty.remove("a")
    empty.remove("a")
    assert not empty.exists("a")
    for question in (empty.read, empty.size, empty.open):
        with pytest.raises(FileNotFoundError):
            question("a")


def test_ranges_and_seeking(empty: Folder) -> None:
    empty.create("a", lambda file: file.write(bytes(range(100))))
    assert empty.read("a", 10, 12) == bytes([10, 11]) and empty.read("a", 98) == bytes([98, 99])
    with empty.open("a") as file:
        assert file.seek(-3, os.SEEK_END) == 97 and file.read() == bytes([97, 98, 99])


def test_what_it_holds(empty: Folder) -> None:
    assert empty.holds(f"{empty}/a.jsonl") and empty.holds(f"{empty}/below/a.jsonl")
    assert not empty.holds(f"{empty}s/a.jsonl") and not empty.holds("other://x/a.jsonl")


def test_a_dataset_at_a_url_has_the_bytes_of_a_local_one(tmp_path: Path) -> None:
    here = shard_plays(tmp_path / "here", docs_per_shard=12)
    there = shard_plays("memory://plays-there", docs_per_shard=12)
    names = [*here.folder.sizes(), *(f"receipts/{name}" for name in here.folder.sizes("receipts"))]
    names.remove("receipts")
    assert {name: there.folder.read(name) for name in names} == {name: here.folder.read(name) for name in names}
    there.folder.remove("train-00001.tar.zst")
    shard_plays("memory://plays-there", docs_per_shard=12)
    assert there.folder.read("train-00001.tar.zst") == here.folder.read("train-00001.tar.zst")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where fsspec keeps its copies."""
    monkeypatch.setitem(fsspec.config.conf, "simplecache", {"cache_storage": str(tmp_path / "cache")})
    return tmp_path / "cache"


def test_a_cache_of_fsspec_stands_before_a_url(cache: Path) -> None:
    made = shard_plays("memory://cached", docs_per_shard=12)
    cached = Dataset("simplecache::memory://cached")
    assert cached.id == made.id and (cached.read_tokens("train", 3) == made.read_tokens("train", 3)).all()
    assert len(list(cache.iterdir())) > 1
    for name in made.folder.sizes():
        if name.startswith("train-"):
            made.folder.remove(name)
    assert (Dataset("simplecache::memory://cached").read_tokens("train", 3) == cached.read_tokens("train", 3)).all()


def test_many_read_through_a_cache_what_one_of_them_fetches(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy is seen when all of it is there, and made once, but for one that broke off."""
    memory = fsspec.filesystem("memory")
    memory.pipe({"/many/a": bytes(range(256)) * 1000, "/many/b": b"123456789" * 50_000})
    fetched = []

    def slowly(_: object, path: str, local: str, **__: object) -> None:
        fetched.append(path)
        with open(local, "wb") as file:
            for start in range(0, 512_000, 64_000):
                file.write(memory.cat_file(path, start, start + 64_000))
                file.flush()
                time.sleep(0.05)
                if len(fetched) == 1:
                    raise ConnectionResetError("half of it is there")

    if "get_file" in vars(memory):  # what a cache of another test has put before it
        monkeypatch.delattr(memory, "get_file")
    monkeypatch.setattr(type(memory), "get_file", slowly)
    folder = Folder("simplecache::memory://many")
    with ThreadPoolExecutor(16) as threads:
        read = list(threads.map(lambda n: folder.read("a", n * 1000, n * 1000 + 256), range(250)))
    assert all(data == (bytes(range(256)) * 2)[n * 1000 % 256 :][:256] for n, data in enumerate(read))
    assert fetched == ["/many/a"] * 2
    with ThreadPoolExecutor(16) as threads:
        source = url_file("simplecache::memory://many/b")
        assert list(threads.map(lambda n: source.read_range(9 * n, 9 * n + 9), range(250))) == [b"123456789"] * 250
    assert fetched[2:] == ["/many/b"]
    assert [path.name for path in cache.iterdir() if path.suffix == ".tmp"] == []


def test_a_full_disk_names_the_file_as_its_user_knows_it(tmp_path: Path) -> None:
    def write(file: BinaryIO) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left on device") as caught:
        Folder(tmp_path).create("a", write)
    assert caught.value.filename == str(tmp_path / "a")


def test_a_cache_that_many_may_not_read_is_refused_and_none_is_written_through(cache: Path, tmp_path: Path) -> None:
    for kind in ("filecache", "blockcache"):
        said = f"{kind}::memory://x: expected a cache that many may read at once, got {kind}; give simplecache::memory"
        with pytest.raises(Error, match=said):
            Folder(f"{kind}::memory://x")
    folder = Folder("simplecache::memory://x")
    for write in (folder.make, lambda: folder.create_text("a", ""), lambda: folder.remove("a")):
        with pytest.raises(Error, match="expected a place to write to, got a cache; give it without simplecache::, as"):
            write()


def test_a_web_server_without_ranges_is_one_line_with_a_remedy(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    with PlainServer(tmp_path) as server:
        folder = Folder(server.url)
        # The whole file is what comes whatever is asked.
        assert folder.read("a") == folder.read("a", 0, 10) == folder.read("a", 0) == b"0123456789"
        assert folder.read("a", 0, 20) == b"0123456789" and folder.read("a", 5, 5) == b""
        server.ranges.clear()
        for start, end in ((0, 5), (3, 5), (3, 20), (3, None)):
            with pytest.raises(NoRanges) as said:
                folder.read("a", start, end)
            assert str(said.value) == (
                f"{server.url}/a: expected status 206, got 200: the server or a proxy ignores byte ranges; "
                f"take another server, or give simplecache::{server.url}, which fetches whole files"
            )
        assert len(server.ranges) == 8  # once more each, for a proxy that answers so once
        assert Folder(f"simplecache::{server.url}").read("a", 3, 5) == b"34"


def test_fewer_bytes_than_a_store_has_are_no_end_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    with PlainServer(tmp_path, cuts=True) as server:
        folder = Folder(server.url)
        cut = "its store cuts answers short; the same command goes on$"
        with pytest.raises(Unanswered, match=f"/a: expected 4 bytes from 3, got 3: {cut}"):
            folder.read("a", 3, 7)
        for ask in (lambda: folder.open("a").read(), lambda: folder.sha256("a", 10)):
            with pytest.raises(Unanswered, match=f"/a: expected 10 bytes from 0, got 9: {cut}"):
                ask()


def test_more_bytes_than_asked_are_no_range() -> None:
    """Also of a store whose answers tell nothing else."""
    memory = fsspec.filesystem("memory")
    memory.pipe("/more/a", b"0123456789")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "cat_file", lambda *_, **__: b"0123456789")
        with pytest.raises(NoRanges, match="/more/a: expected 2 bytes from 3, got 10: .* give simplecache::"):
            Folder("memory://more").read("a", 3, 5)


def test_a_web_server_is_refused_as_a_place_to_write_to(tmp_path: Path) -> None:
    with PlainServer(tmp_path) as server:
        folder = Folder(f"{server.url}/data")
        for write in (
            folder.make,
            lambda: folder.create_text("a", ""),
            lambda: folder.replace("a", b""),
            lambda: folder.remove("a"),
            lambda: shard_plays(folder.path),
        ):
            with pytest.raises(Error, match=f"^{folder}: expected a place to write to, .*give s3://…, hf://… or a"):
                write()


def test_an_archive_and_an_ftp_server_are_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zipfile.ZipFile(tmp_path / "a.zip", "w").close()
    tarfile.open(tmp_path / "a.tar", "w").close()
    for name in ("connect", "login"):
        monkeypatch.setattr(ftplib.FTP, name, lambda *_: None)
    for url, what in (
        (f"zip://x::{tmp_path}/a.zip", "an archive, which is only read"),
        (f"tar://x::{tmp_path}/a.tar", "an archive, which is only read"),
        ("ftp://127.0.0.1/x", "an FTP server, which shows files before they are whole"),
    ):
        with pytest.raises(Error, match=f"^{url}: expected a place to write to, got {what}; give s3://…, hf://… or a"):
            Folder(url).make()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://127.0.0.1:1/x", r"it did not arrive \(Connection refused\); the same command goes on"),
        ("reference://x", r"expected a URL that fsspec can read \(.* missing .*\)"),
        ("nosuch://x", r"expected a URL that fsspec can read \(Protocol not known: nosuch\)"),
    ],
)
def test_a_url_that_cannot_be_read_is_named_once(url: str, said: str) -> None:
    for ask in (Folder, url_file):
        with pytest.raises(Error, match=f"^{url}: {said}$"):
            ask(url)


def test_a_file_system_in_memory_is_written_by_this_process_alone() -> None:
    assert Folder("memory://x").is_in_memory and not Folder("x").is_in_memory
    made = make_dataset("memory://of-one-process", Plays(), Cut(docs_per_shard=12), workers=2)
    assert made.total("train", "documents") == 36
