"""Cutting a corpus into tasks: every document once, sizes as asked for, and a validation split that stays."""

import dataclasses
import gzip
import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import shared_file

from gpt2wds.corpus import corpora, readers, sharding
from gpt2wds.corpus.corpora import Corpus, Cut
from gpt2wds.locations import local_file


def texts(name: str, count: int) -> list[str]:
    return [f"{name} {n} " + "word " * (n % 7) for n in range(count)]


def write_jsonl(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


def write_parquet(path: Path, documents: list[str]) -> Path:
    pq.write_table(pa.table({"text": pa.array(documents, pa.string())}), path, row_group_size=4)
    return path


def write_txt(path: Path, count: int) -> Path:
    """A text of `count` documents: pieces that end at the first blank line after 64 KiB."""
    piece = ("line\n" * (readers.TEXT_PIECE_BYTES // 5 + 1))[: readers.TEXT_PIECE_BYTES]
    path.write_text("".join(f"{path.stem} {n} {piece}\n\n" for n in range(count)))
    return path


WRITE = {
    "jsonl": lambda path, count: write_jsonl(path, texts(path.stem, count)),
    "parquet": lambda path, count: write_parquet(path, texts(path.stem, count)),
    "txt": write_txt,
}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> list[str]:
    """Files of all kinds, in an order in which each kind follows each other one."""
    folder = tmp_path_factory.mktemp("mixed")
    counts = {"a.jsonl": 11, "b.txt": 3, "c.parquet": 10, "d.jsonl": 1, "e.parquet": 2, "f.txt": 4, "g.txt": 2}
    counts |= {"h.jsonl": 6, "i.txt": 0}
    return [str(WRITE[name.split(".")[1]](folder / name, count)) for name, count in counts.items()]


def documents(corpus: Corpus, split: str = "") -> list[list[str]]:
    """The documents of each task of a split, or of both."""
    return [
        list(corpora.documents(corpus.sources, task, "text"))
        for task in corpus.tasks
        if task["shard"].startswith(split)
    ]


def flat(tasks: list[list[str]]) -> list[str]:
    return [text for task in tasks for text in task]


def whole(paths: list[str]) -> list[list[str]]:
    """All documents of each file, read in one go."""
    found = []
    for path in map(Path, paths):
        reader = readers.BY_SUFFIX[readers.suffix_of(path.name)]
        found.append(list(reader.read(local_file(path), 0, None, "text")))
    return found


# Every document once


CUTS = st.builds(
    Cut,
    val_docs=st.none() | st.integers(0, 12),
    docs_per_shard=st.none() | st.integers(1, 9),
    bytes_per_shard=st.none() | st.sampled_from([1, 50, 100, 300, 70_000, 150_000]),
)


@settings(deadline=None, max_examples=60)
@given(st.data(), CUTS)
def test_each_document_is_in_exactly_one_task(mixed, data, cut):
    paths = data.draw(st.lists(st.sampled_from(mixed), min_size=1, max_size=5, unique=True))
    corpus = corpora.files(paths, cut)
    expected = flat(whole(sorted(paths)))
    assert sorted(flat(documents(corpus))) == sorted(expected)
    assert all(count > 0 and first >= 0 for task in corpus.tasks for _, first, count in task["spans"])
    for split in ("val", "train"):
        names = [task["shard"] for task in corpus.tasks if task["shard"].startswith(split)]
        assert names == [f"{split}-{n:05d}" for n in range(len(names))]


@settings(deadline=None, max_examples=60)
@given(st.data(), CUTS, st.integers(12, 45))
def test_limit_docs_is_exact_and_includes_validation(mixed, data, cut, limit):
    paths = data.draw(st.lists(st.sampled_from(mixed), min_size=1, max_size=5, unique=True))
    expected = flat(whole(sorted(paths)))
    found = flat(documents(corpora.files(paths, dataclasses.replace(cut, limit_docs=limit))))
    assert len(found) == min(limit, len(expected))
    assert len(set(found)) == len(found) and set(found) <= set(expected)


def test_only_text_files_share_a_shard(mixed):
    for cut in (Cut(val_docs=0), Cut(val_docs=5, docs_per_shard=4), Cut(val_docs=0, bytes_per_shard=1 << 20)):
        for task in corpora.files(mixed, cut).tasks:
            suffixes = [Path(mixed[source]).suffix for source, _, _ in task["spans"]]
            assert len(suffixes) == 1 or set(suffixes) == {".txt"}


# Sizes as asked for


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "txt"])
@pytest.mark.parametrize(("val_docs", "per_shard"), [(0, 3), (1, 4), (4, 3), (5, 1), (7, 100)])
def test_val_docs_and_docs_per_shard_are_exact(tmp_path, kind, val_docs, per_shard):
    path = WRITE[kind](tmp_path / f"a.{kind}", 10)
    corpus = corpora.files([str(path)], Cut(val_docs=val_docs, docs_per_shard=per_shard))
    (expected,) = whole([str(path)])
    for split, wanted in (("val", expected[:val_docs]), ("train", expected[val_docs:])):
        assert documents(corpus, split) == [wanted[i : i + per_shard] for i in range(0, len(wanted), per_shard)]


def test_text_files_fill_shards_together(tmp_path):
    paths = [str(write_txt(tmp_path / f"{name}.txt", 3)) for name in "abcd"]
    corpus = corpora.files(paths, Cut(val_docs=6, docs_per_shard=4))
    assert [len(task) for task in documents(corpus, "val")] == [4, 2]
    assert [len(task) for task in documents(corpus, "train")] == [4, 2]
    limited = corpora.files(paths, Cut(val_docs=6, docs_per_shard=4, limit_docs=11))
    assert [len(task) for task in documents(limited, "train")] == [4, 1]


def test_validation_is_the_first_documents_of_each_file(tmp_path):
    paths = [str(write_jsonl(tmp_path / f"{name}.jsonl", texts(name, 10))) for name in "abc"]
    corpus = corpora.files(paths, Cut(val_docs=7))
    assert flat(documents(corpus, "val")) == [
        t for path, n in zip(whole(paths), (3, 2, 2), strict=True) for t in path[:n]
    ]


@pytest.mark.parametrize("limit", [1, 60, 61, 200, 1 << 20])
def test_a_shard_of_jsonl_ends_at_the_first_document_after_bytes_per_shard(tmp_path, limit):
    path = write_jsonl(tmp_path / "a.jsonl", texts("a", 40))
    size = path.stat().st_size
    tasks = corpora.files([str(path)], Cut(val_docs=0, bytes_per_shard=limit)).tasks
    lines = {0, *(n + 1 for n, byte in enumerate(path.read_bytes()) if byte == 10)}
    for ((_, first, count),) in (task["spans"] for task in tasks):
        assert {first, first + count} <= lines
        assert first + count == size or count >= limit > max(line for line in lines if line < first + count) - first


def test_text_files_fill_bytes_per_shard_together(tmp_path):
    paths = []
    for n in range(10):
        paths.append(tmp_path / f"{n}.txt")
        paths[-1].write_text("x" * 100)
    tasks = corpora.files([str(path) for path in paths], Cut(val_docs=2, bytes_per_shard=250)).tasks
    assert [sum(count for _, _, count in task["spans"]) for task in tasks] == [200, 300, 300, 200]


def test_a_shard_of_parquet_follows_bytes_per_shard(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"{n:01000d}" for n in range(100)]}), path)
    tasks = documents(corpora.files([str(path)], Cut(val_docs=0, bytes_per_shard=10_000)))
    assert all(8 <= len(task) <= 12 for task in tasks[:-1])


