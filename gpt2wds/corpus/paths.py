"""Paths, URLs and patterns → the files that they mean."""

import glob
import logging
import os
from pathlib import Path

from braceexpand import braceexpand

from ..errors import Error, reason
from ..folder import Folder
from ..stores import filesystem
from .readers import BY_SUFFIX, suffix_of

LOG = logging.getLogger(__name__)


def expanded(path: str) -> list[str]:
    """The files that a path, a URL or a pattern (`*`, `**`, `?`, `[…]`, `{a,b}`) means; a directory means all files
    of known formats below it, hidden ones excepted.

    Raises Error when there are none.
    """
    path = path.removeprefix("file://")
    if "://" not in path:
        path = os.path.expanduser(path)
        if Path(path).is_file():  # a name may hold a pattern's characters
            return [path]
    alternatives = _alternatives(path)
    if len(alternatives) > 1:
        return [name for alternative in alternatives for name in expanded(alternative)]
    is_pattern = any(c in path.partition("?")[0] for c in "*[") or ("?" in path and "://" not in path)
    if "://" in path:
        return _listed(path) if is_pattern else [path]
    if Path(path).is_dir():
        return _within(path)
    if not is_pattern:
        raise Error(f"files: expected a file, got {path!r}, which is {'no file' if Path(path).exists() else 'missing'}")
    return _some([name for name in glob.glob(path, recursive=True) if Path(name).is_file()], path)


def _within(directory: str) -> list[str]:
    found = [name for name in glob.glob(os.path.join(directory, "**"), recursive=True) if Path(name).is_file()]
    known = [name for name in found if suffix_of(name)]
    others = sorted(set(found) - set(known))
    if not known:
        raise Error(f"files: expected a directory with {', '.join(BY_SUFFIX)}, got {directory!r}, which has none")
    if others:
        more = ", …" if len(others) > 3 else ""
        named = ", ".join(repr(os.path.relpath(name, directory)) for name in others[:3])
        LOG.warning("%s: left out, of other formats: %d (%s%s)", directory, len(others), named, more)
    return known


def _alternatives(path: str) -> list[str]:
    try:
        return list(braceexpand(path, escape=False))
    except ValueError:  # unbalanced: no alternatives
        return [path]


def _listed(url: str) -> list[str]:
    system, below = filesystem(url)
    try:
        return _some([system.unstrip_protocol(name) for name in system.glob(below)], url)
    except Error:
        raise
    except Exception as error:  # of whatever library reads such URLs
        raise Error(f"files: cannot list {url!r} ({reason(error)})") from None


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
