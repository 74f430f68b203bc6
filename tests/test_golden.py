"""Files that were made before the rooms were rebuilt: datasets byte for byte, losses to float error.

The format is firm: who changes what is here changes what other people's tools read.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import zstandard
from runs import forked

from gpt2wds.dataset.directory import Dataset

GOLDEN = Path(__file__).with_name("golden")
ROOT = Path(__file__).parents[1]
MADE_WITH_ZSTD = "1.5.7"


@pytest.mark.parametrize("name", ["plays", "choices"])
def test_datasets_are_byte_for_byte_what_they_were(plays: Dataset, choices: Dataset, name: str) -> None:
    """Shards, block indices, manifest and receipts of the demo's data."""
    if ".".join(map(str, zstandard.ZSTD_VERSION)) != MADE_WITH_ZSTD:
        pytest.skip(f"bytes depend on zstd's version; these were made with {MADE_WITH_ZSTD}")
    folder = Path({"plays": plays, "choices": choices}[name].path)
    lines = [line.split("  ") for line in (GOLDEN / "SHA256SUMS").read_text().splitlines()]
    wanted = {path.removeprefix(f"{name}/"): digest for digest, path in lines if path.startswith(f"{name}/")}
    assert len(wanted) >= 5
    found = {path: hashlib.sha256((folder / path).read_bytes()).hexdigest() for path in wanted}
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    for later in ("blocks_sha256", "check"):  # members that came after these files were made
        del manifest[later]
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    assert found | {"manifest.json": hashlib.sha256(text.encode()).hexdigest()} == wanted


@pytest.mark.slow
def test_losses_are_what_they_were(plays: Dataset, choices: Dataset, tmp_path: Path) -> None:
    """Twelve steps of the demo in float32, with validation and scores."""
    options = {
        "run.dir": tmp_path / "run",
        "data.path": plays.path,
        "eval.hellaswag": choices.path,
        "train.dtype": "float32",
        "train.max_steps": 12,
        "train.warmup_steps": 5,
        "eval.every_steps": 6,
        "eval.sample_prompts": [],
        "checkpoint.every_steps": 6,
    }
    arguments = [f"{name}={value}" for name, value in options.items()]
    codes, _, problems = forked("train", [ROOT / "configs" / "demo.toml", *arguments])
    assert codes == [0], problems
    found, wanted = np.loadtxt(tmp_path / "run" / "log.txt"), np.loadtxt(GOLDEN / "log.txt")
    assert found[:, 0].tolist() == wanted[:, 0].tolist()
    np.testing.assert_allclose(found[:, 1:3], wanted[:, 1:3], atol=2e-3)
    scores = [
        json.loads(line)["hella_acc"] for line in (tmp_path / "run" / "metrics.jsonl").open() if "hella_acc" in line
    ]
    np.testing.assert_allclose(scores, wanted[[0, 6, 12], 3], atol=0.06)  # two of 36 examples
