"""Datasets that several tests use; made once per session."""

import pytest
from making import shard_choices, shard_plays

from gpt2wds.dataset.directory import Dataset


@pytest.fixture(scope="session")
def plays(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Shakespeare's plays: three training shards and one for validation. Read it, do not change it."""
    return shard_plays(tmp_path_factory.mktemp("plays") / "data", docs_per_shard=12)


@pytest.fixture(scope="session")
def choices(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The packaged sample of multiple-choice examples. Read it, do not change it."""
    return shard_choices(tmp_path_factory.mktemp("choices") / "data")
