"""Tokens in other people's formats, read back by loaders written from those formats' documentation."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from making import shard_files

from gpt2wds.commands.shard import main
from gpt2wds.dataset.directory import Dataset
from gpt2wds.dataset.export import export_dataset


def read_llmc(path: Path) -> np.ndarray:
    """llm.c's data format: 256 int32 of header (magic, version, tokens), then uint16 tokens."""
    data = path.read_bytes()
    header = np.frombuffer(data[:1024], dtype="<i4")
    assert (header[0], header[1]) == (20240520, 1) and not header[3:].any()
    tokens = np.frombuffer(data[1024:], dtype="<u2")
    assert len(tokens) == header[2]
    return tokens


def read_nanogpt(path: Path) -> np.ndarray:
    """nanoGPT's: the tokens alone, for np.memmap."""
    return np.array(np.memmap(path, dtype=np.uint16, mode="r"))


def tokens_of(dataset: Dataset, split: str, shards: list[int]) -> list[int]:
    return [int(t) for shard in shards for part in dataset.iterate_tokens(split, shard) for t in part]


def export(dataset: Dataset, out: Path, file_format: str) -> str:
    result = CliRunner().invoke(main, ["export", dataset.path, "--out", str(out), "--format", file_format])
    assert result.exit_code == 0, result.output
    return result.output


def test_llmc_has_one_file_per_shard(plays: Dataset, tmp_path: Path):
    assert "4 files" in export(plays, tmp_path, "llmc")
    assert sorted(p.name for p in tmp_path.glob("[!.]*")) == [
        "train_000000.bin",
        "train_000001.bin",
        "train_000002.bin",
        "val_000000.bin",
    ]
    for split in ("train", "val"):
        for number in range(len(plays.shards(split))):
            assert read_llmc(tmp_path / f"{split}_{number:06d}.bin").tolist() == tokens_of(plays, split, [number])


def test_nanogpt_has_one_file_per_split(plays: Dataset, tmp_path: Path):
    export(plays, tmp_path, "nanogpt")
    assert sorted(p.name for p in tmp_path.glob("[!.]*")) == ["train.bin", "val.bin"]
    assert read_nanogpt(tmp_path / "train.bin").tolist() == tokens_of(plays, "train", [0, 1, 2])
    assert read_nanogpt(tmp_path / "val.bin").tolist() == tokens_of(plays, "val", [0])


def test_a_shard_without_tokens_and_a_split_without_documents_give_no_file(tmp_path: Path):
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("a", "", "b")))
    dataset = shard_files(tmp_path / "data", source, val_docs=0, docs_per_shard=1)
    export(dataset, tmp_path / "llmc", "llmc")
    assert [read_llmc(p).tolist() for p in sorted((tmp_path / "llmc").glob("*.bin"))] == [[50256, 64], [50256, 65]]
    export(dataset, tmp_path / "nanogpt", "nanogpt")
    assert [p.name for p in (tmp_path / "nanogpt").glob("*.bin")] == ["train.bin"]


def test_what_cannot_be_exported_is_one_line(choices: Dataset, plays: Dataset, tmp_path: Path):
    result = CliRunner().invoke(main, ["export", choices.path, "--out", str(tmp_path), "--format", "llmc"])
    assert result.exit_code == 1 and "expected tokens to export, got multiple-choice" in result.output
    result = CliRunner().invoke(main, ["export", plays.path, "--out", str(tmp_path), "--format", "npy"])
    assert result.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_what_an_earlier_export_left_is_not_mixed_in(plays: Dataset, tmp_path: Path):
    export(plays, tmp_path, "nanogpt")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    result = CliRunner().invoke(main, ["export", plays.path, "--out", str(tmp_path), "--format", "llmc"])
    assert result.exit_code == 1 and "expected no other export, got 'nanogpt " in result.output
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_files_of_others_are_not_mixed_in(plays: Dataset, tmp_path: Path):
    (tmp_path / "train_000009.bin").write_bytes(b"x")
    result = CliRunner().invoke(main, ["export", plays.path, "--out", str(tmp_path), "--format", "llmc"])
    assert result.exit_code == 1 and "without other .bin files, got train_000009.bin" in result.output
    result = CliRunner().invoke(main, ["export", plays.path, "--out", plays.path, "--format", "llmc"])
    assert result.exit_code == 1 and "a directory of the export's own, got a dataset" in result.output
    assert not list(Path(plays.path).glob("*.bin"))


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", range(1, 12, 2))
def test_a_kill_leaves_nothing_that_looks_whole_and_is_gone_on_from(
    plays: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
):
    export(plays, tmp_path / "whole", "llmc")
    calls = 0

    def killing(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == moment:
            raise _Killed

    with monkeypatch.context() as patch, pytest.raises(_Killed):
        patch.setattr("os.fsync", killing)
        export_dataset(plays, tmp_path / "out", "llmc")
        raise _Killed  # all was done before that moment
    found = list((tmp_path / "out").glob("*.bin"))
    assert len(found) in (0, 4)
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.done")}
    assert export_dataset(plays, tmp_path / "out", "llmc") == sorted((tmp_path / "out").glob("*.bin"))
    assert all(path.with_suffix("").stat().st_mtime_ns == time for path, time in done.items())  # not written again
    for path in (tmp_path / "whole").glob("*.bin"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert len(list((tmp_path / "out").iterdir())) == 5


def test_a_damaged_file_is_written_again(plays: Dataset, tmp_path: Path):
    export(plays, tmp_path, "llmc")
    whole = (tmp_path / "train_000001.bin").read_bytes()
    for damaged in (whole[:5000] + b"x" + whole[5001:], whole[:-2], whole + b"xx", b""):
        (tmp_path / "train_000001.bin").write_bytes(damaged)
        export(plays, tmp_path, "llmc")
        assert (tmp_path / "train_000001.bin").read_bytes() == whole
    result = CliRunner().invoke(main, ["export", plays.path, "--out", "", "--format", "llmc"])
    assert result.exit_code == 1 and "--out: expected a path, got an empty name" in result.output
