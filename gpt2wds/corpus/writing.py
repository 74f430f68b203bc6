"""One task → one committed shard with its receipt."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter
from typing import Any, BinaryIO

import numpy as np

from ..dataset import prompts, shards
from ..dataset.manifest import MULTIPLE_CHOICE, ShardEntry, SourceSpan
from ..errors import EngineError, Error, Unanswered
from ..fast_tokenizer import with_engine
from ..folder import Folder
from ..tokenizer import END_OF_TEXT, Tokenizer, load_tokenizer
from .content import refuse_other
from .documents import Digest, Document, OpenSource, Skipped, check_delivered, utf8
from .gathering import Uncommitted
from .overlap import Cores, Overlap, one_core
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
        self._free: list[Tokenizer] = []  # tokenizers that no thread uses; as many are made as threads want at once
        self._open: tuple[int, OpenSource] | None = None

    def __call__(self, task: Task, report: Report, cores: Cores = one_core) -> Uncommitted | None:
        """Documents of one task → one committed shard with its receipt; on the Hub both are uploaded, and returned for
        a commit."""
        name, content = f"{task.shard}.tar.zst", Content()

        def write(file: BinaryIO) -> shards.ShardSummary:
            with Overlap(cores) as overlap:
                return self._write(file, task, content, report, overlap)

        def receipt(summary: shards.ShardSummary) -> str:
            return Receipt(self._entry(task, content, summary), summary.rows, self._plan.check).to_json()

        if self._out.repository:
            summary, shard = self._out.uploaded(name, write)
            told = self._out.repository.addition(receipt_name(task), receipt(summary).encode("utf-8"))
            return Uncommitted(receipt_name(task), shard, told)
        summary, is_first = self._out.create(name, write)
        if not is_first:
            summary = _adopt(self._out, name, summary)
        self._out.create_text(receipt_name(task), receipt(summary))
        return None

    def batches(self, task: Task, taken: list[int] | None = None) -> Iterator[list[Any]]:
        """The documents of a task, in order, some at a time; `taken` gets the number of each span's once that is read.

        Raises Error when a source is no longer what was planned.
        """
        for span in task.spans:
            source = self._plan.sources[span.source]
            seen = Digest() if span.hash else None
            source.location.check_unchanged(by_time=seen is None)
            count = 0
            for batch in self._opened(span).batches(span.first, span.count, seen):
                yield batch
                count += len(batch)
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

    def _write(
        self, file: BinaryIO, task: Task, content: Content, report: Report, overlap: Overlap
    ) -> shards.ShardSummary:
        batches = self.batches(task, content.taken)
        if self._plan.kind == MULTIPLE_CHOICE:
            with self._tokenizer() as tokenizer:
                return _write_examples(file, task, chain.from_iterable(batches), tokenizer, content, report)
        held = self._plan.validation_set if task.split == "train" else frozenset()

        def encode(batch: list[Document]) -> _Encoded:
            with self._tokenizer() as tokenizer:
                return _encode(batch, tokenizer, held)

        tokens = _counted(overlap.map(encode, batches, _text_size), task, content, report)
        return shards.write_token_shard(file, task.shard, tokens, END_OF_TEXT, overlap.map)

    @contextmanager
    def _tokenizer(self) -> Iterator[Tokenizer]:
        """One for this thread alone: an engine lets one thread encode at a time."""
        try:
            tokenizer = self._free.pop()
        except IndexError:
            tokenizer = with_engine(load_tokenizer(), self._differing)
        try:
            yield tokenizer
        finally:
            self._free.append(tokenizer)

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


@dataclass
class _Encoded:
    """What came of a batch: tokens of the documents that can be used, and, by place in the batch, why others cannot."""

    documents: int
    tokens: list[np.ndarray]  # (tokens,) uint16, some documents end to end in each
    text_bytes: int
    refused: list[tuple[int, Skipped | EngineError]]


def _text_size(batch: list[Document]) -> int:
    return sum(len(text) for text in batch if not isinstance(text, Skipped))


def _encode(batch: list[Document], tokenizer: Tokenizer, held_out: frozenset[str]) -> _Encoded:
    encoded = _Encoded(len(batch), [], 0, [])
    texts: list[str | bytes] = []
    places: list[int] = []
    for place, text in enumerate(batch):
        if not isinstance(text, Skipped) and held_out and text_hash(text) in held_out:
            text = Skipped(COPY_OF_VALIDATION)
        if isinstance(text, Skipped):
            encoded.refused.append((place, text))
        else:
            texts.append(text)
            places.append(place)
    at = 0
    for count, tokens in tokenizer.encode_documents(texts):
        if isinstance(tokens, Error):
            refused = tokens if isinstance(tokens, EngineError) else Skipped(str(tokens))
            encoded.refused.append((places[at], refused))
        else:
            encoded.tokens.append(tokens)
            encoded.text_bytes += sum(len(utf8(text)) for text in texts[at : at + count])
        at += count
    return encoded


def _counted(batches: Iterator[_Encoded], task: Task, content: Content, report: Report) -> Iterator[np.ndarray]:
    """The tokens of all batches, in order; what else came of them goes to `content`."""
    first = 0
    for batch in batches:
        for place, refused in sorted(batch.refused, key=itemgetter(0)):
            if isinstance(refused, EngineError):
                raise Error(f"{task.shard} document {first + place}: {refused}")
            content.skip(refused.reason, first + place)
        content.text_bytes += batch.text_bytes
        report(batch.documents, sum(map(len, batch.tokens)))
        first += batch.documents
        yield from batch.tokens


def _write_examples(
    file: BinaryIO,
    task: Task,
    examples: Iterator[prompts.Example],
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
    except Unanswered:
        raise
    except Error as error:
        raise Error(f"{out}/{name}: {error}; delete the file and run again") from None
    rows = ours.rows.copy()
    rows["offset"], rows["length"] = frames["offset"], frames["length"]
    return shards.ShardSummary(out.size(name), digest, ours.tokens_sha256, ours.tokens, ours.documents, rows)


def text_hash(text: str | bytes) -> str:
    """What a copy of a document is known by: 128 bits of the SHA-256 of its UTF-8."""
    return hashlib.sha256(utf8(text)).hexdigest()[:32]
