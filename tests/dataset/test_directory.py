"""A dataset directory: other people's tools read its shards, and no damage is read in silence."""

import importlib.util
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest
import webdataset
import zstandard
from damaging import all_tokens, change_entry, flipped, refused, verify, write_manifest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2wds.dataset import shards
from gpt2wds.dataset.directory import Dataset
from gpt2wds.dataset.manifest import dataset_id
from gpt2wds.dataset.validation import validation_sequences
from gpt2wds.dataset.verify import verify_shard
from gpt2wds.errors import Error

needs_zstd = pytest.mark.skipif(shutil.which("zstd") is None, reason="needs the command zstd")


# Other people's tools


@needs_zstd
def test_zstd_and_tar_read_every_shard(plays):
    if "--zstd" not in subprocess.run(["tar", "--help"], capture_output=True, text=True).stdout:
        pytest.skip("needs a tar with --zstd")
    for split in ("train", "val"):
        for number, entry in enumerate(plays.shards(split)):
            path = f"{plays.path}/{entry.file}"
            subprocess.run(["zstd", "-tq", path], check=True)
            listing = subprocess.run(["tar", "--zstd", "-tvf", path], check=True, capture_output=True, text=True)
            assert listing.stderr == ""
            lines = [line.split() for line in listing.stdout.splitlines()]
            name = f"{split}-{number:05d}"
            assert [line[-1] for line in lines] == [f"{name}-{b:06d}.tokens.npy" for b in range(entry.blocks)]
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
        frames = [plays.read_frame("train", b) for b in range(plays.shards("train")[0].blocks)]
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
            with open(f"{plays.path}/{entry.file}", "rb") as file:
                table = shards.read_seek_table(file)[:-1]
            rows = plays.blocks[split][plays.blocks[split]["shard"] == number]
            for column in ("offset", "length", "checksum"):
                np.testing.assert_array_equal(table[column], rows[column])
    assert plays.id == dataset_id(plays.manifest.shards)


def test_a_url_is_read_as_a_path_is(plays):
    remote = Dataset(f"file://{plays.path}/")
    assert remote.id == plays.id
    np.testing.assert_array_equal(all_tokens(remote, "val"), all_tokens(plays, "val"))
    assert verify_shard(remote, "val", 0) == []


