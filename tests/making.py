"""Datasets for tests, made in this process as the commands make them, and where the shared test data are."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import pytest

import gpt2wds
from gpt2wds.corpus.corpora import SAMPLE, Files, MultipleChoice
from gpt2wds.corpus.cutting import Cut
from gpt2wds.corpus.plan import Plan
from gpt2wds.corpus.shakespeare import Plays
from gpt2wds.corpus.sharding import make_dataset, make_plan
from gpt2wds.dataset.directory import Dataset
from gpt2wds.folder import Folder
from gpt2wds.tokenizer import load_tokenizer

CHOICES = Path(gpt2wds.__file__).parent / "data" / "multiple_choice_sample.jsonl"
SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


def shared_file(name: str) -> Path:
    """A file of the shared test data; the test is skipped where it is absent."""
    path = SHARED_DATA / name
    if not path.exists():
        pytest.skip(f"needs {path}")
    return path


def texts(count: int, name: str = "Document") -> list[str]:
    return [f"{name} {n}: " + "one two three four\n" * (n % 7) for n in range(count)]


def write_jsonl(path: Path, documents: Iterable[object]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    return path


def tree(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder: strays would be seen, too."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def plan_files(out: Path, *paths: Path, **cut: int) -> Plan:
    """The plan that `gpt2wds-shard files` makes."""
    return make_plan(Folder(out), Files(tuple(map(str, paths))), Cut(**cut))


def shard_files(out: Path, *paths: Path, **cut: int) -> Dataset:
    """A dataset of files, made in this process as `gpt2wds-shard files` makes it."""
    return make_dataset(out, Files(tuple(map(str, paths))), Cut(**cut), workers=1)


def shard_small(out: Path, source: Path) -> Dataset:
    """A dataset of twelve documents: one validation shard and three training shards."""
    return shard_files(out, source, val_docs=2, docs_per_shard=4)


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


def flip(path: Path, at: int = 100) -> None:
    """One bit of a file is another now."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
