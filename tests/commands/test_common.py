"""What the commands share."""

import errno
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
from runs import PROGRAMS
from shard_command import fails

from gpt2wds.commands import common
from gpt2wds.commands import eval as eval_commands
from gpt2wds.commands import shard as shard_commands
from gpt2wds.commands.common import Commands, one_line_errors
from gpt2wds.commands.models import find_checkpoint, find_weights
from gpt2wds.dataset.directory import Dataset
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


@pytest.mark.parametrize(
    "arguments",
    [
        "shakespeare --source plays --out s3:/bucket/x",
        "push s3:/bucket/x out",
        "push s3:bucket/x out",
        "export . --out s3:/x --format llmc",
    ],
)
def test_a_url_that_lost_a_slash_is_no_directory(
    arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(shard_commands.main, arguments.split())
    said = "; a URL begins with s3://, a directory of that name with ./"
    assert done.exit_code == 1 and said in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert not list(tmp_path.iterdir())


def test_weights_are_local() -> None:
    for find, name in ((find_weights, "model s3://bucket/run"), (find_checkpoint, "run.fork_from")):
        with pytest.raises(Error, match=f"^{name}: expected a path of this machine, got the URL s3://bucket/run; give"):
            find("s3://bucket/run")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_end_says_how_to_go_on(number: int) -> None:
    before = signal.getsignal(number)

    @click.group(cls=Commands)
    def group() -> None: ...

    @group.command()
    def work() -> None:
        os.kill(os.getpid(), number)
        time.sleep(10)

    result = CliRunner().invoke(group, ["work"])
    assert (result.exit_code, result.stderr) == (128 + number, "stopped; the same command goes on from here\n")
    assert signal.getsignal(number) == before


def test_nohup_is_heeded() -> None:
    @click.group(cls=Commands)
    def group() -> None: ...

    @group.command()
    def work() -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        click.echo("done")

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        result = CliRunner().invoke(group, ["work"])
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (result.exit_code, result.stdout) == (0, "done\n")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("gpt2wds-train", "stopped; the same command goes on from here\n"),
        ("gpt2wds-shard files", "stopped; the same command goes on from here\n"),
        ("gpt2wds-shard verify", "stopped\n"),  # it reads all anew
        ("gpt2wds-eval hellaswag", "stopped\n"),
    ],
)
def test_ctrl_c_while_a_command_is_imported_is_one_line(command: str, said: str) -> None:
    script = (
        "import os, signal, sys, time\n"
        f"sys.argv = '/usr/bin/{command}'.split()\n"
        "import gpt2wds.commands\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "time.sleep(10)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, said)


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
        "from gpt2wds.commands.common import ProgressLine\n"
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_later_import_is_not_lost(number: int) -> None:
    # In importlib's own callback, which swallows whatever is raised in it.
    script = (
        "import signal, sys\n"
        "sys.argv = ['/usr/bin/gpt2wds-shard', 'work']\n"
        "import gpt2wds.commands.common as common\n"
        "group = common.Commands('gpt2wds-eval')\n"
        "def strike(frame, event, _):\n"
        "    if event == 'call' and frame.f_code.co_name == 'cb' and 'importlib' in frame.f_code.co_filename:\n"
        "        sys.setprofile(None)\n"
        "        signal.raise_signal(int(%d))\n"
        "@group.command()\n"
        "def work():\n"
        "    sys.setprofile(strike)\n"
        "    import mailbox\n"
        "    print('the signal was lost')\n"
        "group()\n"
    )
    done = subprocess.run([sys.executable, "-c", script % number], capture_output=True, text=True, timeout=60)
    said = "stopped; the same command goes on from here\n"
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", said)


def test_no_memory_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), one_line_errors():
        raise MemoryError
    assert capsys.readouterr().err.startswith("error: out of memory; ")


@pytest.mark.parametrize("number", [errno.EEXIST, errno.ENOTDIR])
def test_a_file_in_a_directorys_place_has_a_remedy(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), one_line_errors():
        raise OSError(number, os.strerror(number), "a\x1bb")
    assert capsys.readouterr().err == f"error: a\\x1bb: {os.strerror(number)}; choose another place\n"


@pytest.mark.parametrize(
    "command", [["shakespeare", "--source", "plays", "--out"], ["hellaswag", "--out"], ["finish"], ["push", "here"]]
)
def test_a_place_that_ends_with_the_command_is_refused(plays: Dataset, command: list[str]) -> None:
    """All would be well, and nothing there."""
    command = [plays.path if word == "here" else word for word in command]
    said = "error: memory://x: expected a place that stays, got this command's own memory, which ends with it; give s3:"
    assert fails(*command, "memory://x").startswith(said)
