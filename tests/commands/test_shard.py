"""gpt2wds-shard: what its options mean, what it says, and that a mistake is one line."""

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making import CHOICES, texts, texts_of, tree, write_jsonl
from shard_command import COMMAND, fails, run

from gpt2wds.dataset.directory import Dataset

OPTIONS = ["--val-docs", "2", "--docs-per-shard", "4"]


def test_a_finished_dataset_is_left_alone(small, source):
    before = {path: path.stat() for path in small.rglob("*")}
    command = ["files", source, "--val-docs", "2", "--docs-per-shard", "4", "--out", small]
    code, out, _ = run(*command)
    assert code == 0
    assert "already there" in out
    assert {path: path.stat() for path in small.rglob("*")} == before


def test_the_same_command_makes_only_what_is_missing(small, source):
    whole = tree(small)
    (small / "train-00001.tar.zst").unlink()
    code, out, err = run("files", source, "--val-docs", "2", "--docs-per-shard", "4", "--out", small)
    assert code == 0
    assert "going on, 3 of 4 shards are there" in err
    assert "train 3 shards, 10 documents" in out
    assert tree(small) == whole


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (["--val-docs", "3"], "its plan has --val-docs = 2, this command 3"),
        (["--docs-per-shard", "5"], "its plan has --docs-per-shard = 4, this command 5"),
        (["--limit-docs", "7"], "its plan was made without --limit-docs, this command has 7"),
        (["--text-column", "body"], "its plan has --text-column = 'text', this command 'body'"),
    ],
)
def test_other_parameters_are_refused(small, source, options, difference):
    whole = tree(small)
    assert difference in fails("files", source, "--out", small, *OPTIONS, *options)
    assert tree(small) == whole


def test_an_option_that_is_left_out_is_refused(small, source):
    whole = tree(small)
    said = fails("files", source, "--out", small, "--val-docs", "2")
    assert "its plan has --docs-per-shard = 4, which this command leaves out; give it again, or choose" in said
    assert tree(small) == whole


def test_another_corpus_is_refused(small, source, tmp_path):
    other = write_jsonl(tmp_path / "other.jsonl", texts(12))
    assert "its plan has paths = " in fails("files", source, other, "--out", small, *OPTIONS)
    message = fails("shakespeare", "--source", "plays", "--out", small)
    assert "its plan has corpus = 'files', this command 'shakespeare'" in message


def test_progress_says_documents_tokens_shards_and_the_time_left(tmp_path, monkeypatch):
    monkeypatch.setattr("gpt2wds.commands.output.LINE_SECONDS", 0)
    source = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": texts(40)}), source)
    _, _, err = run("files", source, "--val-docs", 0, "--docs-per-shard", 10, "--workers", 1, "--out", tmp_path / "out")
    lines = err.splitlines()
    time_left = r"\d:\d\d:\d\d left"
    rates = r"[\d,.]+/s, " + time_left + r", [\d,]+ tokens at [\d,]+/s"
    half = rf"sharding files: 20 of 40 documents, {rates}, 2 of 4 shards"
    assert any(re.fullmatch(half, line) for line in lines), err
    assert re.fullmatch(r"sharding files: 40 of 40 documents, .*, 4 of 4 shards", lines[-1])
    # Where documents are not counted beforehand, by shards.
    source = write_jsonl(tmp_path / "a.jsonl", texts(40))
    cut = ["--val-docs", 0, "--docs-per-shard", 10, "--workers", 1]
    _, _, err = run("files", source, *cut, "--out", tmp_path / "lines")
    found = [line for line in err.splitlines() if re.fullmatch(rf"sharding files: 20 documents, .*, {time_left}", line)]
    assert any(", 2 of 4 shards, " in line for line in found), err


def test_every_odd_document_has_its_place_or_its_reason(tmp_path):
    odd = ["plain", None, 7, "", "a \ud800 b", "<|endoftext|> inside", "\x00 zero", "last"]
    source = write_jsonl(tmp_path / "source.jsonl", odd)
    out = tmp_path / "out"
    code, said, _ = run("files", source, "--val-docs", 0, "--workers", 1, "--out", out)
    assert code == 0
    assert "1 document skipped: no text (train-00000 #1)" in said
    assert "1 document skipped: text is a int, no string (train-00000 #2)" in said
    assert "1 document skipped: empty text (train-00000 #3)" in said
    dataset = Dataset(out)
    tokens = [int(t) for part in dataset.iterate_tokens("train", 0) for t in part]
    assert tokens.count(50256) == 5  # boundaries alone: the marker inside a text is plain text
    lines = [json.loads(line)["text"] for line in run("cat", out, "--json")[1].splitlines()]
    assert lines == ["plain", "a \ufffd b", "<|endoftext|> inside", "\x00 zero", "last"]


