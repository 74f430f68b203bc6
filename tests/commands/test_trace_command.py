"""gpt2wds-eval trace: held to what a run logged, and to what it was trained on."""

import json
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from making import shard_files
from runs import in_process, rows

from gpt2wds.commands.eval import main
from gpt2wds.dataset.directory import Dataset
from gpt2wds.dataset.loader import StepBatches
from gpt2wds.distributed import World
from gpt2wds.evaluate.text import sequence_losses, validation_loss
from gpt2wds.tokenizer import load_tokenizer
from gpt2wds.train.weights import load_weights

SEQ_LEN, PER_STEP, SEED = 32, 8, 1337  # runs.CONFIG's


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    """A run of 12 steps with a checkpoint after each but the first, in the third epoch of a little dataset."""
    folder = tmp_path_factory.mktemp("traced")
    texts = [f"Story {n}: " + " ".join(f"word{i * n % 97}" for i in range(20 + 3 * n)) for n in range(30)]
    texts[5] = ""
    texts[6] += "\x1b[2J\u202e\n"
    lines = [json.dumps({"text": text}) for text in texts]
    (folder / "stories.jsonl").write_text("\n".join(lines) + "\n")
    dataset = shard_files(folder / "data", folder / "stories.jsonl", val_docs=4, docs_per_shard=11)
    code, said = in_process(
        folder / "run", dataset, "checkpoint.every_steps=1", "checkpoint.keep=99", "eval.val_tokens=64"
    )
    assert code == 0, said
    return folder / "run", dataset


