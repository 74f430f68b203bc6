"""Runs on several datasets: the validation loss of each and of all, and what else a run says of them."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from making import shard_files, write_jsonl
from runs import in_process, rows, trained

from gpt2wds.commands.eval import main as evaluation
from gpt2wds.commands.measuring import mean_of_shares
from gpt2wds.dataset.directory import Dataset
from gpt2wds.dataset.loader import StepBatches
from gpt2wds.dataset.mixture import portions
from gpt2wds.dataset.validation import validation_sequences
from gpt2wds.distributed import World
from gpt2wds.evaluate.text import validation_loss
from gpt2wds.tokenizer import load_tokenizer
from gpt2wds.train.weights import load_weights

OFTEN = ("checkpoint.every_steps=5", "checkpoint.keep=9", "eval.every_steps=6", "eval.val_tokens=96")


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[Dataset]:
    """Datasets of stories; in 12 steps the second is in its third epoch. The last has no validation text."""
    folder = tmp_path_factory.mktemp("three")
    made = []
    for name, documents, val_docs in (("a", 30, 3), ("b", 11, 3), ("c", 9, 0)):
        texts = [f"Story {n}: " + " ".join(f"{name}{i * n % 97}" for i in range(20 + 3 * n)) for n in range(documents)]
        write_jsonl(folder / f"{name}.jsonl", texts)
        made.append(shard_files(folder / name, folder / f"{name}.jsonl", val_docs=val_docs, docs_per_shard=7))
    return made


def paths(datasets: list[Dataset], *weights: float) -> str:
    tables = [f'{{path = "{d.path}", weight = {w}}}' for d, w in zip(datasets, weights, strict=False)]
    return f"data.path=[{', '.join(tables)}]"


@pytest.fixture(scope="module")
def mixed(three: list[Dataset], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps on the first two, 5 and 3 of the 8 sequences of a step. Read it, do not change it."""
    run = tmp_path_factory.mktemp("mixed") / "run"
    code, said = in_process(run, three[0], paths(three, 3, 2), *OFTEN)
    assert code == 0, said
    return run


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").open()]


def test_each_has_its_validation_loss_and_the_log_their_mean(three: list[Dataset], mixed: Path) -> None:
    world, model = World(0, 1, torch.device("cpu")), load_weights(mixed / "checkpoints" / "step-0000012")
    options = {"seq_len": 32, "max_tokens": 96, "batch_sequences": 8}
    alone = [validation_loss(model, validation_sequences(d, **options), world, "float32") for d in three[:2]]
    last = metrics(mixed)[-1]
    assert last["val_losses"] == pytest.approx(alone, abs=1e-5) and alone[0] != alone[1]
    assert last["val_loss"] == pytest.approx((5 * alone[0] + 3 * alone[1]) / 8, abs=1e-5)
    means = [row["val_loss"] for row in metrics(mixed) if "val_loss" in row]
    np.testing.assert_allclose(rows(mixed)[[0, 6, 12], 2], means)
    said = (mixed / "gpt.log").read_text()
    assert f"validation loss of {three[0].path} {alone[0]:.4f}, {three[1].path} {alone[1]:.4f}\n" in said


def test_the_mean_is_over_those_that_have_a_value(three: list[Dataset]) -> None:
    own = portions([(d, w) for d, w in zip(three, (2, 1, 1), strict=True)], sequences_per_step=8, seq_len=32)
    assert mean_of_shares([1.0, 2.0, 4.0], own) == 2.0
    assert mean_of_shares([1.0, 4.0, None], own) == 2.0
    assert mean_of_shares([None, 1.1, None], own) == 1.1
    assert mean_of_shares([None, None, None], own) is None


