"""Where a source's bytes are: a local file, a file on the Hub, any fsspec URL.

A location knows how large its file is and what tells a changed file from the planned one. It goes into the plan as
a record and comes back from it, on any machine that sees the same files. Nothing is ever downloaded whole, and
nothing is kept on disk.
"""

import importlib.util
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from .errors import Error, NoRanges, counted, reason
from .patience import patiently, seconds_for
from .ranges import Range, WrongAnswer, fetch, hub_answer, plain_etag
from .stores import GO_ON, ask, fetch_to_cache, fresh
from .strict_json import Record

SMALLEST_REQUEST = 1 << 16
PACKAGE = "package:"
# What tells a changed file in various file systems' info, the content's own mark before a time.
CHANGE_MARKS = (
    *("ETag", "etag", "e_tag", "blob_id", "sha", "md5Hash", "md5", "Content-MD5", "Digest", "CRC"),
    *("LastModified", "Last-Modified", "last_modified", "mtime", "updated", "modificationTime", "modify", "date_time"),
    "created",
)


@dataclass(frozen=True)
class LocalFile:
    """A file of this machine, or a package's data file: `package:NAME/FILE`, the same wherever it is installed."""

    path: str
    size: int
    mtime_ns: int | None = None

    def __post_init__(self) -> None:
        package, _, name = self.path.removeprefix(PACKAGE).partition("/")
        if self.path.startswith(PACKAGE) and not (package.isidentifier() and _is_below(name)):
            raise Error(f"source {self}: expected {PACKAGE}NAME/FILE, a package's name and a file within it")

    def __str__(self) -> str:
        return self.path

    def record(self) -> Record:
        return {"path": self.path, "size": self.size} | ({} if self.mtime_ns is None else {"mtime_ns": self.mtime_ns})

    def open(self) -> BinaryIO:
        return cast(BinaryIO, io.BufferedReader(_NamingFile(str(self.here)), SMALLEST_REQUEST))

    def check_unchanged(self, by_time: bool = True) -> None:
        """Raise Error where it is not what was planned. by_time: it is known by size and time, not by its bytes."""
        try:
            stat = self.here.stat()
        except FileNotFoundError:
            raise Error(f"source {self}: the file is gone; {_AGAIN}") from None
        if stat.st_size != self.size or (by_time and self.mtime_ns not in (None, stat.st_mtime_ns)):
            raise Error(
                f"source {self}: the file changed since the plan was made, expected {counted(self.size, 'byte')} of "
                f"mtime_ns {self.mtime_ns}, got {stat.st_size:,} of {stat.st_mtime_ns}; {_AGAIN}"
            )

    @property
    def here(self) -> Path:
        """Where the file is on this machine."""
        if not self.path.startswith(PACKAGE):
            return Path(self.path)
        package, _, name = self.path.removeprefix(PACKAGE).partition("/")
        folder = package_folder(package)
        if folder is None:
            raise Error(f"source {self}: expected the package {package}, which is not installed")
        return folder / name


@dataclass(frozen=True)
class UrlFile:
    """A file that fsspec can read by byte range: s3://…, gs://…, https://….

    mark: the name and value of what tells that it is the same file, its ETag or time of change; "" if there is none.
    """

    url: str
    size: int
    mark: str

    def __str__(self) -> str:
        return self.url

    def record(self) -> Record:
        return {"url": self.url, "size": self.size, "mark": self.mark}

    def open(self) -> BinaryIO:
        return cast(BinaryIO, io.BufferedReader(RangedFile(self.read_range, self.size), 1 << 23))

    def read_range(self, start: int, end: int) -> bytes:
        """Bytes start … end - 1. Raises Error when they do not come."""
        what, wanted = f"bytes {start} to {end}", Range(start, end, self.size, self.mark)
        seconds = seconds_for(end - start)

        def fetched(system: Any, path: str) -> bytes:
            fetch_to_cache(system, path)  # all of it, however long that takes
            return fetch(system, path, wanted, seconds)

        try:
            return ask(self.url, fetched, what=what, seconds=None)
        except FileNotFoundError as error:
            raise Error(f"{self}: {what} did not arrive ({reason(error)}); {GO_ON}") from None

    def check_unchanged(self, by_time: bool = True) -> None:
        found = url_file(self.url, self.mark.partition(" ")[0])
        if found.size != self.size or (self.mark and found.mark != self.mark):
            raise Error(
                f"source {self}: the file changed since the plan was made, expected {counted(self.size, 'byte')} "
                f"({self.mark}), got {found.size:,} ({found.mark}); {_AGAIN}"
            )


