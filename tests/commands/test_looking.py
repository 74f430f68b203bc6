"""What info, verify, cat and export print; what they read is tested with the dataset."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from making import shard_files

from gpt2wds.commands.looking import SOURCES_SHOWN
from gpt2wds.commands.shard import main
from gpt2wds.dataset.directory import Dataset


def run(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def json_lines(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.mark.parametrize("command", ["info", "verify", "cat", "export"])
def test_help_says_what_a_directory_may_be(command: str) -> None:
    code, said, _ = run(command, "--help")
    assert code == 0 and f"{command} [OPTIONS] DIR" in said


def test_info_has_a_row_for_each_source_and_split(tmp_path: Path) -> None:
    big = json_lines(tmp_path / "big.jsonl", [f"text {n}" for n in range(60)] + [""])
    small = json_lines(tmp_path / "small.jsonl", ["one", "two"])
    dataset = shard_files(tmp_path / "data", big, small, val_docs=10)
    rows = json.loads(run("info", dataset.path, "--json")[1])["sources"]
    assert {row["source"] for row in rows} == {str(big), str(small)}
    for split in ("train", "val"):
        mine = [row for row in rows if row["split"] == split]
        known = [row["documents"] for row in mine if row["documents"] is not None]
        if len(known) == len(mine):
            assert sum(known) == dataset.total(split, "documents")
        assert all(row["unit"] == "byte" and row["count"] > 0 for row in mine)
    said = run("info", dataset.path)[1]
    assert all(any(row["split"] in line and row["source"] in line for line in said.splitlines()) for row in rows)


def test_info_counts_documents_where_spans_are_rows(tmp_path: Path) -> None:
    for name, texts in (("a", ["one", "", "two"]), ("b", ["three", "four", "five"])):
        pq.write_table(pa.table({"text": texts}), tmp_path / f"{name}.parquet")
    dataset = shard_files(tmp_path / "data", tmp_path / "a.parquet", tmp_path / "b.parquet", val_docs=0)
    assert len(dataset.shards("train")) == 1
    facts = json.loads(run("info", dataset.path, "--json")[1])
    assert facts["sources"] == [
        {"split": "train", "source": str(tmp_path / "a.parquet"), "documents": 2, "unit": "row", "count": 3},
        {"split": "train", "source": str(tmp_path / "b.parquet"), "documents": 3, "unit": "row", "count": 3},
    ]
    assert f"train   {'2 documents':>24}  {tmp_path}/a.parquet" in run("info", dataset.path)[1].splitlines()


def test_info_shows_some_of_many_sources(plays: Dataset) -> None:
    facts = json.loads(run("info", plays.path, "--json")[1])
    assert len(facts["sources"]) == 38
    assert facts["dataset_id"] == plays.id and facts["corpus"]["name"] == plays.corpus
    said = run("info", plays.path)[1].splitlines()
    assert f"train   {'':24}  … and {36 - SOURCES_SHOWN} more" in said
    assert sum("  plays/" in line for line in said) == SOURCES_SHOWN + 2


def test_verify_names_what_is_wrong_and_fails(plays: Dataset, tmp_path: Path) -> None:
    copy = shutil.copytree(plays.path, tmp_path / "copy")
    assert run("verify", copy)[:2] == (0, f"{copy}: all right, {run('verify', plays.path)[1].partition(', ')[2]}")
    (copy / "val-00000.tar.zst").unlink()
    plan = json.loads((copy / "plan.json").read_text())
    (copy / "plan.json").write_text(json.dumps(plan | {"kind": "pictures"}))
    code, said, errors = run("verify", copy)
    assert code == 1 and "2 problems found, named above" in errors
    assert said.splitlines()[0].startswith("plan.json: it is not as it was written")
    assert said.splitlines()[1].startswith("val-00000.tar.zst: the file is missing")
