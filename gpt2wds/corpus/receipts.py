"""Receipts: what the finished tasks of a plan made, one file each; all of them together are indices and manifest."""

import base64
import dataclasses
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ..dataset.manifest import SPLITS, LaterFormat, Manifest, ShardEntry, dataset_id, member
from ..dataset.shards import BLOCK_ROW
from ..errors import Error, counted
from ..folder import Folder
from ..strict_json import checked
from .plan import Plan, Task, parsed

READ_AT_ONCE = 32  # receipts of a URL: most of it is waiting


@dataclass(frozen=True)
class Receipt:
    """What a finished task's shard holds: its entry in the manifest, and its rows of the block index.

    plan: the check of the plan whose task it was.
    """

    shard: ShardEntry
    rows: np.ndarray  # (blocks,) BLOCK_ROW, `shard` left 0
    plan: str = ""

    def to_json(self) -> str:
        rows = base64.b64encode(self.rows.tobytes()).decode()
        return json.dumps(checked({"shard": self.shard.record(), "rows": rows, "plan": self.plan})) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Receipt":
        """Raises Error that says what is wrong."""
        record, check = parsed(text)
        try:
            rows = np.frombuffer(base64.b64decode(member(record, "rows", str), validate=True), dtype=BLOCK_ROW).copy()
        except ValueError as error:
            raise Error(str(error)) from None
        entry = ShardEntry.from_record(member(record, "shard", dict))
        if len(rows) != entry.blocks:
            raise Error(f"expected rows for {counted(entry.blocks, 'block')}, got {len(rows)}")
        # Without a check it is an earlier version's, and says of no plan.
        return cls(entry, rows, member(record, "plan", str) if check else "")

    def is_of(self, plan: Plan, task: Task) -> bool:
        """Whether it tells of this plan's task."""
        spans = self.shard.spans
        return (
            self.plan == plan.check
            and self.shard.file == f"{task.shard}.tar.zst"
            and len(spans) == len(task.spans)
            and all(
                (told.source, told.first) == (plan.sources[span.source].name, span.first)
                and span.count in (None, told.count)
                for told, span in zip(spans, task.spans, strict=True)
            )
        )


def receipt_name(task: Task) -> str:
    return f"receipts/{task.shard}.json"


def read_receipt(out: Folder, plan: Plan, task: Task) -> Receipt | None:
    """A task's receipt; None when there is none, or one that is not this plan's of this task as it was written."""
    try:
        text = out.read(receipt_name(task))
    except FileNotFoundError:
        return None
    try:
        receipt = Receipt.from_json(text.decode("utf-8"))
    except (Error, UnicodeDecodeError):
        return None
    return receipt if receipt.is_of(plan, task) else None


def read_receipts(out: Folder, plan: Plan, tasks: Sequence[Task]) -> Iterator[Receipt | None]:
    """The receipts of tasks, in their order. At a URL those that are there are read many at a time."""
    if out.is_local:
        yield from (read_receipt(out, plan, task) for task in tasks)
        return
    there = out.sizes("receipts")

    def read(task: Task) -> Receipt | None:
        return read_receipt(out, plan, task) if f"{task.shard}.json" in there else None

    with ThreadPoolExecutor(READ_AT_ONCE) as threads:
        yield from threads.map(read, tasks)


def summed_up(out: Folder, plan: Plan) -> tuple[Manifest, dict[str, bytes]]:
    """What the receipts of all tasks make: the manifest, and each split's index. Raises Error when one is missing."""
    entries: dict[str, list[ShardEntry]] = {split: [] for split in SPLITS}
    rows: dict[str, list[np.ndarray]] = {split: [np.empty(0, dtype=BLOCK_ROW)] for split in SPLITS}
    for task, receipt in zip(plan.tasks, read_receipts(out, plan, plan.tasks), strict=True):
        if receipt is None:
            raise Error(f"{out}: {task.shard} is missing; give the command that makes it again")
        receipt.rows["shard"] = len(entries[task.split])
        entries[task.split].append(receipt.shard)
        rows[task.split].append(receipt.rows)
    shards_of = {split: tuple(entries[split]) for split in SPLITS}
    indices = {split: _npy(np.concatenate(rows[split])) for split in SPLITS}
    manifest = Manifest(
        kind=plan.kind,
        dataset_id=dataset_id(shards_of),
        corpus=plan.corpus,
        tokenizer=plan.tokenizer,
        parameters={name: value for name, value in plan.request.items() if value is not None},
        versions=plan.versions,
        shards=shards_of,
        blocks_sha256={split: hashlib.sha256(index).hexdigest() for split, index in indices.items()},
    )
    return manifest, indices


def is_finished(out: Folder, plan: Plan) -> bool:
    """Whether nothing is left to do: the shards are there, and indices and manifest say what their receipts do."""
    names = ("manifest.json", *(f"{split}.blocks.npy" for split in SPLITS))
    there = out.sizes()
    if not there.keys() >= set(names):
        return False
    try:
        manifest, indices = summed_up(out, plan)
    except Error:  # a receipt is missing
        return False
    if any(there.get(entry.file) != entry.bytes for split in SPLITS for entry in manifest.shards[split]):
        return False
    try:
        found = Manifest.from_json(out.read("manifest.json"))
    except LaterFormat:
        return True  # Dataset says so
    except Error:
        return False
    hashes = found.blocks_sha256 or manifest.blocks_sha256  # earlier versions wrote none
    if dataclasses.replace(found, extras={}, blocks_sha256=hashes) != manifest:
        return False
    return all(out.read(f"{split}.blocks.npy") == index for split, index in indices.items())


def _npy(rows: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, rows, allow_pickle=False)
    return out.getvalue()
