"""A directory, here or at any URL, whose files are read by name and by range, and written whole or not at all.

Here a file is written as files.py does. At a URL it is made in a nameless temporary file of this machine and then sent
in one piece: an object store shows all of it or nothing, and creates it exclusively where it can (`If-None-Match: *`).
"""

import contextlib
import hashlib
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

import fsspec

from .errors import Error, reason
from .files import commit, replacing, synced, temporary_name
from .locations import RangedFile
from .patience import WHOLE_SECONDS, Answer, seconds_for
from .stores import Question, ask, filesystem, fresh

PIECE_BYTES = 1 << 23  # of a file, read at once


class Folder:
    """A directory, here or at any URL that fsspec reads, whose files are known by their names.

    Methods raise FileNotFoundError for a file that is not there, OSError for a disk that fails, and Error for what
    a URL's library says. A store that is busy or away is asked again for about two minutes.
    """

    def __init__(self, path: "str | Path | Folder"):
        if not str(path).strip():
            raise Error("expected a directory or a URL, got an empty name")
        self.path = str(path).removeprefix("file://").rstrip("/") or "/"
        self.is_local = "://" not in self.path
        if not self.is_local:
            filesystem(self.path)  # says now when nothing can read such URLs

    def __str__(self) -> str:
        return self.path

    def absolute(self) -> "Folder":
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
            first = start if start or end is not None else None  # asked without a range, it needs no size
            seconds = WHOLE_SECONDS if end is None else seconds_for(end - start)
            return self._ask(name, lambda system, path: bytes(system.cat_file(path, start=first, end=end)), seconds)
        with open(f"{self.path}/{name}", "rb", buffering=0) as file:
            file.seek(start)
            return file.read(-1 if end is None else end - start)

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
        if self.is_local:
            try:
                Path(self.path).mkdir(parents=True, exist_ok=True)
            except OSError as error:  # a file is there, or in the way; a place that cannot be written to
                raise Error(
                    f"{self.path}: expected a directory that can be made ({reason(error)}); choose another"
                ) from None

    def create(self, name: str, write: Callable[[BinaryIO], Answer]) -> tuple[Answer, bool]:
        """A file that `write` fills, and what that returned; False when another was there first, which stays."""
        if not self.is_local:
            with tempfile.TemporaryFile() as file:
                answer = write(cast(BinaryIO, file))
                file.flush()
                return answer, self._send(name, f"/dev/fd/{file.fileno()}")
        final = Path(self.path, name)
        final.parent.mkdir(exist_ok=True)
        temporary = temporary_name(final)
        with synced(temporary) as file:
            answer = write(file)
        return answer, commit(temporary, final)

    def create_text(self, name: str, text: str) -> bool:
        """A file of this text; False when another was there first, which stays."""
        return self.create(name, lambda file: file.write(text.encode("utf-8")))[1]

    def replace(self, name: str, data: bytes) -> None:
        """Replace a file in one step: a reader sees the old or the new."""
        if self.is_local:
            with replacing(Path(self.path, name)) as file:
                file.write(data)
            return
        self._ask(name, lambda system, path: _placed(system.pipe_file, path, data), seconds_for(len(data)))

    def remove(self, name: str) -> None:
        """Remove a file, or an empty directory, if it is there."""
        if self.is_local:
            path = Path(self.path, name)
            path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
            return
        with contextlib.suppress(FileNotFoundError):
            self._ask(name, lambda system, path: system.rm_file(path))

    def _send(self, name: str, file: str) -> bool:
        """Create a URL's file of a local one; False when another was there first."""

        def send(system: fsspec.AbstractFileSystem, path: str) -> bool:
            try:
                _placed(system.put_file, file, path, mode="create")
            except Exception as error:
                # Stores say in several ways that it is there. Perhaps it is ours: only the answer was lost.
                if isinstance(error, Error) or not fresh(system).exists(path):
                    raise
                return False
            return True

        return self._ask(name, send, seconds_for(Path(file).stat().st_size))

    def _ask(self, name: str, question: Question[Answer], seconds: float = WHOLE_SECONDS) -> Answer:
        return ask(self.path, question, name, seconds=seconds)


def _placed(put: Callable[..., object], *arguments: object, **options: object) -> None:
    """Write at a URL. A place that is not there is what a user can mend."""
    try:
        put(*arguments, **options)
    except FileNotFoundError as error:
        raise Error(f"expected a place that can be written to ({reason(error).rstrip('.')}); make it first") from None
