"""The plan of a dataset: what to do, fixed before anything is done, written once and read back; and its receipts.

A plan names the sources, cuts them into tasks, each of which becomes one shard, and holds every parameter that decides
content. A receipt tells what a finished task's shard holds.
"""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ..dataset.manifest import SPLITS, CorpusName, Record, ShardEntry, member, others
from ..dataset.shards import BLOCK_ROW
from ..errors import Error
from ..folder import Folder
from .sources import Source

PLAN = "plan.json"
READ_AT_ONCE = 32  # receipts of a URL: most of it is waiting
_KNOWN = ("request", "tokenizer", "versions", "kind", "corpus", "text_column", "sources", "tasks", "validation_texts")


@dataclass(frozen=True)
class Span:
    """A run of a source's documents: `count` of its unit from `first` on; None for all that is left."""

    source: int
    first: int
    count: int | None


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
        return {"shard": self.shard, "spans": [[span.source, span.first, span.count] for span in self.spans]}

    @classmethod
    def from_record(cls, record: Any, sources: int) -> "Task":
        split, _, number = member(record, "shard", str).partition("-")
        if split not in SPLITS or not number.isdecimal():
            raise Error(f"'shard': expected a name such as train-00000, got {record['shard'][:40]!r}")
        spans = []
        for span in member(record, "spans", list):
            fits = isinstance(span, list) and len(span) == 3 and all(isinstance(n, int) and n >= 0 for n in span[:2])
            if not fits or span[0] >= sources or not (span[2] is None or isinstance(span[2], int)):
                raise Error(f"'spans': expected [source, first, count], got {str(span)[:80]}")
            spans.append(Span(*span))
        return cls(split, int(number), tuple(spans))


@dataclass(frozen=True)
class Plan:
    """Everything that decides a dataset's content. `request` is what was asked for, in the words of the asking."""

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
        return json.dumps(record | self.extras, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Raises Error that says what is wrong."""
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise Error(f"it is no JSON ({error})") from None
        text_column = record.get("text_column", "text") if isinstance(record, dict) else "text"
        sources = tuple(Source.from_record(source, text_column) for source in member(record, "sources", list))
        return cls(
            request=member(record, "request", dict),
            tokenizer=member(record, "tokenizer", dict),
            versions=member(record, "versions", dict),
            kind=member(record, "kind", str),
            corpus=CorpusName.from_record(member(record, "corpus", dict)),
            text_column=text_column,
            sources=sources,
            tasks=tuple(Task.from_record(task, len(sources)) for task in member(record, "tasks", list)),
            validation_texts=tuple(member(record, "validation_texts", list)),
            extras=others(record, *_KNOWN),
        )


@dataclass(frozen=True)
class Receipt:
    """What a finished task's shard holds: its entry in the manifest, and its rows of the block index."""

    shard: ShardEntry
    rows: np.ndarray  # (blocks,) BLOCK_ROW, `shard` left 0

    def to_json(self) -> str:
        return json.dumps({"shard": self.shard.record(), "rows": base64.b64encode(self.rows.tobytes()).decode()}) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Receipt":
        try:
            record = json.loads(text)
            rows = np.frombuffer(base64.b64decode(member(record, "rows", str), validate=True), dtype=BLOCK_ROW).copy()
        except (ValueError, RecursionError) as error:
            raise Error(str(error)) from None
        entry = ShardEntry.from_record(member(record, "shard", dict))
        if len(rows) != entry.blocks:
            raise Error(f"expected rows for {entry.blocks} blocks, got {len(rows)}")
        return cls(entry, rows)


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


def receipt_name(task: Task) -> str:
    return f"receipts/{task.shard}.json"


def read_receipt(out: Folder, task: Task) -> Receipt | None:
    """A task's receipt; None when there is none, or one that is not this task's as it was written."""
    try:
        text = out.read(receipt_name(task))
    except FileNotFoundError:
        return None
    try:
        receipt = Receipt.from_json(text.decode("utf-8"))
    except (Error, UnicodeDecodeError):
        return None
    return receipt if receipt.shard.name == task.shard else None


def read_receipts(out: Folder, tasks: Sequence[Task]) -> Iterator[Receipt | None]:
    """The receipts of tasks, in their order. At a URL those that are there are read many at a time."""
    if out.is_local:
        yield from (read_receipt(out, task) for task in tasks)
        return
    there = out.sizes("receipts")
    with ThreadPoolExecutor(READ_AT_ONCE) as threads:
        yield from threads.map(lambda task: read_receipt(out, task) if f"{task.shard}.json" in there else None, tasks)
