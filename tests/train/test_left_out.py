"""data.skip_steps: those steps' sequences are not trained on, and nothing else changes."""

import json
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from runs import in_process, rows, steps_of, trained

from gpt2wds.commands.eval import main as evaluation
from gpt2wds.dataset.directory import Dataset
from gpt2wds.dataset.loader import StepBatches
from gpt2wds.dataset.order import step_ranges
from gpt2wds.distributed import World
from gpt2wds.errors import Error
from gpt2wds.model import GPT2, GPT2Config
from gpt2wds.train.recipe import Train
from gpt2wds.train.update import Update

SKIP = 'data.skip_steps=["3-4", "7"]'
LEFT_OUT = [3, 4, 7]
OFTEN = ("checkpoint.every_steps=1", "checkpoint.keep=99")


@pytest.fixture(scope="module")
def skipping(plays: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps of which three are left out. Read it, do not change it."""
    run = tmp_path_factory.mktemp("skipping") / "run"
    code, said = in_process(run, plays, SKIP, *OFTEN)
    assert code == 0, said
    return run


def back_to(run: Path, folder: Path, step: int) -> Path:
    """A copy of a run whose checkpoints after a step are gone."""
    copy = Path(shutil.copytree(run, folder / "run"))
    for checkpoint in (copy / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    return copy


def test_all_other_steps_train_on_their_own_sequences(skipping: Path, plays: Dataset) -> None:
    train = Train(
        learning_rate=1e-2, min_learning_rate=1e-3, warmup_steps=2, max_steps=12, dtype="float32", compile=False,
        micro_batch_sequences=8,
    )  # fmt: skip
    model = GPT2(GPT2Config(1, 2, 32, n_positions=32), seed=1337)
    update = Update(model, train, World(0, 1, torch.device("cpu")), sequences_per_step=8)
    losses = []
    for step, sequences in enumerate(islice(StepBatches(plays, seq_len=32, sequences_per_step=8, seed=1337), 12), 1):
        losses.append(np.nan if step in LEFT_OUT else float(update(step, sequences).loss))
    assert steps_of(skipping) == list(range(13))
    np.testing.assert_array_equal(rows(skipping)[1:, 1].astype(np.float32), np.array(losses, dtype=np.float32))


def test_the_log_says_what_was_left_out(skipping: Path) -> None:
    said = (skipping / "gpt.log").read_text()
    assert "left out by data.skip_steps: 3-4, 7, 3 steps not trained on\n" in said
    assert said.count("steps 3 to 4: left out, their sequences are not trained on\n") == 1
    assert said.count("step 7: left out, its sequences are not trained on\n") == 1
    log = (skipping / "log.txt").read_text().splitlines()
    assert [int(line.split()[0]) for line in log[2:] if line.split()[1] == "nan"] == LEFT_OUT
    metrics = [json.loads(line) for line in (skipping / "metrics.jsonl").open()]
    assert [row["step"] for row in metrics if row.get("left_out")] == LEFT_OUT
    assert all("train_loss" not in row and "grad_norm" not in row for row in metrics if row.get("left_out"))
    assert [row["tokens"] for row in metrics] == [256 * step for step in range(13)]


@pytest.mark.parametrize("step", [2, 3, 7])
def test_a_resume_before_in_and_after_them_is_exact(skipping: Path, plays: Dataset, tmp_path: Path, step: int) -> None:
    run = back_to(skipping, tmp_path, step)
    code, said = in_process(run, plays, SKIP, "checkpoint.every_steps=99")
    assert code == 0 and f"step-{step:07d}" in said
    assert (run / "log.txt").read_bytes() == (skipping / "log.txt").read_bytes()
    weights = "checkpoints/step-0000012/model.safetensors"
    assert (run / weights).read_bytes() == (skipping / weights).read_bytes()


def test_weights_stand_still_where_nothing_is_trained_on(skipping: Path) -> None:
    weights = [(skipping / f"checkpoints/step-{step:07d}/model.safetensors").read_bytes() for step in range(1, 13)]
    assert [n for n in range(2, 13) if weights[n - 1] == weights[n - 2]] == LEFT_OUT


@pytest.mark.slow
def test_three_ranks_leave_out_the_same(skipping: Path, plays: Dataset, tmp_path: Path) -> None:
    trained(tmp_path / "run", plays, SKIP, ranks=3)
    np.testing.assert_allclose(rows(tmp_path / "run")[:, 1], rows(skipping)[:, 1], rtol=1e-4)


def test_steps_to_come_may_be_left_out_and_those_behind_may_not(skipping: Path, plays: Dataset, tmp_path: Path) -> None:
    run = back_to(skipping, tmp_path, 8)
    code, said = in_process(run, plays, 'data.skip_steps=["3-4", "7", "10"]', *OFTEN)
    assert code == 0, said
    np.testing.assert_array_equal(rows(run)[:10, 1], rows(skipping)[:10, 1])
    assert np.isnan(rows(run)[10, 1]) and rows(run)[11, 1] != rows(skipping)[11, 1]
    for changed, step in (('["3-4", "7"]', 10), ('["4", "7", "10"]', 3), ('["2-4", "7", "10"]', 2)):
        code, said = in_process(run, plays, f"data.skip_steps={changed}", *OFTEN)
        assert (
            code == 1 and f"got a change at step {step}; to train again from before it, remove the checkpoints" in said
        )
    same = 'data.skip_steps=["4", "3-3", "7-7", "10"]'  # the same steps, said in another way
    assert in_process(run, plays, same, *OFTEN)[0] == 0


@pytest.mark.parametrize("text", ["0", "4-3", "a", "", "-3", "3-", "1.5"])
def test_what_names_no_steps_is_refused(plays: Dataset, tmp_path: Path, text: str) -> None:
    with pytest.raises(Error, match="expected steps from 1 on"):
        step_ranges([text])
    code, said = in_process(tmp_path / "run", plays, f'data.skip_steps=["{text}"]')
    assert code == 1 and "data.skip_steps: expected steps from 1 on" in said
    code, said = in_process(tmp_path / "run", plays, "data.skip_steps=[3]")
    assert code == 1 and "data.skip_steps: expected a list of texts in quotes, got [3]" in said


def test_a_trace_knows_them(skipping: Path) -> None:
    def ask(*arguments: str) -> str:
        return CliRunner().invoke(evaluation, ["trace", str(skipping), *arguments], catch_exceptions=False).stdout

    for step in range(1, 13):
        found = json.loads(ask("--step", str(step), "--json"))
        assert found["state"] == ("left out" if step in LEFT_OUT else "read")
    assert "data.skip_steps leaves it out" in ask("--step", "4")
    source = json.loads(ask("--step", "4", "--json"))["sequences"][0]["documents"][0]["source"]
    readings = json.loads(ask("--document", f"{source}:0", "--json"))["readings"]
    assert {"left out"} == {reading["state"] for reading in readings if reading["step"] == 4}


def test_a_report_passes_over_them(skipping: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out, run = tmp_path / "report.html", shutil.copytree(skipping, tmp_path / "run")
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    kept = ("step", "left_out", "tokens", "train_loss", "grad_norm")  # fewer pictures
    metrics = [{name: row[name] for name in kept if name in row} for row in metrics]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    result = CliRunner().invoke(evaluation, ["report", str(run), "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0 and out.stat().st_size
