"""What the commands share."""

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

import pytest

from gpt2wds.commands import common


def test_progress_tells_what_is_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(common, "LINE_SECONDS", 0)
    progress = common.ProgressLine("training", 1000, " steps", done=100)
    time.sleep(0.05)
    progress.update(10, "loss 3.0")  # a tenth of a tenth: 890 steps at ≤ 200 a second
    (said,) = re.findall(r"training: 110 of 1,000 steps, .*/s, (.*) left, loss 3.0", capsys.readouterr().err)
    assert re.fullmatch(r"0:00:(0[4-9]|[1-5]\d)", said)


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
