"""gpt2wds-shard finish: what is missing is named, and what is finished is left alone."""

from pathlib import Path

from making import plan_files, texts, write_jsonl
from shard_command import run


def test_a_finished_dataset_is_not_written_to(small: Path) -> None:
    """It may be on a disk that is only read."""
    before = {path: path.stat() for path in (small, *small.rglob("*"))}
    code, said, _ = run("finish", small)
    assert (code, said.startswith(f"{small}: already there, files: train 3 shards, 10 documents, ")) == (0, True)
    after = {path: path.stat() for path in (small, *small.rglob("*"))}
    assert {p: s.st_mtime_ns for p, s in after.items()} == {p: s.st_mtime_ns for p, s in before.items()}
    (small / "manifest.json").unlink()
    assert run("finish", small)[1].startswith(f"{small}: files: train 3 shards, 10 documents, ")
    assert (small / "manifest.json").exists()


def test_many_missing_shards_take_few_lines_and_all_can_be_named(tmp_path: Path) -> None:
    source, out = write_jsonl(tmp_path / "a.jsonl", texts(60)), tmp_path / "out"
    plan_files(out, source, val_docs=0, docs_per_shard=1)
    code, said, error = run("finish", out)
    assert (code, said) == (1, "missing: train-00000 to train-00059\n")
    assert error.endswith("60 of 60 shards are missing, named above; give the command that makes them again\n")
    command = ["files", source, "--val-docs", 0, "--docs-per-shard", 1, "--workers", 1, "--out", out]
    assert run(*command, "--task-slice", "0/2")[0] == 0
    code, said, error = run("finish", out)
    assert code == 1 and said.splitlines() == [f"missing: train-{number:05d}" for number in range(1, 40, 2)]
    assert "30 of 60 shards are missing, some named above, all by --all; give the command that makes them" in error
    assert len(run("finish", out, "--all")[1].splitlines()) == 30