def test_blank_lines_are_no_documents_and_stop_nothing(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"text": "a"}\n\n\n{"text": "b"}\n\n\n')
    for cut in (Cut(1), Cut(1, docs_per_shard=1), Cut(1, 2, 1), Cut(1, 9, 1), Cut(1, bytes_per_shard=1)):
        corpus = corpora.files([str(path)], cut)
        assert (flat(documents(corpus, "val")), flat(documents(corpus, "train"))) == (["a"], ["b"])


def test_one_document_in_a_hundred_is_for_validation_if_nothing_is_said(tmp_path):
    for count, expected in ((300, 3), (20, 1)):
        path = write_jsonl(tmp_path / "a.jsonl", texts("a", count))
        assert len(flat(documents(corpora.files([str(path)], Cut()), "val"))) == expected


# The split stays


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "txt"])
def test_validation_never_moves(tmp_path, kind):
    paths = [str(WRITE[kind](tmp_path / f"{name}.{kind}", 12)) for name in "ab"]
    expected = flat(documents(corpora.files(paths, Cut(val_docs=5)), "val"))
    assert len(expected) == 5
    for other in (
        Cut(limit_docs=5),
        Cut(limit_docs=11),
        Cut(docs_per_shard=1),
        Cut(docs_per_shard=4, limit_docs=17),
        Cut(bytes_per_shard=100),
    ):
        corpus = corpora.files(paths, dataclasses.replace(other, val_docs=5))
        assert flat(documents(corpus, "val")) == expected
        assert not set(expected) & set(flat(documents(corpus, "train")))


