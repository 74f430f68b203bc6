"""What the commands share."""

import re
import time

import pytest

from gpt2wds.commands import common


def test_progress_tells_what_is_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(common, "LINE_SECONDS", 0)
    progress = common.ProgressLine("training", 1000, " steps", done=100)
    time.sleep(0.05)
    progress.update(10, "loss 3.0")  # a tenth of a tenth: 890 steps at ≤ 200 a second
    (said,) = re.findall(r"training: 110 of 1,000 steps, .*/s, (.*) left, loss 3.0", capsys.readouterr().err)
    assert re.fullmatch(r"0:00:(0[4-9]|[1-5]\d)", said)
