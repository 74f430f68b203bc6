"""What a run starts with."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import finished, in_process, rows

from gpt2wds.commands.settings import Config
from gpt2wds.commands.start import Start, refuse_other_starts
from gpt2wds.dataset.directory import Dataset
from gpt2wds.dataset.loader import StepBatches
from gpt2wds.distributed import World
from gpt2wds.errors import Error
from gpt2wds.model import GPT2, GPT2Config
from gpt2wds.train.checkpoint import list_checkpoints
from gpt2wds.train.optim import Optimizers

SHORT = ("train.max_steps=6", "checkpoint.every_steps=2", "eval.every_steps=2", "checkpoint.keep=9")


@pytest.fixture(scope="module")
def first(plays: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of six steps. Read it, do not change it."""
    run = tmp_path_factory.mktemp("first") / "run"
    return finished(run, plays, *SHORT)


def test_a_fork_that_changes_nothing_gives_the_same_numbers(plays: Dataset, first: Path, tmp_path: Path) -> None:
    """Weights, optimizer, place in the data, schedule: all of them go on."""
    source = first / "checkpoints" / "step-0000002"
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    fork = tmp_path / "fork"
    code, said = in_process(fork, plays, *SHORT, f"run.fork_from={source}")
    assert code == 0, said
    assert f"beginning from {source.resolve()}, step 2" in said
    np.testing.assert_array_equal(rows(fork), rows(first)[2:])
    one, other = (run / "checkpoints" / "step-0000006" / "model.safetensors" for run in (fork, first))
    assert one.read_bytes() == other.read_bytes()
    assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == before
    origin = json.loads((fork / "run.json").read_text())["origin"]
    assert origin["step"] == 2 and origin["fork_from"] == str(source) and origin["path"] == str(source.resolve())
    assert json.loads((fork / "checkpoints" / "step-0000006" / "state.json").read_text())["origin"] == origin
    # Stopped, it goes on from its own, and its source may be gone.
    shutil.rmtree(fork / "checkpoints" / "step-0000006")
    code, said = in_process(fork, plays, *SHORT, "run.fork_from=nowhere")
    assert code == 0, said
    assert (
        "resuming from" in said
        and f"run.fork_from: nowhere is not read: this run goes on, and began from {source}" in said
    )
    np.testing.assert_array_equal(rows(fork), rows(first)[2:])
    assert json.loads((fork / "run.json").read_text())["origin"] == origin


def test_a_fork_may_change_what_is_not_settled_by_its_past(plays: Dataset, first: Path, tmp_path: Path) -> None:
    fork = tmp_path / "fork"
    changed = ("train.learning_rate=5e-3", "train.schedule=constant", "eval.val_tokens=256", "train.max_steps=8")
    code, said = in_process(fork, plays, *SHORT, f"run.fork_from={first}", *changed)
    assert code == 0, said
    assert rows(fork)[:, 0].tolist() == [6, 7, 8]  # the newest of that run
    metrics = [json.loads(line) for line in (fork / "metrics.jsonl").open()]
    assert [(row["tokens"], row["learning_rate"]) for row in metrics[1:]] == [(7 * 256, 5e-3), (8 * 256, 5e-3)]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "run.seed=1",
            "run.seed: it was saved with seed 1337, here it is 1; give that one again, or begin with its",
        ),
        ("train.tokens_per_step=512", "expected train.tokens_per_step = 256, got 512; give the one it was saved with"),
        ("model.n_layer=2", "expected a model of 1 layer, 2 heads, 32 channels, got (2, 2, 32)"),
        ("train.optimizer=muon", "optimizer state: expected that of AdamW and Muon, got another's"),
        ("train.max_steps=5", "train.max_steps: expected more than the 6 steps of "),
        ("model.init_from=x", "run.fork_from, model.init_from: expected one of them, got both"),
        ("run.fork_from=nowhere", "run.fork_from: expected a checkpoint, or a run directory that has one, got nowhere"),
    ],
)
def test_what_a_fork_cannot_change_is_refused(
    plays: Dataset, first: Path, tmp_path: Path, override: str, message: str
) -> None:
    longer = "train.max_steps=8"
    code, said = in_process(tmp_path / "fork", plays, *SHORT, longer, f"run.fork_from={first}", override)
    assert code == 1
    assert message in said
    assert not (tmp_path / "fork").exists()


def test_a_fork_of_a_damaged_checkpoint_is_refused(plays: Dataset, first: Path, tmp_path: Path) -> None:
    source = shutil.copytree(first / "checkpoints" / "step-0000002", tmp_path / "source")
    (source / "optimizer.safetensors").write_bytes(b"")
    code, said = in_process(tmp_path / "fork", plays, *SHORT, f"run.fork_from={source}")
    assert code == 1
    assert f"checkpoint {source}: expected every file as it was written, got optimizer.safetensors is not" in said


@pytest.mark.parametrize("lost", ["loss", "weights"])
def test_the_remedies_for_lost_numbers_work(
    plays: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """Each that the message names, taken at its word."""
    plain, calls = Optimizers.step, 0

    def step(self: Optimizers, factor: float) -> None:
        nonlocal calls
        calls += 1
        plain(self, factor)
        if calls == (3 if lost == "loss" else 4):
            with torch.no_grad():
                self.all[0].param_groups[0]["params"][0].fill_(np.nan)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Optimizers, "step", step)
        code, said = in_process(run, plays, *SHORT)
    assert code == 1
    message = said.strip().splitlines()[-1]
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["step-0000002"]
    (fork,) = re.findall(r"go on in another run.dir with (run\.fork_from=\S+) and a lower train.learning_rate", message)
    code, said = in_process(tmp_path / "colder", plays, *SHORT, fork, "train.learning_rate=1e-3")
    assert code == 0, said
    assert rows(tmp_path / "colder")[:, 0].tolist() == [2, 3, 4, 5, 6]
    if lost == "loss":
        assert message.endswith("or skip such steps in this one with train.on_nan=skip")
        code, said = in_process(run, plays, *SHORT, "train.on_nan=skip")
        assert code == 0, said


class BesideAnother(World):
    """The first of two ranks, of which the other has something else at one place of what is gathered."""

    def __init__(self, number: int, value: object):
        super().__init__(0, 2, torch.device("cpu"))
        self._number, self._value = number, value

    def gather(self, value: Any) -> list[Any]:
        return [value, (*value[: self._number], self._value, *value[self._number + 1 :])]


def test_ranks_that_have_different_data_are_refused(plays: Dataset) -> None:
    batches = StepBatches(plays, seq_len=1024, sequences_per_step=512, seed=1337)
    start = Start(GPT2(GPT2Config(1, 2, 32, n_positions=32)))
    refuse_other_starts(start, Config(), batches, World(0, 1, torch.device("cpu")))
    with pytest.raises(Error, match=f"ranks have different data: rank 0 dataset_id {plays.id}, rank 1 another; see"):
        refuse_other_starts(start, Config(), batches, BesideAnother(2, "another"))
