"""What a command prints: progress, and streams that are closed, full, or that nobody reads."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path

import pytest
from runs import PROGRAMS

from gpt2wds.commands import output


def test_progress_tells_what_is_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(output, "LINE_SECONDS", 0)
    progress = output.ProgressLine("training", 1000, " steps", done=100)
    time.sleep(0.05)
    progress.update(10, "loss 3.0")  # a tenth of a tenth: 890 steps at ≤ 200 a second
    (said,) = re.findall(r"training: 110 of 1,000 steps, .*/s, (.*) left, loss 3.0", capsys.readouterr().err)
    assert re.fullmatch(r"0:00:(0[4-9]|[1-5]\d)", said)


def test_what_takes_centuries_is_told_in_years(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "LINE_SECONDS", 0)
    progress = output.ProgressLine("training", 10**23, " steps")
    time.sleep(0.01)
    progress.update(1)
    assert re.search(r"/s, [\d,]{15,} years left", capsys.readouterr().err)


@pytest.mark.parametrize(("total", "said"), [(1, "reading: 1 of 1 document,"), (None, "reading: 1 document,")])
def test_one_is_no_plural(total: int | None, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    progress = output.ProgressLine("reading", total, " documents")
    progress.update(1)
    progress.close()
    assert said in capsys.readouterr().err


def test_a_terminal_has_whole_numbers_and_messages_above_the_line() -> None:
    program = """
import logging, time
from gpt2wds.commands.output import ProgressLine
progress = ProgressLine("training", 1200, " steps")
for step in range(30):
    time.sleep(0.02)
    progress.update(40, "loss 3.1234, " + "and more " * 20)
    if step == 15:
        logging.getLogger("gpt2wds.folder").warning("step 16: a message")
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
    ("closed", "command", "expected"),
    [
        ("stdout", "print('x' * 100_000)", (141, "")),  # more than a pipe holds
        ("stderr", "print('x' * 100_000, file=sys.stderr)", (0, "")),  # progress that nobody reads
        ("", "os.write(other, b'x')", (1, "error: Broken pipe\n")),
    ],
)
def test_only_who_reads_no_more_ends_a_command_in_silence(closed: str, command: str, expected: tuple[int, str]) -> None:
    script = (
        "import os, sys\n"
        "from gpt2wds.commands.common import one_line_errors\n"
        "reader, other = os.pipe()\n"
        "os.close(reader)\n"
        "sys.stdin.readline()\n"
        f"with one_line_errors(): {command}\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", script], **pipes) as process:
        if closed:
            getattr(process, closed).close()
        process.stdin.write("go\n")
        process.stdin.close()
        said = "" if closed == "stderr" else process.stderr.read()
    assert (process.returncode, said) == expected


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("command", ["gpt2wds-shard --help", "gpt2wds-eval --version", "gpt2wds-train -h"])
def test_help_that_cannot_be_written_is_one_line(command: str) -> None:
    line = f"{PROGRAMS / command} > /dev/full"
    done = subprocess.run(line, shell=True, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1) and "error: No space left on device" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_progress_that_cannot_be_written_changes_nothing(small: Path, source: Path, tmp_path: Path) -> None:
    for command in (f"verify {small}", f"files {source} --out {tmp_path / 'again'}"):
        done = subprocess.run(f"{PROGRAMS / 'gpt2wds-shard'} {command} 2> /dev/full", shell=True, capture_output=True)
        assert done.returncode == 0 and done.stdout


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", ">&-", "<&- >&-"])
def test_a_stream_that_the_caller_closed_ends_nothing(closed: str) -> None:
    script = "from gpt2wds.commands.common import one_line_errors as done\nwith done(): print(1)"
    done = subprocess.run(f'{sys.executable} -c "{script}" {closed}', shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_a_start_of_sharding_leaves_out_what_costs_time() -> None:
    """The threads of NumPy's BLAS, and a progress bar where there is no terminal."""
    script = (
        "import os, sys\n"
        "sys.argv = ['/usr/bin/gpt2wds-shard']\n"
        "from gpt2wds.commands.output import ProgressLine\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "import numpy\n"
        "print(len(os.listdir('/proc/self/task')) - before)\n"
        "from gpt2wds.commands import shard\n"
        "ProgressLine('sharding', 2, ' documents').close()\n"
        "print('tqdm' in sys.modules)\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert (done.stdout, done.stderr) == ("0\nFalse\n", "sharding: 0 of 2 documents, 0.0/s\n")
