"""A step → its sequences → their documents, and a document → the steps that read it.

The order says which sequences make a step, the index how many documents start in each block, the manifest where they
come from. Only blocks of that step, or of that document, are read.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ..errors import Error, counted
from ..tokenizer import END_OF_TEXT
from .directory import Dataset
from .manifest import TOKENS
from .order import EpochOrder
from .origins import Origin, Origins, Place
from .shards import BLOCK_TOKENS

READERS = 16  # threads: a remote directory answers many requests at once


@dataclass(frozen=True)
class Piece:
    """What a sequence holds of one document: its inputs `start` to `end` - 1, the first being `<|endoftext|>` if the
    document begins there."""

    origin: Origin
    start: int
    end: int


@dataclass(frozen=True)
class Spot:
    """Where a sequence is: the `place`-th of a block, the `block`-th of a shard."""

    shard: str
    block: int
    place: int


@dataclass(frozen=True)
class TracedSequence:
    """A sequence of a step: its slot, where it is, its (seq_len + 1,) uint16 tokens, and what documents it holds."""

    slot: int
    spot: Spot
    tokens: np.ndarray
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class TracedDocument:
    """A document's tokens in its shard, `start` to `end` - 1, the first of them being `<|endoftext|>`."""

    place: Place
    shard: str
    start: int
    end: int


@dataclass(frozen=True)
class Reading:
    """One sequence with tokens of a document among its inputs, and the step and slot that read it.

    Both are None where the epoch leaves it out, because its last sequences fill no step.
    """

    epoch: int
    step: int | None
    slot: int | None
    spot: Spot