def test_unknown_members_keys_and_columns_are_ignored(plays, copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest |= {"format_version": "1.7", "new": {}}
    manifest["shards"]["val"][0]["new"] = 1
    old = np.load(copy / "val.blocks.npy")
    new = np.zeros(len(old), dtype=[*shards.BLOCK_ROW.descr, ("new", "<u8")])
    for column in shards.BLOCK_ROW.names:
        new[column] = old[column]
    np.save(copy / "val.blocks.npy", new)
    write_manifest(copy, manifest)
    np.testing.assert_array_equal(all_tokens(Dataset(copy), "val"), all_tokens(plays, "val"))


# A directory that is no dataset


def test_a_missing_directory_is_refused(tmp_path):
    assert "got none; make one with gpt2wds-shard" in refused(tmp_path / "nowhere")
    assert "got none; make one with gpt2wds-shard" in refused(tmp_path)


def test_an_unfinished_directory_is_refused(copy):
    assert (copy / "plan.json").exists()
    (copy / "manifest.json").unlink()
    assert "got one in the making: run its gpt2wds-shard command again" in refused(copy)


def test_a_later_format_is_refused(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    write_manifest(copy, manifest | {"format_version": "2.0"})
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


@pytest.mark.parametrize(
    ("split", "block", "said"),
    [
        ("test", 0, "split: expected train or val, got 'test'"),
        ("train", -1, "block: expected a whole number, 0 or more, got -1"),
        ("train", 1.0, "block: expected a whole number, 0 or more, got 1.0"),
        ("val", 10_000, "block: expected one of the [0-9]+ blocks? of val, from 0 on, got 10000"),
    ],
)
def test_a_block_that_is_not_there_is_one_line(plays, split, block, said):
    for read in (plays.read_tokens, plays.own_tokens, plays.read_frame, plays.read_members, plays.block_key):
        with pytest.raises(Error, match=f"^{said}$"):
            read(split, block)
    with pytest.raises(Error, match=f"^{said.replace('block', 'shard')}$"):
        plays.shard_blocks(split, block)


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


# Damaged manifests and indices


def test_the_dataset_id_follows_from_the_shards(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    write_manifest(copy, manifest | {"dataset_id": "0" * 32})
    assert f"expected dataset_id {manifest['dataset_id']} for its shards, got 000" in refused(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(dataset_id="0" * 32),
        lambda m: m.update(kind="multiple-choice"),
        lambda m: m["corpus"].update(revision="main"),
        lambda m: m["tokenizer"].update(tiktoken="0.1"),
        lambda m: m["parameters"].update(docs_per_shard=13),
        lambda m: m["versions"].update(zstd="1.0"),
        lambda m: m["blocks_sha256"].update(val="0" * 64),
        lambda m: m["shards"]["val"][0].update(text_bytes=1),
        lambda m: m["shards"]["val"][0].update(skipped={"empty": [0]}),
        lambda m: m["shards"]["val"][0]["spans"][0].update(first_row=1),
        lambda m: m.update(new=1),
        lambda m: m.update(check=7),
    ],
)
def test_every_member_of_the_manifest_is_held_to_its_hash(copy, change):
    manifest = json.loads((copy / "manifest.json").read_text())
    change(manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest, indent=1))
    assert "manifest.json is damaged: it is not as it was written: its check does not fit" in refused(copy)


@pytest.mark.parametrize("field", ["documents", "tokens"])
def test_an_index_that_does_not_add_up_to_the_manifest_is_refused(copy, plays, field):
    change_entry(copy, **{field: getattr(plays.shards("val")[0], field) + 1})
    assert f"val.blocks.npy: it has {plays.total('val', field)} {field} in val-00000.tar.zst, the man" in refused(copy)


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("length", 1 << 31, "blocks larger than a frame or its shard"),
        ("offset", 1 << 62, "blocks outside the manifest's shards"),
        ("shard", 1, "blocks outside the manifest's shards"),
        ("tokens", 0, "expected blocks of 1 to 65537 tokens"),
        ("tokens", 65_538, "expected blocks of 1 to 65537 tokens"),
    ],
)
def test_an_index_of_impossible_blocks_is_refused(copy, column, value, said):
    rows = np.load(copy / "val.blocks.npy")
    rows[column][0] = value
    np.save(copy / "val.blocks.npy", rows)
    assert said in refused(copy)


def test_a_file_that_claims_to_be_an_index_is_refused(copy):
    np.savez(copy / "val.blocks.npz", np.zeros(3))
    (copy / "val.blocks.npz").rename(copy / "val.blocks.npy")
    assert "val.blocks.npy: its npy header is damaged" in refused(copy)
    np.save(copy / "val.blocks.npy", np.zeros(3, dtype=object), allow_pickle=True)
    assert "val.blocks.npy: expected one dimension of numbers" in refused(copy)


@pytest.mark.parametrize(
    "fields",
    [
        {"blocks": -1},
        {"blocks": 10**30},
        {"blocks": 1 << 61},
        {"tokens": "many"},
        {"bytes": 1.5},
        {"documents": True},
        {"file": "/etc/passwd"},
        {"file": ["a"]},
        {"spans": {}},
        {"spans": [{"source": 7}]},
        {"skipped": {"empty": 3}},
        {"skipped": {"empty": ["one"]}},
    ],
)
def test_nonsense_in_the_manifest_is_refused(copy, fields):
    change_entry(copy, **fields)
    assert "delete the file and run" in refused(copy)


def test_a_manifest_without_bottom_is_refused(copy):
    (copy / "manifest.json").write_text("[" * 100_000 + "]" * 100_000)
    assert "manifest.json is damaged: expected at most 64 levels of lists and objects" in refused(copy)


@pytest.mark.parametrize(
    "value", ["[" * 100_000, "[" * 900 + "]" * 900, "1e999", "NaN", "1" + "0" * 5000, '{"a": ' * 66 + "1" + "}" * 66]
)
def test_what_could_not_be_shown_or_written_again_is_refused(copy, value):
    text = (copy / "manifest.json").read_text()
    for place in ('"parameters": {', '"corpus": {'):
        (copy / "manifest.json").write_text(text.replace(place, f'{place}"new": {value}, '))
        message = refused(copy)
        assert "manifest.json is damaged: " in message and "check" not in message


