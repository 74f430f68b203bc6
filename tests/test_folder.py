"""A directory's files by name and by range, the same here and at a URL."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from gpt2wds.errors import Error
from gpt2wds.folder import Folder


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


def test_what_a_urls_library_says_is_one_error() -> None:
    with pytest.raises(Error, match=r"^http://127.0.0.1:9/data/a: it did not arrive \(.*\); the same command goes on$"):
        Folder("http://127.0.0.1:9/data").read("a")


def test_a_folder_is_known_by_its_path_without_a_slash_at_its_end(tmp_path: Path) -> None:
    assert str(Folder(f"{tmp_path}/")) == str(Folder(tmp_path)) == str(Folder(f"file://{tmp_path}")) == str(tmp_path)
    assert (str(Folder("/")), Folder("/").is_local) == ("/", True)
    assert not Folder("memory://folder").is_local


def test_a_url_that_nothing_can_read_is_refused_at_once() -> None:
    with pytest.raises(Error, match=r"nosuch://x: expected a URL that fsspec can read"):
        Folder("nosuch://x")
