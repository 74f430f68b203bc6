"""Datasets on the Hub: which files a configuration has at a commit, and rows of those that `datasets` must read."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ..errors import Error, reason
from ..files import replace
from ..locations import HubFile
from ..patience import Answer, may_pass, patiently, refuse_long_wait, retry_after, status
from ..stores import GO_ON
from .documents import (
    MAX_DOCUMENT_BYTES,
    Digest,
    Document,
    Run,
    Size,
    as_document,
    check_delivered,
    in_batches,
    is_longer,
    no_column,
    too_long,
)

HELLASWAG_REPO, HELLASWAG_FILE = "Rowan/hellaswag", "hellaswag_val.jsonl"


@dataclass(frozen=True)
class HubRows:
    """Rows of one file of any format, as `datasets` streams them. A row is reached through those before it."""

    config: str | None
    split: str

    unit, is_streamed = "row", True

    def measure(self, location: HubFile, text_column: str, max_bytes: int = MAX_DOCUMENT_BYTES) -> Size:
        row = next(self.rows(location), {text_column: ""})
        if text_column not in row:
            raise no_column(location, text_column, list(row))
        return Size(max(1, location.size // 4000), None, is_exact=False)  # a guess: to know would mean reading the file

    def open(self, location: HubFile, size: Size, text_column: str, max_bytes: int = MAX_DOCUMENT_BYTES) -> "_OpenRows":
        return _OpenRows(self, location, text_column, max_bytes)

    def rows(self, location: HubFile) -> Iterator[dict[str, object]]:
        import datasets

        _read_checked()
        try:
            builder = _builder(location.repo, self.config, location.revision)
            found = builder.config.data_files or {}
            urls = [url for url in found.get(self.split, []) if str(url) == str(location)][:1]  # it may be named twice
            builder.config.data_files = datasets.data_files.DataFilesDict(
                {self.split: datasets.data_files.DataFilesList(urls, [])}
            )
            yield from builder.as_streaming_dataset(self.split)
        except Exception as error:  # of whatever library reads the format
            raise Error(f"{location}: datasets cannot read it ({reason(error)}); the same command goes on") from None


@dataclass
class _OpenRows:
    """Rows from wherever they were left; going back begins anew."""

    format: HubRows
    location: HubFile
    text_column: str
    max_bytes: int
    _at: int = 0
    _rows: Iterator[dict[str, object]] | None = None

    def cut(self, first: int, documents: int | None, text_bytes: int | None) -> Run | None:
        if documents is None:
            return Run(None, None, self.location.size)  # only reading it would tell where its rows end
        found = sum(1 for _ in self._next_rows(first, documents))
        return Run(first + found, found, 0) if found else None

    def hash(self, first: int, count: int, seen: Digest) -> None:
        raise NotImplementedError("what is on the Hub is known by its ETag")

    def batches(self, first: int, count: int | None, seen: Digest | None = None) -> Iterator[list[Document]]:
        delivered = 0
        for batch in in_batches(map(self._document, self._next_rows(first, count))):
            yield batch
            delivered += len(batch)
        check_delivered(self.location, "row", first, count, delivered)

    def _document(self, row: Mapping[str, object]) -> Document:
        document = as_document(row.get(self.text_column))
        return too_long(self.max_bytes) if is_longer(document, self.max_bytes) else document

    def close(self) -> None:
        self._rows = None

    def _next_rows(self, first: int, count: int | None) -> Iterator[dict[str, object]]:
        if self._rows is None or self._at > first:
            self._at, self._rows = 0, self.format.rows(self.location)
        end = None if count is None else first + count
        skipped = first - self._at
        for row in islice(self._rows, None if end is None else end - self._at):
            self._at += 1
            if skipped > 0:
                skipped -= 1
            else:
                yield row


@cache
def _read_checked() -> None:
    """Let `datasets`, too, read the Hub's files by ranges that are checked: fsspec asks what this registers."""
    import fsspec
    from huggingface_hub import HfFileSystem

    class Checked(HfFileSystem):
        def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:  # type: ignore[override]
            place: Any = self.resolve_path(path, revision=options.get("revision"))
            if mode != "rb" or getattr(place, "repo_type", "") != "dataset":
                return super()._open(path, mode, **options)
            info = self.info(path, revision=options.get("revision"))
            etag = info["lfs"]["sha256"] if info.get("lfs") else info["blob_id"]
            return HubFile(place.repo_id, place.revision, place.path_in_repo, info["size"], etag).open()

    fsspec.register_implementation("hf", Checked, clobber=True)


