"""Every byte of a dataset against its manifest: what is wrong, a line each.

Nothing is raised for damage, so that one call reports all of it. What its store does not give is not called damaged.
"""

import base64
import hashlib
from typing import Any

import numpy as np

from ..errors import Error, Unanswered, counted, reason
from ..strict_json import CHECK, Record, load_json, refuse_damage
from ..tokenizer import END_OF_TEXT
from . import members
from .directory import LOOK, REBUILD, REPAIR, Dataset
from .manifest import MULTIPLE_CHOICE, SPLITS, CorpusName, ShardEntry, member
from .shards import BLOCK_ROW


def verify_dataset(dataset: Dataset) -> list[str]:
    """What the plan says of the dataset as a whole, where it is still beside it, against the manifest.

    The manifest itself, its names, its dataset_id and the indices were checked when the dataset was opened.
    """
    try:
        plan = _record(dataset, "plan.json")
        if plan is None:
            return []
        request = member(plan, "request", dict)
        _refuse_another_plan(dataset, plan)
        said = {
            "kind": member(plan, "kind", str),
            "corpus": CorpusName.from_record(member(plan, "corpus", dict)),
            "tokenizer": member(plan, "tokenizer", dict),
            "versions": member(plan, "versions", dict),
            "parameters": {name: value for name, value in request.items() if value is not None},
        }
    except Unanswered as error:
        return [str(error).removeprefix(f"{dataset.path}/")]
    except Error as error:
        return [f"plan.json: {error}; restore it: no reader needs it, but no shard can be made again without it"]
    return [
        f"plan.json: {name!r}: expected {repr(getattr(dataset.manifest, name))[:80]}, as in manifest.json, "
        f"got {repr(value)[:80]}; restore the one that was changed, or make the dataset again"
        for name, value in said.items()
        if value != getattr(dataset.manifest, name)
    ]


def _refuse_another_plan(dataset: Dataset, plan: Record) -> None:
    """Raises Error where the first shard's receipt is of another plan, or of this one with the check that it lost."""
    entry = next((entry for split in SPLITS for entry in dataset.shards(split)), None)
    try:
        receipt = None if entry is None else _record(dataset, f"receipts/{entry.name}.json")
    except Error:
        return  # verify_shard says so
    if entry is not None and isinstance(receipt, dict) and receipt.get("plan", "") != plan.get(CHECK, ""):
        raise Error(f"it is not the plan of receipts/{entry.name}.json")


def verify_shard(dataset: Dataset, split: str, number: int) -> list[str]:
    """Every byte of one shard against index and manifest: what is wrong, one line each, [] if nothing.

    Raises Unanswered where its store does not give the shard.
    """
    entry = dataset.shards(split)[number]
    try:
        size = dataset.folder.size(entry.file)
    except FileNotFoundError:
        return [f"{entry.file}: the file is missing; {REBUILD}"]
    except OSError as error:
        return [f"{entry.file}: {reason(error)}; {LOOK}"]
    problems: list[str] = []
    digest = hashlib.sha256()
    counts = {"tokens": 0, "documents": 0}
    for block in dataset.shard_blocks(split, number):
        try:
            pieces, documents = _contents(dataset, split, block)
        except Unanswered:
            if size == entry.bytes:
                raise
            break  # damaged it is, whatever the store does
        except Error as error:
            problems.append(str(error).removeprefix(f"{dataset.path}/"))
            continue
        for piece in pieces:
            digest.update(piece.tobytes())
            counts["tokens"] += len(piece)
        counts["documents"] += documents
        expected = int(dataset.blocks[split]["documents"][block])
        if documents != expected:
            number_there = dataset.locate(split, block)[1]
            wanted = counted(expected, "document")
            problems.append(f"{entry.file} block {number_there}: expected {wanted}, got {documents:,}; {REPAIR}")
    problems += _verify_file(dataset, entry, size)
    if not problems and digest.hexdigest() != entry.tokens_sha256:
        problems.append(f"{entry.file}: its tokens are not the manifest's (SHA-256 differs)")
    for name, count in counts.items():
        if not problems and count != getattr(entry, name):
            problems.append(f"{entry.file}: expected {getattr(entry, name)} {name}, got {count}")
    return problems + _verify_receipt(dataset, split, number)


def _verify_file(dataset: Dataset, entry: ShardEntry, size: int) -> list[str]:
    if size != entry.bytes:
        return [f"{entry.file}: expected {entry.bytes} bytes, got {size}; {REPAIR}"]
    try:
        found = dataset.folder.sha256(entry.file, size)
    except OSError as error:
        return [f"{entry.file}: {reason(error)}; {LOOK}"]
    if found != entry.sha256:
        return [f"{entry.file}: expected SHA-256 {entry.sha256}, got {found}; {REPAIR}"]
    return []


def _verify_receipt(dataset: Dataset, split: str, number: int) -> list[str]:
    """A shard's receipt, where it is still there, against manifest and index."""
    entry, blocks = dataset.shards(split)[number], dataset.shard_blocks(split, number)
    name = f"receipts/{entry.name}.json"
    try:
        receipt = _record(dataset, name)
        if receipt is None:
            return []
        rows = dataset.blocks[split][blocks.start : blocks.stop][list(BLOCK_ROW.names or ())].astype(BLOCK_ROW)
        rows["shard"] = 0
        if ShardEntry.from_record(member(receipt, "shard", dict)) != entry:
            raise Error("it tells of another shard than manifest.json")
        if "plan" in receipt and CHECK not in receipt:  # both came together
            raise Error(f"{CHECK!r}: expected a check, got none")
        if base64.b64encode(rows.tobytes()).decode() != member(receipt, "rows", str):
            raise Error(f"it has other rows than {split}.blocks.npy")
    except Unanswered as error:
        return [str(error).removeprefix(f"{dataset.path}/")]
    except Error as error:
        return [f"{name}: {error}; {REPAIR}"]
    return []


def _record(dataset: Dataset, name: str) -> Any:
    """A JSON file of the directory; None where there is none. Raises Error for one that is damaged or unreadable."""
    try:
        record = load_json(dataset.folder.read(name))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Error(f"{reason(error)}; {LOOK}") from None
    if isinstance(record, dict):
        refuse_damage(record)
    return record


def _contents(dataset: Dataset, split: str, block: int) -> tuple[list[np.ndarray], int]:
    """The tokens of a block that are its own, in pieces of (tokens,) uint16, and how many documents start in it."""
    if dataset.kind == MULTIPLE_CHOICE:
        examples = dataset.block_examples(split, block)
        found = dataset.read_members(split, block)
        return [members.npy_tokens(data) for name, data in found.items() if name.endswith(".npy")], len(examples)
    tokens = dataset.own_tokens(split, block)
    return [tokens], int((tokens == END_OF_TEXT).sum())
