"""Paths, URLs and patterns → the files that they mean."""

import glob
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

from braceexpand import braceexpand

from ..errors import Error, reason
from ..folder import Folder
from ..stores import Question, ask, fresh
from .readers import BY_SUFFIX, suffix_of

LOG = logging.getLogger(__name__)


def expanded(path: str) -> list[str]:
    """The files that a path, a URL or a pattern (`*`, `**`, `?`, `[…]`, `{a,b}`) means; a directory means all files
    of known formats below it, hidden ones excepted. A URL means a directory where it ends in a slash.

    Raises Error when there are none, and for a name that a plan, which is JSON, cannot hold.
    """
    found = _expanded(path)
    for name in found:
        try:
            name.encode("utf-8")
        except UnicodeEncodeError:
            raise Error(f"files: expected names in UTF-8, got {os.fsencode(name)!r}; rename it") from None
    return found


def _expanded(path: str) -> list[str]:
    path = path.removeprefix("file://")
    if "://" not in path:
        path = os.path.expanduser(path)
        if Path(path).is_file():  # a name may hold a pattern's characters
            return [path]
    alternatives = _alternatives(path)
    if len(alternatives) > 1:
        return [name for alternative in alternatives for name in _expanded(alternative)]
    is_pattern = any(c in path.partition("?")[0] for c in "*[") or ("?" in path and "://" not in path)
    if "://" in path:
        if is_pattern:
            return _listed(path)
        return _below_url(path) if path.endswith("/") else [path]
    if Path(path).is_dir():
        return _within(path)
    if not is_pattern:
        raise Error(f"files: expected a file, got {path!r}, which is {'no file' if Path(path).exists() else 'missing'}")
    if "**" in path:  # glob says nothing of a directory that it cannot read
        base = path[: re.search(r"[*?[]", path).start()]  # type: ignore[union-attr]
        for _ in _walked(os.path.dirname(base) or "."):
            pass
    return _some([name for name in glob.glob(path, recursive=True) if _is_readable(name)], path)


def _walked(directory: str) -> Iterator[str]:
    """The files below a directory, hidden ones excepted, each directory once. Raises Error for one it cannot list."""

    def fail(error: OSError) -> None:
        raise Error(f"files: cannot list {error.filename!r} ({reason(error)}); make it readable, or leave it out")

    seen = set()
    for folder, below, names in os.walk(directory, onerror=fail, followlinks=True):
        stat = os.stat(folder)
        if (stat.st_dev, stat.st_ino) in seen:  # a link to a directory above
            below.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        below[:] = [name for name in below if not name.startswith(".")]
        yield from (os.path.join(folder, name) for name in names if not name.startswith("."))


def _is_readable(name: str) -> bool:
    """Whether it is a file. Raises Error for what is named like a source and is none: a broken link, a pipe."""
    if Path(name).is_file():
        return True
    if suffix_of(name) and not Path(name).is_dir():
        kind = "a broken link" if Path(name).is_symlink() else "no regular file"
        raise Error(f"files: expected a file, got {name!r}, which is {kind}; remove it, or leave it out")
    return False


def _within(directory: str) -> list[str]:
    return _known(directory, list(_walked(directory)))


def _known(directory: str, found: list[str]) -> list[str]:
    known = [name for name in found if suffix_of(name) and ("://" in name or _is_readable(name))]
    others = sorted(set(found) - set(known))
    if not known:
        raise Error(f"files: expected a directory with {', '.join(BY_SUFFIX)}, got {directory!r}, which has none")
    if others:
        more = ", …" if len(others) > 3 else ""
        named = ", ".join(repr(_relative(name, directory)) for name in others[:3])
        LOG.warning("%s: left out, of other formats: %d (%s%s)", directory, len(others), named, more)
    return known


def _relative(name: str, directory: str) -> str:
    return name.rpartition("/")[2] if "://" in name else os.path.relpath(name, directory)


def _alternatives(path: str) -> list[str]:
    try:
        return list(braceexpand(path, escape=False))
    except ValueError:  # unbalanced: no alternatives
        return [path]


def _listed(url: str) -> list[str]:
    return _some(_asked(url, lambda system, path: fresh(system).glob(path)), url)


def _below_url(url: str) -> list[str]:
    return _known(
        url, _asked(url, lambda system, path: [n for n in fresh(system).find(path) if _is_shown(path, str(n))])
    )


def _asked(url: str, question: Question[list[str]]) -> list[str]:
    """What a store lists, as URLs."""
    try:
        found = ask(url, lambda system, path: [system.unstrip_protocol(name) for name in question(system, path)])
    except FileNotFoundError:
        found = []
    if not found:
        _refuse_missing_bucket(url)
    return found


def _is_shown(directory: str, name: str) -> bool:
    """Whether no directory on the way, nor the file itself, is hidden."""
    below = name.removeprefix(directory.rstrip("/"))
    return not any(part.startswith(".") for part in below.split("/"))


def _refuse_missing_bucket(url: str) -> None:
    """Raise Error where an object store has no such bucket: a listing says of that only that it is empty."""
    scheme, _, rest = url.partition("://")
    if scheme not in ("s3", "s3a", "gs", "gcs"):
        return
    bucket = rest.partition("/")[0]
    try:
        ask(f"{scheme}://{bucket}", lambda system, path: fresh(system).info(path))
    except FileNotFoundError:
        raise Error(f"files: the bucket {scheme}://{bucket} is not there; check its name and your endpoint") from None


def _some(found: list[str], pattern: str) -> list[str]:
    if not found:
        raise Error(f"files: expected at least one file, got the pattern {pattern!r}, which matches none")
    return found


def kept_in(folder: Folder, corpus: str) -> Path:
    """A dataset's directory, to keep a download that every worker and every later call reads. Raises Error at a URL."""
    if not folder.is_local:
        raise Error(
            f"{corpus}: expected a local copy, to make a dataset at a URL, got none; give it with --source FILE"
        )
    return Path(folder.path)
