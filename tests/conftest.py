"""Data and datasets that several tests use; made once per session."""

from pathlib import Path

import pytest

from gpt2wds.corpus import corpora, sharding
from gpt2wds.dataset import directory
from gpt2wds.tokenizer import load_tokenizer

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


def shared_file(name: str) -> Path:
    """A file of the shared test data; the test is skipped where it is absent."""
    path = SHARED_DATA / name
    if not path.exists():
        pytest.skip(f"needs {path}")
    return path


def shard(out: Path, plan: dict) -> directory.Dataset:
    """Run all tasks of a plan here, as gpt2wds-shard does."""
    for task in sharding.missing_tasks(out, plan):
        sharding.run_task(out, plan, task, lambda documents, tokens: None)
    sharding.finish(out, plan)
    return directory.Dataset(out)


def texts_of(out: Path) -> list[str]:
    """All documents of a dataset directory, validation first."""
    data, tokenizer = directory.Dataset(out), load_tokenizer()
    return [
        text
        for split in ("val", "train")
        for number in range(len(data.shards(split)))
        for text in tokenizer.decode_documents(data.iterate_tokens(split, number))
    ]


def shard_plays(out: Path, **cut: int) -> directory.Dataset:
    options = corpora.Cut(**cut)
    request = {"corpus": "shakespeare", "source": "plays", **cut}
    return shard(out, sharding.plan_corpus(out, request, lambda: corpora.shakespeare("plays", options, out), options))


@pytest.fixture(scope="session")
def plays(tmp_path_factory: pytest.TempPathFactory) -> directory.Dataset:
    """Shakespeare's plays: three training shards and one for validation. Read it, do not change it."""
    return shard_plays(tmp_path_factory.mktemp("plays") / "data", docs_per_shard=12)


@pytest.fixture(scope="session")
def choices(tmp_path_factory: pytest.TempPathFactory) -> directory.Dataset:
    """The packaged sample of multiple-choice examples. Read it, do not change it."""
    out = tmp_path_factory.mktemp("choices") / "data"
    return shard(out, sharding.plan_multiple_choice(out, sharding.SAMPLE, None))
