"""Runs that several tests look at; made once."""

from pathlib import Path

import pytest
from runs import trained

from gpt2wds.dataset.directory import Dataset


@pytest.fixture(scope="session")
def pair(plays: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two ranks that nothing interrupted. Read it, do not change it."""
    run = tmp_path_factory.mktemp("pair") / "run"
    trained(run, plays, "train.micro_batch_sequences=2", ranks=2)
    return run