def test_many_small_text_files_share_a_shard_and_a_pattern_names_them(tmp_path):
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    for n in range(300):
        (folder / ("deep" if n % 2 else ".") / f"{n:03d}.txt").write_text(f"Text {n}.\n")
    out = tmp_path / "out"
    code, said, _ = run("files", folder / "**" / "*.txt", "--val-docs", 5, "--workers", 2, "--out", out)
    assert code == 0 and "train 1 shard, 295 documents" in said
    assert [len(s.spans) for s in Dataset(out).shards("train")] == [295]
    command = ["files", folder / "**" / "*.txt", "--val-docs", 5, "--workers", 2, "--out", out]
    assert "already there" in run(*command)[1]
    # What has come since is not passed over in silence.
    (folder / "new.txt").write_text("new")
    code, _, said = run(*command)
    assert code == 1 and "the paths now mean 301 files, the plan has 300 (" in said and "new.txt' is new)" in said
    (folder / "002.txt").rename(tmp_path / "kept")
    assert "new.txt' is new, " in (said := run(*command)[2]) and "002.txt' is gone)" in said
    (tmp_path / "kept").rename(folder / "002.txt")
    (folder / "new.txt").unlink()
    (folder / "000.txt").write_text("Another text.\n")
    code, _, said = run(*command)
    assert code == 1 and "000.txt: the file changed since the plan was made, expected 8 bytes, got 14" in said
    # A finished dataset does not need its files any more.
    shutil.rmtree(folder)
    assert "already there" in run(*command)[1]


def test_the_multiple_choice_sample(tmp_path, choices):
    out = tmp_path / "out"
    code, said, _ = run("hellaswag", "--source", "sample", "--out", out)
    assert code == 0
    assert "sample: val 1 shard, 36 examples" in said
    assert Dataset(out).id == choices.id
    assert run("verify", out)[0] == 0
    examples = [json.loads(line) for line in run("cat", out, "--json")[1].splitlines()]
    for line, example in zip(CHOICES.read_text().splitlines(), examples, strict=True):
        assert example.pop("split") == "val"
        assert example.items() <= json.loads(line).items()
    readable = run("cat", out, "--docs", "1")[1].splitlines()
    assert [line[:4] for line in readable[1:]] == [f"  {'*' if n == examples[0]['label'] else ' '} " for n in range(4)]


def test_bad_input_is_one_line_and_no_traceback(tmp_path, small):
    empty, blank = tmp_path / "empty.txt", tmp_path / "blank.jsonl"
    empty.touch()
    blank.write_text("\n\n")
    no_text = write_jsonl(tmp_path / "no_text.jsonl", ["", None, 7])
    one = write_jsonl(tmp_path / "one.jsonl", ["only one"])
    number = itertools.count()

    def files(*arguments: str | Path) -> str:
        return fails("files", *arguments, "--out", tmp_path / f"out{next(number)}")

    assert "expected at least one document, got none" in files(empty)
    assert "expected at least one document, got none" in files(blank)
    found = files(no_text, "--val-docs", "1", "--workers", "1")
    assert "no_text.jsonl: expected at least one document for train, got none (empty text, no text, " in found
    assert "all of its documents went to validation" in files(one, "--val-docs", "1")
    assert "which is missing" in files(tmp_path / "nowhere.txt")
    assert "expected .parquet, .jsonl, .ndjson, .json, .txt, " in files(tmp_path / "small" / "train.blocks.npy")
    assert "are the same file" in files(one, one)
    assert "expected a column 'body', got text" in files(one, "--text-column", "body")
    assert "--limit-docs: expected at least the 2 documents of validation, got 1" in files(
        one, "--val-docs", "2", "--limit-docs", "1"
    )
    for command in ("info", "verify", "cat"):
        assert "expected a finished dataset" in fails(command, tmp_path / "nowhere")
    (small / "train-00000.tar.zst").unlink()
    assert "train-00000.tar.zst block 0: the file is missing" in fails("cat", small)


