"""Which settings are those of the same run: what changes a number is refused, all else is accepted."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from making import shard_plays
from runs import in_process, rows

from gpt2wds.dataset.directory import Dataset


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("train.learning_rate=2e-2", "train.learning_rate: 0.01 → 0.02"),
        ("run.seed=1", "run.seed: 1337 → 1"),
        ("train.tokens_per_step=512", "train.tokens_per_step: 256 → 512"),
        ("train.optimizer=muon", "train.optimizer: 'adamw' → 'muon'"),
        ("train.max_steps=13", "train.max_steps: 12 → 13"),
        ("data.seq_len=64", "data.seq_len: 32 → 64"),
        ("model.n_layer=2", "model.n_layer: 1 → 2"),
        ("train.dtype=bfloat16", "train.dtype: 'float32' → 'bfloat16'"),
    ],
)
def test_other_mathematics_is_refused(
    plays: Dataset, whole: Path, monkeypatch: pytest.MonkeyPatch, override: str, difference: str
) -> None:
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda precision: None)  # of the other tests here
    before = {path: path.read_bytes() for path in whole.iterdir() if path.is_file()}
    code, said = in_process(whole, plays, override)
    assert code == 1
    assert f"holds a run of another configuration ({difference})" in said
    key = override.split("=")[0]
    ways = dict.fromkeys(("run.seed", "data.seq_len", "train.tokens_per_step", "train.optimizer"), "model.init_from=")
    way = ways.get(key, "" if key == "model.n_layer" else "run.fork_from=")
    assert said.rstrip().endswith("another run.dir") if not way else f"another run.dir, where {way}{whole} " in said
    assert {path: path.read_bytes() for path in whole.iterdir() if path.is_file()} == before


def test_what_changes_no_number_is_accepted(plays: Dataset, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoints" / "step-0000012")
    other = ["eval.every_steps=3", "checkpoint.every_steps=2", "train.micro_batch_sequences=3"]
    code, said = in_process(run, plays, *other)
    assert code == 0
    assert "resuming from" in said
    got, expected = rows(run), rows(whole)
    np.testing.assert_allclose(got[:, :2], expected[:, :2], rtol=0, atol=1e-4)
    # Up to the checkpoint the old rhythm, from there the new one.
    assert np.flatnonzero(~np.isnan(got[:, 2])).tolist() == [0, 5, 9, 12]


def test_another_dataset_is_refused(plays: Dataset, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    other = shard_plays(tmp_path / "other", docs_per_shard=1, limit_docs=2, val_docs=1)
    code, said = in_process(tmp_path / "run", other)
    assert code == 1
    assert (
        f"data.path = {other.path}: state: it was saved with dataset_id {plays.id}, here it is {other.id}; give" in said
    )
    # The same data in another place are the same data.
    shutil.copytree(plays.path, tmp_path / "copy")
    code, _ = in_process(tmp_path / "run", Dataset(tmp_path / "copy"))
    assert code == 0


def test_a_mistake_that_was_corrected_is_no_other_run(plays: Dataset, tmp_path: Path) -> None:
    code, said = in_process(tmp_path / "run", plays, f"train.tokens_per_step={10**9 // 32 * 32}")
    assert (code, "a step may have at most" in said) == (1, True)
    code, said = in_process(tmp_path / "run", plays, "train.max_steps=2")
    assert code == 0, said
