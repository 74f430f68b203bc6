"""A dataset directory: other people's tools read its shards, and no damage is read in silence."""

import io
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2wds.dataset import shards
from gpt2wds.dataset.directory import Dataset, dataset_id

needs_zstd = pytest.mark.skipif(shutil.which("zstd") is None, reason="needs the command zstd")


def all_tokens(dataset: Dataset, split: str) -> np.ndarray:
    """All of a split's tokens, without the overlaps."""
    return np.concatenate([t for s in range(len(dataset.shards(split))) for t in dataset.iterate_tokens(split, s)])


def verify(dataset: Dataset) -> list[str]:
    return [
        p
        for split in ("train", "val")
        for s in range(len(dataset.shards(split)))
        for p in dataset.verify_shard(split, s)
    ]


@pytest.fixture
def copy(plays, tmp_path) -> Path:
    return shutil.copytree(plays.path, tmp_path / "copy")


@pytest.fixture(scope="module")
def scratch(plays, tmp_path_factory) -> Path:
    """A copy for many small damages, each undone by the one who did it."""
    return shutil.copytree(plays.path, tmp_path_factory.mktemp("scratch") / "copy")


# Other people's tools


@needs_zstd
def test_zstd_and_tar_read_every_shard(plays):
    if "--zstd" not in subprocess.run(["tar", "--help"], capture_output=True, text=True).stdout:
        pytest.skip("needs a tar with --zstd")
    for split in ("train", "val"):
        for number, entry in enumerate(plays.shards(split)):
            path = f"{plays.path}/{entry['file']}"
            subprocess.run(["zstd", "-tq", path], check=True)
            listing = subprocess.run(["tar", "--zstd", "-tvf", path], check=True, capture_output=True, text=True)
            assert listing.stderr == ""
            lines = [line.split() for line in listing.stdout.splitlines()]
            name = f"{split}-{number:05d}"
            assert [line[-1] for line in lines] == [f"{name}-{b:06d}.tokens.npy" for b in range(entry["blocks"])]
            assert {(line[0], line[1], line[3]) for line in lines} == {("-rw-r--r--", "0/0", "1970-01-01")}


@needs_zstd
def test_stock_webdataset_reads_the_same_tokens(plays):
    last = len(plays.shards("train")) - 1
    assert last > 0
    urls = f"pipe:zstd -dcq {plays.path}/train-{{00000..{last:05d}}}.tar.zst"
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len(samples) == len(plays.blocks["train"])
    for block, sample in enumerate(samples):
        assert sample["__key__"] == plays.block_key("train", block)
        tokens = np.load(io.BytesIO(sample["tokens.npy"]), allow_pickle=False)
        np.testing.assert_array_equal(tokens, plays.read_tokens("train", block))


@needs_zstd
def test_stock_webdataset_reads_examples(choices):
    samples = list(webdataset.WebDataset(f"pipe:zstd -dcq {choices.path}/val-00000.tar.zst", shardshuffle=False))
    examples = list(choices.examples("val"))
    assert len(samples) == len(examples) == 36
    for sample, example in zip(samples, examples, strict=True):
        prompts = example.pop("prompts")
        assert json.loads(sample["json"]) == example
        assert set(prompts) == {"completion", "lm-eval"}
        for mode, tokens in prompts.items():
            np.testing.assert_array_equal(np.load(io.BytesIO(sample[f"{mode}.npy"])), tokens)


def test_a_seekable_zstd_reader_finds_every_frame(plays):
    pyzstd = pytest.importorskip("pyzstd")
    if not hasattr(pyzstd, "SeekableZstdFile"):
        pytest.skip("needs a pyzstd with SeekableZstdFile")
    at = 0
    with pyzstd.SeekableZstdFile(f"{plays.path}/train-00000.tar.zst") as file:
        frames = [plays.read_frame("train", b) for b in range(plays.shards("train")[0]["blocks"])]
        assert file.read() == b"".join(frames) + bytes(1024)
        for frame in reversed(frames):
            at -= len(frame)
            file.seek(at - 1024, io.SEEK_END)
            assert file.read(len(frame)) == frame


# What a dataset says of itself


def test_manifest_index_and_shards_agree(plays):
    assert verify(plays) == []
    for split in ("train", "val"):
        assert plays.total(split, "tokens") == len(all_tokens(plays, split))
        assert plays.total(split, "documents") == int(plays.blocks[split]["documents"].sum())
        for number, entry in enumerate(plays.shards(split)):
            with open(f"{plays.path}/{entry['file']}", "rb") as file:
                table = shards.read_seek_table(file)[:-1]
            rows = plays.blocks[split][plays.blocks[split]["shard"] == number]
            for column in ("offset", "length", "checksum"):
                np.testing.assert_array_equal(table[column], rows[column])
    assert plays.id == dataset_id(plays.manifest["shards"])


