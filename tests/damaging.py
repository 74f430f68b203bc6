"""Damage to datasets, and what is said of it."""

import json
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from gpt2wds.dataset.directory import Dataset
from gpt2wds.dataset.verify import verify_dataset, verify_shard
from gpt2wds.strict_json import checked


def all_tokens(dataset: Dataset, split: str) -> np.ndarray:
    """All of a split's tokens, without the overlaps."""
    return np.concatenate([t for s in range(len(dataset.shards(split))) for t in dataset.iterate_tokens(split, s)])


def verify(dataset: Dataset) -> list[str]:
    every = [(split, number) for split in ("train", "val") for number in range(len(dataset.shards(split)))]
    return verify_dataset(dataset) + [problem for place in every for problem in verify_shard(dataset, *place)]


def refused(path: Path) -> str:
    """The error of opening `path`, which is a single line that names the directory."""
    with pytest.raises(ValueError) as caught:
        Dataset(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class flipped:
    """A file with one bit turned over, for the length of a with statement."""

    def __init__(self, path: Path, bit: int):
        self._path, self._bit = path, bit

    def __enter__(self) -> None:
        self._good = self._path.read_bytes()
        bad = bytearray(self._good)
        bad[self._bit // 8] ^= 1 << self._bit % 8
        self._path.write_bytes(bad)

    def __exit__(self, *_) -> None:
        self._path.write_bytes(self._good)


def write_manifest(copy: Path, manifest: dict[str, object]) -> None:
    """A manifest of other content whose hashes fit, as someone's who means harm would."""
    hashes = {split: sha256((copy / f"{split}.blocks.npy").read_bytes()).hexdigest() for split in ("train", "val")}
    (copy / "manifest.json").write_text(json.dumps(checked({**manifest, "blocks_sha256": hashes})))


def change_entry(copy: Path, **fields: object) -> None:
    """Write other things about the validation shard into the manifest."""
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["shards"]["val"][0] |= fields
    write_manifest(copy, manifest)


def older(copy: Path) -> Path:
    """The dataset as it was before manifests had hashes of indices and of themselves."""
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["blocks_sha256"], manifest["check"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy
