"""data.document_masking and train.activation_checkpointing, from the configuration to the result that names them."""

import dataclasses
import json
import shutil
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from making import shard_files, write_jsonl
from runs import finished, in_process, rows, trained

from gpt2wds.commands.eval import main
from gpt2wds.dataset.directory import Dataset
from gpt2wds.dataset.loader import StepBatches
from gpt2wds.model import GPT2
from gpt2wds.tokenizer import END_OF_TEXT
from gpt2wds.train.weights import load_weights

SHORT = ("train.max_steps=4", "checkpoint.every_steps=2", "eval.every_steps=2", "eval.val_tokens=128")
MASKED = "data.document_masking=true"


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Documents of 10 to 60 tokens, of which sequences of 32 hold two or three."""
    folder = tmp_path_factory.mktemp("stories")
    texts = [f"Story {n}: " + " ".join(f"word{i * n % 97}" for i in range(3 + n % 17)) for n in range(90)]
    return shard_files(folder / "data", write_jsonl(folder / "stories.jsonl", texts), val_docs=10, docs_per_shard=80)


@pytest.fixture(scope="module")
def masked(stories: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps. Read it, do not change it."""
    return finished(tmp_path_factory.mktemp("masked") / "run", stories, *SHORT, MASKED)


@pytest.fixture(scope="module")
def plain(stories: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without masking."""
    return finished(tmp_path_factory.mktemp("plain") / "run", stories, *SHORT)


def ask(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def singly(model: GPT2, sequence: np.ndarray) -> float:
    """The mean loss of a sequence whose documents are read in rows of their own."""
    model.config = dataclasses.replace(model.config, document_masking=False)
    inputs, targets = (torch.from_numpy(part.astype(np.int64)) for part in (sequence[:-1], sequence[1:]))
    bounds = sorted({0, *(inputs == END_OF_TEXT).nonzero().flatten().tolist(), len(inputs)})
    total = 0.0
    with torch.no_grad():
        for begin, end in pairwise(bounds):
            log_p = model.logits(model.hidden(inputs[None, begin:end])[0]).log_softmax(dim=2)[0]
            # The target at a document's end is the next one's beginning.
            total -= log_p.gather(1, targets[begin:end, None]).sum().item()
    return total / len(inputs)


def test_training_and_tracing_read_documents_singly(masked: Path, plain: Path, stories: Dataset) -> None:
    """The first step after a checkpoint: its logged loss is that of the checkpoint, document by document."""
    batches = StepBatches(stories, seq_len=32, sequences_per_step=8, seed=1337)
    *_, third = islice(batches, 3)
    assert (third[:, 1:-1] == END_OF_TEXT).sum() > 4
    model = load_weights(masked / "checkpoints" / "step-0000002")
    losses = [singly(model, sequence) for sequence in third]
    assert rows(masked)[3, 1] == pytest.approx(np.mean(losses), rel=1e-5)
    assert abs(rows(masked)[3, 1] - rows(plain)[3, 1]) > 1e-3
    found = ask("trace", masked, "--step", 3, "--loss")
    by_slot = {record["slot"]: record["loss"] for record in found["sequences"]}
    np.testing.assert_allclose([by_slot[slot] for slot in range(8)], losses, rtol=1e-5)


def test_validation_is_read_as_training_is_and_says_so(masked: Path, plain: Path, stories: Dataset) -> None:
    logged = {run: rows(run)[4, 2] for run in (masked, plain)}
    found = ask("loss", masked, "--data", stories.path, "--limit", 128)
    assert found["document_masking"] is True and found["loss"] == pytest.approx(logged[masked], rel=1e-6)
    other = ask("loss", masked, "--data", stories.path, "--limit", 128, "--no-document-masking")
    assert other["document_masking"] is False and abs(other["loss"] - found["loss"]) > 1e-5
    assert ask("loss", plain, "--data", stories.path, "--limit", 128)["loss"] == pytest.approx(logged[plain], rel=1e-6)
    said = CliRunner().invoke(main, ["loss", str(masked), "--data", str(stories.path)]).stdout
    assert ", val, documents read singly: loss" in said
    assert json.loads((masked / "run.json").read_text())["document_masking"] is True
    assert "documents: attention and positions stay within each" in (masked / "gpt.log").read_text()
    for path in ("run.json", "checkpoints/step-0000004/config.json"):
        assert "document_masking" not in (plain / path).read_text()


def test_a_run_keeps_its_way_and_a_new_one_takes_its_own(
    masked: Path, plain: Path, stories: Dataset, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for source, override, change in (
        (masked, "data.document_masking=false", "True → False"),
        (plain, MASKED, "→ True"),
    ):
        shutil.copytree(source, run)
        code, said = in_process(run, stories, *SHORT, override)
        assert code == 1 and "data.document_masking: " in said and change in said
        (run / "config.toml").unlink()  # then the checkpoint knows
        code, said = in_process(run, stories, *SHORT, override)
        assert code == 1 and "expected data.document_masking = " in said
        shutil.rmtree(run)
    for key, steps in (("model.init_from", 2), ("run.fork_from", 5)):
        for source, override in ((masked, "data.document_masking=false"), (plain, MASKED)):
            finished(run, stories, *SHORT, f"train.max_steps={steps}", override, f"{key}={source}")
            (newest,) = (run / "checkpoints").glob(f"*{steps}")
            assert load_weights(newest).config.document_masking == (override == MASKED)
            shutil.rmtree(run)


def test_what_config_json_may_say(masked: Path, tmp_path: Path) -> None:
    model = shutil.copytree(masked / "checkpoints" / "step-0000004", tmp_path / "model")
    (model / "SHA256SUMS").unlink()
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"document_masking": 1}))
    with pytest.raises(ValueError, match=r"document_masking: expected true or false in config.json, got 1"):
        load_weights(model)


def test_blocks_computed_again_change_no_number(masked: Path, stories: Dataset, tmp_path: Path) -> None:
    """Bit for bit, and in the second half of a run that began without."""
    again, half = tmp_path / "again", shutil.copytree(masked, tmp_path / "half")
    shutil.rmtree(half / "checkpoints" / "step-0000004")
    for run in (again, half):
        code, said = in_process(run, stories, *SHORT, MASKED, "train.activation_checkpointing=true")
        assert code == 0, said
        assert (run / "log.txt").read_bytes() == (masked / "log.txt").read_bytes()


@pytest.mark.slow
def test_ranks_that_share_a_model_mask_and_compute_again_alike(masked: Path, stories: Dataset, tmp_path: Path) -> None:
    options = (MASKED, "train.activation_checkpointing=true", "train.micro_batch_sequences=2")
    trained(tmp_path / "run", stories, *SHORT, *options, "train.parallel=fsdp", ranks=2)
    np.testing.assert_allclose(rows(tmp_path / "run"), rows(masked), rtol=0, atol=2e-5)
