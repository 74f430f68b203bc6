"""A plan that is made or found: what is asked once, and what a plan that was found may have read again."""

import json
from pathlib import Path

import pytest
from making import shard_files, texts, write_jsonl

from gpt2wds.commands import shard
from gpt2wds.corpus import receipts
from gpt2wds.corpus.corpora import Files
from gpt2wds.corpus.cutting import Cut
from gpt2wds.corpus.plan import HASHES
from gpt2wds.corpus.planning import begin
from gpt2wds.folder import Folder
from gpt2wds.strict_json import checked

CUT = {"val_docs": 2, "docs_per_shard": 4}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "a.jsonl", texts(12))


def test_whether_it_is_finished_is_said_with_the_plan(tmp_path: Path, source: Path) -> None:
    out, asked = tmp_path / "out", (Files((str(source),)), Cut(**CUT))
    plan, is_finished = begin(Folder(out), *asked)
    assert not is_finished and begin(Folder(out), *asked) == (plan, False)
    shard_files(out, source, **CUT)
    assert begin(Folder(out), *asked) == (plan, True)
    (out / "train-00001.tar.zst").unlink()
    assert begin(Folder(out), *asked) == (plan, False)


def test_a_finished_datasets_command_reads_its_receipts_once(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shard_files(tmp_path / "out", source, **CUT)
    read, read_receipt = [], receipts.read_receipt
    monkeypatch.setattr(receipts, "read_receipt", lambda *asked: (read.append(asked[2]), read_receipt(*asked))[1])
    options = ["--val-docs", "2", "--docs-per-shard", "4", "--out", str(tmp_path / "out")]
    shard.main(["files", str(source), *options], standalone_mode=False)
    assert "already there" in capsys.readouterr().out
    assert [str(task) for task in read] == ["val-00000", "train-00000", "train-00001", "train-00002"]


def test_a_finished_plan_has_no_file_read_that_the_command_does_not_mean(tmp_path: Path, source: Path) -> None:
    """Only the command's own sources are compared with their hashes."""
    out, secret = tmp_path / "out", tmp_path / "secret"
    shard_files(out, source, **CUT)
    secret.write_text("s" * source.stat().st_size)
    plan = json.loads((out / "plan.json").read_text())
    plan["sources"][0]["path"] = str(secret)
    (out / "plan.json").write_text(json.dumps(checked(plan)))
    for path in out.glob("receipts/*"):
        told = json.loads(path.read_text()) | {"plan": checked(plan)["check"]}
        path.write_text(json.dumps(checked(told)))
    assert begin(Folder(out), Files((str(source),)), Cut(**CUT))[1]


def test_the_command_may_trust_times(tmp_path: Path, source: Path) -> None:
    options = ["--val-docs", "0", "--workers", "1", "--out", str(tmp_path / "out"), "--trust-times"]
    shard.main(["files", str(source), *options], standalone_mode=False)
    assert HASHES not in (tmp_path / "out" / "plan.json").read_text()
