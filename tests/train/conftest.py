"""Runs that several tests look at; made once."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import runs
from runs import finish, start

from gpt2wds.dataset.directory import Dataset


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    with runs.one_thread():
        yield


@pytest.fixture(scope="session")
def pair(plays: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two ranks that nothing interrupted. Read it, do not change it."""
    run = tmp_path_factory.mktemp("pair") / "run"
    finish(start(run, plays, "train.micro_batch_sequences=2", ranks=2))
    return run
