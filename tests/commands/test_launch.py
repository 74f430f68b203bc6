"""From a configuration to a run: what is announced, and the weights that it starts from."""

import hashlib
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from runs import PROGRAMS, arguments, in_process, rows

from gpt2wds.commands.models import find_weights
from gpt2wds.dataset.directory import Dataset
from gpt2wds.errors import Error
from gpt2wds.model import GPT2, GPT2Config
from gpt2wds.train.checkpoint import State, list_checkpoints, save_checkpoint


def test_a_dry_run_on_an_existing_run_says_where_it_would_continue(plays: Dataset, whole: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in whole.iterdir() if path.is_file()}
    code, said = in_process(whole, plays, "--dry-run")
    assert code == 0
    checkpoint = whole / "checkpoints" / "step-0000012"
    assert f"data: {plays.path}: {plays.corpus}, " in said
    assert f"this run exists: it is finished, with {checkpoint}, step 12 of 12" in said
    assert {path: path.read_bytes() for path in whole.iterdir() if path.is_file()} == before
    half = shutil.copytree(whole, tmp_path / "half")
    shutil.rmtree(half / "checkpoints" / checkpoint.name)
    assert "this run exists: it would continue from " in in_process(half, plays, "--dry-run")[1]
    shutil.rmtree(half / "checkpoints")
    with pytest.raises(Error, match="expected a run with a checkpoint, got one without any yet; let it go on"):
        find_weights(str(half))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["eval.val_tokens=1"], "expected a val text of more than seq_len = 32 tokens, got "),
        (['data.skip_steps=["1-8", "9-40"]'], "data.skip_steps: expected some of the steps 1 to 12 to train on"),
        (["run.fork_from={whole}", "train.max_steps=14", 'data.skip_steps=["13-14"]'], "some of the steps 13 to 14"),
        (["run.fork_from={whole}", "train.max_steps=14", "train.optimizer=muon"], "optimizer state: expected that of"),
        (["run.dir={whole}/log.txt/run"], "/run, in the file "),
    ],
)
@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_a_dry_run_refuses_what_the_run_refuses(
    plays: Dataset, whole: Path, tmp_path: Path, options: list[str], said: str, dry: list[str]
) -> None:
    code, output = in_process(tmp_path / "run", plays, *(option.format(whole=whole) for option in options), *dry)
    assert code == 1 and output.startswith("error: ") and output.count("\n") == 1 and said in output
    assert not (tmp_path / "run").exists()


def test_a_dry_run_reads_the_rows_there_are(plays: Dataset, whole: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(whole, tmp_path / "run"))
    with (copy / "log.txt").open("a") as file:
        file.write("no row\n")
    shutil.rmtree(list_checkpoints(copy / "checkpoints")[-1])
    for dry in (["--dry-run"], []):
        code, output = in_process(copy, plays, *dry)
        assert code == 1 and "log.txt line 15: expected a row of one step" in output, output


