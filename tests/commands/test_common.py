"""What the commands share."""

import re
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from gpt2wds.commands import common
from gpt2wds.commands import eval as eval_commands
from gpt2wds.commands import shard as shard_commands
from gpt2wds.errors import Error
from gpt2wds.train.rundir import RunDirectory


def test_progress_tells_what_is_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(common, "LINE_SECONDS", 0)
    progress = common.ProgressLine("training", 1000, " steps", done=100)
    time.sleep(0.05)
    progress.update(10, "loss 3.0")  # a tenth of a tenth: 890 steps at ≤ 200 a second
    (said,) = re.findall(r"training: 110 of 1,000 steps, .*/s, (.*) left, loss 3.0", capsys.readouterr().err)
    assert re.fullmatch(r"0:00:(0[4-9]|[1-5]\d)", said)


@pytest.mark.parametrize(
    ("main", "arguments", "flag"),
    [
        (shard_commands.main, "export data --format llmc --out s3://bucket/data", "--out"),
        (eval_commands.main, "hellaswag model --data data --per-example s3://bucket/data", "--per-example"),
        (eval_commands.main, "report s3://bucket/data", "run_dir"),
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
