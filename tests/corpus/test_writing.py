"""One task → one shard: what goes in, what is skipped and why, and which file counts where two were written."""

import json
import os
import random
import re
import shutil
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making import plan_files, shard_files, shard_small, texts, texts_of, tree, write_jsonl
from reading import WRITE

from gpt2wds.corpus.corpora import Files
from gpt2wds.corpus.cutting import Cut
from gpt2wds.corpus.sharding import make_plan
from gpt2wds.corpus.writing import COPY_OF_VALIDATION, TaskRunner
from gpt2wds.dataset import shards
from gpt2wds.dataset.verify import verify_shard
from gpt2wds.errors import EngineError, Error
from gpt2wds.fast_tokenizer import prove
from gpt2wds.folder import Folder
from gpt2wds.tokenizer import Tokenizer, load_tokenizer


def test_a_shard_of_another_zstd_is_adopted_as_it_is(small, source, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "COMPRESSION_LEVEL", 19)
    plan = plan_files(tmp_path / "other", source, val_docs=2, docs_per_shard=4)
    TaskRunner(Folder(tmp_path / "other"), plan, None)(plan.tasks[2], lambda documents, tokens: None)
    monkeypatch.undo()
    name = plan.tasks[2].shard
    other = (tmp_path / "other" / f"{name}.tar.zst").read_bytes()
    assert other != (small / f"{name}.tar.zst").read_bytes()
    (small / f"{name}.tar.zst").write_bytes(other)
    (small / "receipts" / f"{name}.json").unlink()
    before = json.loads((small / "manifest.json").read_text())
    dataset = shard_small(small, source)
    assert (small / f"{name}.tar.zst").read_bytes() == other
    assert dataset.id == before["dataset_id"]
    assert [verify_shard(dataset, "train", n) for n in range(3)] == [[], [], []]


def test_a_shard_without_receipt_is_adopted(small, source):
    whole, path = tree(small), small / "train-00001.tar.zst"
    (small / "receipts" / "train-00001.json").unlink()
    (small / "manifest.json").unlink()
    kept = path.stat()
    shard_small(small, source)
    assert tree(small) == whole
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (kept.st_ino, kept.st_mtime_ns)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "other tokens"])
def test_a_damaged_shard_without_receipt_is_not_adopted(small, source, damage):
    path = small / "train-00001.tar.zst"
    data = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(data[:-1])
    elif damage == "flipped":
        path.write_bytes(data[:60] + bytes([data[60] ^ 1]) + data[61:])
    else:
        shutil.copy(small / "train-00000.tar.zst", path)
    (small / "receipts" / "train-00001.json").unlink()
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: .*; delete the file and run again"):
        shard_small(small, source)
    path.unlink()
    shard_small(small, source)
    assert path.read_bytes() == data


def test_copies_of_validation_and_documents_without_text_are_counted(tmp_path):
    documents = ["first", "second", "a", "first", None, "b", "", "second", "second", "c"]
    source = write_jsonl(tmp_path / "source.jsonl", documents)
    out = tmp_path / "out"
    dataset = shard_files(out, source, val_docs=2, docs_per_shard=5)
    first, second = dataset.shards("train")
    # Ordinals count from each shard's first document: 2 and 7 of the source.
    assert first.skipped == {COPY_OF_VALIDATION: [1], "no text": [2], "empty text": [4]}
    assert second.skipped == {COPY_OF_VALIDATION: [0, 1]}
    assert (first.documents, second.documents) == (2, 1)
    assert texts_of(out) == ["first", "second", "a", "b", "c"]


@pytest.mark.slow
def test_huge_documents_are_documents(tmp_path):
    parquet = tmp_path / "huge.parquet"
    prose = "".join(f"Sentence {n} of a long document, with some words. " for n in range(1_000_000))  # 50 MB
    unbroken = "".join(random.Random(1).choices("abcdefghij", k=10_000_000))
    pq.write_table(pa.table({"text": ["before", prose, unbroken, "after"]}), parquet)
    out = tmp_path / "out"
    dataset = shard_files(out, parquet, val_docs=0)
    assert (dataset.total("train", "documents"), verify_shard(dataset, "train", 0)) == (4, [])
    found = list(load_tokenizer().decode_documents(dataset.iterate_tokens("train", 0)))
    assert [len(text) for text in found] == [6, len(prose), len(unbroken), 5]
    assert found == ["before", prose, unbroken, "after"]


