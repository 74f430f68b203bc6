"""From a plan to a finished dataset: the same bytes however it comes about."""

import dataclasses
import itertools
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from making import plan_files, shard_files, shard_small, texts, tree, write_jsonl
from reading import WRITE

from gpt2wds.corpus import receipts as receipts_module
from gpt2wds.corpus import sharding
from gpt2wds.corpus.corpora import Files
from gpt2wds.corpus.executors import Processes
from gpt2wds.corpus.plan import Task, read_plan
from gpt2wds.corpus.ray_executor import OnRay
from gpt2wds.corpus.sharding import Silent, make_dataset, run_missing
from gpt2wds.corpus.writing import TaskRunner
from gpt2wds.errors import Error
from gpt2wds.files import temporary_name
from gpt2wds.folder import Folder
from gpt2wds.tokenizer import load_tokenizer

# The same bytes, however


@pytest.mark.parametrize("seed", range(3))
def test_order_does_not_matter(source, small, tmp_path, seed):
    out = tmp_path / "out"
    plan = plan_files(out, source, val_docs=2, docs_per_shard=4)
    tasks = random.Random(seed).sample(plan.tasks, len(plan.tasks))
    assert len(tasks) == 4
    for task in tasks:
        TaskRunner(Folder(out), plan, None)(task, lambda documents, tokens: None)
    sharding.finish(Folder(out), plan)
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
        shard_small(tmp_path / "counted", source)
    return next(counter)


def kill() -> None:
    raise Killed


def test_a_kill_at_any_fsync_changes_nothing(source, small, tmp_path, fsyncs):
    assert fsyncs > 20
    for number in range(fsyncs):
        out = tmp_path / f"out{number}"
        with pytest.raises(Killed), at_fsync(number, kill):
            shard_small(out, source)
        shard_small(out, source)
        assert tree(out) == tree(small)


def test_another_process_that_overtakes_at_any_fsync_changes_nothing(source, small, tmp_path, fsyncs):
    """The other runs from start to finish, and so removes our temporary files."""
    for number in range(fsyncs):
        out = tmp_path / f"out{number}"
        with at_fsync(number, partial(shard_small, out, source)):
            shard_small(out, source)
        assert tree(out) == tree(small)


def test_another_process_that_finishes_while_receipts_are_looked_at_stays_finished(
    source, small, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    plan = plan_files(out, source, val_docs=2, docs_per_shard=4)
    real, calls = receipts_module.receipt_name, itertools.count()

    def receipt_name(*arguments):
        if next(calls) == 1:
            shard_small(out, source)
        return real(*arguments)

    monkeypatch.setattr(receipts_module, "receipt_name", receipt_name)
    assert len(sharding.missing_tasks(Folder(out), plan)) == 1
    assert tree(out) == tree(small)


# Going on


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_lost_shard_is_made_again(small, source, damage):
    whole = tree(small)
    path = small / "train-00001.tar.zst"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    kept = (small / "train-00000.tar.zst").stat()
    shard_small(small, source)
    assert tree(small) == whole
    assert (small / "train-00000.tar.zst").stat() == kept


@pytest.mark.parametrize("name", ["tiktoken", "ids_sha256", "vocabulary_sha256"])
def test_another_tokenizer_is_refused(small, source, name):
    plan = read_plan(Folder(small))
    other = dataclasses.replace(plan, tokenizer={**plan.tokenizer, name: "0.7.0"})
    (small / "plan.json").write_text(other.to_json())
    here = load_tokenizer().identity()[name]
    with pytest.raises(
        Error, match=f"its plan was made with {name} = 0.7.0, here it is {here}; .*pip install tiktoken=="
    ):
        shard_small(small, source)


def test_a_changed_source_is_refused(small, source):
    (small / "train-00001.tar.zst").unlink()
    source.write_text(source.read_text().replace("two", "owt"))
    with pytest.raises(ValueError, match=rf"source {source}: the file changed since the plan was made"):
        shard_small(small, source)


def test_a_dataset_without_its_plan_is_not_written_over(small, source):
    (small / "plan.json").unlink()
    with pytest.raises(Error, match=r"got a dataset without its plan\.json"):
        shard_small(small, source)


def test_shards_of_a_plan_that_is_gone_are_not_taken_for_anothers(small, source):
    for name in ("plan.json", "manifest.json"):
        (small / name).unlink()
    before = tree(small)
    with pytest.raises(Error, match=r"got shards without their plan\.json"):
        shard_files(small, source, val_docs=2, docs_per_shard=3)
    assert tree(small) == before


def test_a_dataset_without_validation(source, tmp_path):
    out = tmp_path / "out"
    dataset = shard_files(out, source, val_docs=0)
    assert (dataset.shards("val"), len(dataset.blocks["val"]), dataset.total("train", "documents")) == ((), 0, 12)


def test_the_manifest_says_nothing_of_clock_host_or_place(small, source, tmp_path):
    manifest = (small / "manifest.json").read_text()
    assert str(small) not in manifest
    again = tmp_path / "again"
    shard_small(again, source)
    assert (again / "manifest.json").read_text() == manifest


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_corpus_is_refused(tmp_path, content):
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "b.jsonl").write_text(content)
    with pytest.raises(ValueError, match=r"a\.txt, .*b\.jsonl: expected at least one document, got none"):
        plan_files(tmp_path / "out", tmp_path / "a.txt", tmp_path / "b.jsonl")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("end", ["", "\n \n"])