def test_a_manifest_of_forty_gigabytes_is_not_read(copy):
    with (copy / "manifest.json").open("r+b") as file:
        file.truncate(40 << 30)
    assert "expected at most 268,435,456 bytes in manifest.json" in refused(copy)


def test_an_index_of_forty_gigabytes_is_not_read(copy):
    with (copy / "val.blocks.npy").open("r+b") as file:
        file.truncate(40 << 30)
    assert "val.blocks.npy: expected 2 numbers of 28 bytes, got 429496" in refused(copy)


def test_what_is_not_gpt2s_is_refused(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    write_manifest(copy, manifest | {"tokenizer": {"name": "o200k_base"}})
    assert "expected tokens of the tokenizer 'gpt2', got 'o200k_base'" in refused(copy)
    write_manifest(copy, manifest | {"tokenizer": manifest["tokenizer"] | {"vocabulary_sha256": "0" * 64}})
    assert "expected tokens of the tokenizer 'gpt2', got 'gpt2' with the vocabulary '0000" in refused(copy)
    write_manifest(copy, manifest | {"kind": "pictures"})
    assert "expected tokens or multiple-choice, got 'pictures'; update gpt2wds" in refused(copy)


# Places that cannot be read


def test_a_directory_without_permission_is_no_damage(copy):
    if os.geteuid():
        copy.chmod(0)
        message = refused(copy)
        copy.chmod(0o755)
    else:  # root may read everything
        os.seteuid(65_534)
        try:
            message = refused(copy)
        finally:
            os.seteuid(0)
    assert "cannot read manifest.json (Permission denied); look at the disk" in message


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("manifest.json", "Is a directory"),
        ("val.blocks.npy", "Is a directory"),
        ("val-00000.tar.zst", "Is a directory"),
        ("manifest.json", "Input/output error"),
        ("val-00000.tar.zst", "Input/output error"),
    ],
)
def test_what_a_disk_says_is_no_damage(copy, name, says):
    (copy / name).unlink()
    if says == "Is a directory":
        (copy / name).mkdir()
    else:
        (copy / name).symlink_to("/proc/self/mem")  # whose first bytes are EIO
    with pytest.raises(Error) as caught:
        Dataset(copy).read_tokens("val", 0)
    message = str(caught.value)
    assert name in message and says in message and "look at the disk" in message
    assert "delete" not in message and "\n" not in message
    if name.startswith("val-"):
        assert any(says in problem for problem in verify_shard(Dataset(copy), "val", 0))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nosuch://bucket/data", "expected a URL that fsspec can read (Protocol not known: nosuch)"),
        ("gs://bucket/data", "expected a URL that fsspec can read (Please install gcsfs"),
        ("http://127.0.0.1:9/data", "manifest.json: it did not arrive"),
        ("memory://nothing/here", "expected a finished dataset (manifest.json), got none"),
    ],
)
def test_urls_that_cannot_be_read_are_one_line(url, said):
    if url.startswith("gs:") and importlib.util.find_spec("gcsfs"):
        pytest.skip("gcsfs is installed")
    message = refused(url)
    assert said in message and "delete" not in message


def test_a_remote_directory_is_read_as_a_local_one(plays):
    remote = fsspec.filesystem("memory")
    remote.put(f"{plays.path}/", "/plays/", recursive=True)
    dataset = Dataset("memory://plays")
    assert (dataset.id, verify(dataset)) == (plays.id, [])
    for split in ("train", "val"):
        np.testing.assert_array_equal(dataset.blocks[split], plays.blocks[split])
    np.testing.assert_array_equal(all_tokens(dataset, "val"), all_tokens(plays, "val"))
    good = remote.cat("/plays/val-00000.tar.zst")
    remote.pipe("/plays/val-00000.tar.zst", good[:-5])
    assert any("expected" in problem and "bytes" in problem for problem in verify(dataset))
    remote.rm("/plays/val-00000.tar.zst")
    assert verify(dataset)[0].startswith("val-00000.tar.zst: the file is missing")
    with pytest.raises(Error, match=r"memory://plays/val-00000.tar.zst block 0: the file is missing"):
        dataset.read_tokens("val", 0)


# Frames that hold something else