def test_a_dry_run_says_what_each_gives(three: list[Dataset], tmp_path: Path) -> None:
    code, said = in_process(tmp_path / "run", three[0], paths(three, 5, 3, 1), "--dry-run", "--ranks", "3")
    assert code == 0, said
    own = portions([(d, w) for d, w in zip(three, (5, 3, 1), strict=True)], sequences_per_step=8, seq_len=32)
    assert [len(portion.slots) for portion in own] == [4, 3, 1]
    assert "steps: 12 of 256 tokens, which 3 datasets share by their weights\n" in said
    for portion, weight in zip(own, ("5, 55.56%", "3, 33.33%", "1, 11.11%"), strict=True):
        slots, path = len(portion.slots), portion.dataset.path
        assert f"{path}: weight {weight}, is {slots} of 8 sequences of a step, {slots / 8:.2%}; {384 * slots:,}" in said
        assert f"{12 / portion.steps_per_epoch:.2f} epochs of {portion.steps_per_epoch} steps; left out of" in said
        assert f"data: {path}: files, " in said
    assert f"{three[2].path}: no validation text; the validation loss is that of the others\n" in said
    first, second = own[0].steps_per_epoch, own[1].steps_per_epoch
    assert "rank 1: slots 2 to 4 of 8, 1 micro-step of at most 3 sequences; its first steps begin at positi" in said
    assert f"positions {2 * first}, {2 * first + 1}, {2 * first + 2} of {own[0].sequences} of {three[0].path}\n" in said
    begin = f"begin at positions {second}, {second + 1}"
    assert re.search(rf"rank 2: slots 5 to 7 of 8, .* {begin}.* of {own[1].sequences} of {three[1].path}\n", said)
    assert not (tmp_path / "run").exists()


def test_a_resume_is_exact(three: list[Dataset], mixed: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(mixed, tmp_path / "run"))
    for later in (10, 12):
        shutil.rmtree(run / "checkpoints" / f"step-{later:07d}")
    code, said = in_process(run, three[0], paths(three, 6, 4), *OFTEN)  # the same proportion
    assert code == 0 and f"resuming from {run}/checkpoints/step-0000005\nepochs read so far: " in said
    assert (run / "log.txt").read_bytes() == (mixed / "log.txt").read_bytes()
    weights = "checkpoints/step-0000012/model.safetensors"
    assert (run / weights).read_bytes() == (mixed / weights).read_bytes()


def test_other_weights_are_another_run_that_begins_with_the_model(
    three: list[Dataset], mixed: Path, tmp_path: Path
) -> None:
    run, other = Path(shutil.copytree(mixed, tmp_path / "run")), tmp_path / "other"
    code, said = in_process(run, three[0], paths(three, 1, 1), *OFTEN)
    assert code == 1
    assert f"data.path = {three[0].path} (weight 1), {three[1].path} (weight 1): state: it was saved" in said
    assert "saved with the weights 3 and 2, here they are 1 and 1, which is another order of the data; give" in said
    assert f"or choose another run.dir, where model.init_from={run} begins a new run with what this one" in said
    code, said = in_process(other, three[0], paths(three, 1, 1), f"run.fork_from={run}", *OFTEN, "train.max_steps=13")
    assert code == 1 and f"or begin with its model alone (model.init_from={run}/checkpoints/step-0000012)" in said
    code, said = in_process(run, three[0], *OFTEN)
    assert code == 1 and f"here it is {three[0].id}; give the same datasets" in said
    short = ("train.max_steps=1", "train.warmup_steps=1")
    code, said = in_process(other, three[0], paths(three, 1, 1), f"model.init_from={run}", *OFTEN, *short)
    assert code == 0, said
    assert rows(other)[0, 2] < 0.9 * rows(mixed)[0, 2]