def test_the_order_of_the_arguments_does_not_count(mixed):
    one, other = corpora.files(mixed, Cut(val_docs=5)), corpora.files(mixed[::-1], Cut(val_docs=5))
    assert (one.sources, one.tasks) == (other.sources, other.tasks)


def test_names_are_sorted_bytewise(tmp_path):
    names = ["a.jsonl", "B.jsonl", "é.jsonl", "z.jsonl", "a-.jsonl"]
    paths = [str(write_jsonl(tmp_path / name, texts(name, 2))) for name in names]
    found = [Path(source["name"]).name for source in corpora.files(paths, Cut()).sources]
    assert found == ["B.jsonl", "a-.jsonl", "a.jsonl", "z.jsonl", "é.jsonl"]


# Refused


def refused(*paths: Path, **cut: int) -> str:
    with pytest.raises(ValueError) as caught:
        corpora.files([str(path) for path in paths], Cut(**cut))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_given_twice_is_refused(tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "a.jsonl", ["one", "two"])
    (tmp_path / "link.jsonl").symlink_to(path)
    monkeypatch.chdir(tmp_path)
    for again in (path, Path("a.jsonl"), tmp_path / "link.jsonl", tmp_path / ".." / tmp_path.name / "a.jsonl"):
        assert "are the same file; give it once" in refused(path, again)


def test_what_is_no_readable_file_is_refused(tmp_path):
    good = write_jsonl(tmp_path / "a.jsonl", ["one", "two"])
    (tmp_path / "b.csv").write_text("text\none\n")
    (tmp_path / "c.jsonl").mkdir()
    (tmp_path / "d.jsonl").write_text("no json\n")
    assert refused(good, tmp_path / "b.csv").startswith(
        "files: expected .parquet, .jsonl, .jsonl.gz, .jsonl.zst, .txt, got "
    )
    assert "b.csv" in refused(good, tmp_path / "b.csv")
    assert refused(good, tmp_path / "nowhere.jsonl").endswith("nowhere.jsonl', which is missing")
    assert refused(good, tmp_path / "c.jsonl").endswith("c.jsonl'/*.jsonl")
    assert "d.jsonl: expected one JSON object per line" in refused(good, tmp_path / "d.jsonl")


def test_a_limit_below_validation_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", texts("a", 20))
    assert "expected at least the 6 documents of validation, got 5" in refused(path, val_docs=6, limit_docs=5)


def test_the_default_validation_does_not_move_with_the_limit(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", texts("a", 400))
    whole, part = (corpora.files([str(path)], corpora.Cut(limit_docs=limit)) for limit in (None, 40))
    assert whole.tasks[0] == part.tasks[0] and whole.tasks[0]["shard"] == "val-00000"


def planned(out: Path, paths: list[Path], cut: Cut) -> dict:
    names = [str(path) for path in paths]
    return sharding.plan_corpus(out, {"corpus": "files"}, lambda: corpora.files(names, cut), cut)


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_corpus_is_refused(tmp_path, content):
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "b.jsonl").write_text(content)
    with pytest.raises(ValueError, match=r"a\.txt, .*b\.jsonl: expected at least one document, got none"):
        planned(tmp_path / "out", [tmp_path / "a.txt", tmp_path / "b.jsonl"], Cut())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("end", ["", "\n \n"])
@pytest.mark.parametrize("cut", [Cut(val_docs=3), Cut(val_docs=9), Cut(val_docs=2, limit_docs=2)])
def test_a_corpus_that_is_all_validation_is_refused(tmp_path, cut, end):
    path = write_jsonl(tmp_path / "a.jsonl", texts("a", 3))
    path.write_text(path.read_text() + end)
    with pytest.raises(ValueError, match="all of its documents went to validation.*lower --val-docs"):
        planned(tmp_path / "out", [path], cut)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "txt"])