def replace_block(copy: Path, content: bytes, tokens: int) -> Dataset:
    """The first validation block holds `content`; index and manifest say so, as someone's who means harm would."""
    rows = np.load(copy / "val.blocks.npy")
    data = (copy / "val-00000.tar.zst").read_bytes()[rows["length"][0] :]
    frame = zstandard.ZstdCompressor(write_checksum=True).compress(content)
    rows["offset"][1:] = rows["offset"][1:] - rows["length"][0].astype(np.uint64) + np.uint64(len(frame))
    before = int(rows["tokens"][0])
    rows["length"][0], rows["checksum"][0], rows["tokens"][0] = len(frame), int.from_bytes(frame[-4:], "little"), tokens
    np.save(copy / "val.blocks.npy", rows)
    (copy / "val-00000.tar.zst").write_bytes(frame + data)
    manifest = json.loads((copy / "manifest.json").read_text())
    stated = manifest["shards"]["val"][0]["tokens"]
    change_entry(copy, bytes=len(frame) + len(data), tokens=stated + tokens - before)
    return Dataset(copy)


def test_damaged_examples_are_found(choices, tmp_path):
    copy = shutil.copytree(choices.path, tmp_path / "copy")
    dataset = Dataset(copy)
    assert verify_shard(dataset, "val", 0) == []
    with flipped(copy / "val-00000.tar.zst", 8 * 1000):
        assert verify_shard(dataset, "val", 0)
        with pytest.raises(ValueError, match=r"val-00000\.tar\.zst block 0: "):
            list(dataset.examples("val"))


KEY = "val-00000-000000"
FEW = shards.npy_bytes(np.array([50256, 1, 2], dtype=np.uint16))


def link(name: str) -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return member.tobuf(tarfile.USTAR_FORMAT)


def of_another_writer(name: str, payload: bytes) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mtime = len(payload), 1_700_000_000
    return member.tobuf(tarfile.USTAR_FORMAT) + payload + bytes(-len(payload) % 512)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (shards.tar_member(f"{KEY}.tokens.npy", FEW), None),
        (of_another_writer(f"{KEY}.tokens.npy", FEW), None),
        (shards.tar_member("val-00000-000001.tokens.npy", FEW), f"expected the member {KEY}.tokens.npy, got val-00000"),
        (shards.tar_member(f"{KEY}.npy", FEW), f"expected the member {KEY}.tokens.npy"),
        (shards.tar_member(KEY, FEW), f"expected the member {KEY}.tokens.npy"),
        (shards.tar_member(f"{KEY}.tokens.npy", b"no array" * 16), "its npy header is damaged"),
        (shards.tar_member(f"{KEY}.tokens.npy", FEW[:-2] + b"\xff\xff"), "expected token ids up to 50256, got 65535"),
        (link(f"{KEY}.tokens.npy") + bytes(512), "expected regular files"),
        (bytes(1024), "no tar members"),
        (shards.tar_member(f"{KEY}.tokens.npy", b"") * 2, "is there twice"),
        (shards.tar_member(f"{KEY}.tokens.npy", FEW) + link("more"), "expected 1024 decompressed bytes, got 1536"),
    ],
)
def test_a_frame_that_holds_something_else_is_one_line(copy, content, said):
    dataset = replace_block(copy, content, tokens=3)
    if said is None:  # what this test makes is sound but for what it changes
        assert dataset.read_tokens("val", 0).tolist() == [50256, 1, 2]
        return
    readers = (lambda: dataset.read_tokens("val", 0), lambda: next(validation_sequences(dataset, **EIGHT)))
    for reader in readers:
        with pytest.raises(
            Error, match=rf"{copy}/val-00000\.tar\.zst block 0: [^\n]*; delete the file and run"
        ) as caught:
            reader()
        assert said in str(caught.value)
    assert any(said in problem for problem in verify_shard(dataset, "val", 0))


EIGHT = {"seq_len": 2, "max_tokens": 8, "batch_sequences": 1}


def test_tokens_and_examples_are_not_taken_for_each_other(plays, choices):
    with pytest.raises(Error, match="expected multiple-choice, got tokens"):
        next(plays.examples("val"))
    with pytest.raises(Error, match="expected tokens, got multiple-choice"):
        choices.read_tokens("val", 0)


