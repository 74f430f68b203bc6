"""Reading for training through 50 ms: an S3 server on this machine, and a proxy before it that delays each request.

The dataset is of random words, made in the store through the proxy as `gpt2wds-shard` makes it. Measured
are the time to the first step, the share of the time that a trainer which takes so many tokens a second waits for the
next steps, and the requests and bytes of what was read. Needs moto (pip install 'moto[server]') and the extra s3.

    python tools/bench_remote.py                                      # 512 sequences of 1,024, 1 million tokens/s
    python tools/bench_remote.py --megabytes 40 --sequences 64 --steps 4 --delay 20
"""

import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import click

from gpt2wds import Cut, Dataset, Files, StepBatches, make_dataset

SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
URL = "s3://bench/data"


class Proxy(ThreadingHTTPServer):
    """Passes requests on to a port of this machine, each after `delay` seconds, and counts them and their bytes."""

    daemon_threads = True

    def __init__(self, port: int, delay: float):
        super().__init__(("127.0.0.1", 0), Handler)
        self.behind, self.delay = port, delay
        self.requests = self.sent = 0
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def count(self, sent: int) -> None:
        with self.lock:
            self.requests, self.sent = self.requests + 1, self.sent + sent


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Proxy

    def setup(self) -> None:
        super().setup()
        self._behind = HTTPConnection("127.0.0.1", self.server.behind)

    def finish(self) -> None:
        super().finish()
        self._behind.close()

    def pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        time.sleep(self.server.delay)
        self._behind.request(self.command, self.path, body, dict(self.headers))
        answer = self._behind.getresponse()
        data = answer.read()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        if answer.getheader("Content-Length") is None:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
        self.server.count(len(data))

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = pass_on

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def write_text(path: Path, megabytes: int) -> None:
    """Lines of random words, about so many megabytes."""
    chance = random.Random(1)
    words = ["".join(chance.choices("etaoinshrdlcumwfgypbvk", k=chance.randint(2, 9))) for _ in range(20_000)]
    with path.open("w") as file:
        while file.tell() < megabytes * 1_000_000:
            file.write("".join('{"text": "' + " ".join(chance.choices(words, k=500)) + '"}\n' for _ in range(100)))


def read_steps(dataset: Dataset, sequences: int, seq_len: int, steps: int, tokens_per_second: float) -> None:
    """Take steps at the pace of a trainer; print how long they were waited for."""
    started = time.perf_counter()
    batches = StepBatches(dataset, seq_len=seq_len, sequences_per_step=sequences, seed=1)
    source = iter(batches)
    next(source)
    begin = time.perf_counter()
    print(f"first step of {sequences} sequences of {seq_len:,}: {begin - started:.1f} s")
    steps = min(steps, batches.steps_per_epoch)
    pace, waited = sequences * seq_len / tokens_per_second, 0.0
    for _ in range(steps - 1):
        time.sleep(pace)
        asked = time.perf_counter()
        next(source)
        waited += time.perf_counter() - asked
    if steps > 1:
        share = waited / (time.perf_counter() - begin)
        print(f"{steps - 1} steps at {tokens_per_second:,.0f} tokens/s: {share:.1%} of the time waited for data")
    print(f"read {steps} of {batches.steps_per_epoch} steps, {len(dataset.blocks['train']):,} blocks in the epoch")


@click.command()
@click.option("--delay", default=50.0, help="Milliseconds before each request.")
@click.option("--megabytes", default=400, help="Of text.")
@click.option("--sequences", default=512, help="Of a step.")
@click.option("--seq-len", default=1024)
@click.option("--steps", default=40, help="Steps to take, at most an epoch.")
@click.option("--tokens-per-second", default=1e6, help="What the trainer takes.")
def main(delay: float, megabytes: int, sequences: int, seq_len: int, steps: int, tokens_per_second: float) -> None:
    import boto3

    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    behind = subprocess.Popen([sys.executable, "-c", SERVER], stdin=pipe, stdout=pipe, stderr=nothing)
    try:
        assert behind.stdout is not None
        proxy = Proxy(int(behind.stdout.readline()), delay / 1000)
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.server_address[1]}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        boto3.client("s3").create_bucket(Bucket="bench")
        with tempfile.TemporaryDirectory() as folder:
            write_text(Path(folder, "text.jsonl"), megabytes)
            dataset = make_dataset(URL, Files((f"{folder}/text.jsonl",)), Cut(val_docs=0, bytes_per_shard=100_000_000))
        print(f"made: {proxy.requests:,} requests")
        proxy.requests = proxy.sent = 0
        read_steps(dataset, sequences, seq_len, steps, tokens_per_second)
        size = dataset.total("train", "bytes")
        print(f"{proxy.requests:,} requests, {proxy.sent:,} bytes; the shards have {size:,} bytes")
    finally:
        behind.kill()
        behind.wait()


if __name__ == "__main__":
    main()