def ask(run: Path, *arguments: object) -> str:
    result = CliRunner().invoke(main, ["trace", str(run), *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def ask_json(run: Path, *arguments: object) -> dict[str, Any]:
    return json.loads(ask(run, *arguments, "--json"))


def refusal(run: Path, *arguments: object) -> str:
    result = CliRunner().invoke(main, ["trace", str(run), *map(str, arguments)])
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.output
    return result.output


def continued(run: Path, folder: Path, max_steps: int, *changes: tuple[str, str]) -> Path:
    """A copy of the run that has more steps to go."""
    copy = Path(shutil.copytree(run, folder / "run"))
    text = (copy / "config.toml").read_text().replace("max_steps = 12", f"max_steps = {max_steps}")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (copy / "config.toml").write_text(text)
    return copy


class OneOfThree(World):
    """A rank whose sums are its own."""

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


def test_a_steps_text_is_what_was_trained_on(traced: tuple[Path, Dataset]) -> None:
    run, dataset = traced
    batches = StepBatches(dataset, seq_len=SEQ_LEN, sequences_per_step=PER_STEP, seed=SEED)
    decode = load_tokenizer().decode
    for step, sequences in enumerate(islice(batches, 12), 1):
        found = ask_json(run, "--step", step, "--text")
        assert (found["step"], found["state"], found["dataset_id"]) == (step, "read", dataset.id)
        assert found["epoch"] == (step - 1) // batches.steps_per_epoch
        assert [record["slot"] for record in found["sequences"]] == list(range(PER_STEP))
        for record, tokens in zip(found["sequences"], sequences, strict=True):
            text = "".join("<|endoftext|>" * piece["begins"] + piece["text"] for piece in record["documents"])
            assert text == decode(tokens[:-1])
            assert sum(piece["tokens"] for piece in record["documents"]) == SEQ_LEN
            assert record["dataset"] == dataset.path


def test_losses_are_those_of_training(traced: tuple[Path, Dataset]) -> None:
    """Update s's loss is of the weights after s - 1 updates: the checkpoint before it."""
    run, _ = traced
    logged = {int(row[0]): row[1] for row in rows(run)}
    for step in (2, 7, 12):
        found = ask_json(run, "--step", step, "--loss")
        losses = [record["loss"] for record in found["sequences"]]
        assert found["checkpoint"] == f"step-{step - 1:07d}"
        assert losses == sorted(losses, reverse=True) and len(set(losses)) > 1
        assert sorted(record["slot"] for record in found["sequences"]) == list(range(PER_STEP))
        np.testing.assert_allclose(np.mean(losses), logged[step], rtol=1e-5)


def test_each_sequence_has_its_own_loss(traced: tuple[Path, Dataset]) -> None:
    run, dataset = traced
    step = next(iter(StepBatches(dataset, seq_len=SEQ_LEN, sequences_per_step=PER_STEP, seed=SEED)))
    model = load_weights(run / "checkpoints" / "step-0000007").eval()
    world = World(0, 1, torch.device("cpu"))
    losses = sequence_losses(model, step, world, batch_sequences=3)
    alone = [validation_loss(model, [sequence[None]], world, "float32") for sequence in step]
    np.testing.assert_allclose(losses, alone, rtol=1e-6)
    shares = [sequence_losses(model, step, OneOfThree(rank, 3, world.device)) for rank in range(3)]
    np.testing.assert_allclose(losses, sum(shares), rtol=1e-6)


def test_an_older_checkpoint_is_taken_where_the_one_before_is_gone_or_damaged(
    traced: tuple[Path, Dataset], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(traced[0], tmp_path / "run"))
    shutil.rmtree(run / "checkpoints" / "step-0000008")
    (run / "checkpoints" / "step-0000007" / "model.safetensors").write_bytes(b"")
    result = CliRunner().invoke(main, ["trace", str(run), "--step", "9", "--loss", "--json"])
    assert json.loads(result.stdout)["checkpoint"] == "step-0000006"
    assert "step-0000007 is damaged" in result.stderr
    assert "expected a checkpoint before step 1" in refusal(run, "--step", 1, "--loss")


def test_a_forks_first_step_has_the_loss_of_what_it_began_from(traced: tuple[Path, Dataset], tmp_path: Path) -> None:
    run, dataset = traced
    source, fork = run / "checkpoints" / "step-0000005", tmp_path / "fork"
    code, said = in_process(fork, dataset, f"run.fork_from={source}", "checkpoint.every_steps=4", "eval.val_tokens=64")
    assert code == 0, said
    logged = {int(row[0]): row[1] for row in rows(fork)}
    found = ask_json(fork, "--step", 6, "--loss")
    assert found["checkpoint"] == str(source)
    np.testing.assert_allclose(np.mean([r["loss"] for r in found["sequences"]]), logged[6], rtol=1e-5)
    assert ask_json(fork, "--step", 9, "--loss")["checkpoint"] == "step-0000008"
    assert f"it was forked after step 5, from {source}; ask the run" in refusal(fork, "--step", 5, "--loss")
    facts = json.loads((fork / "run.json").read_text())
    for change, said in (("sha256", "has changed since"), ("path", "is gone")):
        other = {**facts, "origin": {**facts["origin"], change: str(tmp_path / "nowhere")}}
        (fork / "run.json").write_text(json.dumps(other))
        assert f"and what the run began from {said}" in refusal(fork, "--step", 6, "--loss")


def test_it_needs_no_sound_rows_and_facts(traced: tuple[Path, Dataset], tmp_path: Path) -> None:
    run = continued(traced[0], tmp_path, 40)
    whole = ask_json(run, "--step", 4)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join([*lines[:3], "x\n", *lines[4:], '{"step": 13, "cut']))
    (run / "run.json").write_text("[]")
    result = CliRunner().invoke(main, ["trace", str(run), "--step", "4", "--json"])
    assert (result.exit_code, json.loads(result.stdout)) == (0, whole)
    assert "run.json: expected JSON" in result.stderr and "whether the dataset is the run's" in result.stderr
    assert "the run is at step 12" in ask(run, "--step", 30)
    (run / "metrics.jsonl").unlink()
    assert "the run is at step 12" in ask(run, "--step", 30)
    # A run that was stopped has saved its last step, and logs it when it goes on.
    (run / "log.txt").write_text("".join((run / "log.txt").read_text().splitlines(keepends=True)[:6]))
    assert "the run is at step 12" in ask(run, "--step", 30)
    shutil.rmtree(run / "checkpoints")
    assert "the run is at step 4" in ask(run, "--step", 30)


def test_a_documents_steps_are_those_that_show_it(traced: tuple[Path, Dataset]) -> None:
    run, _ = traced
    shown: dict[int, set[tuple[int, int]]] = {}
    for step in range(1, 13):
        for record in ask_json(run, "--step", step)["sequences"]:
            for piece in record["documents"]:
                shown.setdefault(piece["number"], set()).add((step, record["slot"]))
    states = set()
    for number in range(30):
        found = ask_json(run, "--document", f"stories.jsonl:{number}")
        assert (found["number"], found["unit"], Path(found["source"]).name) == (number, "document", "stories.jsonl")
        readings = found.get("readings", [])
        assert {(r["step"], r["slot"]) for r in readings if r["state"] == "read"} == shown.get(number, set())
        assert all((r["step"] is None) == (r["state"] == "fills no step") for r in readings)
        states |= {r["state"] for r in readings}
        assert (found["split"] == "val") == (number < 4) and (found["skipped"] is not None) == (number == 5)
    assert {"read", "fills no step"} <= states
    assert len(shown) >= 20


def test_what_is_to_come_is_not_read_yet(traced: tuple[Path, Dataset], tmp_path: Path) -> None:
    run = continued(traced[0], tmp_path, 40)
    later = ask_json(run, "--step", 30)
    assert later["state"] == "not yet"
    piece = later["sequences"][0]["documents"][0]
    readings = ask_json(run, "--document", f"stories.jsonl:{piece['number']}")["readings"]
    assert {r["state"] for r in readings if r["step"] is not None} == {"read", "not yet"}
    assert {(r["step"] <= 12, r["state"]) for r in readings if r["step"]} == {(True, "read"), (False, "not yet")}
    assert 30 in [r["step"] for r in readings]
    assert "not trained on yet, the run is at step 12" in ask(run, "--step", 30)


def test_it_says_all_that_in_words(traced: tuple[Path, Dataset]) -> None:
    run, dataset = traced
    said = ask(run, "--step", 3, "--loss")
    assert said.startswith(f"{run}, step 3, epoch 0: 8 sequences of 32 tokens of {dataset.path}\nmean loss ")
    assert " under step-0000002, worst first\n" in said
    assert (
        said.count("train-00000 block 0, tokens ")
        + said.count("train-00001 block 0, tokens ")
        + said.count("train-00002")
        == 8
    )
    assert "stories.jsonl document " in said
    every = "".join(ask(run, "--step", step, *more) for step in range(1, 13) for more in ((), ("--text",), ("--json",)))
    assert "\\x1b[2J\\u202e" in every and not set("\x1b\u202e") & set(every)
    assert "held out for validation, never trained on" in ask(run, "--document", "stories.jsonl:2")
    assert "left out when the dataset was made (empty text)" in ask(run, "--document", "stories.jsonl:5")
    document = ask(run, "--document", "stories.jsonl:17")
    assert "epoch 0, step " in document and ": read; train-0000" in document and ", slot " in document


def test_what_is_asked_for_wrongly_is_one_line(traced: tuple[Path, Dataset], tmp_path: Path) -> None:
    run, _ = traced
    assert "expected a step of" in refusal(run, "--step", 13)
    assert "expected SOURCE:ROW, such as texts.parquet:17" in refusal(run, "--document", "stories.jsonl")
    assert "0 to 29 that were taken of it, got 30" in refusal(run, "--document", "stories.jsonl:30")
    assert "expected a run directory (config.toml), got none" in refusal(tmp_path, "--step", 1)
    broken = continued(run, tmp_path, 12, ("seq_len = 32", 'seq_len = "32"'))
    assert "'seq_len': expected a count" in refusal(broken, "--step", 1)
    for arguments in ((), ("--step", "1", "--document", "a:1")):
        assert CliRunner().invoke(main, ["trace", str(run), *arguments]).exit_code == 2


def test_a_dataset_that_moved_is_given_and_another_is_refused(
    traced: tuple[Path, Dataset], plays: Dataset, tmp_path: Path
) -> None:
    run, dataset = traced
    moved = shutil.copytree(dataset.path, tmp_path / "moved")
    there = continued(run, tmp_path, 12, (dataset.path, str(tmp_path / "gone")))
    assert "expected a finished dataset" in refusal(there, "--step", 1)
    assert ask_json(there, "--step", 1, "--data", moved)["sequences"][0]["dataset"] == str(moved)
    assert "expected the run's dataset" in refusal(there, "--step", 1, "--data", plays.path)


def test_it_needs_neither_torch_nor_the_sources(traced: tuple[Path, Dataset], tmp_path: Path) -> None:
    run, dataset = traced
    source = Path(dataset.path).with_name("stories.jsonl")
    hidden = source.rename(tmp_path / "hidden.jsonl")
    try:
        program = (
            "import sys; sys.modules['torch'] = None; from gpt2wds.commands.eval import main\n"
            "main(['trace', sys.argv[1], '--step', '4', '--text'], standalone_mode=False)\n"
            "main(['trace', sys.argv[1], '--document', 'stories.jsonl:9'])\n"
        )
        done = subprocess.run([sys.executable, "-c", program, str(run)], capture_output=True, text=True)
        assert done.returncode == 0 and "step 4" in done.stdout and "stories.jsonl document 9" in done.stdout
    finally:
        hidden.rename(source)