def broken_examples(choices: Dataset, folder: Path, change: Callable[[dict[str, bytes]], dict[str, bytes]]) -> Dataset:
    """The sample with other members in its one frame; index and manifest fit."""
    copy = shutil.copytree(choices.path, folder / "copy")
    found = change(choices.read_members("val", 0))
    content = b"".join(shards.tar_member(name, payload) for name, payload in found.items())
    return replace_block(copy, content, tokens=int(choices.blocks["val"]["tokens"][0]))


def of_first(**fields: object) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    def change(found: dict[str, bytes]) -> dict[str, bytes]:
        example = json.loads(found[f"{KEY}.json"]) | fields
        return found | {f"{KEY}.json": json.dumps(example).encode()}

    return change


def with_member(name: str, payload: bytes) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    return lambda found: found | {f"{KEY}.{name}": payload}


def without(name: str) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    return lambda found: {n: payload for n, payload in found.items() if not n.startswith(f"{KEY}.{name}")}


def prompt(*tokens: int) -> bytes:
    return shards.npy_bytes(np.array(tokens, dtype=np.uint16))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (of_first(label=4), "expected a label from 0 to 3, got 4"),
        (of_first(label=None), "expected a label from 0 to 3, got none"),
        (of_first(endings=["a", "b"]), "expected 4 endings"),
        (of_first(ind="seven"), "expected 'ind' to be int"),
        (of_first(ctx=["a"]), "expected 'ctx' to be str"),
        (with_member("json", b"[" * 100_000), "expected a JSON object"),
        (with_member("json", b"\xff"), "expected a JSON object"),
        (with_member("json", b"[" * 900 + b"]" * 900), "expected a JSON object"),
        (with_member("json", b"[]," * 400_000), "expected an example of at most 1,048,576 bytes"),
        (with_member("completion.npy", b"no array"), "its npy header is damaged"),
        (with_member("lm-eval.npy", prompt(50256, 1, 50256, 2)), "a context and 4 endings in lm-eval.npy"),
        (with_member("lm-eval.npy", prompt(1, *[50256, 2] * 5)), "a context and 4 endings in lm-eval.npy"),
        (with_member("lm-eval.npy", prompt(*[50256, 2] * 4, 50256)), "a context and 4 endings in lm-eval.npy"),
        (with_member("lm-eval.npy", prompt(*[50256, 60_000] * 5)), "a context and 4 endings in lm-eval.npy"),
        (with_member("lm-eval.npy", prompt()), "a context and 4 endings in lm-eval.npy"),
        (without("json"), f"{KEY}: expected a member json"),
        (without("lm-eval"), f"{KEY}: expected a member lm-eval.npy"),
        (without(""), "expected 36 examples, got 35"),
        (lambda found: dict(reversed(found.items())), f"expected sample {KEY}, got val-00000-000035"),
    ],
)
def test_an_example_that_is_none_is_one_line(choices, tmp_path, change, said):
    dataset = broken_examples(choices, tmp_path, change)
    with pytest.raises(Error, match=r"copy/val-00000\.tar\.zst block 0: [^\n]*; delete the file and run") as caught:
        list(dataset.examples("val"))
    assert said in str(caught.value)
    assert any(said in problem for problem in verify_shard(dataset, "val", 0))


def test_members_of_an_example_that_are_not_known_are_ignored(choices, tmp_path):
    dataset = broken_examples(choices, tmp_path, lambda found: found | {f"{KEY}.picture.png": b"png"})
    for known, found in zip(choices.examples("val"), dataset.examples("val"), strict=True):
        assert {k: v for k, v in known.items() if k != "prompts"} == {k: v for k, v in found.items() if k != "prompts"}


def test_what_is_no_directory_split_or_count(plays: Dataset, choices: Dataset) -> None:
    for path in (None, 5, b"data"):
        with pytest.raises(Error, match="^expected a directory or a URL, got "):
            Dataset(path)
    with pytest.raises(Error, match="^split: expected train or val, got 'test'"):
        plays.total("test", "tokens")
    with pytest.raises(Error, match="^field: expected documents, .* or bytes, got 'words'"):
        plays.total("train", "words")
    with pytest.raises(Error, match="^split: expected train or val, got 'test'"):
        next(choices.examples("test"))
