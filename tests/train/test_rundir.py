"""What a run leaves behind."""

import math
from pathlib import Path

import numpy as np
import pytest
from runs import finish, start, wait_for

from gpt2wds.dataset.directory import Dataset
from gpt2wds.errors import Error
from gpt2wds.train.rundir import RunDirectory


def test_what_was_not_measured_and_what_is_not_a_number_are_different_words(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.append({"step": 1, "train_loss": math.nan, "val_loss": math.inf})
    assert run.log.read_text() == "1 -nan inf nan\n"
    assert run.read_metrics() == [{"step": 1, "train_loss": None, "val_loss": None}]
    assert np.isnan(np.loadtxt(run.log)[[1, 3]]).all()


def test_off_the_main_rank_nothing_is_said_or_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for is_main in (False, True):
        run = RunDirectory(tmp_path / str(is_main), is_main=is_main)
        run.say("before")
        run.claim("[run]\n")
        run.say("after")
        run.write_facts({"a": 1})
        run.rewind(-1)
        run.append({"step": 0})
    assert capsys.readouterr().out == "before\nafter\n"
    assert not (tmp_path / "False").exists()
    assert (tmp_path / "True" / "gpt.log").read_text() == "before\nafter\n"
    assert (tmp_path / "True" / "log.txt").read_text().endswith("0 nan nan nan\n")


def test_no_name_speaks_to_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDirectory(tmp_path)
    run.claim("")
    run.say("data: a\x1b[2J\nb: files")
    assert capsys.readouterr().out == run.printed.read_text() == "data: a\\x1b[2J\\nb: files\n"


@pytest.mark.parametrize("name", ["log.txt", "metrics.jsonl"])
@pytest.mark.parametrize("damage", [b"\xff\n", b"x\n", b"\n", b"[]\n", b'{"step": "1"}\n', b"[" * 100_000 + b"\n"])
def test_a_damaged_row_is_named_and_nothing_is_lost(tmp_path: Path, name: str, damage: bytes) -> None:
    run = RunDirectory(tmp_path)
    for step in range(3):
        run.append({"step": step})
    path = tmp_path / name
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], damage, *lines[1:]]))
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(
        Error, match=rf"{name} line 2: expected a row of one step, got b.*; restore the file, or delete"
    ):
        run.rewind(1)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
    path.write_bytes(b"".join(lines) + b'{"step": 3, "cut by a k')
    run.rewind(1)
    assert [row["step"] for row in run.read_metrics()] == [0, 1]


@pytest.mark.parametrize("damage", [b'{"a": \xff}', b"[]", b"null", b"[" * 100_000])
def test_damaged_facts_are_named(tmp_path: Path, damage: bytes) -> None:
    run = RunDirectory(tmp_path)
    run.facts_path.write_bytes(damage)
    with pytest.raises(Error, match=r"run\.json: expected JSON \(.*\); remove it, training writes it again"):
        run.read_facts()


def test_a_run_directory_that_vanishes_is_not_made_anew(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(Error, match=r"run: the run directory is gone, removed or moved"), run.held():
        run.claim("[run]\n")
        run.append({"step": 0})
        run.path.rename(tmp_path / "moved")
        for act in (run.check, lambda: run.append({"step": 1}), lambda: run.say("x")):
            with pytest.raises(Error, match="the run directory is gone"):
                act()
        run.path.mkdir()
        run.check()  # a new one has no config.toml
    assert not (tmp_path / "run").exists()  # empty, it went when the run ended


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["checkpoint.every_steps=3", "checkpoint.on_error=continue"])
def test_a_run_whose_directory_vanishes_ends_with_one_line(plays: Dataset, tmp_path: Path, setting: str) -> None:
    """At its next save or row; it went on, in a new directory without config.toml, and ended "finished"."""
    run = tmp_path / "run"
    process = start(run, plays, "train.max_steps=100000", setting)
    wait_for(process, "step 5:")
    run.rename(tmp_path / "moved")
    said = finish(process, 1)
    assert said.strip().splitlines()[-1].startswith(f"error: {run}: the run directory is gone, removed or moved")
    assert "Traceback" not in said
    assert not run.exists()


@pytest.mark.parametrize("lost", [0, 100])
def test_rows_that_log_txt_lost_come_back(tmp_path: Path, capsys: pytest.CaptureFixture[str], lost: int) -> None:
    run = RunDirectory(tmp_path / "run")
    run.claim("")
    run.rewind(-1)
    for row in ({"step": 0, "val_loss": 10.5}, {"step": 1, "train_loss": 1 / 3}, {"step": 2, "train_loss": math.nan}):
        run.append(row)
    whole = run.log.read_bytes()
    run.rewind(2)
    assert run.log.read_bytes() == whole and "WARNING" not in capsys.readouterr().out
    run.log.write_bytes(whole[: max(0, len(whole) - lost)]) if lost else run.log.unlink()
    run.rewind(2)
    assert run.log.read_bytes() == whole
    assert "log.txt: steps 0 to 2 were missing, taken from metrics.jsonl" in capsys.readouterr().out


def test_text_where_a_number_belongs_is_a_damaged_row(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.metrics.write_text('{"step": 1, "tokens": "x"}\n')
    with pytest.raises(Error, match=r"metrics\.jsonl line 1: expected a row of one step"):
        run.read_metrics()


def test_what_a_killed_run_left_goes_when_the_directory_is_held_again(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / ".step-0000003.7.tmp").mkdir(parents=True)
    (tmp_path / ".log.txt.host.7.abc.tmp").write_text("half")
    (tmp_path / "my.tmp").write_text("mine")
    with RunDirectory(tmp_path).held():
        assert not list(tmp_path.rglob(".*.tmp")) and (tmp_path / "my.tmp").exists()
