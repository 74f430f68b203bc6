"""plan → tasks → shards → manifest, so that a kill at any moment loses and doubles nothing.

A dataset directory in the making holds `plan.json` (what to do, fixed before anything is done), `receipts/` (one
per finished task) and the shards. A task is a pure function of the plan. A shard is written under a temporary
name and linked to its final one; its receipt follows. What has a receipt stays, what has none is done again.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .. import files
from ..dataset import directory, prompts, shards
from ..errors import EngineError, Error
from ..tokenizer import Tokenizer, load_tokenizer
from . import corpora, hub
from .readers import Skipped

PLAN = "plan.json"
COPY_OF_VALIDATION = "copy of a validation document"
SAMPLE = "sample"  # --source sample: the examples that come with the package
HUB = "hub"
Progress = Callable[[int, int], None]  # documents and tokens since the last call


def plan_corpus(
    out: Path, request: dict[str, Any], make: Callable[[], corpora.Corpus], cut: corpora.Cut
) -> dict[str, Any]:
    """The plan of a token dataset: the one in `out` if there is one, else a new one.

    request: what the user asked for and what decides content; a value of None was not given. Raises Error when
    it contradicts the plan that is there.
    """

    def content() -> dict[str, Any]:
        corpus = make()
        _refuse_empty(corpus)
        texts = (
            text
            for task in corpus.tasks
            if task["shard"].startswith("val-")
            for text in corpora.documents(corpus.sources, task, cut.text_column)
        )
        return {
            "kind": directory.TOKENS,
            "corpus": {"name": corpus.name, "source": corpus.source, "revision": corpus.revision},
            "text_column": cut.text_column,
            "sources": corpus.sources,
            "tasks": corpus.tasks,
            "validation_texts": sorted({_text_hash(text) for text in texts if isinstance(text, str)}),
        }

    return _plan(out, request, content)


def plan_multiple_choice(out: Path, source: str, limit_docs: int | None) -> dict[str, Any]:
    """The plan of a multiple-choice dataset: one task that holds the examples' file.

    source: "hub" (HellaSwag's validation split, from the Hub), "sample", or a path.
    """

    def content() -> dict[str, Any]:
        if source == HUB:
            path, revision = hub.download_hellaswag(out)
        else:
            sample = resources.files("gpt2wds") / "data" / "multiple_choice_sample.jsonl"
            path, revision = Path(str(sample)) if source == SAMPLE else Path(source).resolve(), ""
        if not path.is_file():
            raise Error(f"hellaswag: expected a JSON-lines file for --source, got {source!r}, which is no file")
        examples = sum(1 for _ in prompts.read_examples(path))
        count = examples if limit_docs is None else min(limit_docs, examples)
        # Only the whole validation set may be called by its name: published scores are scores on all of it.
        whole = path.stem == "hellaswag_val" and count == 10_042
        name = "HellaSwag" if whole else "sample" if source == SAMPLE else path.stem
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return {
            "kind": directory.MULTIPLE_CHOICE,
            "corpus": {"name": name, "source": path.name, "revision": revision or digest},
            "sources": [{"name": path.name, "path": str(path), "sha256": digest}],
            "tasks": [{"shard": "val-00000", "spans": [[0, 0, count]]}],
            "validation_texts": [],
        }

    return _plan(out, {"corpus": "hellaswag", "source": source, "limit_docs": limit_docs}, content)


def missing_tasks(out: Path, plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Tasks without a receipt, or whose shard is not there with its receipt's size."""
    missing = []
    finished = (out / "manifest.json").exists()  # asked first: another process may finish meanwhile
    for task in plan["tasks"]:
        receipt = _receipt_path(out, task["shard"])
        if receipt.exists():
            entry = json.loads(receipt.read_text())["shard"]
            shard = out / entry["file"]
            if shard.exists() and shard.stat().st_size == entry["bytes"]:
                continue
            # A damaged file must not be taken for one that another process committed first.
            shard.unlink(missing_ok=True)
            receipt.unlink(missing_ok=True)
        missing.append(task)
    if missing and finished:
        (out / "manifest.json").unlink(missing_ok=True)
    return missing


def read_plan(out: Path) -> dict[str, Any]:
    """The plan of a dataset directory in the making. Raises Error when there is none."""
    try:
        return json.loads((out / PLAN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Error(f"{out}: expected a directory that a gpt2wds-shard command has begun, got none ({PLAN})") from None


def chains(plan: dict[str, Any], tasks: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Tasks in the groups that one process should run in order (see corpora.chains)."""
    return corpora.chains(plan["sources"], tasks) if plan["kind"] == directory.TOKENS else [[task] for task in tasks]


def prepare_tokenizer(differing: str | None) -> None:
    """In each process before its first task: use the fast engine as far as it was proven (see Tokenizer)."""
    load_tokenizer().use_fast_engine(differing)


def run_task(out: Path, plan: dict[str, Any], task: dict[str, Any], progress: Progress) -> None:
    """Documents of one task → one committed shard with its receipt."""
    tokenizer = load_tokenizer()
    write = _write_examples if plan["kind"] == directory.MULTIPLE_CHOICE else _write_documents
    final = out / f"{task['shard']}.tar.zst"
    temporary = files.temporary_name(final)
    with files.synced(temporary) as file:
        summary, facts = write(file, plan, task, tokenizer, progress)
    if not files.commit(temporary, final):
        summary = _adopt(final, summary)
    taken = summary.documents + sum(map(len, facts["skipped"].values()))  # where only reading told how many there are
    spans = [(plan["sources"][number], first, taken if n is None else n) for number, first, n in task["spans"]]
    entry = {
        "file": final.name,
        "bytes": summary.bytes,
        "sha256": summary.sha256,
        "tokens_sha256": summary.tokens_sha256,
        "tokens": summary.tokens,
        "documents": summary.documents,
        "blocks": len(summary.rows),
        **facts,
        "spans": [{"source": s["name"], f"first_{s.get('unit', 'example')}": a, "count": n} for s, a, n in spans],
    }
    receipt = {"shard": entry, "rows": base64.b64encode(summary.rows.tobytes()).decode()}
    path = _receipt_path(out, task["shard"])
    path.parent.mkdir(exist_ok=True)
    files.create(path, json.dumps(receipt) + "\n")


def finish(out: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """Indices, then the manifest, then no temporary files. Needs every receipt; returns the manifest."""
    entries: dict[str, list[dict[str, Any]]] = {split: [] for split in directory.SPLITS}
    rows: dict[str, list[np.ndarray]] = {split: [] for split in directory.SPLITS}
    for task in plan["tasks"]:
        receipt = json.loads(_receipt_path(out, task["shard"]).read_text())
        split = task["shard"].split("-")[0]
        shard_rows = np.frombuffer(base64.b64decode(receipt["rows"]), dtype=shards.BLOCK_ROW).copy()
        shard_rows["shard"] = len(entries[split])
        entries[split].append(receipt["shard"])
        rows[split].append(shard_rows)
    if not any(entry["documents"] for split in entries.values() for entry in split):
        reasons = sorted({reason for split in entries.values() for entry in split for reason in entry["skipped"]})
        raise Error(f"corpus: expected at least one document with text, got none ({', '.join(reasons)})")
    for split in directory.SPLITS:
        with files.replacing(out / f"{split}.blocks.npy") as file:
            np.save(file, np.concatenate([*rows[split], np.empty(0, dtype=shards.BLOCK_ROW)]), allow_pickle=False)
    manifest = {
        "format_version": directory.FORMAT_VERSION,
        "kind": plan["kind"],
        "dataset_id": directory.dataset_id(entries),
        "corpus": plan["corpus"],
        "tokenizer": plan["tokenizer"],
        "parameters": {k: v for k, v in plan["request"].items() if v is not None},
        "versions": plan["versions"],
        "shards": entries,
    }
    files.replace(out / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    remove_strays(out)
    return manifest


def remove_strays(out: Path) -> None:
    """Temporary files that killed processes left; only called when nothing is left to do."""
    for stray in [*out.glob(files.TEMPORARY), *(out / "receipts").glob(files.TEMPORARY)]:
        stray.unlink(missing_ok=True)


def _plan(out: Path, request: dict[str, Any], content: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    tokenizer = load_tokenizer().identity()
    path = out / PLAN
    if not path.exists():
        if (out / "manifest.json").exists():
            raise Error(f"{out}: expected a directory of this command's own, got a dataset without its plan.json")
        if any(out.glob("receipts/*.json")) and not path.exists():
            # They are another plan's: taken for this one's, documents would be lost or doubled.
            raise Error(f"{out}: expected an empty directory, got shards without their {PLAN}; choose another --out")
        plan = {"request": request, "tokenizer": tokenizer, "versions": shards.shard_versions(), **content()}
        out.mkdir(parents=True, exist_ok=True)
        files.create(path, json.dumps(plan, indent=1, ensure_ascii=False) + "\n")
    # Read back, so that of two that start together both follow the one plan that won.
    plan = json.loads(path.read_text(encoding="utf-8"))
    for name, value in request.items():
        if value is not None and value != plan["request"].get(name):
            raise Error(
                f"{out}: its plan has {name} = {plan['request'].get(name)!r}, this command {value!r}; "
                "repeat the first command, or choose another --out"
            )
    for name, value in tokenizer.items():
        if value != plan["tokenizer"][name]:
            raise Error(
                f"{out}: its plan was made with {name} = {plan['tokenizer'][name]}, here it is {value}; "
                f"ids would differ: pip install tiktoken=={plan['tokenizer']['tiktoken']}"
            )
    return plan


def _refuse_empty(corpus: corpora.Corpus) -> None:
    if not corpus.tasks:
        raise Error(f"corpus {corpus.source}: expected at least one document, got none")
    if not any(task["shard"].startswith("train-") for task in corpus.tasks):
        raise Error(
            f"corpus {corpus.source}: all of its documents went to validation, none is left to train on; "
            "lower --val-docs (0 for no validation), or give more text"
        )


def _write_documents(
    file: BinaryIO, plan: dict[str, Any], task: dict[str, Any], tokenizer: Tokenizer, progress: Progress
) -> tuple[shards.ShardSummary, dict[str, Any]]:
    training = task["shard"].startswith("train-")
    validation_texts = frozenset(plan["validation_texts"]) if training else frozenset()
    skipped: dict[str, list[int]] = {}
    text_bytes = 0

    def encoded() -> Iterator[np.ndarray]:
        nonlocal text_bytes
        for ordinal, text in enumerate(corpora.documents(plan["sources"], task, plan["text_column"])):
            if isinstance(text, str) and validation_texts and _text_hash(text) in validation_texts:
                text = Skipped(COPY_OF_VALIDATION)
            if isinstance(text, str):
                try:
                    tokens = tokenizer.encode_document(text)
                except EngineError as error:
                    raise Error(f"{task['shard']} document {ordinal}: {error}") from None
                except Error as error:
                    text = Skipped(str(error))
            if isinstance(text, Skipped):
                skipped.setdefault(text.reason, []).append(ordinal)
                progress(1, 0)
                continue
            text_bytes += len(text.encode("utf-8", "surrogatepass"))
            progress(1, len(tokens))
            yield tokens

    summary = shards.write_token_shard(file, task["shard"], encoded())
    return summary, {"text_bytes": text_bytes, "skipped": skipped}


def _write_examples(
    file: BinaryIO, plan: dict[str, Any], task: dict[str, Any], tokenizer: Tokenizer, progress: Progress
) -> tuple[shards.ShardSummary, dict[str, Any]]:
    ((_, _, count),) = task["spans"]
    writer, digest = shards.FrameWriter(file), hashlib.sha256()
    frame = bytearray()
    frame_tokens = frame_examples = tokens = text_bytes = 0
    path = Path(plan["sources"][0]["path"])
    if hashlib.sha256(path.read_bytes()).hexdigest() != plan["sources"][0]["sha256"]:
        raise Error(
            f"source {path}: the file changed since the plan was made; put it back, or plan again in an empty directory"
        )
    for number, example in zip(range(count), prompts.read_examples(path), strict=False):
        key = shards.block_key(task["shard"], number)
        record = json.dumps(example, ensure_ascii=False).encode()
        frame += shards.tar_member(f"{key}.json", record)
        for mode in prompts.MODES:
            prompt = prompts.prompt_tokens(example, mode, tokenizer)
            frame += shards.tar_member(f"{key}.{mode}.npy", shards.npy_bytes(prompt))
            digest.update(prompt.tobytes())
            frame_tokens += len(prompt)
        frame_examples += 1
        text_bytes += len(record)
        progress(1, 0)
        # One frame for a small set: a frame of a single example would compress far worse.
        if number + 1 == count or len(frame) >= 1 << 24:
            writer.add(bytes(frame), tokens=frame_tokens, documents=frame_examples)
            tokens += frame_tokens
            frame, frame_tokens, frame_examples = bytearray(), 0, 0
    summary = writer.finish(tokens_sha256=digest.hexdigest(), tokens=tokens, documents=count)
    return summary, {"text_bytes": text_bytes, "skipped": {}}


def _adopt(final: Path, ours: shards.ShardSummary) -> shards.ShardSummary:
    """Describe the shard that another process committed first: same tokens, perhaps another zstd's bytes."""
    try:
        with final.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest == ours.sha256:
                return ours
            frames = shards.read_seek_table(file)[:-1]
            if len(frames) != len(ours.rows) or (frames["checksum"] != ours.rows["checksum"]).any():
                raise Error("it has other tokens than this task")
            for row in frames:
                file.seek(int(row["offset"]))
                shards.decompress_frame(file.read(int(row["length"])), row, None)
    except Error as error:
        raise Error(f"{final}: {error}; delete the file and run again") from None
    rows = ours.rows.copy()
    rows["offset"], rows["length"] = frames["offset"], frames["length"]
    return shards.ShardSummary(final.stat().st_size, digest, ours.tokens_sha256, ours.tokens, ours.documents, rows)


def _receipt_path(out: Path, shard: str) -> Path:
    return out / "receipts" / f"{shard}.json"


def _text_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
