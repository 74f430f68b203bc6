"""Reading for training through 50 ms: an S3 server on this machine, and a proxy before it that delays each request.

The dataset is of random words, made in the store through the proxy as `gpt2wds-shard` makes it. Measured
are the time to the first step, the share of the time that a trainer which takes so many tokens a second waits for the
next steps, and the requests and bytes of what was read. Needs moto (pip install 'moto[server]') and the extra s3.

Server and proxy are one process, this one reads. moto copies a whole object to answer a range of it, so the proxy keeps
the objects that it has passed on, and cuts ranges from them itself.

    python tools/bench_remote.py                                      # 512 sequences of 1,024, 1 million tokens/s
    python tools/bench_remote.py --megabytes 40 --sequences 64 --steps 4 --delay 20
"""

import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import click
import numpy as np

from gpt2wds import Cut, Dataset, Files, StepBatches, make_dataset
from gpt2wds.dataset.epoch import EpochSequences
from gpt2wds.dataset.manifest import SPLITS
from gpt2wds.dataset.order import Position

URL = "s3://bench/data"
Answer = tuple[int, list[tuple[str, str]], bytes]  # status, headers, body


class Proxy(ThreadingHTTPServer):
    """Passes requests on to a port of this machine, each after `delay` seconds, and counts them and their bytes."""

    daemon_threads = True
    request_queue_size = 1024  # or connections that are opened together wait for TCP to try again

    def __init__(self, port: int, delay: float):
        super().__init__(("127.0.0.1", 0), Handler)
        self.behind, self.delay = port, delay
        self.requests = self.sent = 0
        self.lock = threading.Lock()
        self.objects: dict[str, Answer] = {}


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
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        status, headers, data = self._range(int(wanted[1]), int(wanted[2])) if wanted else self._ask(body)
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
        with self.server.lock:
            self.server.requests, self.server.sent = self.server.requests + 1, self.server.sent + len(data)

    def _ask(self, body: bytes = b"") -> Answer:
        headers = {name: value for name, value in self.headers.items() if name.lower() != "range"}
        self._behind.request(self.command, self.path, body, headers)
        answer = self._behind.getresponse()
        data = answer.read()
        kept = [(n, v) for n, v in answer.getheaders() if n.lower() not in ("transfer-encoding", "connection")]
        if answer.getheader("Content-Length") is None:
            kept.append(("Content-Length", str(len(data))))
        return answer.status, kept, data

    def _range(self, first: int, last: int) -> Answer:
        with self.server.lock:
            if self.path not in self.server.objects:
                self.server.objects[self.path] = self._ask()
        status, headers, data = self.server.objects[self.path]
        if status != 200:
            return status, headers, data
        part, size = data[first : last + 1], len(data)
        whole = ("content-length", "x-amz-checksum")  # headers that speak of the whole object
        kept = [(name, value) for name, value in headers if not name.lower().startswith(whole)]
        length = [
            ("Content-Length", str(len(part))),
            ("Content-Range", f"bytes {first}-{first + len(part) - 1}/{size}"),
        ]
        return 206, [*kept, *length], part

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = pass_on

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def serve(delay: float) -> None:
    """moto and the proxy. Prints the port, then for each line of standard input the counts since the last."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    proxy = Proxy(server.get_host_and_port()[1], delay)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    print(proxy.server_address[1], flush=True)
    for _ in sys.stdin:
        print(proxy.requests, proxy.sent, flush=True)
        proxy.requests = proxy.sent = 0


@contextmanager
def server(delay: float) -> Iterator[Callable[[], tuple[int, int]]]:
    """moto and the proxy in a process of their own, where clients find them. Gives what tells the requests and bytes
    since it was last asked.
    """
    command = [sys.executable, __file__, "--serve", "--delay", str(delay)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        told, asked = process.stdout, process.stdin
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{int(told.readline())}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

        def counts() -> tuple[int, int]:
            print("counts", file=asked, flush=True)
            requests, sent = map(int, told.readline().split())
            return requests, sent

        yield counts


def write_text(path: Path, megabytes: int) -> None:
    """Lines of random words, about so many megabytes."""
    chance = random.Random(1)
    words = ["".join(chance.choices("etaoinshrdlcumwfgypbvk", k=chance.randint(2, 9))) for _ in range(20_000)]
    with path.open("w") as file:
        while file.tell() < megabytes * 1_000_000:
            file.write("".join('{"text": "' + " ".join(chance.choices(words, k=500)) + '"}\n' for _ in range(100)))


def read_steps(dataset: Dataset, sequences: int, seq_len: int, steps: int, tokens_per_second: float) -> None:
    """Take steps at the pace of a trainer; print how long they were waited for."""
    started, own = time.perf_counter(), time.process_time()
    batches = StepBatches(dataset, seq_len=seq_len, sequences_per_step=sequences, seed=1)
    with closing(iter(batches)) as source:  # before the server is
        next(source)
        begin, own = time.perf_counter(), time.process_time() - own
        first = f"{begin - started:.1f} s, {own:.1f} s of processor time"
        print(f"first step of {sequences} sequences of {seq_len:,}: {first}", flush=True)
        steps = min(steps, batches.steps_per_epoch)
        pace, waited, used = sequences * seq_len / tokens_per_second, [0.0], time.process_time()
        for _ in range(steps - 1):
            time.sleep(pace)
            asked = time.perf_counter()
            next(source)
            waited.append(time.perf_counter() - asked)
    if steps > 1:
        share, early = sum(waited) / (time.perf_counter() - begin), sum(waited[:50])
        print(f"{steps - 1} steps at {tokens_per_second:,.0f} tokens/s: {share:.1%} of the time waited for data")
        print(
            f"that is {sum(waited):.1f} s, {early:.1f} of them in the first 50; {time.process_time() - used:.1f} s used"
        )


class Counting(Dataset):
    """Counts the blocks that are read and answers at once with zeros: its directory needs no shard."""

    reads, zeros = 0, np.zeros(1 << 17, dtype=np.uint16)

    def read_tokens(self, split: str, block: int) -> np.ndarray:
        self.reads += 1
        return self.zeros


def say_reads(dataset: Counting, sequences: int, seq_len: int, steps: int) -> None:
    """Print how often steps need a block that they do not hold: the reader itself says, which from here, not from a
    URL, reads nothing ahead."""
    epoch = EpochSequences(dataset, seq_len, sequences, 1, range(sequences), Position())
    reads = [dataset.reads for _ in epoch]  # after each step
    steps, blocks = min(steps, len(reads)), len(dataset.blocks["train"])
    print(f"the epoch's {len(reads)} steps read {reads[-1]:,} times one of {blocks:,} blocks,")
    print(f"the first {steps} {reads[steps - 1]:,} times; at most {sequences} are read ahead")


@click.command()
@click.option("--delay", default=50.0, help="Milliseconds before each request.")
@click.option("--megabytes", default=400, help="Of text.")
@click.option("--sequences", default=512, help="Of a step.")
@click.option("--seq-len", default=1024)
@click.option("--steps", default=40, help="Steps to take, at most an epoch.")
@click.option("--tokens-per-second", default=1e6, help="What the trainer takes.")
@click.option("--serve", "serve_only", is_flag=True, hidden=True)
def main(
    delay: float,
    megabytes: int,
    sequences: int,
    seq_len: int,
    steps: int,
    tokens_per_second: float,
    serve_only: bool,
) -> None:
    if serve_only:
        serve(delay / 1000)
        return
    import boto3

    with server(delay) as counts, tempfile.TemporaryDirectory() as folder:
        boto3.client("s3").create_bucket(Bucket="bench")
        write_text(Path(folder, "text.jsonl"), megabytes)
        dataset = make_dataset(URL, Files((f"{folder}/text.jsonl",)), Cut(val_docs=0, bytes_per_shard=100_000_000))
        print(f"made: {counts()[0]:,} requests")
        for name in ("manifest.json", *(f"{split}.blocks.npy" for split in SPLITS)):
            Path(folder, name).write_bytes(dataset.folder.read(name))
        counts()  # what follows is for training
        read_steps(dataset, sequences, seq_len, steps, tokens_per_second)
        say_reads(Counting(folder), sequences, seq_len, steps)
        requests, sent = counts()
        size = dataset.total("train", "bytes")
        print(f"{requests:,} requests, {sent:,} bytes; the shards have {size:,} bytes")


if __name__ == "__main__":
    main()
