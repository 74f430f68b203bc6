"""What was read when: held to what the loader gives and to the sources themselves, both ways."""

import bz2
import dataclasses
import gzip
import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making import shard_files

from gpt2wds.dataset.directory import Dataset
from gpt2wds.dataset.loader import StepBatches
from gpt2wds.dataset.manifest import Manifest, ShardEntry
from gpt2wds.dataset.mixture import portions
from gpt2wds.dataset.origins import Origins
from gpt2wds.dataset.trace import Reading, Trace, TracedSequence
from gpt2wds.errors import Error
from gpt2wds.tokenizer import load_tokenizer

COPY = "copy of a validation document"


@dataclasses.dataclass
class Corpus:
    """A dataset of files of all kinds, and by hand what each document is: (file, number) → text, or why it is none."""

    dataset: Dataset
    texts: dict[tuple[str, int], str]
    skipped: dict[tuple[str, int], str]


def story(name: str, number: int) -> str:
    """A text that no other is like; the seventh of a source is longer than a block or two."""
    rng = np.random.default_rng([number, *name.encode()])
    words = 140_000 if number == 7 and name == "c.parquet" else int(rng.integers(20, 900))
    return f"{name} {number}: " + " ".join(f"word{n}" for n in rng.integers(0, 1000, words))


def write_json_lines(path: Path, records: list[str], opener: Callable = open) -> None:
    with opener(path, "wt", encoding="utf-8") as file:
        file.write("\n".join(records) + "\n")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("sources")
    texts: dict[tuple[str, int], str] = {}
    skipped: dict[tuple[str, int], str] = {}

    def record(name: str, number: int) -> str:
        texts[name, number] = story(name, number)
        return json.dumps({"text": texts[name, number]})

    # Lines that are no document or are skipped stand at the begin, in the middle and at the end of files and spans.
    for name, opener in (("a.jsonl", open), ("b.jsonl.gz", gzip.open), ("e.jsonl.bz2", bz2.open)):
        lines = [record(name, number) for number in range(23)]
        bad = {0: ('{"text": ""}', "empty text"), 5: ("{", "no JSON"), 22: ("[]", "no JSON object")}
        for number, (line, why) in bad.items():
            if (name, number) == ("a.jsonl", 0):
                continue  # of it there is a copy
            lines[number] = line
            del texts[name, number]
            skipped[name, number] = why
        lines.insert(9, "")  # blank lines do not count
        write_json_lines(folder / name, lines, opener)
    rows = [story("c.parquet", number) for number in range(40)]
    for number in (0, 11, 12, 39):
        rows[number] = None
        skipped["c.parquet", number] = "no text"
    # Of each source the first documents are held out; of these a copy is dropped wherever it is.
    rows[20], skipped["c.parquet", 20] = story("a.jsonl", 0), COPY
    texts |= {("c.parquet", number): text for number, text in enumerate(rows) if ("c.parquet", number) not in skipped}
    pq.write_table(pa.table({"text": rows}), folder / "c.parquet", row_group_size=7)
    for number in range(12):
        name = f"d{number:02d}.jsonl"
        write_json_lines(folder / name, [record(name, line) for line in range(3)] + ["{" for _ in range(number % 3)])
        skipped |= {(name, 3 + line): "no JSON" for line in range(number % 3)}
    dataset = shard_files(folder / "data", *sorted(p for p in folder.iterdir()), val_docs=9, docs_per_shard=31)
    return Corpus(dataset, texts, skipped)


def test_the_corpus_is_as_varied_as_it_should_be(corpus: Corpus) -> None:
    train = corpus.dataset.shards("train")
    assert len(corpus.dataset.shards("val")) >= 1 and len(train) >= 4
    assert max(len(entry.spans) for entry in train) >= 5 and max(entry.blocks for entry in train) >= 4
    assert {span.unit for entry in train for span in entry.spans} == {"row", "byte"}
    assert any(span.skipped for entry in train for span in entry.spans)
    assert any(COPY in entry.skipped for entry in train)


def base(source: str) -> str:
    return source.rpartition("/")[2]


def all_steps(trace: Trace, steps: int) -> dict[int, list[TracedSequence]]:
    return {step: trace.step(step) for step in range(1, steps + 1)}


