"""Ranks that share a model, and ranks that come and go."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from runs import in_process, rows, trained

from gpt2wds.dataset.directory import Dataset
from gpt2wds.train.rundir import RunDirectory


def norms(run: Path) -> list[float]:
    return [row["grad_norm"] for row in RunDirectory(run).read_metrics()[1:]]


@pytest.mark.slow
def test_ranks_that_each_have_a_part_of_the_model(plays: Dataset, pair: Path, tmp_path: Path) -> None:
    """FSDP: losses and gradient norms (all of them clipped) of whole copies, and the same checkpoints."""
    run = tmp_path / "run"
    said = trained(run, plays, "train.parallel=fsdp", "train.micro_batch_sequences=2", ranks=2)
    assert "Warning" not in said
    np.testing.assert_allclose(rows(run), rows(pair), rtol=0, atol=1e-5)
    # Sums of a million squares in float32; a norm of one rank's part alone would be a third less.
    np.testing.assert_allclose(norms(run), norms(pair), rtol=1e-3)
    assert min(norms(run)) > 1
    for name in ("alone", "copies"):
        shutil.copytree(run, tmp_path / name)
        shutil.rmtree(tmp_path / name / "checkpoints" / "step-0000012")
    code, said = in_process(tmp_path / "alone", plays)
    assert code == 0
    said += trained(tmp_path / "copies", plays, ranks=2)
    assert len(re.findall(r"resuming from \S+step-0000008", said)) == 2
    for name in ("alone", "copies"):
        np.testing.assert_allclose(rows(tmp_path / name), rows(pair), rtol=0, atol=2e-5)