def test_a_source_that_is_no_hellaswag_is_one_line_and_no_traceback(tmp_path, source):
    out = tmp_path / "out"
    assert "source.jsonl line 1: expected 'ind' to be int" in fails("hellaswag", "--source", source, "--out", out)
    assert "which is not a file" in fails("hellaswag", "--source", tmp_path / "nowhere.jsonl", "--out", out)
    assert not (out / "plan.json").exists()


def test_an_error_of_the_installed_command(tmp_path):
    result = subprocess.run([COMMAND, "verify", tmp_path], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: dataset {tmp_path}: expected a finished dataset")
    assert result.stderr.count("\n") == 1
    assert subprocess.run([COMMAND, "verify"], capture_output=True).returncode == 2


def test_a_directory_means_its_files_and_the_others_are_named(tmp_path, caplog):
    corpus = tmp_path / "corpus"
    (corpus / "deep" / ".hidden").mkdir(parents=True)
    write_jsonl(corpus / "a.JSONL", ["first", "second"])
    (corpus / "deep" / "b.TXT").write_text("third")
    for name in ("deep/.hidden/c.txt", ".d.txt", "notes.md"):
        (corpus / name).write_text("left out")
    assert run("files", corpus, "--val-docs", 0, "--out", tmp_path / "out")[0] == 0
    assert texts_of(tmp_path / "out") == ["first", "second", "third"]
    assert [record.message for record in caplog.records] == [f"{corpus}: left out, of other formats: 1 ('notes.md')"]
    (tmp_path / "nothing").mkdir()
    assert "expected a directory with .parquet" in fails("files", tmp_path / "nothing", "--out", tmp_path / "none")


def test_a_slash_at_a_directorys_end_makes_no_other_request(tmp_path):
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    corpus.mkdir()
    write_jsonl(corpus / "a.jsonl", ["first", "second"])
    options = ["--val-docs", 0, "--workers", 1, "--out", out]
    for path in (f"{corpus}/", corpus, f"{corpus}/"):
        assert run("files", path, *options)[0] == 0
    plan = json.loads((out / "plan.json").read_text())
    assert plan["request"]["paths"] == [f"{corpus}/"]  # as it was asked
    assert "its plan has paths" in fails("files", f"{corpus}x", *options)


def test_the_dataset_is_no_source_of_itself(tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    write_jsonl(corpus / "a.jsonl", ["first", "second"])
    for _ in range(2):  # its plan and manifest are JSON too
        assert run("files", corpus, "--val-docs", 0, "--out", corpus / "data")[0] == 0
    assert texts_of(corpus / "data") == ["first", "second"]
    assert "outside of the dataset's own directory, got" in fails("files", corpus, "--out", corpus)


def test_nothing_but_copies_of_validation_is_no_training_data(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", ["same"] * 5)
    found = fails("files", source, "--val-docs", 1, "--out", tmp_path / "out")
    assert "a.jsonl: expected at least one document for train, got none (copy of a validation document)" in found


def test_a_column_of_no_text_is_refused_before_anything_is_planned(tmp_path):
    source = tmp_path / "a.jsonl"
    source.write_text(json.dumps({"text": "x", "meta": {"a": 1}}) + "\n")
    found = fails("files", source, "--text-column", "meta", "--out", tmp_path / "out")
    assert "a.jsonl: expected text in column 'meta', got dict; choose one with --text-column" in found
    assert not (tmp_path / "out" / "plan.json").exists()


def test_a_slice_counts_its_own_shards(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", texts(40))
    command = ["files", source, "--val-docs", 0, "--docs-per-shard", 4, "--workers", 1, "--out", tmp_path / "out"]
    _, _, err = run(*command, "--task-slice", "1/4")
    assert "going on" not in err and err.splitlines()[-1].endswith("3 of 3 shards")
    _, _, err = run(*command, "--task-slice", "0/2")
    assert "going on" not in err and err.splitlines()[-1].endswith("5 of 5 shards")
    _, _, err = run(*command)
    assert "going on, 8 of 10 shards are there" in err
