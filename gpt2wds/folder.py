"""A directory, here or at any URL, whose files are read by name and by range."""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

import fsspec

from .errors import Error, reason
from .locations import GO_ON, filesystem

Answer = TypeVar("Answer")


class Folder:
    """A directory, here or at any URL that fsspec reads, whose files are known by their names.

    Methods raise FileNotFoundError for a file that is not there, OSError for a disk that fails, and Error for what
    a URL's library says.
    """

    def __init__(self, path: str | Path):
        self.path = str(path).removeprefix("file://").rstrip("/") or "/"
        self.is_local = "://" not in self.path
        if not self.is_local:
            filesystem(self.path)  # says now when nothing can read such URLs

    def __str__(self) -> str:
        return self.path

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """A file's bytes start … end - 1, fewer where it is shorter; all of it if not given."""
        if not self.is_local:
            return self._ask(name, lambda system, path: bytes(system.cat_file(path, start=start, end=end)))
        with open(f"{self.path}/{name}", "rb", buffering=0) as file:
            file.seek(start)
            return file.read(-1 if end is None else end - start)

    def size(self, name: str) -> int:
        if not self.is_local:
            return self._ask(name, lambda system, path: int(system.size(path)))
        return Path(self.path, name).stat().st_size

    def exists(self, name: str) -> bool:
        if not self.is_local:
            return self._ask(name, lambda system, path: bool(system.exists(path)))
        return Path(self.path, name).exists()

    def open(self, name: str) -> BinaryIO:
        """A file to read from its beginning to its end."""
        if not self.is_local:
            return self._ask(name, lambda system, path: cast(BinaryIO, system.open(path, "rb")))
        return open(f"{self.path}/{name}", "rb")

    def _ask(self, name: str, question: Callable[[fsspec.AbstractFileSystem, str], Answer]) -> Answer:
        system, below = filesystem(self.path)
        try:
            return question(system, f"{below}/{name}")
        except FileNotFoundError:
            raise
        except Exception as error:  # of whatever library reads such URLs
            raise Error(f"{self.path}/{name}: it did not arrive ({reason(error)}); {GO_ON}") from None