def test_a_source_that_changed_since_the_plan_is_refused(tmp_path, kind):
    path = WRITE[kind](tmp_path / f"a.{kind}", 6)
    plan = planned(tmp_path / "out", [path], Cut(val_docs=1, docs_per_shard=2))
    stat = path.stat()
    shutil.copyfile(WRITE[kind](tmp_path / f"b.{kind}", 6), path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert path.stat().st_size == stat.st_size
    with pytest.raises(ValueError, match=rf"a\.{kind}: the file changed since the plan was made"):
        sharding.run_task(tmp_path / "out", plan, plan["tasks"][1], lambda documents, tokens: None)
    path.unlink()
    with pytest.raises(ValueError, match=rf"a\.{kind}: the file is gone"):
        sharding.run_task(tmp_path / "out", plan, plan["tasks"][1], lambda documents, tokens: None)
    assert list((tmp_path / "out").glob("*.tar.zst")) == []


def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", texts("a", 6))
    corpus = corpora.files([str(path)], Cut(val_docs=0))
    reading = corpora.documents(corpus.sources, corpus.tasks[0], "text")
    next(reading)
    write_jsonl(path, texts("a", 7))
    with pytest.raises(ValueError, match="the file changed"):
        list(reading)


def test_tasks_of_a_compressed_file_go_to_one_process_in_order(tmp_path):
    for name in ("a.jsonl", "b.jsonl", "c.jsonl"):
        write_jsonl(tmp_path / name, texts(name, 10))
    for name in ("b.jsonl", "c.jsonl"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    paths = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.gz")]
    corpus = corpora.files(paths, Cut(val_docs=0, docs_per_shard=4))
    names = [[task["shard"][-1] for task in chain] for chain in corpora.chains(corpus.sources, corpus.tasks)]
    assert names == [["0"], ["1"], ["2"], ["3", "4", "5"], ["6", "7", "8"]]
    rest = [task for task in corpus.tasks if task["shard"][-1] not in "04"]
    names = [[task["shard"][-1] for task in chain] for chain in corpora.chains(corpus.sources, rest)]
    assert names == [["1"], ["2"], ["3", "5"], ["6", "7", "8"]]
    assert corpora.chains([], [{"shard": "train-00000", "spans": []}]) == [[{"shard": "train-00000", "spans": []}]]


# Shakespeare


def test_tiny_shakespeare_has_documents_and_a_validation_split(tmp_path):
    path = shared_file("tinyshakespeare.txt")
    corpus = corpora.shakespeare(str(path), Cut(), tmp_path)
    (val,), (train,) = documents(corpus, "val"), documents(corpus, "train")
    assert (len(val), len(train)) == (1, 16)
    assert "".join(val + train).encode() == path.read_bytes()
    for text in [*val, *train[:-1]]:
        assert text.endswith("\n\n") and text.encode().find(b"\n\n", readers.TEXT_PIECE_BYTES) == len(text) - 2
    assert list(tmp_path.iterdir()) == []


def test_another_text_is_not_taken_for_tiny_shakespeare(tmp_path):
    path = tmp_path / "tinyshakespeare.txt"
    path.write_text("To be")
    # Where the download is kept, too.
    for source in (str(path), "tiny"):
        with pytest.raises(ValueError, match="expected SHA-256 86c4e6aa.*, got [0-9a-f]{64} for .*tinyshakespeare.txt"):
            corpora.shakespeare(source, Cut(), tmp_path)
    with pytest.raises(ValueError, match="expected tiny, plays or a path for --source, got 'hamlet'"):
        corpora.shakespeare("hamlet", Cut(), tmp_path)


def test_tiny_shakespeare_without_a_network_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "TINY_SHAKESPEARE_URL", "http://127.0.0.1:9/input.txt")
    with pytest.raises(ValueError, match=r"got <urlopen error .*; give a local copy with --source FILE, or .* plays"):
        corpora.shakespeare("tiny", Cut(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_each_play_is_one_document(tmp_path):
    corpus = corpora.shakespeare("plays", Cut(docs_per_shard=10), tmp_path)
    assert [len(task) for task in documents(corpus, "val")] == [2]
    assert [len(task) for task in documents(corpus, "train")] == [10, 10, 10, 6]
    read = flat(documents(corpus))
    assert [len(text.encode()) for text in read] == [source["size"] for source in corpus.sources]