@pytest.mark.parametrize(
    ("seq_len", "per_step", "seed", "epochs"),
    [
        pytest.param(128, 400, 1337, 3, marks=pytest.mark.slow),
        (1000, 37, 1, 2),
        (1024, 64, 2**64 - 1, 4),
        (16_384, 3, 7, 5),
        (65_536, 1, 0, 9),
    ],
)
def test_a_step_is_what_the_loader_gives_and_its_documents_are_the_sources(
    corpus: Corpus, seq_len: int, per_step: int, seed: int, epochs: int
) -> None:
    order = {"seq_len": seq_len, "sequences_per_step": per_step, "seed": seed}
    trace, batches = Trace(corpus.dataset, **order), StepBatches(corpus.dataset, **order)
    assert (trace.steps_per_epoch, trace.sequences) == (batches.steps_per_epoch, batches.sequences)
    encode = load_tokenizer().encode_document
    tokens = {key: encode(text) for key, text in corpus.texts.items()}
    places = {key: trace.find(*key) for key in corpus.texts}
    documents = {key: trace.document(place) for key, place in places.items()}
    assert [d.end - d.start for d in documents.values()] == [len(t) for t in tokens.values()]
    steps = min(epochs * batches.steps_per_epoch, 40)
    held: dict[tuple[str, int], list[Reading]] = {}
    for step, expected in enumerate(islice(batches, steps), 1):
        found = trace.step(step)
        assert [sequence.slot for sequence in found] == list(range(per_step))
        np.testing.assert_array_equal(np.stack([sequence.tokens for sequence in found]), expected)
        for sequence in found:
            assert [sequence.pieces[0].start, sequence.pieces[-1].end] == [0, seq_len]
            at = sequence.spot.block * 65_536 + sequence.spot.place * seq_len
            for piece in sequence.pieces:
                key = base(piece.origin.span.source), piece.origin.number
                first = at + piece.start - documents[key].start
                own = tokens[key][first : first + piece.end - piece.start]
                np.testing.assert_array_equal(sequence.tokens[piece.start : piece.end], own)
                reading = Reading(trace.epoch_of(step), step, sequence.slot, sequence.spot)
                held.setdefault(key, []).append(reading)
    # The other way: each document of each source, and all that was read of it.
    for key, place in places.items():
        assert not place.skipped
        if place.split == "val":
            assert key not in held
            continue
        seen = range(trace.epoch_of(steps) + 1)
        found = [reading for epoch in seen for reading in trace.readings(documents[key], epoch)]
        read = [reading for reading in found if reading.step is not None and reading.step <= steps]
        assert read == held.get(key, [])


def in_sequences(tokens: int, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens,) of a shard: which are an input of a sequence, and which a target, by the definition of a block."""
    inputs, targets = np.zeros(tokens, dtype=bool), np.zeros(tokens, dtype=bool)
    for block in range(0, tokens, 65_536):
        for first in range(block, min(block + 65_536, tokens - 1) - seq_len + 1, seq_len):
            inputs[first : first + seq_len] = targets[first + 1 : first + seq_len + 1] = True
    return inputs, targets


def test_each_epoch_reads_or_leaves_out_every_token_of_a_document(corpus: Corpus) -> None:
    # 1000 does not divide 65,536, and 37 sequences a step do not divide the epoch.
    trace, left_out, unread = Trace(corpus.dataset, seq_len=1000, sequences_per_step=37, seed=1), 0, 0
    shards = {entry.name: in_sequences(entry.tokens, 1000) for entry in corpus.dataset.shards("train")}
    for key in corpus.texts:
        place = trace.find(*key)
        if place.split == "val":
            continue
        document = trace.document(place)
        for epoch in range(3):
            found = trace.readings(document, epoch)
            inside = 0
            for reading in found:
                first = reading.spot.block * 65_536 + reading.spot.place * 1000
                inside += min(first + 1000, document.end) - max(first, document.start)
                left_out += reading.step is None
                assert (reading.slot is None) == (reading.step is None)
            inputs, targets = shards[document.shard]
            assert inside == inputs[document.start : document.end].sum()
        assert trace.unread_tokens(document) == (~targets[max(1, document.start) : document.end]).sum()
        unread += trace.unread_tokens(document)
    assert left_out and trace.sequences % 37
    # What a run says before it begins.
    (portion,) = portions(corpus.dataset, sequences_per_step=37, seq_len=1000)
    assert unread == portion.trailing_tokens > 0


def test_documents_that_were_not_trained_on_say_why(corpus: Corpus) -> None:
    origins = Origins(corpus.dataset)
    assert {key: origins.find(*key).skipped for key in corpus.skipped} == corpus.skipped
    val = [key for key in corpus.texts if origins.find(*key).split == "val"]
    assert len(val) == corpus.dataset.total("val", "documents") and ("a.jsonl", 0) in val
    assert all(origins.find(*key).document is None for key in corpus.skipped)


def test_every_document_has_one_origin_and_is_found_there(corpus: Corpus) -> None:
    origins, seen = Origins(corpus.dataset), set()
    for split in ("train", "val"):
        for shard, entry in enumerate(corpus.dataset.shards(split)):
            for document in range(entry.documents):
                origin = origins.of(split, shard, document)
                place = origins.find(origin.span.source, origin.number)
                assert (place.split, place.shard, place.document) == (split, shard, document)
                assert place.origin == origin
                seen.add((base(origin.span.source), origin.number))
    assert seen == set(corpus.texts)


def test_only_the_steps_blocks_are_read(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    plain = Dataset.read_frame
    monkeypatch.setattr(
        Dataset, "read_frame", lambda self, split, block: read.append(block) or plain(self, split, block)
    )
    sequences = Trace(corpus.dataset, seq_len=1024, sequences_per_step=5, seed=1).step(3)
    assert len(read) == len(set(read)) == len({(s.spot.shard, s.spot.block) for s in sequences}) <= 5


def rewritten(dataset: Dataset, folder: Path, change: Callable[[ShardEntry], ShardEntry]) -> Dataset:
    """A copy whose manifest's entries are changed."""
    folder.mkdir()
    manifest = dataset.manifest
    shards = {split: tuple(map(change, entries)) for split, entries in manifest.shards.items()}
    (folder / "manifest.json").write_text(dataclasses.replace(manifest, shards=shards, blocks_sha256={}).to_json())
    for path in Path(dataset.path).iterdir():
        if path.suffix in (".npy", ".zst"):
            (folder / path.name).symlink_to(path)
    return Dataset(folder)


