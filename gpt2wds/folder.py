"""A directory, here or at any URL, whose files are read by name and by range, and written whole or not at all.

Here a file is written as files.py does. At a URL it is made in a nameless temporary file of this machine and then sent
in one piece: an object store shows all of it or nothing, and creates it exclusively where it can (`If-None-Match: *`;
on the Hub by a commit that names the one before it).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from .errors import Error, Unanswered, counted, reason
from .files import commit, refuse_no_path, replacing, synced, temporary_name
from .locations import RangedFile
from .patience import WHOLE_SECONDS, Answer, seconds_for
from .ranges import fetch_some, protocols
from .repository import Addition, Repository
from .stores import GO_ON, Question, ask, fetch_to_cache, filesystem, fresh, is_cache, lacks_exclusive, upload

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

PIECE_BYTES = 1 << 23  # of a file, read at once
_WEB, _ARCHIVE = "a web server, which is only read", "an archive, which is only read"
_NOT_WRITTEN_TO = {  # by what fsspec calls it
    **dict.fromkeys(("http", "https"), _WEB),
    **dict.fromkeys(("zip", "tar", "libarchive", "reference"), _ARCHIVE),
    **dict.fromkeys(("github", "gist", "git", "data"), "what is only read"),
    "ftp": "an FTP server, which shows files before they are whole",
}


class Folder:
    """A directory, here or at any URL that fsspec reads, whose files are known by their names.

    Methods raise FileNotFoundError for a file that is not there, OSError for a disk that fails, and Error for what
    a URL's library says. A store that is busy or away is asked again for about two minutes.
    """

    def __init__(self, path: str | Path | Folder):
        if not isinstance(path, (str, os.PathLike, Folder)):  # "None" would become a directory of that name
            raise Error(f"expected a directory or a URL, got {repr(path)[:80]}")
        if not str(path).strip():
            raise Error("expected a directory or a URL, got an empty name")
        self.path = str(path).removeprefix("file://").rstrip("/") or "/"
        self.is_local = "://" not in self.path
        self._is_exclusive = True  # until its store says that it cannot create so
        if not self.is_local:
            ask(self.path, lambda *_: None, seconds=None)  # says now when nothing can read such URLs
        else:
            refuse_no_path(self.path)
        self.repository = Repository.of(self.path)  # of the Hub, where a file is committed

    def __str__(self) -> str:
        return self.path

    def absolute(self) -> Folder:
        """The same directory, for a process that works elsewhere."""
        return Folder(Path(self.path).absolute()) if self.is_local else self

    def holds(self, path: str) -> bool:
        """Whether a path or a URL names something in it."""
        if self.is_local:
            return "://" not in path and Path(path).resolve().is_relative_to(Path(self.path).resolve())
        return path.startswith(f"{self.path}/")

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """A file's bytes start … end - 1, fewer where it is shorter; all of it if not given."""
        if not self.is_local:
            data = self._read(name, start, end)
            if end is not None and len(data) < end - start and (size := self.size(name)) > start + len(data):
                raise Unanswered(
                    f"{self.path}/{name}: expected {counted(min(end, size) - start, 'byte')} from {start:,}, "
                    f"got {len(data):,}: its store cuts answers short; {GO_ON}"
                )
            return data
        with open(f"{self.path}/{name}", "rb", buffering=0) as file:
            file.seek(start)
            return file.read(-1 if end is None else end - start)

    def _read(self, name: str, start: int, end: int | None) -> bytes:
        seconds = WHOLE_SECONDS if end is None else seconds_for(end - start)

        def fetched(system: AbstractFileSystem, path: str) -> bytes:
            fetch_to_cache(system, path)  # all of it, however long that takes
            return fetch_some(system, path, start, end, seconds)

        return self._ask(name, fetched, seconds=None)

    def sha256(self, name: str, size: int) -> str:
        """SHA-256 of the first `size` bytes of a file, hex."""
        digest = hashlib.sha256()
        for start in range(0, size, PIECE_BYTES):
            digest.update(self.read(name, start, min(size, start + PIECE_BYTES)))
        return digest.hexdigest()

    def size(self, name: str) -> int:
        if not self.is_local:
            return self._ask(name, lambda system, path: int(fresh(system).size(path)))
        return Path(self.path, name).stat().st_size

    def exists(self, name: str) -> bool:
        if not self.is_local:
            return self._ask(name, lambda system, path: bool(fresh(system).exists(path)))
        return Path(self.path, name).exists()

    def sizes(self, below: str = "") -> dict[str, int]:
        """The names in it, or in its directory `below`, with their files' bytes; {} if there is none."""
        if not self.is_local:
            try:
                found = self._ask(below, lambda system, path: fresh(system).ls(path, detail=True))
            except FileNotFoundError:
                return {}
            return {Path(info["name"]).name: int(info["size"]) for info in found if info["type"] == "file"}
        sizes, place = {}, Path(self.path, below)
        for path in place.iterdir() if place.is_dir() else ():
            with contextlib.suppress(FileNotFoundError):  # another process's temporary file
                sizes[path.name] = path.stat().st_size
        return sizes

    def open(self, name: str) -> io.BufferedReader:
        """A file to read and to seek in."""
        if not self.is_local:
            ranged = RangedFile(lambda start, end: self.read(name, start, end), self.size(name))
            return io.BufferedReader(ranged, 1 << 23)
        return open(f"{self.path}/{name}", "rb")

    def make(self) -> None:
        """Make the directory; at a URL there is nothing to make."""
        self.refuse_unwritable()
        if self.is_local:
            try:
                Path(self.path).mkdir(parents=True, exist_ok=True)
            except OSError as error:  # a file is there, or in the way; a place that cannot be written to
                raise Error(
                    f"{self.path}: expected a directory that can be made ({reason(error)}); choose another"
                ) from None

    def create(self, name: str, write: Callable[[BinaryIO], Answer]) -> tuple[Answer, bool]:
        """A file that `write` fills, and what that returned; False when another was there first, which stays."""
        self.refuse_unwritable()
        if not self.is_local:
            with _written(write) as (answer, file):
                return answer, self.repository.create(name, file) if self.repository else self._send(name, file)
        final = Path(self.path, name)
        final.parent.mkdir(exist_ok=True)
        temporary = temporary_name(final)
        with synced(temporary, final) as file:
            answer = write(file)
        return answer, commit(temporary, final)

    def uploaded(self, name: str, write: Callable[[BinaryIO], Answer]) -> tuple[Answer, Addition]:
        """Of a repository: a file that `write` fills, brought to the Hub for a commit that comes later."""
        assert self.repository is not None
        with _written(write) as (answer, file):
            return answer, self.repository.uploaded(name, file)

    def create_text(self, name: str, text: str) -> bool:
        """A file of this text; False when another was there first, which stays."""
        return self.create(name, lambda file: file.write(text.encode("utf-8")))[1]

    def replace(self, name: str, data: bytes) -> None:
        """Replace a file in one step: a reader sees the old or the new."""
        self.refuse_unwritable()
        if self.is_local:
            with replacing(Path(self.path, name)) as file:
                file.write(data)
            return

        def put(system: AbstractFileSystem, path: str) -> None:
            try:
                system.pipe_file(path, data)
            except FileNotFoundError as error:
                raise _no_place(error) from None

        self._ask(name, put, seconds_for(len(data)))

    def remove(self, name: str) -> None:
        """Remove a file, or an empty directory, if it is there."""
        self.refuse_unwritable()
        if self.is_local:
            path = Path(self.path, name)
            path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
            return
        if self.repository and not self.exists(name):  # a commit that removes nothing is refused
            return
        with contextlib.suppress(FileNotFoundError):
            self._ask(name, lambda system, path: system.rm_file(path))

    def refuse_unwritable(self) -> None:
        """Raise Error for a place that is only read: a web server, or a cache, which would tell of it what was."""
        if self.is_local:
            return
        system = filesystem(self.path)[0]
        for kind in protocols(system) & _NOT_WRITTEN_TO.keys():
            raise Error(
                f"{self.path}: expected a place to write to, got {_NOT_WRITTEN_TO[kind]}; "
                "give s3://…, hf://… or a local directory"
            )
        if is_cache(system):
            kind, _, rest = self.path.partition("::")
            raise Error(f"{self.path}: expected a place to write to, got a cache; give it without {kind}::, as {rest}")

    @property
    def is_in_memory(self) -> bool:
        """Whether it is fsspec's file system of a process's own, which others do not see, and which ends with it."""
        return not self.is_local and "memory" in protocols(filesystem(self.path)[0])

    def _send(self, name: str, file: Path) -> bool:
        """Create a URL's file of a local one; False when another was there first."""

        def send(system: AbstractFileSystem, path: str) -> bool:
            is_exclusive = self._is_exclusive
            if not is_exclusive and fresh(system).exists(path):
                return False
            try:
                upload(fresh(system), str(file), path, is_exclusive=is_exclusive)
            except Exception as error:
                if is_exclusive and lacks_exclusive(error):
                    self._is_exclusive = False
                    _LOG.warning("%s: %s", self.path, _NOT_EXCLUSIVE)
                    return send(system, path)
                # Stores say in several ways that it is there. Perhaps it is ours: only the answer was lost.
                if fresh(system).exists(path):
                    return False
                if isinstance(error, FileNotFoundError):
                    raise _no_place(error) from None
                raise
            return True

        return self._ask(name, send, seconds_for(file.stat().st_size))

    def _ask(self, name: str, question: Question[Answer], seconds: float | None = WHOLE_SECONDS) -> Answer:
        return ask(self.path, question, name, seconds=seconds)


@contextlib.contextmanager
def _written(write: Callable[[BinaryIO], Answer]) -> Iterator[tuple[Answer, Path]]:
    """What `write` returned, and the nameless temporary file that it filled, by a path of this process."""
    with tempfile.TemporaryFile() as file:
        answer = write(cast(BinaryIO, file))
        file.flush()
        yield answer, Path(f"/dev/fd/{file.fileno()}")


def _no_place(error: FileNotFoundError) -> Error:
    """What is said of a place at a URL that is not there: a user can mend it."""
    return Error(f"expected a place that can be written to ({reason(error).rstrip('.')}); make it first")


_LOG = logging.getLogger(__name__)
_NOT_EXCLUSIVE = (
    "this store does not create files exclusively (If-None-Match), so it is only looked before; "
    "give commands that run at once a slice of the tasks each"
)
