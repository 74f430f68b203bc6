"""What is asked for → the sources of a corpus, in order and as they are now."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from making import CHOICES, texts, write_jsonl
from reading import WRITE

from gpt2wds.corpus.corpora import Files, HubDataset, MultipleChoice, record
from gpt2wds.corpus.shakespeare import Plays
from gpt2wds.corpus.sources import Corpus
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


# Multiple choice


def test_only_the_whole_validation_set_is_called_hellaswag(tmp_path):
    path = shutil.copy(CHOICES, tmp_path / "hellaswag_val.jsonl")
    for limit, count in ((None, 36), (3, 3), (100, 36)):
        corpus = MultipleChoice(str(path), limit).resolve(Folder(tmp_path))
        assert (corpus.name.name, corpus.val_docs) == ("hellaswag_val", count)
    assert MultipleChoice("sample").resolve(Folder(tmp_path)).name.name == "sample"