def test_of_older_manifests_it_says_what_they_do_not_tell(corpus: Corpus, tmp_path: Path) -> None:
    def without(*names: str) -> Callable[[ShardEntry], ShardEntry]:
        old = {"skipped": 0, "documents": None}
        return lambda entry: dataclasses.replace(
            entry, spans=tuple(dataclasses.replace(span, **{name: old[name] for name in names}) for span in entry.spans)
        )

    older = Origins(rewritten(corpus.dataset, tmp_path / "older", without("skipped")))
    newer, unknown = Origins(corpus.dataset), 0
    for split in ("train", "val"):
        for shard, entry in enumerate(corpus.dataset.shards(split)):
            for document in range(entry.documents):
                found, known = older.of(split, shard, document), newer.of(split, shard, document)
                assert found.span.source == known.span.source
                assert found.number in (None, known.number)
                unknown += found.number is None
    assert unknown
    with pytest.raises(Error, match="an older gpt2wds did not note which documents it took of it"):
        older.find("d04.jsonl", 1)
    with pytest.raises(Error, match="did not note how many documents each source gave"):
        Origins(rewritten(corpus.dataset, tmp_path / "oldest", without("skipped", "documents")))


def test_what_is_asked_for_wrongly_is_named(corpus: Corpus, choices: Dataset) -> None:
    origins = Origins(corpus.dataset)
    with pytest.raises(Error, match="expected one of the documents 0 to 39 that were taken of it, got 40"):
        origins.find("c.parquet", 40)
    none = (
        r"c.parket: expected one of the 16 sources of .*, got none of them; the nearest is .*/c\.parquet, gpt2wds-shard"
    )
    with pytest.raises(Error, match=none):
        origins.find("c.parket", 1)
    with pytest.raises(Error, match="expected tokens, got multiple-choice"):
        Trace(choices, seq_len=8, sequences_per_step=1, seed=0)
    with pytest.raises(Error, match="expected at least one step of 1,000,000 sequences, got"):
        Trace(corpus.dataset, seq_len=8, sequences_per_step=1_000_000, seed=0)


def test_an_index_that_disagrees_with_its_block_is_named(corpus: Corpus, tmp_path: Path) -> None:
    folder = rewritten(corpus.dataset, tmp_path / "data", lambda entry: entry).path
    index = np.load(f"{folder}/train.blocks.npy")
    first = index["shard"] == int(np.argmax([entry.blocks for entry in corpus.dataset.shards("train")]))
    index["documents"][first] = np.roll(index["documents"][first], 1)
    Path(folder, "train.blocks.npy").unlink()
    np.save(f"{folder}/train.blocks.npy", index)
    trace = Trace(Dataset(folder), seq_len=1024, sequences_per_step=16, seed=0)
    with pytest.raises(Error, match=r"expected \d+ documents in train-\d+-00000\d, got \d+; verify the dataset"):
        for step in range(1, trace.steps_per_epoch + 1):
            trace.step(step)


def test_the_manifest_keeps_what_spans_skipped(corpus: Corpus) -> None:
    again = Manifest.from_json(corpus.dataset.manifest.to_json())
    assert again == corpus.dataset.manifest
