"""The card: front matter that the Hub reads, and a program for plain webdataset that runs as it stands."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from gpt2wds.dataset.card import card
from gpt2wds.dataset.directory import Dataset
from gpt2wds.dataset.manifest import SPLITS


def front_matter(text: str) -> dict[str, object]:
    _, matter, _ = text.split("---\n", 2)
    return yaml.safe_load(matter)


def program(text: str) -> str:
    """The block that imports webdataset."""
    (block,) = (b for b in re.findall(r"(?:^(?: {4}.*)?\n)+", text, flags=re.MULTILINE) if "import webdataset" in b)
    return re.sub(r"^ {4}", "", block, flags=re.MULTILINE)


def test_the_front_matter(plays: Dataset, choices: Dataset) -> None:
    assert front_matter(card(plays, "hf://datasets/me/mine", "odc-by")) == {
        "license": "odc-by",
        "pretty_name": "Shakespeare's plays, GPT-2 tokens",
        "size_categories": ["n<1K"],
        "tags": ["gpt2", "tokenized", "webdataset"],
        "task_categories": ["text-generation"],
        "viewer": False,
    }
    found = front_matter(card(choices, "s3://bucket/data"))
    assert "license" not in found and found["task_categories"] == ["multiple-choice"]


def test_it_says_what_the_dataset_is(plays: Dataset) -> None:
    text = card(plays, "hf://datasets/me/mine")
    corpus, tokens = plays.manifest.corpus, plays.total("train", "tokens")
    assert f"| train | 3 | 36 | {tokens:,} | " in text
    for said in (
        corpus.source,
        corpus.revision,
        plays.id,
        plays.manifest.tokenizer["vocabulary_sha256"],
        "  * … and 18 more",
    ):
        assert said in text, said
    assert "gpt2wds-train CONFIG data.path=hf://datasets/me/mine" in text
    assert "hf download me/mine --repo-type dataset --local-dir data" in text
    assert "train-{00000..00002}.tar.zst" in text


def test_what_is_made_of_files_is_called_as_its_place(small: Path) -> None:
    text = card(Dataset(small), "hf://datasets/me/my-words/")
    assert front_matter(text)["pretty_name"] == "my-words, GPT-2 tokens" and "\n# my-words, GPT-2 tokens\n" in text


@pytest.mark.parametrize(
    ("name", "written"),
    [("a.txt", "`a.txt`"), ("a`b", "``a`b``"), ("`a``b`", "``` `a``b` ```"), ("a\n# b\x1b", "`a\\n# b\\x1b`")],
)
def test_names_are_shown_as_they_are_and_end_no_line(plays: Dataset, name: str, written: str) -> None:
    renamed = Dataset(plays.path)
    shards = {
        split: tuple(replace(entry, spans=[replace(entry.spans[0], source=name)]) for entry in plays.shards(split))
        for split in SPLITS
    }
    renamed.manifest = replace(plays.manifest, shards=shards)
    text = card(renamed, "s3://bucket/a\x1bb")
    assert f"  * {written}\n" in text
    assert "\x1b" not in text and "verify s3://bucket/a\\x1bb " in text


@pytest.mark.skipif(shutil.which("zstd") is None, reason="needs the command zstd")
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plays", "choices"])
def test_its_program_reads_every_sample(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    dataset: Dataset = request.getfixturevalue(kind)
    (tmp_path / "data").symlink_to(dataset.path)
    written = program(card(dataset, "s3://bucket/data"))
    done = subprocess.run([sys.executable, "-c", written], cwd=tmp_path, capture_output=True, text=True)
    split, count = ("train", len(dataset.blocks["train"])) if kind == "plays" else ("val", 36)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == count and all(line.startswith(f"{split}-0000") and line.endswith("uint16") for line in lines)
