"""Datasets for tests, made in this process as the commands make them, and where the shared test data are."""

from pathlib import Path

import pytest

import gpt2wds
from gpt2wds.corpus.corpora import SAMPLE, Files, MultipleChoice, Plays
from gpt2wds.corpus.cutting import Cut
from gpt2wds.corpus.sharding import make_dataset
from gpt2wds.dataset.directory import Dataset
from gpt2wds.tokenizer import load_tokenizer

CHOICES = Path(gpt2wds.__file__).parent / "data" / "multiple_choice_sample.jsonl"
SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


def shared_file(name: str) -> Path:
    """A file of the shared test data; the test is skipped where it is absent."""
    path = SHARED_DATA / name
    if not path.exists():
        pytest.skip(f"needs {path}")
    return path


def shard_files(out: Path, *paths: Path, **cut: int) -> Dataset:
    """A dataset of files, made in this process as `gpt2wds-shard files` makes it."""
    return make_dataset(out, Files(tuple(map(str, paths))), Cut(**cut), workers=1)


def shard_choices(out: Path, source: Path | str = SAMPLE, limit: int | None = None) -> Dataset:
    """A dataset of multiple-choice examples: the packaged sample, or a file's."""
    return make_dataset(out, MultipleChoice(str(source), limit), workers=1)


def texts_of(out: Path) -> list[str]:
    """All documents of a dataset directory, validation first."""
    data, tokenizer = Dataset(out), load_tokenizer()
    return [
        text
        for split in ("val", "train")
        for number in range(len(data.shards(split)))
        for text in tokenizer.decode_documents(data.iterate_tokens(split, number))
    ]


def shard_plays(out: Path | str, **cut: int) -> Dataset:
    return make_dataset(out, Plays(), Cut(**cut), workers=1)
