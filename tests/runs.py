"""Runs of gpt2wds-train for tests: a small configuration, and processes that are started, watched and ended."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from click.testing import CliRunner

from gpt2wds.commands.train import main
from gpt2wds.dataset.directory import Dataset

PROGRAMS = Path(sys.executable).parent
# 8 sequences a step, which three ranks do not divide. Small, but for the vocabulary.
CONFIG = """
[run]
device = "cpu"
[data]
seq_len = 32
[model]
n_layer = 1
n_head = 2
n_embd = 32
[train]
tokens_per_step = 256
micro_batch_sequences = 8
max_steps = 12
learning_rate = 1e-2
min_learning_rate = 1e-3
warmup_steps = 2
dtype = "float32"
compile = false
[eval]
every_steps = 5
val_tokens = 512
sample_prompts = []
[checkpoint]
every_steps = 4
keep = 2
"""


def arguments(run: Path, dataset: Dataset | Path, *overrides: str) -> list[str]:
    path = run.with_suffix(".toml")
    path.write_text(CONFIG, encoding="utf-8")
    data = dataset.path if isinstance(dataset, Dataset) else dataset
    return [str(path), f"run.dir={run}", f"data.path={data}", *overrides]


def environment(**changes: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"} | changes


def start(run: Path, dataset: Dataset, *overrides: str, ranks: int = 1, **changes: str) -> subprocess.Popen[str]:
    command = [str(PROGRAMS / "gpt2wds-train"), *arguments(run, dataset, *overrides)]
    if ranks > 1:
        launcher = [str(PROGRAMS / "torchrun"), "--standalone", f"--nproc-per-node={ranks}", "--no-python"]
        command = [*launcher, *command]
    return program(command, **changes)


def program(command: list[str], **changes: str) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment(**changes), **pipes)


def finish(process: subprocess.Popen[str], expected: int = 0) -> str:
    """The rest of what it says; it must end as expected."""
    said, _ = process.communicate(timeout=300)
    assert process.returncode == expected, said
    return said


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """Read what it says until a line has `text`; all that was read."""
    said = ""
    for line in process.stdout:
        said += line
        if text in line:
            return said
    raise AssertionError(f"expected {text!r}, got {said}")


def in_process(run: Path, dataset: Dataset | Path, *overrides: str) -> tuple[int, str]:
    """Exit code and output of gpt2wds-train, called here: faster than a new process."""
    result = CliRunner().invoke(main, arguments(run, dataset, *overrides))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def finished(run: Path, dataset: Dataset, *overrides: str) -> Path:
    """A run that gpt2wds-train, called here, brought to its end."""
    code, said = in_process(run, dataset, *overrides)
    assert code == 0, said
    return run


def rows(run: Path) -> np.ndarray:
    """(steps, 4) of log.txt."""
    return np.loadtxt(run / "log.txt", ndmin=2)


def steps_of(run: Path) -> list[int]:
    return rows(run)[:, 0].astype(int).tolist()


def children(process: subprocess.Popen[str]) -> list[int]:
    """Process ids of those that it started and that live."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            if path.read_text().rpartition(") ")[2].split()[1] == str(process.pid):
                found.append(int(path.parent.name))
    return found


@contextmanager
def one_thread() -> Iterator[None]:
    """As in the processes that tests start: more would be no faster for models this small, and sum in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
