"""Copies of a dataset, to damage."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def copy(plays, tmp_path) -> Path:
    return shutil.copytree(plays.path, tmp_path / "copy")


@pytest.fixture(scope="module")
def scratch(plays, tmp_path_factory) -> Path:
    """A copy for many small damages, each undone by the one who did it."""
    return shutil.copytree(plays.path, tmp_path_factory.mktemp("scratch") / "copy")
