"""gpt2wds-shard verify DIR --source N: what it says, asks and returns."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from making import flip, shard_small, texts, write_jsonl
from shard_command import COMMAND, fails, run
from writable_hub import WritableHub

from gpt2wds.dataset.directory import Dataset
from gpt2wds.dataset.manifest import Manifest, dataset_id
from gpt2wds.strict_json import checked


def test_shards_of_ones_own_choice_are_made_again(plays: Dataset) -> None:
    code, said, errors = run("verify", plays.path, "--source", 2, "--seed", 5)
    lines = said.splitlines()
    assert code == 0 and all(line.endswith(": the same tokens") for line in lines[:2]), errors
    assert lines[2] == (
        f"{plays.path}: all right, the sources give the same tokens (2 of 4 shards, --seed 5); "
        "the other shards were not read"
    )
    assert run("verify", plays.path, "--source", 2, "--seed", 5)[1] == said
    assert "(4 of 4 shards, --seed " in run("verify", plays.path, "--source", 99)[1]
    assert run("verify", plays.path, "--trust")[0] == 2


def test_a_published_copy_is_audited_where_its_sources_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    shard_small(Path("data"), write_jsonl(Path("source.jsonl"), texts(12)))
    assert run("push", "data", tmp_path / "there" / "data")[0] == 0
    # Another machine: the same file, copied at another time to another place.
    monkeypatch.chdir(tmp_path / "there")
    Path("source.jsonl").write_bytes((tmp_path / "here" / "source.jsonl").read_bytes())
    shutil.rmtree(tmp_path / "here")
    code, said, errors = run("verify", "data", "--source", 4)
    assert code == 1 and said.splitlines()[1] == f"  {tmp_path}/there/source.jsonl"
    assert errors == "error: data: nothing was opened; give --trust if these may be read\n"
    code, said, _ = run("verify", "data", "--source", 4, "--trust")
    assert code == 0 and said.count(": the same tokens") == 4
    Path("source.jsonl").unlink()
    code, said, errors = run("verify", "data", "--source", 4, "--trust")
    assert code == 1 and said.count(": cannot be audited: source source.jsonl: the file is gone") == 4
    assert "differs" not in said and "data: 4 shards could not be audited, named above (4 of 4 shards" in errors


@pytest.mark.slow
def test_a_dataset_of_the_hub_is_audited_on_the_hub_without_asking(hub: WritableHub, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    source = write_jsonl(folder / "train.jsonl", texts(12))
    hub.repositories["datasets/o/texts"] = folder
    cut = ["--val-docs", "2", "--docs-per-shard", "4", "--workers", "1"]
    made = subprocess.run(
        [COMMAND, "hf", "o/texts", *cut, "--out", tmp_path / "data"],
        env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"},
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    assert run("push", tmp_path / "data", hub.mine)[0] == 0
    code, said, errors = run("verify", hub.mine, "--source", 3)
    assert code == 0 and said.count(": the same tokens") == 3, errors
    assert "source_datasets:\n- o/texts\n" in (hub.root / hub.name / "README.md").read_text()
    write_jsonl(source, [text.replace("Document", "document") for text in texts(12)])
    code, said, _ = run("verify", hub.mine, "--source", 1)
    assert code == 1 and ": cannot be audited: hf://datasets/o/texts@" in said
    assert "the file changed under its commit" in said


def test_a_manifest_that_says_what_no_source_gives_differs(plays: Dataset, tmp_path: Path) -> None:
    copy = shutil.copytree(plays.path, tmp_path / "copy")
    shutil.rmtree(copy / "receipts")
    record: dict[str, Any] = json.loads((copy / "manifest.json").read_text())
    record["shards"]["val"][0]["text_bytes"] += 1
    record["dataset_id"] = dataset_id(Manifest.from_json(json.dumps(checked(record))).shards)
    (copy / "manifest.json").write_text(json.dumps(checked(record)))
    assert run("verify", copy)[0] == 0  # it fits itself
    code, said, errors = run("verify", copy, "--source", 4)
    assert code == 1 and "val-00000: differs: its sources give text_bytes " in said
    assert "1 problem found, named above (4 of 4 shards" in errors
    assert fails("verify", copy, "--source", 4)


def test_the_bytes_of_the_chosen_shards_are_read_too(plays: Dataset, tmp_path: Path) -> None:
    copy = shutil.copytree(plays.path, tmp_path / "copy")
    flip(copy / "val-00000.tar.zst")
    code, said, _ = run("verify", copy, "--source", 4)
    assert code == 1 and "val-00000.tar.zst block 0: " in said and said.count(": the same tokens") == 3
