"""The Hub as a source of HellaSwag and of models, spoken to over real HTTP on the loopback address."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from loopback_hub import COMMIT, LoopbackHub

from gpt2wds.checkpoint import save_checkpoint
from gpt2wds.dataset import Dataset
from gpt2wds.model import GPT2, GPT2Config

SAMPLE = Path(__file__).parents[1] / "gpt2wds" / "data" / "multiple_choice_sample.jsonl"


def command(name: str, *arguments: str, endpoint: str, home: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    program = Path(sys.executable).with_name(name)
    return subprocess.run([program, *arguments], env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def hub(tmp_path: Path):
    data, model = tmp_path / "dataset", tmp_path / "model"
    (data / "data").mkdir(parents=True)
    # On the Hub labels are strings.
    rows = [{**json.loads(line), "label": str(json.loads(line)["label"])} for line in SAMPLE.open(encoding="utf-8")]
    pq.write_table(pa.Table.from_pylist(rows), data / "data" / "validation-00000-of-00001.parquet")
    pq.write_table(pa.table({"other": [1]}), data / "data" / "train-00000-of-00001.parquet")
    tiny = GPT2(GPT2Config(n_layer=1, n_head=1, n_embd=8, n_positions=256))
    save_checkpoint(model, 1, tiny, {}, {}, keep=1).rename(tmp_path / "weights")
    with LoopbackHub({"datasets/Rowan/hellaswag": data, "owner/tiny": tmp_path / "weights"}) as running:
        yield running


def test_hellaswag_comes_from_the_hub_at_a_pinned_commit(hub: LoopbackHub, tmp_path: Path):
    out = tmp_path / "out"
    done = command("gpt2wds-shard", "hellaswag", "--out", str(out), endpoint=hub.url, home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    dataset = Dataset(out)
    assert dataset.manifest["corpus"]["revision"] == COMMIT
    found = [{k: v for k, v in e.items() if k != "prompts"} for e in dataset.examples("val")]
    wanted = [json.loads(line) for line in SAMPLE.open(encoding="utf-8")]
    assert found == [{k: example[k] for k in found[0]} for example in wanted]
    assert dataset.corpus != "HellaSwag"  # 36 examples are not the set
    assert not any("train" in request for request in hub.requests)


def test_a_model_is_found_by_its_hub_name(hub: LoopbackHub, tmp_path: Path):
    home = tmp_path / "home"
    done = command("gpt2wds-eval", "sample", "owner/tiny", "--tokens", "3", endpoint=hub.url, home=home)
    assert done.returncode == 0, (done.stderr, hub.requests)
    assert done.stdout.startswith("Hello, I'm a language model,")


@pytest.mark.parametrize(
    "arguments", [["gpt2wds-shard", "hellaswag", "--out", "OUT"], ["gpt2wds-eval", "sample", "no/such"]]
)
def test_what_the_hub_does_not_have_is_one_line(arguments: list[str], tmp_path: Path):
    with LoopbackHub({}) as empty:
        filled = [str(tmp_path / "out") if a == "OUT" else a for a in arguments]
        done = command(*filled, endpoint=empty.url, home=tmp_path / "home")
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in done.stderr