def test_the_facts_and_the_report_name_each(three: list[Dataset], mixed: Path, tmp_path: Path) -> None:
    facts = json.loads((mixed / "run.json").read_text())
    assert facts["dataset_id"] == f"5/8 of {three[0].id} + 3/8 of {three[1].id}"
    assert facts["train_tokens"] == sum(d.total("train", "tokens") for d in three[:2])
    assert [(d["path"], d["weight"], d["sequences_per_step"]) for d in facts["datasets"]] == [
        (str(three[0].path), 3.0, 5),
        (str(three[1].path), 2.0, 3),
    ]
    pytest.importorskip("matplotlib")
    result = CliRunner().invoke(evaluation, ["report", str(mixed), "--out", str(tmp_path / "page.html")])
    assert result.exit_code == 0, result.output
    assert facts["corpus"] == "files + files"
    assert "<h1>GPT-2 on a + b</h1>" in (tmp_path / "page.html").read_text()
    own, last = facts["datasets"][1], metrics(mixed)[-1]["val_losses"][1]
    assert (
        f"of {three[1].path}</th><td>weight 2, 37.50% of a step, {12 / own['steps_per_epoch']:.2f} epochs of "
        f"{own['train_tokens']:,} tokens; validation loss, last, {last:.4f}</td>"
    ) in (tmp_path / "page.html").read_text()


def trace(run: Path, *options: str) -> dict[str, Any]:
    result = CliRunner().invoke(evaluation, ["trace", str(run), *options, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def test_a_traced_step_names_the_dataset_of_each_sequence(three: list[Dataset], mixed: Path, tmp_path: Path) -> None:
    pairs = [(three[0], 3), (three[1], 2)]
    batches = StepBatches(pairs, seq_len=32, sequences_per_step=8, seed=1337)
    steps = dict(zip(range(1, 13), batches, strict=False))
    moved = [shutil.copytree(d.path, tmp_path / f"moved{i}") for i, d in enumerate(three[:2])]
    found = trace(mixed, "--step", "12", "--data", str(moved[0]), "--data", str(moved[1]))
    assert [d["dataset"] for d in found["datasets"]] == list(map(str, moved))
    assert [d["epoch"] for d in found["datasets"]] == [11 // p.steps_per_epoch for p in batches.portions]
    found = trace(mixed, "--step", "12", "--text")
    assert [s["dataset"] for s in found["sequences"]] == [str(three[0].path)] * 5 + [str(three[1].path)] * 3
    assert [s["slot"] for s in found["sequences"]] == list(range(8))
    for sequence, tokens in zip(found["sequences"], steps[12], strict=True):
        text = "".join(document["text"] for document in sequence["documents"])
        assert text == load_tokenizer().decode(tokens[:-1]).replace("<|endoftext|>", "")
    turned = ["--data", str(moved[1]), "--data", str(moved[0])]
    result = CliRunner().invoke(evaluation, ["trace", str(mixed), "--step", "12", *turned])
    assert result.exit_code == 1 and result.output == (
        f"error: --data: expected the datasets in the run's order, got {moved[1]}, {moved[0]}; give --data {moved[0]} "
        f"--data {moved[1]}\n"
    )
    result = CliRunner().invoke(evaluation, ["trace", str(mixed), "--step", "12", "--data", str(moved[0])])
    assert result.exit_code == 1 and "--data: expected 2, one for each dataset of the run" in result.output
    # And a document says in which steps and slots it was read.
    reading = next(r for r in trace(mixed, "--document", "b.jsonl:5")["readings"] if r["state"] == "read")
    there = trace(mixed, "--step", str(reading["step"]))["sequences"][reading["slot"]]
    assert (there["dataset"], there["first_token"]) == (str(three[1].path), reading["first_token"])
    assert "b.jsonl" in there["documents"][0]["source"]
    result = CliRunner().invoke(evaluation, ["trace", str(mixed), "--document", "none.jsonl:5"])
    assert result.exit_code == 1 and f"{three[0].path}: source none.jsonl" in result.output


@pytest.mark.slow
def test_two_ranks_train_as_one(three: list[Dataset], mixed: Path, tmp_path: Path) -> None:
    said = trained(tmp_path / "run", three[0], paths(three, 3, 2), *OFTEN, "data.num_workers=1", ranks=2)
    assert "epochs read so far: " in said
    np.testing.assert_allclose(rows(tmp_path / "run"), rows(mixed), rtol=0, atol=1e-4)
