"""Files that are whole or not there: who comes first, what a reader sees meanwhile, and what a failure leaves."""

import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpt2wds import files


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_first_who_creates_a_file_wins(tmp_path: Path) -> None:
    assert files.create(tmp_path / "a", "first é")
    assert not files.create(tmp_path / "a", "second")
    assert (tmp_path / "a").read_text("utf-8") == "first é"
    assert names(tmp_path) == ["a"]


def test_committing_what_another_took_for_a_stray(tmp_path: Path) -> None:
    temporary, final = files.temporary_name(tmp_path / "a"), tmp_path / "a"
    with pytest.raises(FileNotFoundError):
        files.commit(temporary, final)
    final.write_text("the other's")
    assert not files.commit(temporary, final)
    assert final.read_text() == "the other's"


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    final = tmp_path / "a"
    final.write_text("old")
    with files.replacing(final) as file:
        file.write(b"new")
        file.flush()
        assert final.read_text() == "old"
    assert final.read_text() == "new"
    files.replace(final, "newer")
    assert final.read_text() == "newer" and names(tmp_path) == ["a"]


def test_what_is_not_a_file_is_written_to(tmp_path: Path) -> None:
    """Else root's --out /dev/null would make a file of it."""
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    files.replace(pipe, "text")
    assert os.read(reader, 9) == b"text" and pipe.is_fifo()
    os.close(reader)
    (tmp_path / "file").write_text("old")
    link.symlink_to("file")
    files.replace(link, "new")
    assert link.is_symlink() and (tmp_path / "file").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "pipe"]
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        files.replace(Path("/dev/full"), "text")


def test_what_fails_leaves_the_old_file_and_no_temporary_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyError), files.replacing(tmp_path / "a") as file:
        file.write(b"half")
        raise KeyError

    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("fsync", "link"):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
            patch.setattr(os, name, no_space)
            files.create(tmp_path / "b", "text")
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == ["a"]


def test_a_replacement_that_another_took_for_a_stray(tmp_path: Path) -> None:
    def replaced_without_its_temporary_file(text: str) -> None:
        with files.replacing(tmp_path / "a") as file:
            file.write(text.encode())
            next(tmp_path.glob(files.TEMPORARY)).unlink()

    with pytest.raises(FileNotFoundError):
        replaced_without_its_temporary_file("lost")
    (tmp_path / "a").write_text("the other's")
    replaced_without_its_temporary_file("the same")
    assert (tmp_path / "a").read_text() == "the other's"


@pytest.fixture
def umask() -> Iterator[None]:
    old = os.umask(0o027)
    yield
    os.umask(old)


def create(path: Path) -> None:
    files.create(path, "text")


def replace(path: Path) -> None:
    files.replace(path, "text")


def synced(path: Path) -> None:
    with files.synced(path) as file:
        file.write(b"text")


@pytest.mark.parametrize("make", [create, replace, synced])
def test_modes_follow_the_umask(tmp_path: Path, umask: None, make: Callable[[Path], None]) -> None:
    make(tmp_path / "a")
    assert oct((tmp_path / "a").stat().st_mode & 0o777) == "0o640"


@pytest.mark.parametrize("make", [create, replace])
def test_content_is_on_the_disk_before_its_name_and_then_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None]
) -> None:
    real, seen = os.fsync, []

    def fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        seen.append((path == tmp_path, (tmp_path / "a").exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    make(tmp_path / "a")
    assert seen == [(False, False), (True, True)]


def test_temporary_names_are_never_the_same(tmp_path: Path) -> None:
    assert len({files.temporary_name(tmp_path / "a") for _ in range(100)}) == 100


@pytest.mark.parametrize("links", [errno.EPERM, errno.ENOTSUP])
def test_without_hard_links_the_first_still_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: int) -> None:
    def no_links(*_: object) -> None:
        raise OSError(links, os.strerror(links))

    monkeypatch.setattr(os, "link", no_links)
    assert files.create(tmp_path / "a", "first")
    assert not files.create(tmp_path / "a", "second")
    assert (tmp_path / "a").read_text() == "first"
    # A process that was killed while it gave the name.
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.2)
    (tmp_path / ".b.lock.tmp").mkdir()
    assert files.create(tmp_path / "b", "third")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    # Another process that was faster, between the look and the right to give the name.
    make = Path.mkdir

    def overtaken(self: Path, *options: int) -> None:
        (tmp_path / "c").write_text("of another")
        make(self, *options)

    monkeypatch.setattr(Path, "mkdir", overtaken)
    assert not files.create(tmp_path / "c", "fourth")
    assert (tmp_path / "c").read_text() == "of another"


def test_what_cannot_be_replaced_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError):
        files.replace(tmp_path / "a", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_full_disk_says_which_file(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError) as caught,
        files.naming_full_disk(tmp_path),
        open("/dev/full", "wb", buffering=0) as file,
    ):
        file.write(b"x")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path))
    with pytest.raises(OSError) as caught, files.naming_full_disk(tmp_path):
        raise OSError("not of a disk")
    assert caught.value.filename is None
    with pytest.raises(OSError) as caught, files.naming_full_disk(tmp_path):
        raise OSError(errno.ENOSPC, "full", "another")
    assert caught.value.filename == "another"


def test_what_dead_processes_left_goes_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    ours = files.temporary_name(tmp_path / "a.tar.zst")
    dead = Path(str(ours).replace(f".{os.getpid()}.", f".{ended.pid}."))
    monkeypatch.setattr("socket.gethostname", lambda: "node/7")
    slash = files.temporary_name(tmp_path / "lock-1")
    monkeypatch.setattr(files, "kernel", lambda: "another")
    others = Path(str(files.temporary_name(tmp_path / "b")).replace(f".{os.getpid()}.", f".{ended.pid}."))
    kept = [ours, slash, others, tmp_path / ".of.something.else.tmp", tmp_path / "a.tar.zst"]
    no_process = Path(str(ours).replace(f".{os.getpid()}.", f".{2**70}."))
    for path in (dead, no_process, *kept):
        path.write_text("half")
    (folder := dead.with_name(dead.name.replace("a.tar", "b.tar"))).mkdir()
    monkeypatch.undo()
    files.remove_dead(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([*kept, folder])


def test_what_was_left_before_this_host_started_goes_where_nobody_can_still_write_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of hosts are not unique: what was touched since then, or in the last hour, may be of another that lives."""
    now = time.time()
    monkeypatch.setattr(files, "host_began", lambda: now - 7200)
    with monkeypatch.context() as patch:
        patch.setattr(files, "kernel", lambda: "an earlier boot")
        old, since, short = (files.temporary_name(tmp_path / name) for name in ("old", "since", "short"))
        patch.setattr("socket.gethostname", lambda: "another")
        another = files.temporary_name(tmp_path / "another")
    ages = {old: 7300, since: 7100, another: 7300}
    for path, age in ages.items():
        path.write_text("half")
        os.utime(path, (now - age, now - age))
    files.remove_dead(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([since, another])
    # A host that has just started: an hour has not passed.
    monkeypatch.setattr(files, "host_began", lambda: now - 1)
    for path, age in {old: 3500, short: 3700}.items():
        path.write_text("half")
        os.utime(path, (now - age, now - age))
    files.remove_dead(tmp_path)
    assert old.exists() and not short.exists() and not since.exists() and another.exists()


def test_when_this_host_began_is_known() -> None:
    began = files.host_began()
    assert time.time() - float(Path("/proc/uptime").read_text().split()[0]) - 2 < began < time.time()