def test_a_panic_of_the_tokenizer_names_the_document_and_stops_nothing(tmp_path, monkeypatch):
    tokenizer = load_tokenizer()

    class PanicException(BaseException):
        """As Rust's arrive in Python: of a class of their own, no Exception."""

    class Panicking:
        def __getattr__(self, name):
            return getattr(encoding, name)

        def encode_to_numpy(self, text, **options):
            if "poison" in text:
                raise PanicException("called `Result::unwrap()` on an `Err` value")
            return encoding.encode_to_numpy(text, **options)

    encoding = tokenizer.encoding
    monkeypatch.setattr(tokenizer, "encoding", Panicking())
    monkeypatch.setattr("gpt2wds.corpus.sharding.prove", lambda tokenizer: None)
    source = write_jsonl(tmp_path / "source.jsonl", ["a", "b", "poison", "c"])
    (entry,) = shard_files(tmp_path / "out", source, val_docs=0).shards("train")
    ((reason, ordinals),) = entry.skipped.items()
    assert "tiktoken cannot encode the text" in reason and ordinals == [2]
    assert texts_of(tmp_path / "out") == ["a", "b", "c"]


def test_spans_say_where_documents_come_from(tmp_path):
    jsonl = write_jsonl(tmp_path / "a.jsonl", ["a", "b", "c"])
    parquet = tmp_path / "b.parquet"
    pq.write_table(pa.table({"text": ["d", "e", "f"]}), parquet)
    out = tmp_path / "out"
    dataset = shard_files(out, jsonl, parquet, val_docs=2, docs_per_shard=2)
    line = len('{"text": "a"}\n')
    assert [[span.record() for span in s.spans] for split in ("val", "train") for s in dataset.shards(split)] == [
        [
            {"source": str(jsonl), "first_byte": 0, "count": line, "documents": 1},
            {"source": str(parquet), "first_row": 0, "count": 1, "documents": 1},
        ],
        [{"source": str(jsonl), "first_byte": line, "count": 2 * line}],
        [{"source": str(parquet), "first_row": 1, "count": 2}],
    ]


def test_a_task_without_usable_documents_gives_a_shard_of_no_blocks(tmp_path):
    source = write_jsonl(tmp_path / "source.jsonl", ["first", "a", None, "", "b"])
    out = tmp_path / "out"
    dataset = shard_files(out, source, val_docs=1, docs_per_shard=1)
    assert [entry.blocks for entry in dataset.shards("train")] == [1, 0, 0, 1]
    assert [verify_shard(dataset, "train", n) for n in range(4)] == [[], [], [], []]
    assert [dataset.read_tokens("train", block).tolist() for block in range(2)] == [[50256, 64], [50256, 65]]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "txt"])
