"""How a corpus is cut into tasks: every document in exactly one, and the sizes as asked for."""

import json
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import shared_file
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2wds import corpora, readers
from gpt2wds.corpora import Corpus, Cut
from gpt2wds.readers import BY_SUFFIX


def write_file(path: Path, texts: list[str]) -> Path:
    """A file of the kind its name says, with these documents; a .txt is one text of as many paragraphs."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), path, row_group_size=3)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    else:
        path.write_text("".join(f"{text}\n\n" for text in texts))
    return path


def documents_of(corpus: Corpus, split: str) -> list[list]:
    """For each task of a split its documents."""
    tasks = [task for task in corpus.tasks if task["shard"].startswith(split)]
    assert [task["shard"] for task in tasks] == [f"{split}-{number:05d}" for number in range(len(tasks))]
    return [list(corpora.documents(corpus.sources, task, "text")) for task in tasks]


def joined(lists: Iterable[list]) -> list:
    return [item for part in lists for item in part]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """For files that every example of a property test writes again."""
    return tmp_path_factory.mktemp("corpora")


SUFFIXES = st.sampled_from([".parquet", ".jsonl", ".txt"])
FILES = st.lists(st.tuples(SUFFIXES, st.integers(0, 12)), min_size=1, max_size=5)
COUNT = st.none() | st.integers(1, 15)


def write_files(folder: Path, kinds: list[tuple[str, int]]) -> list[tuple[Path, list[str]]]:
    """Files with the numbers 0, 1, … as their documents, in the corpus's order."""
    files, number = [], 0
    for name, (suffix, count) in enumerate(kinds):
        # Pieces of a .txt end in a blank line. All are longer than the 4 bytes that the tests make a piece of.
        texts = [f"number {n}" for n in range(number, number + count)]
        path = write_file(folder / f"{name}{suffix}", texts)
        files.append((path, [f"{text}\n\n" for text in texts] if suffix == ".txt" else texts))
        number += count
    return files