class Trace:
    """What was read when: steps counted from 1, as updates are, and documents by their sources' names.

    For a run whose steps always had `sequences_per_step` sequences, as a run of gpt2wds-train has. Raises Error when
    the data are not tokens, or less than one step.

    >>> trace = Trace(Dataset("data/mine"), seq_len=1024, sequences_per_step=512, seed=1337)  # doctest: +SKIP
    >>> [piece.origin.number for piece in trace.step(8412)[0].pieces]  # doctest: +SKIP
    [4711, 4712]
    """

    def __init__(self, dataset: Dataset, *, seq_len: int, sequences_per_step: int, seed: int):
        if dataset.kind != TOKENS:
            raise Error(f"dataset {dataset.path}: expected tokens, got {dataset.kind}")
        self.dataset, self.seq_len, self.sequences_per_step, self.seed = dataset, seq_len, sequences_per_step, seed
        self._origins = Origins(dataset)
        # (blocks,) tokens that are inputs of some sequence, from each block's first on.
        self._reach = (dataset.blocks["train"]["tokens"].astype(np.int64) - 1) // seq_len * seq_len
        self.sequences = int(self._reach.sum()) // seq_len
        self.steps_per_epoch = self.sequences // sequences_per_step
        if not self.steps_per_epoch:
            each = counted(sequences_per_step, "sequence")
            raise Error(f"dataset {dataset.path}: expected at least one step of {each}, got {self.sequences:,}")

    def epoch_of(self, step: int) -> int:
        return (step - 1) // self.steps_per_epoch

    def step(self, step: int) -> list[TracedSequence]:
        """The sequences of a step, slot by slot."""
        epoch, nth = divmod(step - 1, self.steps_per_epoch)
        order, by_block = self._order(epoch), dict[int, list[tuple[int, int]]]()
        for slot in range(self.sequences_per_step):
            position = slot * self.steps_per_epoch + nth
            (window,), _ = order.windows(position, 1)
            (block,), (place,) = order.window_sequences(window, position, position + 1)
            by_block.setdefault(int(block), []).append((slot, int(place)))
        with ThreadPoolExecutor(READERS) as readers:
            found = readers.map(self._of_block, by_block, by_block.values())
            return sorted((s for sequences in found for s in sequences), key=lambda sequence: sequence.slot)

    def find(self, source: str, number: int) -> Place:
        """Where document `number` of a source is; see Origins.find."""
        return self._origins.find(source, number)

    def document(self, place: Place) -> TracedDocument:
        """The tokens of a document that was not skipped."""
        assert place.document is not None
        blocks = self.dataset.shard_blocks(place.split, place.shard)
        entry = self.dataset.shards(place.split)[place.shard]
        starts = np.cumsum(self.dataset.blocks[place.split]["documents"][blocks.start : blocks.stop])
        ends = [entry.tokens, entry.tokens]
        for i, document in enumerate((place.document, place.document + 1)):
            if document < entry.documents:
                nth = int(np.searchsorted(starts, document, side="right"))
                before = int(starts[nth - 1]) if nth else 0
                ends[i] = nth * BLOCK_TOKENS + int(self._starts(place.split, blocks[nth])[document - before])
        return TracedDocument(place, entry.name, *ends)

    def readings(self, document: TracedDocument, epoch: int) -> list[Reading]:
        """The sequences of a training document, step by step, and last those that this epoch leaves out.

        Tokens at the end of a shard that fill no sequence are in none.
        """
        blocks, order, found = self.dataset.shard_blocks("train", document.place.shard), self._order(epoch), []
        for nth in range(document.start // BLOCK_TOKENS, min(len(blocks), (document.end - 1) // BLOCK_TOKENS + 1)):
            first = max(0, document.start - nth * BLOCK_TOKENS)
            end = min(document.end - nth * BLOCK_TOKENS, int(self._reach[blocks[nth]]))
            positions = order.positions(blocks[nth])
            for place in range(first // self.seq_len, -(-end // self.seq_len)):
                slot, step = divmod(int(positions[place]), self.steps_per_epoch)
                is_read = slot < self.sequences_per_step
                when: tuple[int | None, int | None] = (
                    (epoch * self.steps_per_epoch + step + 1, slot) if is_read else (None, None)
                )
                found.append(Reading(epoch, *when, Spot(document.shard, nth, place)))
        return sorted(found, key=lambda reading: (reading.step is None, reading.step or 0, reading.slot or 0))

    def unread_tokens(self, document: TracedDocument) -> int:
        """Tokens of a training document that are no sequence's target: at the end of a shard, or of a block.

        Counted as Portion.trailing_tokens is, without a shard's first token: it is the sum of all documents.
        """
        blocks = self.dataset.shard_blocks("train", document.place.shard)
        # (blocks,) inputs, each of which has the next token as its target.
        first = np.arange(len(blocks)) * BLOCK_TOKENS
        start, end = max(0, document.start - 1), document.end - 1
        ends = np.minimum(end, first + self._reach[blocks.start : blocks.stop])
        return end - start - int(np.maximum(0, ends - np.maximum(start, first)).sum())

    def _order(self, epoch: int) -> EpochOrder:
        tokens = self.dataset.blocks["train"]["tokens"]
        return EpochOrder(tokens, seq_len=self.seq_len, seed=self.seed, epoch=epoch)

    def _starts(self, split: str, block: int, tokens: np.ndarray | None = None) -> np.ndarray:
        """Where documents start in a block; one that starts at the token after its 65,536 is the next block's."""
        tokens = self.dataset.read_tokens(split, block) if tokens is None else tokens
        starts = np.flatnonzero(tokens[:BLOCK_TOKENS] == END_OF_TEXT)
        stated = self.dataset.blocks[split]["documents"][block]
        if len(starts) != stated:
            key = self.dataset.block_key(split, block)
            raise Error(
                f"{self.dataset.path}: expected {counted(stated, 'document')} in {key}, got {len(starts)}; verify the "
                "dataset"
            )
        return starts

    def _of_block(self, block: int, wanted: Sequence[tuple[int, int]]) -> list[TracedSequence]:
        """Sequences of one block, each given as (slot, place in the block)."""
        tokens = self.dataset.read_tokens("train", block)
        starts = self._starts("train", block, tokens)
        entry, number = self.dataset.locate("train", block)
        shard = int(self.dataset.blocks["train"]["shard"][block])
        before = int(self.dataset.blocks["train"]["documents"][block - number : block].sum())
        found = []
        for slot, place in wanted:
            first = place * self.seq_len
            first_document = before + int(np.searchsorted(starts, first, side="right")) - 1
            inside = starts[(starts > first) & (starts < first + self.seq_len)] - first
            edges = [0, *inside.tolist(), self.seq_len]
            pieces = tuple(
                Piece(self._origins.of("train", shard, first_document + i), edges[i], edges[i + 1])
                for i in range(len(edges) - 1)
            )
            sequence = tokens[first : first + self.seq_len + 1].copy()  # or it would keep the whole block
            found.append(TracedSequence(slot, Spot(entry.name, number, place), sequence, pieces))
        return found