@dataclass(frozen=True)
class HubFile:
    """One file of a dataset repository at a pinned commit. `etag` names its content."""

    repo: str
    revision: str
    name: str
    size: int
    etag: str

    def __str__(self) -> str:
        return f"hf://datasets/{self.repo}@{self.revision}/{self.name}"

    def record(self) -> Record:
        return {"repo": self.repo, "revision": self.revision, "path": self.name, "size": self.size, "etag": self.etag}

    def open(self) -> BinaryIO:
        return cast(BinaryIO, io.BufferedReader(RangedFile(self.read_range, self.size), 1 << 23))

    def check_unchanged(self, by_time: bool = True) -> None:
        pass  # every range that is read is checked

    def read_range(self, start: int, end: int) -> bytes:
        """Bytes start … end - 1. Raises Error for a server that gives anything else.

        Checked is, and asked for again, what huggingface_hub does not check: that it is this range, that all of it
        came in time, and that the file is the planned one.
        """
        what, wanted = f"{self}: bytes {start} to {end}", Range(start, end, self.size)
        try:
            return patiently(lambda: self._fetch(wanted), what, seconds_for(end - start))
        except NoRanges as error:
            raise NoRanges(f"{what} did not arrive: {error}; take another server (HF_ENDPOINT) or network") from None
        except Error as error:
            raise Error(f"{what} did not arrive: {error}") from None
        except Exception as error:  # the HTTP client's own: huggingface_hub changes clients between versions
            raise Error(f"{what} did not arrive ({reason(error)}); {GO_ON}") from None

    def _fetch(self, wanted: Range) -> bytes:
        from huggingface_hub import hf_hub_url

        def check(answer: Any) -> None:
            first = (answer.history or [answer])[0]  # the Hub's own, before it sends us to its storage
            etag = plain_etag(first.headers.get("X-Linked-Etag") or first.headers.get("ETag"))
            if etag and etag != self.etag:
                raise WrongAnswer(f"the file changed under its commit (ETag {self.etag} → {etag})")
            wanted.check_answer(answer.status_code, answer.headers)

        url = hf_hub_url(self.repo, self.name, repo_type="dataset", revision=self.revision)
        return wanted.checked(hub_answer(url, wanted.headers, check))


Location = LocalFile | UrlFile | HubFile


class _NamingFile(io.FileIO):
    """A local file that is read. A disk that fails does not say of which file: it does."""

    def readinto(self, buffer: Any) -> int | None:
        with self._naming():
            return super().readinto(buffer)

    def readall(self) -> bytes:
        with self._naming():
            return super().readall()

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.name) from None


class SeekableReader(io.RawIOBase):
    """A raw file to read and seek in, at place `_at`."""

    _at = 0

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


class RangedFile(SeekableReader):
    """A file read through `read_range(start, end)`. What `hold` was given is not asked for again."""

    def __init__(self, read_range: Callable[[int, int], bytes], size: int):
        self._read_range, self._size = read_range, size
        self._held: list[tuple[int, bytes]] = []

    def hold(self, pieces: list[tuple[int, bytes]]) -> None:
        """Keep these (first byte, bytes) until others come."""
        self._held = pieces

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._at)
        if wanted <= 0:
            return 0
        held = next((p for p in self._held if p[0] <= self._at and self._at + wanted <= p[0] + len(p[1])), None)
        if held is None:
            end = min(self._size, self._at + max(wanted, SMALLEST_REQUEST))
            held = self._at, self._read_range(self._at, end)
            self._held = [held]
        offset = self._at - held[0]
        buffer[:wanted] = held[1][offset : offset + wanted]
        self._at += wanted
        return wanted

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at


def local_file(path: Path) -> LocalFile:
    stat = path.stat()
    return LocalFile(str(path), stat.st_size, stat.st_mtime_ns)


def _is_below(name: str) -> bool:
    """Whether a name stays within the directory that it is taken in."""
    return bool(name) and not name.startswith("/") and ".." not in name.replace("\\", "/").split("/")


def url_file(url: str, mark: str = "") -> UrlFile:
    """A URL's file as it is now. Raises Error when there is none, or nothing to read such URLs.

    mark: by which of its marks it shall be known; the first that it has if not given.
    """
    try:
        info = ask(url, lambda system, path: fresh(system).info(path))
    except FileNotFoundError as error:
        # fsspec says "not found" of whatever fails; why is in its cause.
        why = reason(error.__cause__) if error.__cause__ else "not found"
        raise Error(f"{url}: expected a file to read ({why})") from None
    if info.get("type") == "directory":
        raise Error(f"{url}: expected a file, got a directory; give {url.rstrip('/')}/ for all files below it")
    if info.get("size") is None:
        raise Error(f"{url}: expected a file of known size, its server tells none; download it first")
    marks = (mark,) if mark else CHANGE_MARKS
    return UrlFile(url, int(info["size"]), next((f"{k} {info[k]}" for k in marks if info.get(k)), ""))


def located(record: Record) -> Location:
    """The location that a plan's record describes."""
    if "repo" in record:
        return HubFile(record["repo"], record["revision"], record["path"], record["size"], record["etag"])
    if "url" in record:
        return UrlFile(record["url"], record["size"], record["mark"])
    return LocalFile(record["path"], record["size"], record.get("mtime_ns"))


def package_folder(package: str) -> Path | None:
    """Where an installed package's files are. Found, not imported: only its data is wanted."""
    if not package.isidentifier():
        return None  # a dotted name would import what it is in
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # __main__ has none
        return None
    locations = spec.submodule_search_locations if spec else None
    return Path(locations[0]) if locations else None


def package_version(package: str) -> str:
    """Of a package that is installed."""
    import importlib.metadata  # it takes half as long as NumPy, and few ask

    return importlib.metadata.version(package)


_AGAIN = "put it back, or plan again in an empty directory"