@settings(deadline=None, max_examples=150)
@given(FILES, st.integers(0, 20), COUNT, COUNT, st.none() | st.integers(1, 80))
def test_each_document_is_in_exactly_one_task(folder, kinds, val_docs, limit, docs_per_shard, bytes_per_shard):
    if limit is not None:
        limit = max(limit, val_docs, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "TEXT_PIECE_BYTES", 4)
        files = write_files(folder, kinds)
        cut = Cut(val_docs, limit, docs_per_shard, bytes_per_shard)
        corpus = corpora.files([str(path) for path, _ in files], cut)
        val, train = documents_of(corpus, "val"), documents_of(corpus, "train")

    # Validation: the first of each file, as many of each as come out even, the earlier giving what is over.
    shares = [val_docs // len(files) + (number < val_docs % len(files)) for number in range(len(files))]
    assert joined(val) == joined(texts[:share] for (_, texts), share in zip(files, shares, strict=True))
    rest = joined(texts[share:] for (_, texts), share in zip(files, shares, strict=True))
    assert joined(train) == rest[: None if limit is None else limit - len(joined(val))]

    # Sizes: parquet and JSON lines never share a shard with another file; a shard that is not its source's last
    # is full.
    for split, tasks in (("val", val), ("train", train)):
        spans = [task["spans"] for task in corpus.tasks if task["shard"].startswith(split)]
        for number, documents in enumerate(tasks):
            sources = {source for source, _, _ in spans[number]}
            assert len(sources) == 1 or all(corpus.sources[s]["reader"] == ".txt" for s in sources)
            following = {source for source, _, _ in spans[number + 1]} if number + 1 < len(tasks) else set()
            kinds_here = {corpus.sources[s]["reader"] for s in sources}
            may_follow = sources & following or kinds_here == {".txt"} == {
                corpus.sources[s]["reader"] for s in following
            }
            if docs_per_shard:
                assert len(documents) <= docs_per_shard
                assert len(documents) == docs_per_shard or not may_follow
            elif bytes_per_shard and kinds_here != {".parquet"}:
                size = sum(count for _, _, count in spans[number])
                assert size >= bytes_per_shard or not may_follow
                assert size - span_bytes(documents[-1], *kinds_here) < bytes_per_shard


def span_bytes(document: str, reader: str) -> int:
    """Bytes of a document's text in its file."""
    return len(document if reader == ".txt" else json.dumps({"text": document}) + "\n")


@pytest.mark.parametrize("suffix", BY_SUFFIX)
def test_validation_never_moves(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(readers, "TEXT_PIECE_BYTES", 4)
    paths = [str(write_file(tmp_path / f"{n}{suffix}", [f"number {n} {i}" for i in range(50)])) for n in range(2)]
    first = joined(documents_of(corpora.files(paths, Cut(val_docs=7)), "val"))
    assert [text.split()[1:3] for text in first] == [["0", str(i)] for i in range(4)] + [
        ["1", str(i)] for i in range(3)
    ]
    for change in ({"limit_docs": 20}, {"limit_docs": 7}, {"docs_per_shard": 3}, {"bytes_per_shard": 100}):
        assert joined(documents_of(corpora.files(paths, Cut(val_docs=7, **change)), "val")) == first


def test_validation_by_default_is_a_hundredth(tmp_path):
    path = str(write_file(tmp_path / "a.jsonl", [str(n) for n in range(500)]))
    val = joined(documents_of(corpora.files([path], Cut()), "val"))
    assert val == [str(n) for n in range(5)]
    # With a limit no more than a tenth of it, from the same place.
    assert joined(documents_of(corpora.files([path], Cut(limit_docs=20)), "val")) == val[:2]


def test_a_limit_below_validation_is_refused(tmp_path):
    path = str(write_file(tmp_path / "a.jsonl", ["a", "b", "c"]))
    with pytest.raises(ValueError, match="--limit-docs: expected at least --val-docs, 3, got 2"):
        corpora.files([path], Cut(val_docs=3, limit_docs=2))


def test_small_texts_share_a_shard(tmp_path):
    paths = [str(write_file(tmp_path / f"{n:02}.txt", [f"number {n}"])) for n in range(20)]
    corpus = corpora.files(paths, Cut(val_docs=1))
    assert [len(task["spans"]) for task in corpus.tasks] == [1, 19]
    corpus = corpora.files(paths, Cut(val_docs=1, docs_per_shard=8))
    assert [len(task["spans"]) for task in corpus.tasks] == [1, 8, 8, 3]


def test_files_are_sorted_bytewise(tmp_path):
    names = ["b.txt", "B.txt", "é.txt", "a.txt", "a-.txt", "a1.txt", "z.jsonl"]
    paths = [str(write_file(tmp_path / name, [name])) for name in names]
    corpus = corpora.files(paths, Cut())
    assert [Path(s["path"]).name for s in corpus.sources] == sorted(names, key=str.encode)


def test_a_file_given_twice_is_refused(tmp_path):
    path = write_file(tmp_path / "a.txt", ["a"])
    link = tmp_path / "b.txt"
    link.symlink_to(path)
    for again in (path, link, tmp_path / ".." / tmp_path.name / "a.txt"):
        with pytest.raises(ValueError, match="are the same file; give it once"):
            corpora.files([str(path), str(again)], Cut())


def test_what_is_no_known_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected \.parquet, \.jsonl, \.txt, got '.*a\.csv'"):
        corpora.files([str(write_file(tmp_path / "a.csv", ["a"]))], Cut())
    with pytest.raises(ValueError, match="expected a file, got '.*', which is missing"):
        corpora.files([str(tmp_path / "b.txt")], Cut())
    with pytest.raises(ValueError, match="expected a file, got '.*', which is no file"):
        corpora.files([str(tmp_path)], Cut())


def test_a_source_that_changed_is_refused(tmp_path):
    path = write_file(tmp_path / "a.jsonl", ["a", "b", "c"])
    corpus = corpora.files([str(path)], Cut(val_docs=1))
    train = corpus.tasks[1]
    assert list(corpora.documents(corpus.sources, train, "text")) == ["b", "c"]
    write_file(path, ["a", "b", "d"])  # same size, later
    with pytest.raises(ValueError, match=r"source .*a\.jsonl: the file changed since the plan was made"):
        list(corpora.documents(corpus.sources, train, "text"))
    path.unlink()
    with pytest.raises(ValueError, match=r"source .*a\.jsonl: the file is gone"):
        list(corpora.documents(corpus.sources, train, "text"))


def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path):
    path = write_file(tmp_path / "a.jsonl", ["a", "b", "c"])
    corpus = corpora.files([str(path)], Cut(val_docs=1))
    documents = corpora.documents(corpus.sources, corpus.tasks[1], "text")
    assert next(documents) == "b"
    write_file(path, ["a", "b", "c", "d"])
    with pytest.raises(ValueError, match="the file changed since the plan was made"):
        list(documents)


def test_the_plays(plays):
    corpus = corpora.shakespeare("plays", Cut(), Path("unused"))
    assert len(corpus.sources) == 38
    texts = joined(documents_of(corpus, "val") + documents_of(corpus, "train"))
    assert [len(part) for part in documents_of(corpus, "val")] == [2]
    assert [text.encode() for text in texts] == [corpora._locate(source).read_bytes() for source in corpus.sources]
    assert not any("/" == source["path"][0] for source in corpus.sources)  # the plan holds on another machine


def test_tiny_shakespeare(tmp_path):
    path = shared_file("tinyshakespeare.txt")
    corpus = corpora.shakespeare(str(path), Cut(), tmp_path)
    val, train = joined(documents_of(corpus, "val")), joined(documents_of(corpus, "train"))
    assert (len(val), len(train)) == (1, 17)
    assert "".join(val + train).encode() == path.read_bytes()
    (tmp_path / "other.txt").write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="expected SHA-256 86c4e6aa"):
        corpora.shakespeare(str(tmp_path / "other.txt"), Cut(), tmp_path)


def test_tiny_shakespeare_without_a_network_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match="give a local copy with --source FILE, or .* --source plays"):
        corpora.shakespeare("tiny", Cut(), tmp_path)
    with pytest.raises(ValueError, match="expected tiny, plays or a path for --source, got 'play'"):
        corpora.shakespeare("play", Cut(), tmp_path)
