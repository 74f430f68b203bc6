"""One writer for a run directory, also where hosts share it.

    lock-1    JSON: host, process and start of the writer; touched every few seconds while it lives

Who wants to write creates the file of the next number, and may write if all others there are of the dead. Dead is a
process of this host that has ended; a file that was copied with its directory; and, where this host cannot tell, a
file that nobody touched for a minute of this host's own time. There is no fcntl in it, which NFS may lack.
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

from .. import files
from ..errors import Error

BEAT_SECONDS = 10.0  # between touches
SILENT_SECONDS = 60.0  # without a touch, after which a writer that cannot be asked for counts as dead
UNKNOWN = "an unknown process"


@dataclass(frozen=True)
class Writer:
    """Who has a directory, as a lock says it. process: when it began, in its kernel's ticks; folder: the directory."""

    host: str
    pid: int
    since: str
    process: str
    kernel: str
    folder: str
    token: str  # no two locks are the same

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    @classmethod
    def here(cls, folder: Path) -> "Writer":
        """This process, in `folder`."""
        return cls(
            socket.gethostname(),
            os.getpid(),
            datetime.now(UTC).isoformat(sep=" ", timespec="seconds").replace("+00:00", " UTC"),
            _process_start(os.getpid()),
            files.kernel(),
            str(folder.resolve()),
            secrets.token_hex(8),
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Writer | None":
        """Who wrote a lock; None for one that is damaged."""
        with suppress(ValueError, RecursionError, TypeError, KeyError):
            record = json.loads(text)
            said = {field.name: record[field.name] for field in fields(cls)}
            if all(type(value) is (int if name == "pid" else str) for name, value in said.items()):
                return cls(**said)
        return None


class Lock:
    """The right to write into a directory, from `take` until `release`. One process of a run takes it, for all."""

    def __init__(self, folder: Path, say: Callable[[str], None] = print):
        self.folder, self._say = folder, say
        self._text = ""
        self._path = folder
        self._made: list[Path] = []
        self._released = threading.Event()

    def take(self) -> None:
        """Have the directory, which is made where it is not there. Raises Error where another process writes to it."""
        self._made = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._text = Writer.here(self.folder).to_json()
        found: dict[Path, str] = {}
        while True:
            for path, text in (found := self._locks()).items():
                if self._lives(path, text):
                    raise Error(self._in_use(text))
            self._path = self.folder / f"lock-{max(map(_number, found), default=0) + 1}"
            # NFS may deny what it has done: what is there decides.
            if files.create(self._path, self._text) or self._locks().get(self._path) == self._text:
                break
        others = {path: text for path, text in self._locks().items() if path != self._path}
        if not others.items() <= found.items():
            self._path.unlink(missing_ok=True)
            raise Error(self._in_use(next(text for path, text in others.items() if found.get(path) != text)))
        for path in others:
            path.unlink(missing_ok=True)
        files.remove_dead(self.folder)
        threading.Thread(target=self._beat, daemon=True).start()

    def check(self) -> None:
        """Raise Error where another process has taken the directory, because this one stood still for long."""
        found = self._locks()
        if self._text and found != {self._path: self._text}:
            others = [text for text in found.values() if text != self._text]
            if others:
                raise Error(self._in_use(others[0]))
            files.create(self._path, self._text)  # somebody removed the file, and took nothing

    def release(self) -> None:
        """Let others write. Directories that `take` made go too, where nothing came into them."""
        self._released.set()
        if self._text and self._locks().get(self._path) == self._text:
            self._path.unlink(missing_ok=True)
        self._text = ""
        for path in self._made:
            with suppress(OSError):
                path.rmdir()

    def _locks(self) -> dict[Path, str]:
        found = {}
        for path in sorted(self.folder.glob("lock-*")):
            if _number(path):
                with suppress(FileNotFoundError):
                    found[path] = path.read_text(encoding="utf-8", errors="replace")
        return found

    def _beat(self) -> None:
        while not self._released.wait(BEAT_SECONDS):
            with suppress(OSError):
                os.utime(self._path)

    def _lives(self, path: Path, text: str) -> bool:
        writer = Writer.from_json(text)
        if writer and writer.kernel == files.kernel():
            with suppress(OSError):
                if not Path(writer.folder, path.name).samefile(path):
                    return False  # this is a copy
            return _runs(writer.pid, writer.process)
        self._say(f"{self.folder}: {writer or UNKNOWN} has written to it; waiting to see whether it still lives")
        touched = _touched(path)
        end = time.monotonic() + SILENT_SECONDS
        while time.monotonic() < end:
            time.sleep(min(1.0, SILENT_SECONDS / 10))
            if (now := _touched(path)) != touched:
                return now is not None
        return False

    def _in_use(self, text: str) -> str:
        writer = Writer.from_json(text)
        return (
            f"{self.folder}: in use by {writer or UNKNOWN}; wait for it or stop it (kill "
            f"{writer.pid if writer else 'its process'}"
            " there), then the same command goes on, or choose another run.dir"
        )


def _number(path: Path) -> int:
    digits = path.name.removeprefix("lock-")
    return int(digits) if digits.isdecimal() else 0


def _touched(path: Path) -> int | None:
    """When a file was last touched, by its file system's clock; opened, because NFS then asks its server."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _process_start(pid: int) -> str:
    """When a process began, in the kernel's ticks: numbers of processes are used again. "" where that is unknown."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "ended" if state in "ZX" else fields[18]


def _runs(pid: int, process: str) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is there, and another user's
    return _process_start(pid) in ("", process)
