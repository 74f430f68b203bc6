"""Datasets that several tests use; those that no test changes are made once per session."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from making import shard_choices, shard_plays, shard_small, texts, write_jsonl
from writable_hub import WritableHub

from gpt2wds import patience
from gpt2wds.dataset.directory import Dataset


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
    from runs import finish, start  # here: it loads torch, which many tests do without

    run = tmp_path_factory.mktemp("whole") / "run"
    finish(start(run, plays))
    return run


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
