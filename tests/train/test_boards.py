"""A run's numbers, once more for others."""

import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import in_process

from gpt2wds.dataset.directory import Dataset
from gpt2wds.train.boards import BOARDS, numbers
from gpt2wds.train.checkpoint import list_checkpoints
from gpt2wds.train.rundir import RunDirectory

BLOCK = 32768  # of a .wandb file, which is LevelDB's log


def test_rows_for_tensorboard(plays: Dataset, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = "run.tensorboard=true"
    in_process(tmp_path / "run", plays, board)
    # Two steps are done again: they are there once.
    shutil.rmtree(list_checkpoints(tmp_path / "run" / "checkpoints")[-1])
    in_process(tmp_path / "run", plays, board)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    found = [(event.step, event.value) for event in events.Scalars("train_loss")]
    expected = [(row["step"], row["train_loss"]) for row in RunDirectory(tmp_path / "run").read_metrics()[1:]]
    assert [step for step, _ in found] == list(range(1, 13))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert [event.step for event in events.Scalars("val_loss")] == [0, 5, 10, 12]


@pytest.mark.parametrize("board", BOARDS)
def test_a_board_that_is_not_installed(plays: Dataset, tmp_path: Path, board: str) -> None:
    if importlib.util.find_spec(board) is not None:
        pytest.skip(f"needs {board} to be absent")
    code, said = in_process(tmp_path / "run", plays, f"run.{board}=true")
    assert code == 1
    assert f"error: run.{board}: expected the package {board}, which is not installed; pip install" in said
    assert not (tmp_path / "run").exists()


def test_only_numbers_are_sent() -> None:
    row = {"step": 3, "train_loss": 2.5, "val_loss": None, "samples": [], "hellaswag": {"acc": 0.3}, "skipped": 1}
    found = numbers(row)
    assert np.isnan(found.pop("val_loss")) and found == {"train_loss": 2.5, "skipped": 1}


def sent(run: Path) -> dict[str, list[dict[str, Any]]]:
    """What was written for each id, in the order of time."""
    from wandb.proto.wandb_internal_pb2 import Record

    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(run.glob("wandb/offline-run-*/*.wandb"), key=os.path.getmtime):
        content, at, whole = path.read_bytes(), 7, b""
        while at + 7 <= len(content):
            if at % BLOCK > BLOCK - 7:
                at += BLOCK - at % BLOCK  # no room for a header: padding
                continue
            size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
            whole += content[at + 7 : at + 7 + size]
            at += 7 + size
            if kind in (1, 4):  # all of a record, or the last of it
                items = Record.FromString(whole).history.item
                row = {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in items}
                found.setdefault(path.stem, []).extend([row] if row else [])
                whole = b""
    return found


def test_rows_for_wandb(plays: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Switched on late it has all; stopped and resumed it goes on in the same run, and has no step twice."""
    pytest.importorskip("wandb", reason="needs wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # nobody is logged in
    run = tmp_path / "run"
    assert in_process(run, plays)[0] == 0
    for _ in range(2):  # each time from step 8 on
        shutil.rmtree(list_checkpoints(run / "checkpoints")[-1])
        code, said = in_process(run, plays, "run.wandb=true")
        assert code == 0, said
        assert "WARNING: run.wandb: " in said and "wandb sync sends it later" in said
    record = json.loads((run / "wandb.json").read_text())
    found = sent(run)
    assert list(found) == [f"run-{record['id']}"] and record["sent"] == 12
    rows = [row for row in found[f"run-{record['id']}"] if "train_loss" in row or "val_loss" in row]
    assert [row["_step"] for row in rows] == list(range(13))
    expected = [row["train_loss"] for row in RunDirectory(run).read_metrics()[1:]]
    np.testing.assert_allclose([row["train_loss"] for row in rows[1:]], expected)


def test_a_damaged_record_is_named(plays: Dataset, tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="needs wandb")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "wandb.json").write_text("[]")
    code, said = in_process(tmp_path / "run", plays, "run.wandb=true")
    assert code == 1 and "wandb.json: 'id': expected text, got nothing; restore it, or remove it" in said
