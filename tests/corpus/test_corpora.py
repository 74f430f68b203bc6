"""What is asked for → the sources of a corpus, in order and as they are now."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from making import CHOICES, shard_plays, shared_file, texts, write_jsonl
from reading import WRITE, read_run

from gpt2wds.corpus import corpora
from gpt2wds.corpus import text as text_module
from gpt2wds.corpus.corpora import Corpus, Files, HubDataset, MultipleChoice, Plays, Shakespeare, record
from gpt2wds.errors import Error
from gpt2wds.folder import Folder

OUT = Folder("/nowhere")  # the dataset's own directory


def files(*paths: Path | str) -> Corpus:
    return Files(tuple(map(str, paths))).resolve(OUT)


def names(corpus: Corpus) -> list[str]:
    return [Path(source.name).name for source in corpus.sources]


def refused(*paths: Path) -> str:
    with pytest.raises(Error) as caught:
        files(*paths)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Requests


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (
            lambda: Files("./"),
            "paths: expected a tuple of paths, URLs or patterns, got './'; write it as (path,), with",
        ),
        (lambda: Files("x.jsonl"), "got 'x.jsonl'; write it as (path,), with a comma"),
        (lambda: Files(Path("x.jsonl")), "write it as (path,), with a comma"),
        (lambda: Files(None), "paths: expected a tuple of paths, URLs or patterns, got None"),
        (lambda: Files(()), "paths: expected at least one path, URL or pattern, got none"),
        (lambda: Files(("a.jsonl", 5)), "paths: expected a path or a URL, got 5"),
        (lambda: Files((b"a.jsonl",)), "paths: expected a path or a URL, got b'a.jsonl'"),
        (lambda: Files(("a.jsonl",), text_column=None), "text_column: expected a text, got None"),
        (lambda: Files(("a.jsonl",), max_document_bytes=None), "max_document_bytes: expected a whole number, got None"),
        (lambda: HubDataset(None), "repo: expected a text, got None"),
        (lambda: HubDataset("a/b", revision=1), "revision: expected a text, got 1"),
        (lambda: HubDataset("a/b", split=None), "split: expected a text, got None"),
        (
            lambda: HubDataset("a/b", max_document_bytes=1e6),
            "max_document_bytes: expected a whole number, got 1000000.0",
        ),
        (lambda: Plays("tiny"), "source: expected 'plays', got 'tiny'; of other texts make Files"),
        (lambda: MultipleChoice(None), "source: expected a path or a URL, got None"),
        (lambda: MultipleChoice("sample", 0), "limit_docs: expected a whole number, 1 or more, got 0"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_where_it_is_made(ask: Callable[[], Any], said: str) -> None:
    with pytest.raises(Error) as caught:
        ask()
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_paths_of_pathlib_are_asked_for_as_texts() -> None:
    asked = Files([Path("b.jsonl"), "a/*.txt"])
    assert asked == Files(("a/*.txt", "b.jsonl"))
    assert record(asked)["paths"] == ["a/*.txt", "b.jsonl"]
    assert record(MultipleChoice(Path("val.jsonl")))["source"] == "val.jsonl"


# Files


def test_the_order_of_the_arguments_does_not_count(tmp_path):
    paths = [WRITE[kind](tmp_path / f"{n}.{kind}", 3) for n, kind in enumerate(["txt", "jsonl", "parquet"])]
    assert files(*paths) == files(*paths[::-1])


def test_names_are_sorted_bytewise(tmp_path):
    for name in ("a.jsonl", "B.jsonl", "é.jsonl", "z.jsonl", "a-.jsonl"):
        write_jsonl(tmp_path / name, texts(2))
    assert names(files(tmp_path / "*.jsonl")) == ["B.jsonl", "a-.jsonl", "a.jsonl", "z.jsonl", "é.jsonl"]


def test_a_file_given_twice_is_refused(tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "a.jsonl", ["one", "two"])
    (tmp_path / "link.jsonl").symlink_to(path)
    (tmp_path / "hard.jsonl").hardlink_to(path)
    monkeypatch.chdir(tmp_path)
    others = [tmp_path / "link.jsonl", tmp_path / "hard.jsonl", tmp_path / ".." / tmp_path.name / "a.jsonl"]
    for again in (path, Path("a.jsonl"), *others):
        assert "are the same file; give it once" in refused(path, again)


def test_what_is_no_readable_file_is_refused(tmp_path):
    good = write_jsonl(tmp_path / "a.jsonl", ["one", "two"])
    (tmp_path / "b.csv").write_text("text\none\n")
    (tmp_path / "d.jsonl").write_text("no json\n")
    assert refused(good, tmp_path / "b.csv").startswith("files: expected .parquet, .jsonl, .ndjson, .json, .txt, .jso")
    assert "b.csv" in refused(good, tmp_path / "b.csv")
    assert "d.jsonl: expected one JSON object per line, got b'no json' in its first; mend" in refused(
        good, tmp_path / "d.jsonl"
    )
    (tmp_path / "e.jsonl").write_bytes(b'{"text": "caf\xe9"}\n')
    assert "e.jsonl: expected UTF-8, got " in refused(good, tmp_path / "e.jsonl")


def test_a_plan_is_held_to_the_files_that_the_paths_mean_now(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        write_jsonl(tmp_path / name, texts(2))
    request = Files((str(tmp_path / "*.jsonl"),))
    sources = request.resolve(OUT).sources
    request.refuse_changes(sources, is_finished=False, folder=OUT)
    write_jsonl(tmp_path / "c.jsonl", texts(2))
    with pytest.raises(Error, match=r"the paths now mean 3 files, the plan has 2 \('.*c\.jsonl' is new\)"):
        request.refuse_changes(sources, is_finished=True, folder=OUT)
    (tmp_path / "c.jsonl").unlink()
    (tmp_path / "b.jsonl").unlink()
    request.refuse_changes(sources, is_finished=True, folder=OUT)  # a finished dataset does not miss it
    with pytest.raises(Error, match=r"now mean 1 file, the plan has 2 \('.*\.jsonl' is gone\); give the files of the"):
        request.refuse_changes(sources, is_finished=False, folder=OUT)
    write_jsonl(tmp_path / "b.jsonl", texts(3))
    with pytest.raises(Error, match=r"b\.jsonl: the file changed since the plan was made, expected \d+ bytes, got"):
        request.refuse_changes(sources, is_finished=True, folder=OUT)


# Shakespeare


def test_tiny_shakespeare_has_documents_and_a_validation_split(tmp_path):
    path = shared_file("tinyshakespeare.txt")
    corpus = Shakespeare(str(path)).resolve(Folder(tmp_path))
    (source,) = corpus.sources
    documents = read_run(source.open())
    assert (len(documents), corpus.val_docs) == (17, 1)
    assert "".join(documents).encode() == path.read_bytes()
    for text in documents[:-1]:
        assert text.endswith("\n\n") and text.encode().find(b"\n\n", text_module.TEXT_PIECE_BYTES) == len(text) - 2
    assert list(tmp_path.iterdir()) == []


def test_another_text_is_not_taken_for_tiny_shakespeare(tmp_path):
    path = tmp_path / "tinyshakespeare.txt"
    path.write_text("To be")
    # Where the download is kept, too.
    for source in (str(path), "tiny"):
        with pytest.raises(Error, match="expected SHA-256 86c4e6aa.*, got [0-9a-f]{64} for .*tinyshakespeare.txt"):
            Shakespeare(source).resolve(Folder(tmp_path))
    with pytest.raises(Error, match="expected tiny, plays or a path for source, got 'hamlet'"):
        Shakespeare("hamlet").resolve(Folder(tmp_path))


def test_tiny_shakespeare_without_a_network_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "TINY_SHAKESPEARE_URL", "http://127.0.0.1:9/input.txt")
    with pytest.raises(Error, match=r"got <urlopen error .*; give a local copy with --source FILE, or .* plays"):
        Shakespeare("tiny").resolve(Folder(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_each_play_is_one_document(tmp_path):
    corpus = Plays().resolve(Folder(tmp_path))
    documents = [read_run(source.open()) for source in corpus.sources]
    assert [[len(text.encode()) for text in texts] for texts in documents] == [
        [source.location.size] for source in corpus.sources
    ]
    dataset = shard_plays(tmp_path / "out", docs_per_shard=10)
    assert [[entry.documents for entry in dataset.shards(split)] for split in ("val", "train")] == [
        [2],
        [10, 10, 10, 6],
    ]


# Multiple choice


def test_only_the_whole_validation_set_is_called_hellaswag(tmp_path):
    path = shutil.copy(CHOICES, tmp_path / "hellaswag_val.jsonl")
    for limit, count in ((None, 36), (3, 3), (100, 36)):
        corpus = MultipleChoice(str(path), limit).resolve(Folder(tmp_path))
        assert (corpus.name.name, corpus.val_docs) == ("hellaswag_val", count)
    assert MultipleChoice("sample").resolve(Folder(tmp_path)).name.name == "sample"
