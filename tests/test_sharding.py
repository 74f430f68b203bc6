"""From a plan to a finished dataset: the same bytes however it comes about, and the commands of gpt2wds-shard."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import shard

from gpt2wds import corpora, sharding, shards
from gpt2wds.commands.shard import main
from gpt2wds.corpora import Cut
from gpt2wds.dataset import Dataset
from gpt2wds.sharding import COPY_OF_VALIDATION
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


def plan_files(out: Path, *paths: Path, **cut: int) -> dict:
    """The plan that `gpt2wds-shard files` makes."""
    names = [str(path) for path in paths]
    request = {"corpus": "files", "paths": names, "text_column": "text", **cut}
    return sharding.plan_corpus(out, request, lambda: corpora.files(names, Cut(**cut)), Cut(**cut))


@pytest.fixture
def source(tmp_path) -> Path:
    return write_jsonl(tmp_path / "source.jsonl", texts(0, 12))


@pytest.fixture
def small(source, tmp_path) -> Path:
    """A dataset of one validation shard and three training shards."""
    out = tmp_path / "small"
    shard(out, plan_files(out, source, val_docs=2, docs_per_shard=4))
    return out


# The same bytes, however


@pytest.mark.parametrize("seed", range(3))
def test_order_does_not_matter(source, small, tmp_path, seed):
    out = tmp_path / "out"
    plan = plan_files(out, source, val_docs=2, docs_per_shard=4)
    tasks = random.Random(seed).sample(plan["tasks"], len(plan["tasks"]))
    assert len(tasks) == 4
    for task in tasks:
        sharding.run_task(out, plan, task, lambda documents, tokens: None)
    sharding.finish(out, plan)
    assert tree(out) == tree(small)


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def at_fsync(number: int, action) -> list:
    """Run `action` once, in place of the number-th fsync from now on; a list that is not empty once it ran."""
    patch, real, calls, ran = pytest.MonkeyPatch(), os.fsync, [], []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == number + 1:
            patch.undo()
            ran.append(action)
            action()
        real(descriptor)

    patch.setattr(os, "fsync", fsync)
    return ran


def test_a_kill_at_any_fsync_changes_nothing(source, small, tmp_path):
    for number in range(100):
        out = tmp_path / f"out{number}"

        def kill():
            raise Killed

        ran = at_fsync(number, kill)
        with pytest.raises(Killed) if number < 20 else pytest.MonkeyPatch.context():
            shard(out, plan_files(out, source, val_docs=2, docs_per_shard=4))
        if not ran:
            break
        dataset = shard(out, plan_files(out, source, val_docs=2, docs_per_shard=4))
        assert tree(out) == tree(small)
    assert number > 20


def test_another_process_that_overtakes_at_any_fsync_changes_nothing(source, small, tmp_path):
    """The other runs from start to finish, and so removes our temporary files."""
    for number in range(100):
        out = tmp_path / f"out{number}"
        ran = at_fsync(number, lambda: shard(out, plan_files(out, source, val_docs=2, docs_per_shard=4)))
        shard(out, plan_files(out, source, val_docs=2, docs_per_shard=4))
        assert tree(out) == tree(small)
        if not ran:
            break
    assert number > 20