def test_a_source_that_changed_since_the_plan_is_refused(tmp_path, kind):
    path = WRITE[kind](tmp_path / f"a.{kind}", 6)
    plan = plan_files(tmp_path / "out", path, val_docs=1, docs_per_shard=2)
    run = TaskRunner(Folder(tmp_path / "out"), plan, None)
    stat = path.stat()
    shutil.copyfile(WRITE[kind](tmp_path / f"b.{kind}", 6), path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert path.stat().st_size == stat.st_size
    with pytest.raises(ValueError, match=rf"a\.{kind}: the file changed since the plan was made"):
        run(plan.tasks[1], lambda documents, tokens: None)
    path.unlink()
    with pytest.raises(ValueError, match=rf"a\.{kind}: the file is gone"):
        run(plan.tasks[1], lambda documents, tokens: None)
    assert list((tmp_path / "out").glob("*.tar.zst")) == []


def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", texts(6, "a"))
    plan = plan_files(tmp_path / "out", path, val_docs=0)
    reading = TaskRunner(Folder(tmp_path / "out"), plan, None).batches(plan.tasks[0])
    next(reading)
    write_jsonl(path, texts(7, "a"))
    with pytest.raises(ValueError, match="the file changed"):
        list(reading)


@pytest.mark.parametrize("error", [ValueError, KeyError, AttributeError])
@pytest.mark.parametrize(
    "place", ["gpt2wds.corpus.json_lines.as_document", "gpt2wds.tokenizer.Tokenizer.encode_documents"]
)
def test_a_bug_is_a_traceback_and_no_document_is_skipped(source, tmp_path, monkeypatch, place, error):
    plan = plan_files(tmp_path / "out", source, val_docs=0)

    def buggy(*arguments):
        raise error("ours")

    monkeypatch.setattr(place, buggy)
    with pytest.raises(error, match="ours") as caught:
        TaskRunner(Folder(tmp_path / "out"), plan, None)(plan.tasks[0], lambda documents, tokens: None)
    assert not isinstance(caught.value, Error)
    assert not list((tmp_path / "out").rglob("train-*"))


def odd_texts(count):
    """Some are skipped: copies of validation, no text, empty, not UTF-8, too long."""
    chance = random.Random(5)
    words = ["".join(chance.choices("etaoinshrdlu", k=chance.randint(1, 9))) for _ in range(2000)]
    made = [" ".join(chance.choices(words, k=chance.randint(1, 900))).encode() for _ in range(count)]
    for place, odd in {4: made[0], 90: None, 300: b"", 301: b"\xff bad", 700: b"x" * 70_000, 999: made[1]}.items():
        made[place] = odd
    return made


def run_with(cores, path, out, differing):
    """What a training task made, or said, with so many cores."""
    plan = make_plan(Folder(out), Files((str(path),), max_document_bytes=60_000), Cut(val_docs=3))
    before = threading.active_count()
    try:
        TaskRunner(Folder(out), plan, differing)(plan.tasks[1], lambda *_: None, lambda: cores)
    except Error as error:
        return str(error)
    finally:
        assert threading.active_count() == before
    return {made.relative_to(out): made.read_bytes() for made in out.rglob("train-*")}


def test_threads_change_no_byte(tmp_path):
    """Of the shard and its receipt, which has the reasons and ordinals of skipped documents."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.array(odd_texts(1200), pa.binary())}), path, row_group_size=100)
    differing = prove(load_tokenizer())
    alone, together = (run_with(cores, path, tmp_path / str(cores), differing) for cores in (1, 3))
    assert len(alone) == 2 and together == alone
    skipped = json.loads(together[Path("receipts/train-00000.json")])["shard"]["skipped"]
    assert sum(map(len, skipped.values())) == 6


@pytest.mark.parametrize("damage", ["pages", "engine"])
def test_with_threads_an_error_is_the_same_and_leaves_nothing(tmp_path, monkeypatch, damage):
    path, documents = tmp_path / "a.parquet", odd_texts(1200)
    pq.write_table(
        pa.table({"text": documents}), path, row_group_size=100, write_page_checksum=True, compression="none"
    )
    if damage == "pages":
        data = path.read_bytes()
        place = data.index(documents[800])
        path.write_bytes(data[:place] + b"~" + data[place + 1 :])
    else:
        encode = Tokenizer.encode_document

        def disagrees(self, text):
            if text == documents[800].decode():
                raise EngineError("it disagrees")
            return encode(self, text)

        monkeypatch.setattr(Tokenizer, "encode_document", disagrees)
    alone, together = (run_with(cores, path, tmp_path / str(cores), None) for cores in (1, 3))
    assert together == alone
    said = {"pages": "row groups 0 to 11 cannot be read", "engine": "train-00000 document 797: it disagrees"}
    assert said[damage] in alone
    assert not list(tmp_path.rglob("*train-*"))
