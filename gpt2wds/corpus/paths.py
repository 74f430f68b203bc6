"""Paths, URLs and patterns → the files that they mean."""

import errno
import glob
import logging
import os
from collections.abc import Iterable, Iterator
from itertools import dropwhile
from pathlib import Path

from braceexpand import braceexpand

from ..arguments import path_text
from ..errors import Error, reason, refuse_other_bytes, shown
from ..stores import Question, ask, fresh
from .readers import BY_SUFFIX, suffix_of

LOG = logging.getLogger(__name__)


def in_order(name: str, paths: object) -> tuple[str, ...]:
    """Several paths, URLs or patterns as sorted texts. Raises Error for what is none, and for a single one by itself:
    a text is a sequence too, of characters, of which "/" and "." mean whole file systems.
    """
    if isinstance(paths, (str, bytes, os.PathLike)) or not isinstance(paths, Iterable):
        hint = "; write it as (path,), with a comma" if isinstance(paths, (str, os.PathLike)) else ""
        raise Error(f"{name}: expected a tuple of paths, URLs or patterns, got {repr(paths)[:80]}{hint}")
    found = tuple(sorted(path_text(name, path) for path in paths))
    if not found:
        raise Error(f"{name}: expected at least one path, URL or pattern, got none")
    return found


def expanded(path: str) -> list[str]:
    """The files that a path, a URL or a pattern (`*`, `**`, `?`, `[…]`, `{a,b}`) means; a directory means all files
    of known formats below it, hidden ones excepted. A URL means a directory where it ends in a slash.

    Raises Error when there are none, and for a name that a plan, which is JSON, cannot hold.
    """
    found = _expanded(path)
    for name in found:
        refuse_other_bytes("files", name)
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
        raise Error(f"files: expected a file, got {path!r}, which is {_kind(path)}")
    return _some([name for name in _matching(path) if _is_readable(name)], path)


def _matching(pattern: str) -> list[str]:
    """What glob finds, but that `**` passes each directory once: where links lead above, glob goes round and round."""
    parts = pattern.split("/")
    if "**" not in parts:
        _refuse_unlisted(os.path.dirname(pattern))
        return glob.glob(pattern)
    at = parts.index("**")
    above, below = "/".join(parts[:at]), "/".join(dropwhile(("", "**").__contains__, parts[at:])) or "*"
    if above:
        _refuse_unlisted(os.path.dirname(above))
    tops = filter(os.path.isdir, glob.glob(above)) if above else ["/" if at else "."]
    folders = [folder for top in tops for folder, _ in _folders(top)]
    if not at:
        folders = [folder[2:] for folder in folders]  # "./a"
    found = (name for folder in folders for name in _matching(os.path.join(glob.escape(folder), below)))
    return list(dict.fromkeys(found))


def _refuse_unlisted(pattern: str) -> None:
    """Raise Error for a directory of a pattern that cannot be listed, those above first: glob passes over them."""
    if glob.has_magic(pattern):
        _refuse_unlisted(os.path.dirname(pattern))
    for folder in filter(os.path.isdir, glob.glob(pattern or ".")):
        try:
            os.scandir(folder).close()
        except OSError as error:
            raise _unlisted(folder, error) from None


def _unlisted(folder: str, error: OSError) -> Error:
    return Error(f"files: cannot list {folder!r} ({reason(error)}); make it readable, or leave it out")


def _folders(directory: str) -> Iterator[tuple[str, list[str]]]:
    """A directory and those below it, each once, with the names of its files; hidden ones excepted.

    Raises Error for one it cannot list.
    """

    def fail(error: OSError) -> None:
        raise _unlisted(error.filename, error)

    seen = set()
    for folder, below, names in os.walk(directory, onerror=fail, followlinks=True):
        stat = os.stat(folder)
        if (stat.st_dev, stat.st_ino) in seen:  # a link to a directory above
            below.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        if folder != directory and _is_dataset(below, names):
            LOG.warning("%s: left out, for it is a dataset of gpt2wds", shown(folder))
            below.clear()
            continue
        below[:] = sorted(name for name in below if not name.startswith("."))  # of two links the first, everywhere
        yield folder, [name for name in names if not name.startswith(".")]


def _is_dataset(below: list[str], names: list[str]) -> bool:
    """Whether a directory of these is one that gpt2wds-shard made, or has begun: its JSON files are no texts."""
    return ("manifest.json" in names and any(name.endswith(".blocks.npy") for name in names)) or (
        "plan.json" in names and "receipts" in below
    )


def _is_readable(name: str) -> bool:
    """Whether it is a file. Raises Error for what is named like a source and is none: a broken link, a pipe."""
    if Path(name).is_file():
        return True
    if suffix_of(name) and not Path(name).is_dir():
        raise Error(f"files: expected a file, got {name!r}, which is {_kind(name)}; remove it, or leave it out")
    return False


def _kind(name: str) -> str:
    """What is there in place of a file."""
    try:
        os.stat(name)
    except (FileNotFoundError, NotADirectoryError):
        return "a broken link" if Path(name).is_symlink() else "missing"
    except OSError as error:
        return "a link that leads in a circle" if error.errno == errno.ELOOP else f"not to be read ({reason(error)})"
    return "no regular file"


def _within(directory: str) -> list[str]:
    return _known(directory, [os.path.join(folder, name) for folder, names in _folders(directory) for name in names])


def _known(directory: str, found: list[str]) -> list[str]:
    known = [name for name in found if suffix_of(name) and ("://" in name or _is_readable(name))]
    others = sorted(set(found) - set(known))
    if not known:
        raise Error(f"files: expected a directory with {', '.join(BY_SUFFIX)}, got {directory!r}, which has none")
    if others:
        more = ", …" if len(others) > 3 else ""
        named = ", ".join(repr(_relative(name, directory)) for name in others[:3])
        LOG.warning("%s: left out, of other formats: %d (%s%s)", shown(directory), len(others), named, more)
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
    """What a store lists, as URLs, which are read through the same cache, if there is one."""
    cache = "".join(f"{bit}::" for bit in url.split("::")[:-1] if "://" not in bit)
    try:
        found = ask(
            url, lambda system, path: [f"{cache}{system.unstrip_protocol(name)}" for name in question(system, path)]
        )
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
