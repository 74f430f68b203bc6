"""Datasets that several tests use; those that no test changes are made once per session."""

import fcntl
import functools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from making import shard_choices, shard_plays, shard_small, texts, write_jsonl
from runs import finished
from stores import ObjectStore
from writable_hub import WritableHub

from gpt2wds import fast_tokenizer, patience
from gpt2wds.corpus import sharding
from gpt2wds.dataset.directory import Dataset
from gpt2wds.tokenizer import Tokenizer


def pytest_configure() -> None:
    """Torch computes with one thread, here and in what is started from here.

    Models are small, and several processes share the cores: threads that wait for each other spend them spinning, three
    times what is to be done. Sums also come in one order.
    """
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], Any]], Path]:
    """A directory by its name, made by the first of the processes that run tests side by side, and used by all."""
    mine = tmp_path_factory.getbasetemp()
    place = (mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine) / "shared"
    place.mkdir(exist_ok=True)

    def made(name: str, make: Callable[[Path], Any]) -> Path:
        with (place / f"{name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
            if not os.fstat(lock.fileno()).st_size:
                make(place / name)
                lock.write("made")
        return place / name

    return made


@pytest.fixture(scope="session")
def plays(shared: Callable[..., Path]) -> Dataset:
    """Shakespeare's plays: three training shards and one for validation. Read it, do not change it."""
    return Dataset(shared("plays", lambda path: shard_plays(path, docs_per_shard=12)))


@pytest.fixture(scope="session")
def choices(shared: Callable[..., Path]) -> Dataset:
    """The packaged sample of multiple-choice examples. Read it, do not change it."""
    return Dataset(shared("choices", shard_choices))


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
def whole(plays: Dataset, shared: Callable[..., Path]) -> Path:
    """A training run of 12 steps that nothing interrupted. Read it, do not change it."""
    return shared("run", lambda path: finished(path, plays))


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


MAKE_ENGINE = fast_tokenizer.FastEngine
THE_ENGINE, PROVEN = functools.cache(MAKE_ENGINE), functools.cache(sharding.prove)


def engine(tokenizer: Tokenizer) -> fast_tokenizer.FastEngine:
    """The one of this process, and in a thread one of its own."""
    return (THE_ENGINE if threading.current_thread() is threading.main_thread() else MAKE_ENGINE)(tokenizer)


@pytest.fixture(scope="module", autouse=True)
def one_engine() -> Iterator[None]:
    """The fast tokenizer engine is made and proven once in this process, and not, as a command does, for each dataset:
    that takes several times as long as a small dataset."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_tokenizer, "FastEngine", engine)
        patch.setattr(sharding, "prove", PROVEN)
        yield
