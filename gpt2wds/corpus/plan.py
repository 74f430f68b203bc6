"""The plan of a dataset: what to do, fixed before anything is done, written once and read back.

A plan names the sources, cuts them into tasks, each of which becomes one shard, and holds every parameter that decides
content. Like the receipts of its tasks (receipts.py) it ends with a check, a hash of all else that is in it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..dataset.manifest import MAX_COUNT, MULTIPLE_CHOICE, SPLITS, TOKENS, CorpusName, member, names_of, others
from ..errors import Error
from ..folder import Folder
from ..strict_json import CHECK, Record, checked, load_json, refuse_damage
from .documents import MAX_DOCUMENT_BYTES
from .sources import Source

PLAN = "plan.json"
HASHES = "xxh3_128"  # of a task's spans
_SHARD_NAME = re.compile(rf"({'|'.join(SPLITS)})-([0-9]{{5,9}})")


@dataclass(frozen=True)
class Span:
    """A run of a source's documents: `count` of its unit from `first` on; None for all that is left.

    hash: of its bytes, which reading it is held to; "" where the plan knows its source by size and time alone.
    """

    source: int
    first: int
    count: int | None
    hash: str = ""


@dataclass(frozen=True)
class Task:
    """A fixed slice of the corpus that becomes exactly one shard."""

    split: str
    number: int
    spans: tuple[Span, ...]

    def __str__(self) -> str:
        return self.shard

    @property
    def shard(self) -> str:
        """The shard's name: train-00000."""
        return f"{self.split}-{self.number:05d}"

    def record(self) -> Record:
        record: Record = {
            "shard": self.shard,
            "spans": [[span.source, span.first, span.count] for span in self.spans],
        }
        hashes = [span.hash for span in self.spans]
        return record | ({HASHES: hashes} if any(hashes) else {})

    @classmethod
    def from_record(cls, record: Any, sources: int) -> "Task":
        named = _SHARD_NAME.fullmatch(member(record, "shard", str))
        if not named:
            raise Error(f"'shard': expected a name such as train-00000, got {record['shard'][:40]!r}")
        spans = []
        hashes = member(record, HASHES, list) if HASHES in record else [""] * len(member(record, "spans", list))
        if len(hashes) != len(member(record, "spans", list)) or not all(map(_is_hash, hashes)):
            raise Error(f"{HASHES!r}: expected a hash for each span, got {str(hashes)[:80]}")
        for span, hash_ in zip(record["spans"], hashes, strict=True):
            fits = isinstance(span, list) and len(span) == 3 and all(map(_is_count, span[:2]))
            if not fits or span[0] >= sources or not (span[2] is None or _is_count(span[2])):
                raise Error(f"'spans': expected [source, first, count], got {str(span)[:80]}")
            spans.append(Span(span[0], span[1], span[2], hash_))
        return cls(named[1], int(named[2]), tuple(spans))


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and bool(re.fullmatch("([0-9a-f]{32})?", value))


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_COUNT


@dataclass(frozen=True)
class Plan:
    """Everything that decides a dataset's content. `request` is what was asked for, in the words of the asking.

    check: of the plan as it was read; "" for one that was not written yet, or by a version that wrote no checks.
    """

    request: Record
    tokenizer: Mapping[str, str]
    versions: Mapping[str, str]
    kind: str
    corpus: CorpusName
    text_column: str
    sources: tuple[Source, ...]
    tasks: tuple[Task, ...]
    validation_texts: tuple[str, ...]  # hashes, sorted: a copy of one of these texts is no training document
    extras: Record = field(default_factory=dict)
    check: str = ""

    @cached_property
    def validation_set(self) -> frozenset[str]:
        return frozenset(self.validation_texts)

    def to_json(self) -> str:
        record = {
            "request": self.request,
            "tokenizer": dict(self.tokenizer),
            "versions": dict(self.versions),
            "kind": self.kind,
            "corpus": self.corpus.record(),
            "text_column": self.text_column,
            "sources": [source.record() for source in self.sources],
            "tasks": [task.record() for task in self.tasks],
            "validation_texts": self.validation_texts,
        }
        return json.dumps(checked(record | self.extras), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Raises Error that says what is wrong."""
        record, check = parsed(text)
        extras = others(record, *names_of(cls))
        if extras and not check:  # who knows more members than we do writes checks
            raise Error(f"{CHECK!r}: expected a check, got none")
        text_column = member(record, "text_column", str)
        request = member(record, "request", dict)
        at_most = member(request, "max_document_bytes", int) if "max_document_bytes" in request else MAX_DOCUMENT_BYTES
        sources = tuple(Source.from_record(source, text_column, at_most) for source in member(record, "sources", list))
        tasks = tuple(Task.from_record(task, len(sources)) for task in member(record, "tasks", list))
        for split in SPLITS:
            numbers = [task.number for task in tasks if task.split == split]
            if numbers != list(range(len(numbers))):
                raise Error(f"'tasks': expected those of {split} numbered from 0 on, each once")
        if member(record, "kind", str) not in (TOKENS, MULTIPLE_CHOICE):
            raise Error(f"'kind': expected {TOKENS} or {MULTIPLE_CHOICE}, got {record['kind'][:40]!r}")
        if not all(isinstance(text, str) for text in member(record, "validation_texts", list)):
            raise Error("'validation_texts': expected hashes")
        return cls(
            request=request,
            tokenizer=member(record, "tokenizer", dict),
            versions=member(record, "versions", dict),
            kind=record["kind"],
            corpus=CorpusName.from_record(member(record, "corpus", dict)),
            text_column=text_column,
            sources=sources,
            tasks=tasks,
            validation_texts=tuple(record["validation_texts"]),
            extras=extras,
            check=check,
        )


def parsed(text: str) -> tuple[Record, str]:
    """A JSON object and its check, "" where an earlier version wrote none. Raises Error for one that was damaged."""
    record = load_json(text)
    if not isinstance(record, dict):
        raise Error(f"expected a JSON object, got {type(record).__name__}")
    refuse_damage(record)
    return record, record.get(CHECK, "")


def read_plan(out: Folder) -> Plan:
    """The plan of a dataset directory in the making. Raises Error when there is none, or a damaged one."""
    try:
        text = out.read(PLAN)
    except FileNotFoundError:
        raise Error(f"{out}: expected a directory that a gpt2wds-shard command has begun, got none ({PLAN})") from None
    try:
        return Plan.from_json(text.decode("utf-8"))
    except (Error, UnicodeDecodeError) as error:
        raise Error(f"{out}/{PLAN}: the plan is damaged ({error}); restore it, or plan again elsewhere") from None


def write_plan(out: Folder, plan: Plan) -> Plan:
    """Write a plan unless one is there, and read it back: of two that start together both follow the one that won."""
    out.make()
    out.create_text(PLAN, plan.to_json())
    return read_plan(out)
