"""What the commands share: options, and how a command ends."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from shard_command import fails

from gpt2wds.commands import common
from gpt2wds.commands import eval as eval_commands
from gpt2wds.commands import shard as shard_commands
from gpt2wds.commands.common import Commands, one_line_errors
from gpt2wds.commands.models import find_checkpoint, find_weights
from gpt2wds.dataset.directory import Dataset
from gpt2wds.errors import Error
from gpt2wds.train.rundir import RunDirectory


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


def test_a_module_that_is_run_says_the_same() -> None:
    said = "import sys; sys.argv = ['-m', 'x']; sys.orig_argv = ['python', '-m', 'gpt2wds.commands.%s']; "
    for name, stopped in ("eval", "stopped"), ("train", "stopped; the same command goes on from here"):
        script = said % name + "import gpt2wds.commands; print(gpt2wds.commands.STOPPED)"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == stopped


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


def test_a_command_ends_without_freeing_what_it_has(tmp_path: Path) -> None:
    program = tmp_path / "gpt2wds-shard"  # a command is known by its name
    program.write_text(
        "import atexit, sys, threading, time\n"
        "from gpt2wds.commands.shard import main\n"
        "class Freed:\n"
        "    def __del__(self): print('freed', file=sys.__stderr__, flush=True)\n"
        "kept = Freed()\n"
        "atexit.register(print, 'last words', file=sys.stderr)\n"
        "threading.Thread(target=lambda: [time.sleep(0.2), print('thread', file=sys.stderr)]).start()\n"
        "main(sys.argv[1:])\n"
    )
    for arguments, code in (["--version"], 0), (["info", str(tmp_path)], 1), (["nosuch"], 2):
        done = subprocess.run([sys.executable, program, *arguments], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr.splitlines()[-2:]) == (code, ["thread", "last words"])
        assert bool(done.stdout) == (code == 0)
    for closed in (">&-", "2>&-"):
        line = f"{sys.executable} {program} --version {closed}"
        done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command", [["shakespeare", "--source", "plays", "--out"], ["hellaswag", "--out"], ["finish"], ["push", "here"]]
)
def test_a_place_that_ends_with_the_command_is_refused(plays: Dataset, command: list[str]) -> None:
    """All would be well, and nothing there."""
    command = [plays.path if word == "here" else word for word in command]
    said = "error: memory://x: expected a place that stays, got this command's own memory, which ends with it; give s3:"
    assert fails(*command, "memory://x").startswith(said)
