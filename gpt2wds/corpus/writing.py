"""One task → one committed shard with its receipt."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from ..dataset import prompts, shards
from ..dataset.manifest import MULTIPLE_CHOICE, ShardEntry, SourceSpan
from ..errors import EngineError, Error
from ..fast_tokenizer import with_engine
from ..folder import Folder
from ..tokenizer import Tokenizer, load_tokenizer
from .content import refuse_other
from .documents import Digest, Document, OpenSource, Skipped, check_delivered
from .plan import Plan, Span, Task
from .receipts import Receipt, receipt_name

EXAMPLES_FRAME_BYTES = 1 << 24  # a frame of examples is closed when it has so many
COPY_OF_VALIDATION = "copy of a validation document"
Report = Callable[[int, int], None]  # documents and tokens since the last call


@dataclass
class Content:
    """What of a task went into its shard, counted while it is written."""

    text_bytes: int = 0
    skipped: dict[str, list[int]] = field(default_factory=dict)
    taken: list[int] = field(default_factory=list)  # documents of each span, the skipped included

    def skip(self, reason: str, ordinal: int) -> None:
        self.skipped.setdefault(reason, []).append(ordinal)


class TaskRunner:
    """Runs the tasks of a plan in one process, one after the other.

    The source that a task ended in stays open, because the next task mostly goes on from there: a compressed file is
    read once. differing: characters on which the proven fast engine differs from tiktoken, None for no fast engine.
    """

    def __init__(self, out: Folder, plan: Plan, differing: str | None):
        self._out, self._plan, self._differing = out, plan, differing
        self._tokenizer: Tokenizer | None = None
        self._open: tuple[int, OpenSource] | None = None

    def __call__(self, task: Task, report: Report) -> None:
        """Documents of one task → one committed shard with its receipt."""
        name, content = f"{task.shard}.tar.zst", Content()
        summary, is_first = self._out.create(name, lambda file: self._write(file, task, content, report))
        if not is_first:
            summary = _adopt(self._out, name, summary)
        receipt = Receipt(self._entry(task, content, summary), summary.rows, self._plan.check)
        self._out.create_text(receipt_name(task), receipt.to_json())

    def documents(self, task: Task, taken: list[int] | None = None) -> Iterator[Any]:
        """The documents of a task, in order; `taken` gets the number of each span's once that is read.

        Raises Error when a source is no longer what was planned.
        """
        for span in task.spans:
            source = self._plan.sources[span.source]
            seen = Digest() if span.digest else None
            source.location.check_unchanged(by_time=seen is None)
            count = 0
            for document in self._opened(span).read(span.first, span.count, seen):
                yield document
                count += 1
            source.location.check_unchanged(by_time=seen is None)
            if seen is not None:
                refuse_other(source, span, seen.hexdigest())
            is_whole = source.unit == "byte" and (span.first, span.count) == (0, source.size.text_bytes)
            if is_whole and source.size.is_exact:
                check_delivered(source.location, "document", 0, source.size.documents, count)
            if taken is not None:
                taken.append(count)

    def close(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def _opened(self, span: Span) -> OpenSource:
        if self._open is None or self._open[0] != span.source:
            self.close()
            self._open = span.source, self._plan.sources[span.source].open()
        return self._open[1]

    def _write(self, file: BinaryIO, task: Task, content: Content, report: Report) -> shards.ShardSummary:
        if self._tokenizer is None:
            self._tokenizer = with_engine(load_tokenizer(), self._differing)
        if self._plan.kind == MULTIPLE_CHOICE:
            examples = self.documents(task, content.taken)
            return _write_examples(file, task, examples, self._tokenizer, content, report)
        texts = self.documents(task, content.taken)
        held = self._plan.validation_set if task.split == "train" else frozenset()
        return shards.write_token_shard(file, task.shard, _encoded(texts, task, self._tokenizer, held, content, report))

    def _entry(self, task: Task, content: Content, summary: shards.ShardSummary) -> ShardEntry:
        spans, first = [], 0
        left_out = np.array(sorted(ordinal for places in content.skipped.values() for ordinal in places))
        for span, taken in zip(task.spans, content.taken, strict=True):
            source = self._plan.sources[span.source]
            skipped = int(((left_out >= first) & (left_out < first + taken)).sum())
            first += taken
            count = taken if span.count is None else span.count
            # Of a single span the shard's own numbers tell.
            said = (taken - skipped, skipped) if len(task.spans) > 1 else ()
            spans.append(SourceSpan(source.name, span.first, count, source.unit, *said))
        return ShardEntry(
            file=f"{task.shard}.tar.zst",
            bytes=summary.bytes,
            sha256=summary.sha256,
            tokens_sha256=summary.tokens_sha256,
            tokens=summary.tokens,
            documents=summary.documents,
            blocks=len(summary.rows),
            text_bytes=content.text_bytes,
            skipped=content.skipped,
            spans=tuple(spans),
        )


def _encoded(
    texts: Iterator[Document],
    task: Task,
    tokenizer: Tokenizer,
    held_out: frozenset[str],
    content: Content,
    report: Report,
) -> Iterator[np.ndarray]:
    """The tokens of each document that can be used: (tokens,) uint16."""
    for ordinal, text in enumerate(texts):
        if isinstance(text, str) and held_out and text_hash(text) in held_out:
            text = Skipped(COPY_OF_VALIDATION)
        if isinstance(text, str):
            try:
                tokens = tokenizer.encode_document(text)
            except EngineError as error:
                raise Error(f"{task.shard} document {ordinal}: {error}") from None
            except Error as error:
                text = Skipped(str(error))
        if isinstance(text, Skipped):
            content.skip(text.reason, ordinal)
            report(1, 0)
            continue
        content.text_bytes += len(text.encode("utf-8", "surrogatepass"))
        report(1, len(tokens))
        yield tokens


def _write_examples(
    file: BinaryIO,
    task: Task,
    examples: Iterator[dict[str, Any]],
    tokenizer: Tokenizer,
    content: Content,
    report: Report,
) -> shards.ShardSummary:
    writer, digest = shards.FrameWriter(file), hashlib.sha256()
    frame = bytearray()
    frame_tokens = frame_examples = tokens = number = 0

    def close_frame() -> None:
        nonlocal frame, frame_tokens, frame_examples
        if frame:
            writer.add(bytes(frame), tokens=frame_tokens, documents=frame_examples)
        frame, frame_tokens, frame_examples = bytearray(), 0, 0

    for number, example in enumerate(examples, 1):
        key = shards.block_key(task.shard, number - 1)
        text = json.dumps(example, ensure_ascii=False).encode()
        frame += shards.tar_member(f"{key}.json", text)
        example_tokens = 0
        for mode in prompts.MODES:
            prompt = prompts.prompt_tokens(example, mode, tokenizer)
            frame += shards.tar_member(f"{key}.{mode}.npy", shards.npy_bytes(prompt))
            digest.update(prompt.tobytes())
            example_tokens += len(prompt)
        tokens += example_tokens
        frame_tokens += example_tokens
        frame_examples += 1
        content.text_bytes += len(text)
        report(1, example_tokens)
        # One frame for a small set: a frame of a single example would compress far worse.
        if len(frame) >= EXAMPLES_FRAME_BYTES:
            close_frame()
    close_frame()
    return writer.finish(tokens_sha256=digest.hexdigest(), tokens=tokens, documents=number)


def _adopt(out: Folder, name: str, ours: shards.ShardSummary) -> shards.ShardSummary:
    """Describe the shard that another process committed first: same tokens, perhaps another zstd's bytes."""
    try:
        with out.open(name) as file:
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
        raise Error(f"{out}/{name}: {error}; delete the file and run again") from None
    rows = ours.rows.copy()
    rows["offset"], rows["length"] = frames["offset"], frames["length"]
    return shards.ShardSummary(out.size(name), digest, ours.tokens_sha256, ours.tokens, ours.documents, rows)


def text_hash(text: str) -> str:
    """What a copy of a document is known by: 128 bits of the SHA-256 of its UTF-8."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