@pytest.mark.parametrize("cut", [{"val_docs": 3}, {"val_docs": 9}, {"val_docs": 2, "limit_docs": 2}])
def test_a_corpus_that_is_all_validation_is_refused(tmp_path, cut, end):
    path = write_jsonl(tmp_path / "a.jsonl", texts(3))
    path.write_text(path.read_text() + end)
    with pytest.raises(ValueError, match="all of its documents went to validation.*lower val_docs"):
        plan_files(tmp_path / "out", path, **cut)


def test_tasks_that_begin_in_one_compressed_file_go_to_one_process_in_order(tmp_path):
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.gz"):
        WRITE[name.rpartition(".")[2]](tmp_path / name, 10)
    paths = [tmp_path / name for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.gz")]
    plan = plan_files(tmp_path / "out", *paths, val_docs=0, docs_per_shard=4)
    # Eight tasks: 0 to 2 begin in a, 2 goes on in b; 3 and 4 begin in b; 5 to 7 in c.
    begins = [task.spans[0].source for task in plan.tasks]
    assert begins == [0, 0, 0, 1, 1, 2, 2, 2]
    names = [[task.number for task in chain] for chain in sharding.chains(plan, plan.tasks)]
    assert names == [[0], [1], [2], [3, 4], [5, 6, 7]]
    rest = [task for task in plan.tasks if task.number not in (0, 4)]
    assert [[task.number for task in chain] for chain in sharding.chains(plan, rest)] == [[1], [2], [3], [5, 6, 7]]
    empty = Task("train", 0, ())
    assert sharding.chains(plan, [empty]) == [[empty]]


def test_a_single_task_of_validation_starts_no_process_of_its_own() -> None:
    tasks = [Task("val", 0, ()), Task("train", 0, ()), Task("train", 1, ())]
    plan = SimpleNamespace(sources=())
    assert sharding.chains(plan, tasks) == [tasks[:2], tasks[2:]]
    assert sharding.chains(plan, tasks[:1]) == [tasks[:1]]
    more = [Task("val", 1, ()), *tasks]
    assert sharding.chains(plan, more) == [[task] for task in more]


def test_half_shards_of_killed_processes_go_before_the_dataset_is_finished(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan = plan_files(out, source, val_docs=2, docs_per_shard=4)
    ended = subprocess.Popen(["true"])
    ended.wait()
    for place in (out, out / "receipts"):
        place.mkdir(exist_ok=True)
        left = temporary_name(place / "a")
        left.with_name(left.name.replace(f".{os.getpid()}.", f".{ended.pid}.")).write_text("half")
    run_missing(Folder(out), plan, Processes(1), task_slice=(0, 2))
    assert [path for path in out.rglob("*.tmp")] == []


def test_arguments_that_cannot_be_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    out, asked = tmp_path / "out", Files((str(write_jsonl(tmp_path / "a.jsonl", texts(4))),))
    for arguments, said in (
        ((out, "a.jsonl"), "request: expected what to make the dataset of, Files.*, got 'a.jsonl'"),
        ((out, Files), "request: expected .*, got <class"),
        ((out, asked, 5), "cut: expected a Cut, such as .*, got 5"),
        ((out, asked, None, 0), "workers: expected a whole number, 1 or more, got 0"),
        ((out, asked, None, -1), "workers: expected a whole number, 1 or more, got -1"),
        ((None, asked), "expected a directory or a URL, got None"),
    ):
        with pytest.raises(Error, match=f"^{said}"):
            make_dataset(*arguments)
    with pytest.raises(Error, match="^workers: expected None beside an executor, .* got both; leave one out"):
        make_dataset(out, asked, workers=2, executor=Processes(2))
    with pytest.raises(Error, match="^executor: expected OnRay.* or None, got 'ray'"):
        make_dataset(out, asked, executor="ray")
    for progress in (3, Silent):
        with pytest.raises(Error, match=r"^progress: expected an object with start\(\) and report\(\), or None, got "):
            make_dataset(out, asked, progress=progress)
    with pytest.raises(Error, match="^trust_times: expected True or False, got 'x'"):
        make_dataset(out, asked, trust_times="x")
    with pytest.raises(Error, match="^at_once: expected a whole number, 1 or more, got 0"):
        OnRay(at_once=0)
    with pytest.raises(Error, match="^address: expected a text, got 6379"):
        OnRay(6379)
    assert not out.exists()
