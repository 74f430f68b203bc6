"""A command given again: what may change, what is kept, what is refused."""

import hashlib
import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from making import shard_choices
from runs import finished, in_process, rows

from gpt2wds.dataset.directory import Dataset
from gpt2wds.distributed import has_fast_bfloat16
from gpt2wds.train.checkpoint import list_checkpoints
from gpt2wds.train.report import write_report

SHORT = ("train.max_steps=4", "checkpoint.every_steps=2", "eval.every_steps=2")


@pytest.fixture(scope="module")
def short(plays: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four steps. Read it, do not change it."""
    run = tmp_path_factory.mktemp("short") / "run"
    return finished(run, plays, *SHORT)


@pytest.fixture
def stopped(short: Path, tmp_path: Path) -> Path:
    """The same, without its last checkpoint: it has something to do."""
    run = shutil.copytree(short, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "step-0000004")
    return run


def facts(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())


def config(run: Path) -> dict[str, Any]:
    return tomllib.loads((run / "config.toml").read_text())


def state_of(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def refused(run: Path, dataset: Dataset, *overrides: str) -> str:
    """The line with which a command is refused, having changed nothing."""
    before = state_of(run)
    code, said = in_process(run, dataset, *SHORT, *overrides)
    assert code == 1, said
    assert state_of(run) == before
    return said.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.schedule=cosin", "train.schedule: expected cosine, linear, constant, wsd, got 'cosin'"),
        ("train.optimizer=adm", "train.optimizer: expected adamw or muon, got 'adm'"),
        ("train.warmup_steps=9", "train.warmup_steps: expected 0 to max_steps = 4, got 9"),
        (
            "train.schedule=wsd",
            "train.decay_steps: with schedule wsd expected 1 to max_steps - warmup_steps = 2, got 0",
        ),
        ("run.seed=-1", "run.seed: expected 0 to 2^64 - 1, got -1"),
        ("model.n_head=3", "model: n_embd must be a multiple of n_head, got n_embd=32 and n_head=3"),
        ("data.path=", "data.path: expected a dataset directory, got ''"),
        ("run.dir=", "run.dir: expected a directory, got ''; for example runs/mine"),
    ],
)
def test_a_bad_value_is_a_bad_value(plays: Dataset, short: Path, override: str, message: str) -> None:
    """Not "another configuration"."""
    assert refused(short, plays, override).startswith(f"error: {message}")


def test_columns_hold_one_measure(plays: Dataset, stopped: Path) -> None:
    assert refused(stopped, plays, "eval.val_tokens=256").startswith(
        "error: eval.val_tokens: expected 512, by which this run measures, got 256; one column would hold two measures"
    )


def test_scores_are_of_one_set_in_one_mode(plays: Dataset, tmp_path: Path) -> None:
    one, other = shard_choices(tmp_path / "one", limit=1), shard_choices(tmp_path / "other", limit=2)
    run, long = tmp_path / "run", ("data.seq_len=128", "train.micro_batch_sequences=2", "eval.val_tokens=128")

    def again(*overrides: str) -> None:
        shutil.rmtree(run / "checkpoints" / "step-0000004", ignore_errors=True)
        code, said = in_process(run, plays, *SHORT, *long, *overrides)
        assert code == 0, said

    again()
    again(f"eval.hellaswag={one.path}")  # from now on
    moved = shutil.copytree(one.path, tmp_path / "moved")
    for hellaswag in (moved, "", one.path):
        again(f"eval.hellaswag={hellaswag}", "eval.hellaswag_mode=" + ("lm-eval" if not hellaswag else "completion"))
        assert facts(run)["hellaswag"] == {"dataset_id": one.id, "mode": "completion"}
    assert refused(run, plays, *long, f"eval.hellaswag={other.path}").startswith(
        f"error: eval.hellaswag: expected dataset_id {one.id}, by which this run measures, got dataset_id {other.id};"
    )
    mode = refused(run, plays, *long, f"eval.hellaswag={one.path}", "eval.hellaswag_mode=lm-eval")
    assert mode.startswith("error: eval.hellaswag_mode: expected completion, by which this run measures, got lm-eval; ")
    # A run from before run.json said so is held to its configuration.
    (run / "run.json").unlink()
    assert refused(run, plays, *long, f"eval.hellaswag={one.path}", "eval.hellaswag_mode=lm-eval") == mode


def test_what_a_run_began_from_is_told_in_truth(plays: Dataset, short: Path, tmp_path: Path) -> None:
    run, weights = tmp_path / "run", short / "checkpoints" / "step-0000004"
    code, said = in_process(run, plays, *SHORT, f"model.init_from={short}")
    assert code == 0, said
    digest = hashlib.sha256((weights / "model.safetensors").read_bytes()).hexdigest()
    origin = {"init_from": str(short), "path": str(weights.resolve()), "step": 4, "sha256": digest}
    for is_first in (True, False):
        assert facts(run)["origin"] == origin
        assert config(run)["model"]["init_from"] == str(short)
        if is_first:
            # Given again with another one, or without facts, it still began from this.
            shutil.rmtree(run / "checkpoints" / "step-0000004")
            (run / "run.json").unlink()
            code, said = in_process(run, plays, *SHORT, "model.init_from=nowhere")
            assert code == 0, said
            assert f"model.init_from: nowhere is not read: this run goes on, and began from {short}" in said
    # Nor without its configuration.
    (run / "config.toml").unlink()
    code, said = in_process(run, plays, *SHORT)
    assert code == 0, said
    assert config(run)["model"]["init_from"] == str(short)
    (run / "metrics.jsonl").write_text('{"step": 4}\n')  # there is nothing to draw
    assert f"{weights.resolve()}, step 4, SHA-256 of its weights {digest}" in write_report(run).read_text()


def test_random_weights_are_told_in_truth_too(plays: Dataset, stopped: Path) -> None:
    code, said = in_process(stopped, plays, *SHORT, "model.init_from=nowhere", "run.fork_from=")
    assert code == 0, said
    assert "model.init_from: nowhere is not read: this run goes on, and began from random weights" in said
    assert config(stopped)["model"]["init_from"] == ""
    assert "origin" not in facts(stopped)


def test_auto_is_the_precision_that_the_run_began_with(plays: Dataset, tmp_path: Path) -> None:
    other = "float32" if has_fast_bfloat16(torch.device("cpu")) else "bfloat16"
    run = finished(tmp_path / "run", plays, *SHORT, f"train.dtype={other}")
    shutil.rmtree(run / "checkpoints" / "step-0000004")
    code, said = in_process(run, plays, *SHORT, "train.dtype=auto")
    assert (code, config(run)["train"]["dtype"]) == (0, other), said


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.seed=1", ": run.seed: it was saved with seed 1337, here it is 1; give that one again"),
        ("data.seq_len=64", ": data.seq_len: it was saved with seq_len 32, here it is 64"),
        ("train.tokens_per_step=512", "-0000002: expected train.tokens_per_step = 256, got 512; give the one it was"),
        ("model.n_layer=2", "-0000002: expected a model of 1 layer, 2 heads, 32 channels, got (2, 2, 32)"),
        ("train.optimizer=muon", "optimizer state: expected that of AdamW and Muon, got another's"),
    ],
)
def test_without_its_configuration_a_run_is_held_to_its_state(
    plays: Dataset, stopped: Path, override: str, message: str
) -> None:
    (stopped / "config.toml").unlink()
    said = refused(stopped, plays, override)
    assert message in said and "data.path" not in said


def test_without_its_configuration_a_run_goes_on_and_says_so(plays: Dataset, short: Path, stopped: Path) -> None:
    (stopped / "config.toml").unlink()
    code, said = in_process(stopped, plays, *SHORT)
    assert code == 0, said
    assert re.search(r"WARNING: \S+config.toml is not there; held to what \S+step-0000002 says of itself", said)
    np.testing.assert_array_equal(rows(stopped), rows(short))


# Longer, where no step that is done would have been another.


def test_a_longer_run_where_no_past_step_changes(plays: Dataset, tmp_path: Path) -> None:
    settings = ("train.schedule=constant", "checkpoint.every_steps=4", "eval.every_steps=4")
    for run, lengths in (("grown", (4, 8)), ("whole", (8,))):
        for steps in lengths:
            code, said = in_process(tmp_path / run, plays, *settings, f"train.max_steps={steps}")
            assert code == 0, said
    np.testing.assert_array_equal(rows(tmp_path / "grown"), rows(tmp_path / "whole"))
    assert config(tmp_path / "grown")["train"]["max_steps"] == facts(tmp_path / "grown")["max_steps"] == 8
    code, said = in_process(tmp_path / "grown", plays, *settings, "train.max_steps=7")
    assert (code, "train.max_steps: expected at least 8, the number of steps done, got 7" in said) == (1, True), said


def test_with_wsd_until_the_decay_began(plays: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ("train.schedule=wsd", "checkpoint.every_steps=2", "eval.every_steps=2", "checkpoint.keep=9")
    code, said = in_process(run, plays, *settings, "train.max_steps=8", "train.decay_steps=2")
    assert code == 0, said
    longer = ("train.max_steps=12", "train.decay_steps=3")
    code, said = in_process(run, plays, *settings, *longer)
    assert code == 1
    assert "(train.max_steps: 8 → 12; train.decay_steps: 2 → 3); it would change the learning rate of step 8" in said
    assert f"choose another run.dir, where run.fork_from={run} goes on from its newest checkpoint" in said
    shutil.rmtree(run / "checkpoints" / "step-0000008")
    code, said = in_process(run, plays, *settings, *longer)
    assert code == 0, said
    assert [path.name for path in list_checkpoints(run / "checkpoints")][-1] == "step-0000012"