def test_a_url_is_read_as_a_path_is(plays):
    remote = Dataset(f"file://{plays.path}/")
    assert remote.id == plays.id
    np.testing.assert_array_equal(all_tokens(remote, "val"), all_tokens(plays, "val"))
    assert remote.verify_shard("val", 0) == []


def test_unknown_members_keys_and_columns_are_ignored(plays, copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest |= {"format_version": "1.7", "new": {}}
    manifest["shards"]["val"][0]["new"] = 1
    (copy / "manifest.json").write_text(json.dumps(manifest))
    old = np.load(copy / "val.blocks.npy")
    new = np.zeros(len(old), dtype=[*shards.BLOCK_ROW.descr, ("new", "<u8")])
    for column in shards.BLOCK_ROW.names:
        new[column] = old[column]
    np.save(copy / "val.blocks.npy", new)
    np.testing.assert_array_equal(all_tokens(Dataset(copy), "val"), all_tokens(plays, "val"))


# A directory that is no dataset


def refused(path: Path) -> str:
    """The error of opening `path`, which is a single line that names the directory."""
    with pytest.raises(ValueError) as caught:
        Dataset(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_directory_is_refused(tmp_path):
    assert "found none; make one with gpt2wds-shard" in refused(tmp_path / "nowhere")
    assert "found none; make one with gpt2wds-shard" in refused(tmp_path)


def test_an_unfinished_directory_is_refused(copy):
    assert (copy / "plan.json").exists()
    (copy / "manifest.json").unlink()
    assert "in the making: run its gpt2wds-shard command again" in refused(copy)


def test_a_later_format_is_refused(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"format_version": "2.0"}))
    assert "expected format 1.0, got 2.0; update gpt2wds" in refused(copy)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'"text"', b"{}", b'{"format_version": "1.0"}', b"\xff\xfe"]
)
def test_a_damaged_manifest_is_refused(copy, content):
    (copy / "manifest.json").write_bytes(content)
    assert "manifest.json" in refused(copy)


@settings(deadline=None)
@given(st.data())
def test_no_damage_of_the_manifest_is_an_unexpected_error(scratch, data):
    good = (scratch / "manifest.json").read_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    bad = data.draw(st.sampled_from([good[:at], good[:at] + b"x" + good[at + 1 :], good[:at] + b"9" + good[at + 1 :]]))
    (scratch / "manifest.json").write_bytes(bad)
    try:
        verify(Dataset(scratch))
    except ValueError as error:
        assert str(scratch) in str(error)
    finally:
        (scratch / "manifest.json").write_bytes(good)


@pytest.mark.parametrize("kept", [0, 5, 60, 128, -1])
def test_a_truncated_index_is_refused(copy, kept):
    index = (copy / "val.blocks.npy").read_bytes()
    (copy / "val.blocks.npy").write_bytes(index[:kept])
    assert "val.blocks.npy" in refused(copy)


def test_a_missing_index_is_refused(copy):
    (copy / "val.blocks.npy").unlink()
    assert "val.blocks.npy" in refused(copy)


def test_an_index_of_other_blocks_is_refused(copy):
    shutil.copy(copy / "train.blocks.npy", copy / "val.blocks.npy")
    assert "the manifest 2" in refused(copy)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_every_flipped_bit_of_an_index_is_found(plays, scratch, data):
    path = scratch / "val.blocks.npy"
    good = path.read_bytes()
    with flipped(path, data.draw(st.integers(0, 8 * len(good) - 1))):
        try:
            problems = verify(dataset := Dataset(scratch))
        except ValueError as error:
            problems = [str(error)]
            assert str(scratch) in problems[0]
        # Blanks in the header mean nothing.
        assert problems or (dataset.blocks["val"] == plays.blocks["val"]).all()


# Damaged shards


