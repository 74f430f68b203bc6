"""Datasets that several tests use; those that no test changes are made once per session."""

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from making import shard_choices, shard_plays, shard_small, texts, write_jsonl
from runs import trained
from stores import ObjectStore
from writable_hub import WritableHub

from gpt2wds import patience
from gpt2wds.dataset.directory import Dataset


def pytest_configure() -> None:
    """Torch computes with one thread, here and in what is started from here.

    Models are small, and several processes share the cores: threads that wait for each other spend them spinning, three
    times what is to be done. Sums also come in one order.
    """
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def plays(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Shakespeare's plays: three training shards and one for validation. Read it, do not change it."""
    return shard_plays(tmp_path_factory.mktemp("plays") / "data", docs_per_shard=12)


@pytest.fixture(scope="session")
def choices(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The packaged sample of multiple-choice examples. Read it, do not change it."""
    return shard_choices(tmp_path_factory.mktemp("choices") / "data")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Twelve documents."""
    return write_jsonl(tmp_path / "source.jsonl", texts(12))


@pytest.fixture
def small(source: Path, tmp_path: Path) -> Path:
    """A dataset of them, one validation shard and three training shards: the test's own."""
    shard_small(tmp_path / "small", source)
    return tmp_path / "small"


@pytest.fixture(scope="session")
def whole(plays: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training run of 12 steps that nothing interrupted. Read it, do not change it."""
    run = tmp_path_factory.mktemp("whole") / "run"
    trained(run, plays)
    return run


@pytest.fixture(scope="session")
def store() -> Iterator[ObjectStore]:
    """An S3 server with an empty bucket. Several tests use it: each has names of its own there."""
    pytest.importorskip("moto", reason="needs an S3 server: moto[server]")
    pytest.importorskip("s3fs", reason="needs the extra 's3'")
    with ObjectStore() as running:
        yield running


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WritableHub]:
    """An empty Hub to push to: that of this process, without the Hub's own storage protocol."""
    with WritableHub(tmp_path / "hub") as running:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", running.url)
        monkeypatch.setenv("HF_TOKEN", "hf_of_this_test")
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        fsspec.get_filesystem_class("hf").clear_instance_cache()
        yield running
        fsspec.get_filesystem_class("hf").clear_instance_cache()


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is away is asked again at once, in this process."""
    monkeypatch.setattr(patience, "WAITS", (0.01, 0.01))
