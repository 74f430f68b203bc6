"""Corpora: what is asked for → its sources.

A request is a frozen dataclass whose fields are what a user may ask of a corpus. `resolve` finds its sources, pinned to
what they are now; nothing is read but what tells their size. Cutting them into tasks comes after (cutting.py).
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Protocol

from ..arguments import at_least, keep_checked, or_none, path_text, text
from ..dataset.manifest import FILES, MULTIPLE_CHOICE, CorpusName
from ..errors import Error, counted
from ..folder import Folder
from ..locations import PACKAGE, LocalFile, Location, local_file, url_file
from ..strict_json import Record
from .documents import MAX_DOCUMENT_BYTES, document_limit
from .hub import download_hellaswag, resolve
from .paths import expanded, in_order
from .readers import BY_SUFFIX, suffix_of
from .sources import DATASETS, EXAMPLES, NOT_MEASURED, Corpus, Source, at_once, kept_in, measured, warn_of_unmarked

FINEWEB_REPO, FINEWEB_CONFIG, FINEWEB_VAL_DOCS = "HuggingFaceFW/fineweb-edu", "sample-10BT", 12_000
HELLASWAG_EXAMPLES, HUB, SAMPLE = 10_042, "hub", "sample"
LATER = {"max_document_bytes": MAX_DOCUMENT_BYTES}  # stands in plans and manifests only where it is not this


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
        keep_checked(self, max_document_bytes=document_limit, paths=in_order, text_column=text)

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
        given = or_none(text)
        keep_checked(
            self,
            max_document_bytes=document_limit,
            repo=text,
            config=given,
            revision=given,
            split=text,
            text_column=text,
        )

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
class MultipleChoice:
    """Multiple-choice examples in HellaSwag's schema, all for validation.

    source: "hub" (HellaSwag's validation split), "sample" (36 examples that come with gpt2wds), or a path.
    """

    source: str = HUB
    limit_docs: int | None = None  # only the first so many

    corpus: ClassVar[str] = "hellaswag"

    def __post_init__(self) -> None:
        keep_checked(self, source=path_text, limit_docs=or_none(at_least(1)))

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
