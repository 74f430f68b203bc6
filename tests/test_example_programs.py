"""The examples, run as their readers run them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from making import shard_files, write_jsonl

from gpt2wds.dataset.directory import Dataset
from gpt2wds.dataset.loader import StepBatches

EXAMPLES = Path(__file__).parents[1] / "examples"
TORCHRUN = [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc-per-node=2"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def own_loop(data: Dataset, checkpoint: Path, *options: str, ranks: int = 1) -> subprocess.Popen[str]:
    launcher = TORCHRUN if ranks == 2 else [sys.executable]
    command = [*launcher, str(EXAMPLES / "own_loop.py"), data.path, "--checkpoint", str(checkpoint), *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=ENVIRONMENT, **pipes)


def losses(process: subprocess.Popen[str]) -> dict[int, float]:
    """Loss by step of all that it says from now on; it must end well."""
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return dict(loss_of(line) for line in said.splitlines())


def loss_of(line: str) -> tuple[int, float]:
    head, _, loss = line.partition(": loss ")
    return int(head.removeprefix("step ")), float(loss)


@pytest.fixture(scope="module")
def whole(plays: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Losses of 12 steps that nothing interrupted."""
    return losses(own_loop(plays, tmp_path_factory.mktemp("whole") / "own.pt", "--steps", "12"))


@pytest.mark.slow
def test_the_own_loop_learns_and_is_short(whole: dict[int, float]) -> None:
    assert list(whole) == list(range(1, 13))
    assert whole[12] < whole[1] - 1
    assert len((EXAMPLES / "own_loop.py").read_text().splitlines()) <= 62


@pytest.mark.slow
def test_a_directory_that_is_none_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "own_loop.py"), str(tmp_path)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ") and "manifest.json" in done.stderr


@pytest.mark.slow
def test_another_datasets_checkpoint_is_one_line(plays: Dataset, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(plays.path, tmp_path / "damaged"))
    losses(own_loop(plays, tmp_path / "own.pt", "--steps", "1"))
    (damaged / "train-00000.tar.zst").unlink()
    other = shard_files(
        tmp_path / "other",
        write_jsonl(tmp_path / "other.jsonl", [f"{n} many words " * 600 for n in range(9)]),
        val_docs=1,
    )
    for data, said in ((other, "state: it was saved with dataset_id "), (Dataset(damaged), "the file is missing")):
        process = own_loop(data, tmp_path / "own.pt", "--steps", "40")
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 1 and errors.count("\n") == 1 and errors.startswith("error: "), errors
        assert said in errors


@pytest.mark.slow
def test_killed_and_resumed_it_has_the_same_losses(plays: Dataset, whole: dict[int, float], tmp_path: Path) -> None:
    process = own_loop(plays, tmp_path / "own.pt", "--steps", "12")
    found = {}
    assert process.stdout is not None
    for line in process.stdout:
        step, loss = loss_of(line)
        found[step] = loss
        if step == 5:
            process.kill()
            break
    found |= dict(map(loss_of, process.communicate()[0].splitlines()))  # what was said before it died
    resumed = losses(own_loop(plays, tmp_path / "own.pt", "--steps", "12"))
    assert 1 < min(resumed) <= len(found) + 1 and max(resumed) == 12
    assert found | resumed == whole


@pytest.mark.slow
def test_two_ranks_have_the_losses_of_one_and_go_on_from_each_other(
    plays: Dataset, whole: dict[int, float], tmp_path: Path
) -> None:
    first = losses(own_loop(plays, tmp_path / "own.pt", "--steps", "6", ranks=2))
    second = losses(own_loop(plays, tmp_path / "own.pt", "--steps", "9"))
    third = losses(own_loop(plays, tmp_path / "own.pt", "--steps", "12", ranks=2))
    assert (list(first), list(second), list(third)) == ([1, 2, 3, 4, 5, 6], [7, 8, 9], [10, 11, 12])
    np.testing.assert_allclose(list((first | second | third).values()), list(whole.values()), rtol=1e-5)


@pytest.mark.skipif(shutil.which("zstd") is None, reason="needs the command zstd")
def test_stock_webdataset_reads_every_sequence(plays: Dataset) -> None:
    program = EXAMPLES / "stock_webdataset.py"
    assert "import gpt2wds" not in program.read_text() and "from gpt2wds" not in program.read_text()
    done = subprocess.run([sys.executable, program, plays.path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    sequences = StepBatches(plays, seq_len=128, sequences_per_step=1, seed=0).sequences
    assert done.stdout.splitlines() == [
        "first batch: (8, 129) uint16",
        f"3 shards, {plays.total('train', 'blocks')} blocks, {plays.total('train', 'documents')} documents, "
        f"{sequences} sequences of 128 tokens",
    ]
