"""gpt2wds-shard push: a dataset for others, on a Hub that speaks the real protocol to its own client, and elsewhere."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from making import texts_of, tree
from shard_command import fails, run
from writable_hub import WritableHub

from gpt2wds.dataset.directory import Dataset

URL = "hf://datasets/me/mine"
SHARDS = [f"train-{n:05d}.tar.zst" for n in range(3)] + ["val-00000.tar.zst"]
PUBLISHED = {"README.md", "plan.json", "manifest.json", "train.blocks.npy", "val.blocks.npy", *SHARDS}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WritableHub]:
    """The Hub of this process."""
    with WritableHub(tmp_path / "hub") as running:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        fsspec.filesystem("hf").clear_instance_cache()
        yield running
        fsspec.filesystem("hf").clear_instance_cache()


@pytest.fixture
def mine(plays: Dataset, tmp_path: Path) -> Path:
    """A dataset that names no path of this machine: three training shards and one for validation."""
    return shutil.copytree(plays.path, tmp_path / "mine")


def test_a_dataset_on_the_hub_is_read_as_the_one_here(mine: Path, hub: WritableHub) -> None:
    code, said, errors = run("push", mine, URL, "--license", "mit")
    assert code == 0, errors
    assert said.startswith(f"{URL}: 9 files sent, Shakespeare's plays: train 3 shards, ")
    assert {path.name for path in (hub.root / "me/mine").iterdir()} == PUBLISHED
    # Few commits, and the manifest alone in the last.
    assert [set(names) for names in hub.commits] == [
        {"README.md", "plan.json", "train.blocks.npy", "val.blocks.npy"},
        set(SHARDS),
        {"manifest.json"},
    ]
    assert Dataset(URL).id == Dataset(mine).id
    assert run("verify", URL)[1].startswith(f"{URL}: all right")
    assert run("cat", URL, "--docs", 1)[1] == run("cat", mine, "--docs", 1)[1]
    before, puts = len(hub.commits), len(hub.puts)
    assert run("push", mine, URL)[1].startswith(f"{URL}: already there, Shakespeare's plays")
    assert (len(hub.commits), len(hub.puts)) == (before, puts)
