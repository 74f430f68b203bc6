"""Every byte of a dataset against its manifest: what is damaged is found, and named."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from damaging import all_tokens, change_entry, flipped, older, refused, verify
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_server import PlainServer

from gpt2wds.dataset.directory import Dataset
from gpt2wds.dataset.verify import verify_shard
from gpt2wds.errors import Error, NoRanges, Unanswered


def block_of(dataset: Dataset, split: str, byte: int) -> int | None:
    """The block whose frame a byte of the first shard belongs to."""
    for block, row in enumerate(dataset.blocks[split]):
        if row["offset"] <= byte < row["offset"] + row["length"]:
            return block
    return None


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_flipped_bit_anywhere_in_a_shard_is_found(plays, scratch, data):
    path = scratch / "val-00000.tar.zst"
    size = path.stat().st_size
    bit = data.draw(st.integers(0, 8 * size - 1) | st.integers(8 * size - 8 * 60, 8 * size - 1))
    dataset = Dataset(scratch)
    with flipped(path, bit):
        problems = verify_shard(dataset, "val", 0)
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
    problems = verify_shard(dataset, "val", 0)
    assert any(f"expected {len(data)} bytes, got {max(0, len(data) - lost)}" in problem for problem in problems)
    if lost >= 10_000:
        with pytest.raises(
            ValueError, match=r"val-00000\.tar\.zst block \d: expected \d+ bytes at \d+, got \d+: the file is tr"
        ):
            all_tokens(dataset, "val")


def test_a_missing_shard_is_found(copy):
    (copy / "val-00000.tar.zst").unlink()
    dataset = Dataset(copy)
    (problem,) = verify_shard(dataset, "val", 0)
    assert problem.startswith("val-00000.tar.zst: the file is missing")
    with pytest.raises(ValueError, match=r"val-00000\.tar\.zst block 0: the file is missing"):
        dataset.read_tokens("val", 0)


def test_a_shard_in_anothers_place_is_found(copy):
    shutil.copy(copy / "train-00000.tar.zst", copy / "train-00001.tar.zst")
    assert verify_shard(Dataset(copy), "train", 1)


def test_a_wrong_size_or_hash_in_the_manifest_is_found(copy, plays):
    for field, value in (
        ("bytes", plays.shards("val")[0].bytes + 1),
        ("sha256", "0" * 64),
        ("tokens_sha256", "0" * 64),
    ):
        shutil.copy(f"{plays.path}/manifest.json", copy)
        change_entry(copy, **{field: value})
        if field == "tokens_sha256":
            assert "for its shards, got" in refused(copy)
            continue
        problem, receipt = verify_shard(Dataset(copy), "val", 0)
        assert problem.startswith("val-00000.tar.zst: ")
        assert receipt.startswith("receipts/val-00000.json: it tells of another shard than manifest.json")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m["corpus"].update(revision="main"), "plan.json: 'corpus': expected "),
        (lambda m: m["tokenizer"].update(tiktoken="0.1"), "plan.json: 'tokenizer': expected "),
        (lambda m: m["parameters"].update(docs_per_shard=13), "plan.json: 'parameters': expected "),
        (lambda m: m["versions"].update(zstd="1.0"), "plan.json: 'versions': expected "),
        (lambda m: m["shards"]["val"][0].update(text_bytes=1), "receipts/val-00000.json: it tells of another shard"),
        (lambda m: m["shards"]["val"][0].update(skipped={"a": [0]}), "receipts/val-00000.json: it tells of another"),
        (lambda m: m["shards"]["val"][0]["spans"][0].update(count=9), "receipts/val-00000.json: it tells of another"),
    ],
)
def test_a_manifest_without_hashes_is_held_to_plan_and_receipts(copy, change, said):
    manifest = json.loads((older(copy) / "manifest.json").read_text())
    change(manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    (problem,) = verify(Dataset(copy))
    assert problem.startswith(said)


@pytest.mark.parametrize("name", ["plan.json", "receipts/val-00000.json"])
@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"7", b"\xff", b"[" * 100_000, b'{"shard": 1, "request": 1}'])
def test_a_damaged_plan_or_receipt_is_found_and_hinders_no_reader(copy, name, content):
    (copy / name).write_bytes(content)
    dataset = Dataset(copy)
    (problem,) = verify(dataset)
    assert problem.startswith(f"{name}: ") and "\n" not in problem
    assert len(dataset.read_tokens("val", 0)) == 65_537


@pytest.mark.parametrize("name", ["plan.json", "receipts/val-00000.json"])
def test_every_member_of_a_plan_and_a_receipt_is_held_to_its_check(copy, name):
    record = json.loads((copy / name).read_text())
    (copy / name).write_text(json.dumps(record, indent=3))  # the same in other words
    assert verify(Dataset(copy)) == []
    (copy / name).write_text(json.dumps(record | {"new": 1}))
    (problem,) = verify(Dataset(copy))
    assert problem.startswith(f"{name}: it is not as it was written: its check does not fit; ")
    (copy / name).write_text(json.dumps(record).replace('"check"', '"chfck"'))
    if name == "plan.json":  # the receipts know it by its check
        assert verify(Dataset(copy))[0].startswith("plan.json: it is not the plan of receipts/train-00000.json; ")
    else:
        assert verify(Dataset(copy))[0].startswith(f"{name}: 'check': expected a check, got none; ")


def test_a_directory_without_plan_and_receipts_is_all_right(copy):
    (copy / "plan.json").unlink()
    shutil.rmtree(copy / "receipts")
    assert verify(Dataset(copy)) == []


def test_a_check_that_was_lost_is_missed(copy):
    text = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(text.replace('"check"', '"chfck"'))
    assert "manifest.json is damaged: 'check': expected a check, got none" in refused(copy)
    (copy / "manifest.json").write_text(json.dumps(json.loads(text), indent=7))  # the same in other words
    assert verify(Dataset(copy)) == []


def test_datasets_of_before_are_read_as_they_were(plays, copy):
    dataset = Dataset(older(copy))
    assert (dataset.id, verify(dataset)) == (plays.id, [])
    np.testing.assert_array_equal(all_tokens(dataset, "val"), all_tokens(plays, "val"))


@pytest.mark.parametrize("is_older", [False, True])
@pytest.mark.parametrize("column", ["offset", "length", "checksum", "documents"])
def test_a_damaged_index_is_blamed_and_not_the_sound_shard(copy, column, is_older):
    rows = np.load(copy / "val.blocks.npy")
    rows[column] ^= np.array([1, 1], dtype=rows[column].dtype)  # sums of documents stay
    if column == "documents":
        rows[column] = np.load(copy / "val.blocks.npy")[column][::-1]
    np.save(copy / "val.blocks.npy", rows)
    if not is_older:
        assert "val.blocks.npy: its SHA-256 is not the manifest's; delete the file" in refused(copy)
        return
    problems = verify(dataset := Dataset(older(copy)))
    assert problems
    if column == "documents":
        assert any("block 0: expected" in problem and "documents, got" in problem for problem in problems)
        return
    with pytest.raises(
        Error, match=r"/val\.blocks\.npy row 0, of val-00000\.tar\.zst block 0: [^\n]*; delete the file"
    ):
        dataset.read_tokens("val", 0)
    assert all(problem.startswith(("val.blocks.npy row", "receipts/")) for problem in problems)


def test_a_server_without_ranges_is_said_once_and_is_no_damage(plays):
    with PlainServer(Path(plays.path)) as server:
        with pytest.raises(NoRanges, match="ignores byte ranges; take another server, or give simplecache::") as said:
            verify(Dataset(server.url))
        assert "truncated" not in str(said.value) and "delete" not in str(said.value)


def test_what_a_store_cuts_short_is_no_damage(copy):
    """Unless the store's own size of the file says so."""
    with PlainServer(copy, cuts=True) as server:
        dataset = Dataset(server.url)
        with pytest.raises(Unanswered, match="its store cuts answers short; the same command goes on$") as said:
            verify_shard(dataset, "val", 0)
        assert "delete" not in str(said.value) and "truncated" not in str(said.value)
        path = copy / "val-00000.tar.zst"
        path.write_bytes(path.read_bytes()[:-10_000])
        (problem,) = verify_shard(dataset, "val", 0)
        assert "expected 83579 bytes, got 73579; delete the file" in problem


def test_a_record_that_did_not_arrive_is_no_damage(plays, monkeypatch):
    dataset = Dataset(plays.path)
    read = dataset.folder.read

    def away(name: str, *place: int) -> bytes:
        if name.endswith(".json"):
            raise Unanswered(f"{plays.path}/{name}: it did not arrive (away); the same command goes on")
        return read(name, *place)

    monkeypatch.setattr(dataset.folder, "read", away)
    assert verify(dataset) == [
        f"{name}.json: it did not arrive (away); the same command goes on"
        for name in ["plan", *(f"receipts/{e.name}" for split in ("train", "val") for e in dataset.shards(split))]
    ]