def resolve(repo: str, config: str | None, split: str, revision: str | None) -> tuple[str, list[HubFile]]:
    """The commit that `revision` (default: main) is now, and the files of a configuration's split, in order.

    Configurations are understood by `datasets`, whatever way the repository declares them. Raises Error.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    with _naming(f"dataset {repo}"):
        commit = str(_patiently(HfApi().dataset_info, repo, revision=revision).sha)
        found = _patiently(_data_files, repo, config, commit)
        if split not in found:
            raise Error(f"dataset {repo}: expected a split {split!r}, it has {', '.join(map(str, found)) or 'none'}")
        prefix = f"hf://datasets/{repo}@{commit}/"
        names = list(dict.fromkeys(str(url).removeprefix(prefix) for url in found[split]))
        listed = _patiently(HfApi().get_paths_info, repo, names, repo_type="dataset", revision=commit)
    infos = {info.path: info for info in listed if isinstance(info, RepoFile)}
    files = []
    for name in names:
        if name not in infos:
            raise Error(f"dataset {repo}: expected the file {name}, which its split {split!r} names; it is not there")
        info = infos[name]
        files.append(HubFile(repo, commit, name, info.size, info.lfs.sha256 if info.lfs else info.blob_id))
    return commit, files


def _builder(repo: str, config: str | None, commit: str) -> Any:
    """`datasets` reads the Hub's repository, also where a local directory has its name."""
    import datasets

    return datasets.load_dataset_builder(f"hf://datasets/{repo}", config, revision=commit)


def _data_files(repo: str, config: str | None, commit: str) -> dict[str, list[str]]:
    return dict(_builder(repo, config, commit).config.data_files or {})


def _patiently(ask: Callable[..., Answer], *arguments: Any, **options: Any) -> Answer:
    """ask(…), again with growing pauses where the Hub or the network says that later may be better."""

    def question() -> Answer:
        _heed_long_waits()
        return ask(*arguments, **options)

    return patiently(question, "an answer of the Hub")


def _heed_long_waits() -> None:
    """Some of these libraries' own requests wait as long as a server says, an hour too: refuse that instead."""
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    hooks = getattr(get_session(), "event_hooks", None)
    if hooks is not None and _heed not in hooks["response"]:
        get_session().event_hooks = {**hooks, "response": [*hooks["response"], _heed]}


def _heed(answer: Any) -> None:
    refuse_long_wait(retry_after(answer.headers.get("Retry-After", "")))


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Turn what these libraries raise of a repository into one line."""
    try:
        yield
    except Error as error:
        raise Error(str(error) if str(error).startswith(what) else f"{what}: {error}") from None
    except Exception as error:  # of HTTP clients, YAML, datasets: they share no base
        if may_pass(error):
            from huggingface_hub import constants

            raise Error(f"{what}: no answer of {constants.ENDPOINT} ({reason(error)}); {GO_ON}") from error
        if type(error).__module__.startswith("yaml"):
            raise Error(f"{what}: expected YAML at the head of its README.md, got none ({reason(error)})") from error
        hint = ""
        if status(error) in (401, 403):
            hint = "; if it is gated or private, accept its terms and log in with `hf auth login`"
        raise Error(f"{what}: expected it on the Hub, got {reason(error)}{hint}") from error


def download_hellaswag(folder: Path) -> tuple[Path, str]:
    """HellaSwag's validation split from the Hub as folder/hellaswag_val.jsonl, and the commit it is from.

    Raises Error when the Hub cannot be reached or has no such split.
    """
    from huggingface_hub import HfApi, hf_hub_download

    try:
        with _naming("hellaswag"):
            info = _patiently(HfApi().dataset_info, HELLASWAG_REPO)
            names = [f.rfilename for f in info.siblings or [] if f.rfilename.endswith(".parquet")]
            names = [name for name in names if "validation" in name]
            tables = [
                pq.read_table(hf_hub_download(HELLASWAG_REPO, name, repo_type="dataset", revision=info.sha))
                for name in sorted(names)
            ]
    except Error as error:
        raise Error(f"{error}; give a local copy with --source hellaswag_val.jsonl") from None
    if not tables:
        raise Error(f"hellaswag: expected a validation split in parquet in {HELLASWAG_REPO}, found none")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / HELLASWAG_FILE
    rows = [row for table in tables for row in table.to_pylist()]
    replace(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path, str(info.sha)
