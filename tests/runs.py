"""Runs of gpt2wds-train for tests: a small configuration, and processes that are started, watched and ended."""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
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
    said = process.stdout.read()  # communicate() would lose what wait_for has read ahead
    assert process.wait(timeout=300) == expected, said
    return said


@functools.cache
def nursery() -> subprocess.Popen[str]:
    """The process that commands are forked from, which begins when it is first needed; see nursery.py."""
    command = [sys.executable, str(Path(__file__).with_name("nursery.py"))]
    process = subprocess.Popen(command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def end() -> None:
        process.stdin.close()
        process.wait(timeout=30)

    atexit.register(end)
    return process


def forked(
    command: str, *ranks: Sequence[object], together: bool = False, **changes: str
) -> tuple[list[int], str, str]:
    """Exit codes, standard output and standard error of gpt2wds-`command`, with arguments for each rank.

    In processes of its own, without torchrun and without a new Python, for tests of what a run does and not of how it
    is started. together: standard error is in standard output. changes: of the environment, though not of what torch
    reads when it is imported.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "out" if together else "err")
        job = {"command": command, "ranks": [list(map(str, one)) for one in ranks], "environment": changes}
        job |= {"out": str(out), "err": str(err)}
        nursery().stdin.write(json.dumps(job) + "\n")
        nursery().stdin.flush()
        codes = json.loads(nursery().stdout.readline())
        files = (sorted(Path(folder).glob(f"{name}*")) for name in ("out", "err"))  # by rank
        said, problems = ("".join(path.read_text() for path in each) for each in files)
        return codes, said, problems


def trained(run: Path, dataset: Dataset | Path, *overrides: str, ranks: int = 1) -> str:
    """All that gpt2wds-train says, whose ranks must end well.

    Once a rank was gone without a word, and never again in 620 tries; why is not known. The line that another says
    then tells what to do, and that is done here, once, with a warning that shows the exit codes.
    """
    command = arguments(run, dataset, *overrides)
    codes, said, _ = forked("train", *[command] * ranks, together=True)
    if "error: a rank is gone" in said:
        warnings.warn(f"ranks ended with {codes}, and are started again: {said}", stacklevel=2)
        codes, said, _ = forked("train", *[command] * ranks, together=True)
    assert codes == [0] * ranks, (codes, said)
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