class flipped:
    """A file with one bit turned over, for the length of a with statement."""

    def __init__(self, path: Path, bit: int):
        self._path, self._bit = path, bit

    def __enter__(self) -> None:
        self._good = self._path.read_bytes()
        bad = bytearray(self._good)
        bad[self._bit // 8] ^= 1 << self._bit % 8
        self._path.write_bytes(bad)

    def __exit__(self, *_) -> None:
        self._path.write_bytes(self._good)


def block_of(dataset: Dataset, split: str, byte: int) -> int | None:
    """The block whose frame a byte of the first shard belongs to."""
    for block, row in enumerate(dataset.blocks[split]):
        if row["offset"] <= byte < row["offset"] + row["length"]:
            return block
    return None


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_flipped_bit_anywhere_in_a_shard_is_found(plays, scratch, data):
    path = scratch / "val-00000.tar.zst"
    size = path.stat().st_size
    bit = data.draw(st.integers(0, 8 * size - 1) | st.integers(8 * size - 8 * 60, 8 * size - 1))
    dataset = Dataset(scratch)
    with flipped(path, bit):
        problems = dataset.verify_shard("val", 0)
        assert problems
        assert all(problem.startswith("val-00000.tar.zst") for problem in problems)
        try:
            found = all_tokens(dataset, "val")
        except ValueError as error:
            assert f"{path} block {block_of(plays, 'val', bit // 8)}: " in str(error)
        else:
            # Tar's end, the seek table and a few bits of zstd's headers are no tokens.
            np.testing.assert_array_equal(found, all_tokens(plays, "val"))


def test_damage_names_shard_and_block(copy):
    dataset = Dataset(copy)
    path = copy / "train-00001.tar.zst"
    first = int(np.searchsorted(dataset.blocks["train"]["shard"], 1))
    row = dataset.blocks["train"][first + 3]
    with flipped(path, 8 * int(row["offset"] + row["length"] // 2)):
        with pytest.raises(ValueError, match=r"train-00001\.tar\.zst block 3: .*; delete the file and run"):
            dataset.read_tokens("train", first + 3)
        assert len(dataset.read_tokens("train", first + 2)) == 65_537
        assert any(problem.startswith("train-00001.tar.zst block 3: ") for problem in verify(dataset))


@pytest.mark.parametrize("lost", [1, 100, 10_000, 10**9])
def test_a_truncated_shard_is_found(copy, lost):
    path = copy / "val-00000.tar.zst"
    data = path.read_bytes()
    path.write_bytes(data[:-lost])
    dataset = Dataset(copy)
    problems = dataset.verify_shard("val", 0)
    assert any(f"expected {len(data)} bytes, got {max(0, len(data) - lost)}" in problem for problem in problems)
    if lost >= 10_000:
        with pytest.raises(
            ValueError, match=r"val-00000\.tar\.zst block \d: expected \d+ bytes at \d+, got \d+: the file is tr"
        ):
            all_tokens(dataset, "val")


def test_a_missing_shard_is_found(copy):
    (copy / "val-00000.tar.zst").unlink()
    dataset = Dataset(copy)
    (problem,) = dataset.verify_shard("val", 0)
    assert problem.startswith("val-00000.tar.zst: the file is missing")
    with pytest.raises(ValueError, match=r"val-00000\.tar\.zst block 0: the file is missing"):
        dataset.read_tokens("val", 0)


def test_a_shard_in_anothers_place_is_found(copy):
    shutil.copy(copy / "train-00000.tar.zst", copy / "train-00001.tar.zst")
    assert Dataset(copy).verify_shard("train", 1)


@pytest.mark.parametrize("field", ["documents", "tokens", "bytes", "sha256", "tokens_sha256"])
def test_a_wrong_count_or_hash_in_the_manifest_is_found(copy, field):
    manifest = json.loads((copy / "manifest.json").read_text())
    entry = manifest["shards"]["val"][0]
    entry[field] = entry[field] + 1 if isinstance(entry[field], int) else "0" * 64
    (copy / "manifest.json").write_text(json.dumps(manifest))
    (problem,) = Dataset(copy).verify_shard("val", 0)
    assert problem.startswith("val-00000.tar.zst: ")


def test_a_wrong_count_of_documents_in_the_index_is_found(copy):
    rows = np.load(copy / "val.blocks.npy")
    rows["documents"] = rows["documents"][::-1]
    np.save(copy / "val.blocks.npy", rows)
    assert any("documents, got" in problem for problem in Dataset(copy).verify_shard("val", 0))


def test_damaged_examples_are_found(choices, tmp_path):
    copy = shutil.copytree(choices.path, tmp_path / "copy")
    dataset = Dataset(copy)
    assert dataset.verify_shard("val", 0) == []
    with flipped(copy / "val-00000.tar.zst", 8 * 1000):
        assert dataset.verify_shard("val", 0)
        with pytest.raises(ValueError, match=r"val-00000\.tar\.zst block 0: "):
            list(dataset.examples("val"))
