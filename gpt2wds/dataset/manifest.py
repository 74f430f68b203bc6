"""What a dataset says of itself: manifest.json as frozen dataclasses, and the checks of every field on the way in.

`record()` gives the JSON of an object, `from_record()` takes it back. Members that we do not know are kept in `extras`
and written again: within a major version readers ignore what they do not know, and lose none of it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import chain
from typing import Any

from ..errors import Error
from ..strict_json import CHECK, Record, checked, load_json, refuse_damage

FORMAT_VERSION = "1.0"
SPLITS = ("train", "val")
TOKENS, MULTIPLE_CHOICE = "tokens", "multiple-choice"  # what a dataset's samples are
FILES = "files"  # the corpus of a dataset that is made of any files: they have no name in common
MAX_COUNT = 1 << 62  # of bytes, tokens, documents: beyond it a number is damage


class LaterFormat(Error):
    """A manifest of another major version: sound, for all we know."""


@dataclass(frozen=True)
class SourceSpan:
    """A run of a source's documents: `count` of its `unit` ("row", "byte", "example") from `first` on.

    documents: how many of them are in the shard, the skipped not counted; said where a shard has several spans.
    skipped: how many of them are not; said there too, where there are any (0 may also be an older writer's silence).
    """

    source: str
    first: int
    count: int
    unit: str
    documents: int | None = None
    skipped: int = 0

    def record(self) -> Record:
        said = {} if self.documents is None else {"documents": self.documents}
        said |= {"skipped": self.skipped} if self.skipped else {}
        return {"source": self.source, f"first_{self.unit}": self.first, "count": self.count, **said}

    @classmethod
    def from_record(cls, record: Any) -> "SourceSpan":
        source, count = member(record, "source", str), member(record, "count", int)
        unit = next((key.removeprefix("first_") for key in record if key.startswith("first_")), "row")
        documents = member(record, "documents", int) if "documents" in record else None
        skipped = member(record, "skipped", int) if "skipped" in record else 0
        return cls(source, member(record, f"first_{unit}", int), count, unit, documents, skipped)


@dataclass(frozen=True)
class ShardEntry:
    """One shard. `sha256` is the file's, `tokens_sha256` that of its tokens without overlaps."""

    file: str
    bytes: int
    sha256: str
    tokens_sha256: str
    tokens: int
    documents: int
    blocks: int
    text_bytes: int  # UTF-8 bytes of the documents' text
    skipped: Mapping[str, list[int]]  # reason → ordinals of documents that were left out, among all of the shard's
    spans: tuple[SourceSpan, ...]
    extras: Record = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The file's name without its suffixes: train-00000."""
        return self.file.partition(".")[0]

    def documents_by_source(self) -> dict[str, int | None]:
        """Documents that each source gave, the skipped not counted; None where an older writer did not say."""
        if len({span.source for span in self.spans}) == 1:
            return {self.spans[0].source: self.documents}
        counts: dict[str, int | None] = dict.fromkeys((span.source for span in self.spans), 0)
        for span in self.spans:
            before = counts[span.source]
            counts[span.source] = None if before is None or span.documents is None else before + span.documents
        return counts

    def record(self) -> Record:
        plain = {name: getattr(self, name) for name in _SHARD_FIELDS}
        return {**plain, "skipped": dict(self.skipped), "spans": [span.record() for span in self.spans], **self.extras}

    @classmethod
    def from_record(cls, record: Any) -> "ShardEntry":
        """Raises Error that says which member is not as it must be."""
        values = {name: member(record, name, kind) for name, kind in _SHARD_FIELDS.items()}
        if "/" in values["file"] or values["file"].startswith("."):
            raise Error(f"'file': expected a name, got {values['file'][:80]!r}")
        skipped = {why: member(record["skipped"], why, list) for why in member(record, "skipped", dict)}
        if not all(type(ordinal) is int for ordinal in chain.from_iterable(skipped.values())):
            raise Error("'skipped': expected ordinals of documents")
        spans = tuple(map(SourceSpan.from_record, member(record, "spans", list)))
        return cls(**values, skipped=skipped, spans=spans, extras=others(record, *_SHARD_FIELDS, "skipped", "spans"))


@dataclass(frozen=True)
class CorpusName:
    """Which corpus a dataset is made of."""

    name: str
    source: str = ""
    revision: str = ""
    extras: Record = field(default_factory=dict)

    def record(self) -> Record:
        return {"name": self.name, "source": self.source, "revision": self.revision, **self.extras}

    @classmethod
    def from_record(cls, record: Any) -> "CorpusName":
        values = {"name": "corpus without a name", **(record if isinstance(record, dict) else {})}
        name, source, revision = (str(values.get(key) or "") for key in ("name", "source", "revision"))
        return cls(name, source, revision, others(values, "name", "source", "revision"))


@dataclass(frozen=True)
class Manifest:
    """The whole of manifest.json. `shards` has the entries of each split, in order.

    blocks_sha256: SHA-256 of each split's block index, empty where an older writer did not say.
    """

    kind: str
    dataset_id: str
    corpus: CorpusName
    tokenizer: Mapping[str, str]
    parameters: Record
    versions: Mapping[str, str]
    shards: Mapping[str, tuple[ShardEntry, ...]]
    blocks_sha256: Mapping[str, str] = field(default_factory=dict)
    format_version: str = FORMAT_VERSION
    extras: Record = field(default_factory=dict)

    def to_json(self) -> str:
        """The file's text, which ends with its check."""
        record = {
            "format_version": self.format_version,
            "kind": self.kind,
            "dataset_id": self.dataset_id,
            "corpus": self.corpus.record(),
            "tokenizer": dict(self.tokenizer),
            "parameters": self.parameters,
            "versions": dict(self.versions),
            "shards": {split: [entry.record() for entry in entries] for split, entries in self.shards.items()},
            "blocks_sha256": dict(self.blocks_sha256),
        }
        return json.dumps(checked(record | self.extras), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "Manifest":
        """Raises Error that says what is wrong: no JSON, a later format, a member that is not as it must be."""
        record = load_json(text)
        version = member(record, "format_version", str)
        if version.split(".")[0] != FORMAT_VERSION.split(".")[0]:
            raise LaterFormat(f"expected format {FORMAT_VERSION}, got {version[:80]}; update gpt2wds")
        refuse_damage(record)
        if CHECK not in record and "blocks_sha256" in record:  # both came together
            raise Error(f"{CHECK!r}: expected a check, got none")
        kept = member(record, "shards", dict)
        said = {"parameters": {}, "versions": {}, "blocks_sha256": {}, **record}
        hashes = member(said, "blocks_sha256", dict)
        return cls(
            kind=member(record, "kind", str),
            dataset_id=member(record, "dataset_id", str),
            corpus=CorpusName.from_record(member(record, "corpus", dict)),
            tokenizer=member(record, "tokenizer", dict),
            parameters=member(said, "parameters", dict),
            versions=member(said, "versions", dict),
            shards={split: tuple(map(ShardEntry.from_record, member(kept, split, list))) for split in SPLITS},
            blocks_sha256={split: member(hashes, split, str) for split in SPLITS if hashes},
            format_version=version,
            extras=others(record, *names_of(cls)),
        )

    def check_names(self) -> None:
        """Hold the shards' names and the dataset_id to the shards. Raises Error."""
        for split, entries in self.shards.items():
            for number, entry in enumerate(entries):
                if entry.file != f"{split}-{number:05d}.tar.zst":
                    raise Error(f"expected {split}-{number:05d}.tar.zst, got {entry.file[:80]}")
        expected = dataset_id(self.shards)
        if self.dataset_id != expected:
            raise Error(f"expected dataset_id {expected} for its shards, got {self.dataset_id[:80]}")


def dataset_id(shards: Mapping[str, tuple[ShardEntry, ...]]) -> str:
    """A name for the content: hash of all shards' token hashes and block counts. Compression does not count."""
    lines = [f"{entry.name} {entry.tokens_sha256} {entry.blocks}\n" for split in SPLITS for entry in shards[split]]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:32]


def member(record: Any, name: str, kind: type) -> Any:
    """A member of a JSON object, held to its type; whole numbers are sizes or counts, so from 0 on. Raises Error."""
    value: Any = record.get(name) if isinstance(record, dict) else None
    fits = isinstance(value, kind) and not isinstance(value, bool)
    if not fits or (isinstance(value, int) and not 0 <= value <= MAX_COUNT):
        wanted = {int: "a count", str: "text", dict: "an object", list: "a list"}[kind]
        raise Error(f"{name!r}: expected {wanted}, got {'nothing' if value is None else repr(value)[:80]}")
    return value


def others(record: Record, *known: str) -> Record:
    """The members of a JSON object that are not known here."""
    return {name: value for name, value in record.items() if name not in known}


def names_of(kind: Any) -> list[str]:
    """The members of a JSON object that a dataclass stands for: its fields, and the check."""
    return [*(field.name for field in fields(kind) if field.name != "extras"), CHECK]


# What a shard's entry says of itself in one text or number each.
_SHARD_FIELDS = {field.name: field.type for field in fields(ShardEntry) if field.type in (str, int)}