def test_a_resume_hashes_the_weights_once(plays: Dataset, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed, digest = [], hashlib.file_digest

    def counting(file: BinaryIO, kind: str) -> Any:
        hashed.append(Path(file.name).name)
        return digest(file, kind)

    monkeypatch.setattr(hashlib, "file_digest", counting)
    assert in_process(whole, plays, "--dry-run")[0] == 0
    assert hashed.count("model.safetensors") == 1


def test_a_checkpoint_is_of_the_size_announced(whole: Path) -> None:
    (announced,) = re.findall(r"checkpoints of (\d+) MB", (whole / "gpt.log").read_text())
    files = (whole / "checkpoints" / "step-0000012").glob("*.safetensors")
    assert sum(path.stat().st_size for path in files) / 1e6 == pytest.approx(int(announced), abs=1)


def test_weights_of_another_vocabulary_are_refused(plays: Dataset, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, State(1), GPT2(GPT2Config(1, 2, 32, n_positions=32, vocab_size=300)), {}, keep=1)
    other = tmp_path / "step-0000001"
    code, said = in_process(tmp_path / "run", plays, f"model.init_from={other}")
    assert code == 1
    assert f"model.init_from: expected a vocabulary of 50257 tokens, which the data have, {other} has 300" in said


def test_a_run_starts_from_anothers_weights(plays: Dataset, whole: Path, tmp_path: Path) -> None:
    start_from = f"model.init_from={whole}"
    code, said = in_process(tmp_path / "long", plays, start_from, "data.seq_len=64")
    assert code == 1
    assert f"data.seq_len: expected at most the 32 positions of {whole}, got 64" in said
    code, said = in_process(tmp_path / "run", plays, start_from, "train.max_steps=2")
    assert code == 0, said
    assert rows(tmp_path / "run")[0, 2] == pytest.approx(rows(whole)[12, 2], abs=1e-5)
    # Which a resumed run does not need.
    shutil.rmtree(list_checkpoints(tmp_path / "run" / "checkpoints")[-1])
    code, said = in_process(tmp_path / "run", plays, "model.init_from=nowhere", "train.max_steps=2")
    assert code == 1  # there is no checkpoint to resume from
    in_process(tmp_path / "run", plays, start_from, "train.max_steps=2")
    code, said = in_process(tmp_path / "run", plays, "model.init_from=nowhere", "train.max_steps=2")
    assert (code, "already finished" in said) == (0, True)


def test_a_shape_that_is_not_that_of_the_weights_is_refused(plays: Dataset, whole: Path, tmp_path: Path) -> None:
    """Not left out in silence, and then written into config.toml."""
    code, said = in_process(tmp_path / "run", plays, f"model.init_from={whole}", "model.n_layer=3")
    assert code == 1
    assert "expected the shape of model.init_from, 1 layer, 2 heads, 32 channels, got (3, 2, 32); leave" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("model.n_layer=99999999999999999999", "model.n_layer: expected at most 1,000, got 9999"),
        ("train.decay_steps=-1", "train.decay_steps: expected at least 0, got -1"),
        ("run.dir={data}", "run.dir: expected a directory of the run's own, got {data}, which has a dataset"),
        ("run.dir={data}/manifest.json", "which is a file"),
    ],
)
def test_what_no_run_can_be_is_one_line(plays: Dataset, tmp_path: Path, option: str, said: str) -> None:
    options = [option.format(data=plays.path), "model.n_head=2"]
    code, output = in_process(tmp_path / "run", plays, *options)
    assert code == 1 and output.count("\n") == 1 and said.format(data=plays.path) in output


@pytest.mark.parametrize("rate", ["nan", "1e-320"])
def test_a_rate_that_ends_nothing_is_one_line(plays: Dataset, tmp_path: Path, rate: str) -> None:
    code, output = in_process(tmp_path / "run", plays, "--dry-run", "--tokens-per-second", rate)
    assert code == 1 and output.splitlines()[-1].startswith("error: tokens_per_second: expected a rate that ends")


def test_a_key_that_does_nothing_is_told(plays: Dataset, tmp_path: Path) -> None:
    """Who sets it takes it for what the run does."""
    options = {
        "train.decay_steps=5": " does nothing: it would with train.schedule=wsd",
        "train.muon_learning_rate=0.1": " does nothing: it would with train.optimizer=muon",
        "model.size=gpt2-xl": " does nothing: it would with no n_layer, n_head and n_embd",
        "eval.hellaswag_mode=lm-eval": " does nothing: it would with eval.hellaswag",
        "eval.sample_tokens=3": " does nothing: it would with eval.sample_prompts",
        "train.min_learning_rate=0.002": " does nothing: it would with another schedule",
        "data.num_workers=1000": ": 8 read ahead, no more than the 8 sequences that a rank has of a step",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.cpu_count", lambda: 6)
        said = in_process(tmp_path / "run", plays, "--dry-run", "train.schedule=constant", *options)[1]
    more = "data.num_workers=1000: more of each rank than the 6 cores here only wait"
    told = {line for line in said.splitlines() if line.startswith("WARNING: ")}
    assert told == {f"WARNING: {line}" for line in (more, *map("".join, options.items()))}
    used = ["train.schedule=wsd", "train.optimizer=muon", "train.muon_learning_rate=0.1", "train.decay_steps=5"]
    assert "WARNING" not in in_process(tmp_path / "run", plays, "--dry-run", *used)[1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_dry_run_that_nobody_can_read_is_no_success(plays: Dataset, tmp_path: Path) -> None:
    command = [PROGRAMS / "gpt2wds-train", *arguments(tmp_path / "run", plays), "--dry-run"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (
        1,
        "error: No space left on device; make room, then the same command goes on\n",
    )
