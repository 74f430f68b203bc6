"""Paths, URLs and patterns → the files that they mean."""

import glob
import os
from pathlib import Path

from braceexpand import braceexpand

from ..errors import Error, reason
from ..stores import filesystem


def expanded(path: str) -> list[str]:
    """The files that a path, a URL or a pattern (`*`, `**`, `?`, `[…]`, `{a,b}`) means.

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
    here = Path(path)
    if not is_pattern:
        kind = f"no file; give its files, for example {path.rstrip('/')!r}/*.jsonl" if here.exists() else "missing"
        raise Error(f"files: expected a file, got {path!r}, which is {kind}")
    return _some([name for name in glob.glob(path, recursive=True) if Path(name).is_file()], path)


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
