"""Varied text for benchmarks, of what is installed: documentation, sources, several languages, no paragraph twice."""

import random
import sys
import sysconfig
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

CODE = {".c", ".cpp", ".cuh", ".h", ".hpp", ".js", ".pl", ".pm", ".py", ".pyi"}
PROSE = {".html", ".ipynb", ".json", ".md", ".pod", ".po", ".rst", ".tex", ".txt", ".xml", ""}
SMALLEST_FILE, LARGEST_FILE = 500, 2_000_000  # bytes


def documents(megabytes: int) -> list[str]:
    """Documents of web length, of the installed packages, Python's library and /usr/share, in random order.

    Code is a third of it where there is enough else. A file's paragraphs stay in their order, and those that came
    before are left out. Raises ValueError where there is less.
    """
    chance, texts, total, seen = random.Random(1), [], 0, set[int]()
    code, prose = (_unique(chance.sample(files, len(files)), seen) for files in map(_files, (CODE, PROSE)))
    for kind in cycle((prose, prose, code)):
        size = 0
        while size < 300_000 and (text := next(kind, "")):
            at, size = 0, size + len(text)
            while at < len(text):
                length = int(chance.lognormvariate(8.0, 0.8))
                texts.append(text[at : at + length])
                at += length
        total += size
        if total >= megabytes * 1_000_000:
            chance.shuffle(texts)
            return texts
        if kind is code and not size:
            break
    raise ValueError(f"expected {megabytes} MB of text in what is installed, found {total // 1_000_000}")


def _files(suffixes: set[str]) -> list[Path]:
    roots = [Path(sysconfig.get_path("purelib")), Path(sys.base_prefix) / "lib", Path("/usr/share")]
    found = (path for root in roots for path in sorted(root.rglob("*")) if path.suffix in suffixes)
    return [path for path in found if path.is_file() and not path.is_symlink()]


def _unique(files: list[Path], seen: set[int]) -> Iterator[str]:
    for path in files:
        try:
            if not SMALLEST_FILE <= path.stat().st_size <= LARGEST_FILE:
                continue
            paragraphs = path.read_text("utf-8").split("\n\n")
        except (OSError, UnicodeDecodeError):
            continue
        kept = []
        for paragraph in paragraphs:
            key = hash(paragraph.strip())
            if key not in seen:
                seen.add(key)
                kept.append(paragraph)
        if kept:
            yield "\n\n".join(kept)
