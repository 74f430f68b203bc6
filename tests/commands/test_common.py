"""What the commands share."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from gpt2wds.commands import common
from gpt2wds.commands import eval as eval_commands
from gpt2wds.commands import shard as shard_commands
from gpt2wds.commands.common import Commands, one_line_errors
from gpt2wds.errors import Error
from gpt2wds.train.rundir import RunDirectory


def test_progress_tells_what_is_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(common, "LINE_SECONDS", 0)
    progress = common.ProgressLine("training", 1000, " steps", done=100)
    time.sleep(0.05)
    progress.update(10, "loss 3.0")  # a tenth of a tenth: 890 steps at ≤ 200 a second
    (said,) = re.findall(r"training: 110 of 1,000 steps, .*/s, (.*) left, loss 3.0", capsys.readouterr().err)
    assert re.fullmatch(r"0:00:(0[4-9]|[1-5]\d)", said)


@pytest.mark.parametrize(("total", "said"), [(1, "reading: 1 of 1 document,"), (None, "reading: 1 document,")])
def test_one_is_no_plural(total: int | None, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    progress = common.ProgressLine("reading", total, " documents")
    progress.update(1)
    progress.close()
    assert said in capsys.readouterr().err


def test_a_terminal_has_whole_numbers_and_messages_above_the_line() -> None:
    program = """
import time
from tqdm import tqdm
from gpt2wds.commands.common import ProgressLine
progress = ProgressLine("training", 1200, " steps")
for step in range(30):
    time.sleep(0.02)
    progress.update(40, "loss 3.1234, " + "and more " * 20)
    if step == 15:
        tqdm.write("step 16: a message")
progress.close("loss 3.1")
"""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", program], stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = b""
    with suppress(OSError):  # EIO: the program has ended
        while data := os.read(ours, 4096):
            said += data
    assert process.wait() == 0
    *shown, last = said.decode().replace("\r\n", "\n").rstrip("\n").split("\r")
    bars = [line for line in shown if line.startswith("training")]
    assert all(len(line) <= 80 for line in bars)
    assert any(
        re.match(r"training: .{10} 640 of 1,200 steps, 00:0\d left, .*steps/s, loss 3.1234", line) for line in bars
    )
    assert "step 16: a message\n" in shown  # on a line of its own
    assert re.fullmatch(r"training: 1,200 of 1,200 steps, [\d,.]+/s, loss 3.1", last.strip())


@pytest.mark.parametrize(
    ("main", "arguments", "flag"),
    [
        (shard_commands.main, "export data --format llmc --out s3://bucket/data", "--out"),
        (eval_commands.main, "hellaswag model --data data --per-example s3://bucket/data", "--per-example"),
        (eval_commands.main, "report s3://bucket/data", "run_dirs"),
        (eval_commands.main, "report run --out s3://bucket/data", "--out"),
    ],
)
def test_a_url_is_refused_where_only_a_local_path_can_be(
    main: common.Commands, arguments: str, flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, arguments.split())
    line = f"error: {flag}: expected a path of this machine, got the URL s3://bucket/data; give a local directory\n"
    assert (done.exit_code, done.stderr) == (1, line)
    assert not list(tmp_path.iterdir())


def test_a_run_directory_is_local() -> None:
    with pytest.raises(Error, match="run.dir: expected a path of this machine, got the URL s3://bucket/run"):
        RunDirectory("s3://bucket/run")


def test_sigterm_says_how_to_go_on() -> None:
    before = signal.getsignal(signal.SIGTERM)

    @click.group(cls=Commands)
    def group() -> None: ...

    @group.command()
    def work() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    result = CliRunner().invoke(group, ["work"])
    assert (result.exit_code, result.stderr) == (143, "stopped; the same command goes on from here\n")
    assert signal.getsignal(signal.SIGTERM) == before


def test_ctrl_c_while_a_command_is_imported_is_one_line() -> None:
    script = (
        "import os, signal, sys, time\n"
        "sys.argv[0] = '/usr/bin/gpt2wds-train'\n"
        "import gpt2wds.commands\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "time.sleep(10)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "stopped; the same command goes on from here\n")


def test_no_memory_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), one_line_errors():
        raise MemoryError
    assert capsys.readouterr().err.startswith("error: out of memory; ")
