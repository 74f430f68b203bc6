"""A Hub and an S3 server that misbehave at random, per request: the dataset is the same, or there is one clear line.

A proxy stands before the sound server (moto's S3, or the loopback Hub of the tests) and answers a share of the requests
with 503, 429 or 500, breaks the connection, cuts the body short, or sends another range than was asked for, as its
Content-Range says. What stays undetected by any client, another content under the right names, it does not do.
"""

import http.client
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from small import corpus, tree

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from loopback_hub import LoopbackHub  # type: ignore[import-not-found]
from serving import LoopbackServer  # type: ignore[import-not-found]
from stores import ObjectStore  # type: ignore[import-not-found]

MISDEEDS = ("503", "429", "500", "reset", "short", "elsewhere", "slow")
HOP = {"connection", "transfer-encoding", "content-length", "server", "date"}


class BadProxy(LoopbackServer):  # type: ignore[misc]
    """Before the server at `port`; `share` of the requests meet a misdeed, as `chance` has it. Counts them."""

    def __init__(self, port: int, chance: random.Random, share: float):
        proxy, lock = self, threading.Lock()
        self.share, self.done = share, Counter[str]()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with lock:
                    misdeed = chance.choice(MISDEEDS) if chance.random() < proxy.share else ""
                    proxy.done[misdeed or "none"] += 1
                if misdeed == "slow":
                    time.sleep(0.3)
                if misdeed.isdecimal():
                    self.answer(int(misdeed), [("Retry-After", "1")], b"<Error><Code>SlowDown</Code></Error>")
                elif misdeed == "reset":
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.close_connection = True
                else:
                    self.from_server(body, misdeed)

            def from_server(self, body: bytes, misdeed: str) -> None:
                headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP}
                asked = headers.get("Range", "")
                first, dash, last = asked.removeprefix("bytes=").partition("-")
                if misdeed == "elsewhere" and dash and first.isdecimal() and last.isdecimal() and int(first) > 0:
                    headers["Range"] = f"bytes={int(first) - 1}-{int(last) - 1}"
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                data = answer.read()
                kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in HOP]
                length = int(answer.getheader("Content-Length") or len(data))
                connection.close()
                self.answer(answer.status, kept, data, length, is_short=misdeed == "short" and len(data) > 1)

            def answer(
                self, status: int, headers: list[tuple[str, str]], data: bytes, length: int = -1, is_short: bool = False
            ) -> None:
                self.send_response(status)
                for name, value in [*headers, ("Content-Length", str(len(data) if length < 0 else length))]:
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data[: len(data) // 2] if is_short else data)
                self.close_connection = self.close_connection or is_short

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = pass_on

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(Handler)


class BadServers:
    """gpt2wds-shard from an S3 server into it, and from a Hub to the disk, with a bad proxy in between."""

    def __init__(self, folder: Path, seed: int):
        self._chance, self._stack, self._folder = random.Random(f"{seed} servers"), ExitStack(), folder
        self._store = self._stack.enter_context(ObjectStore())
        texts = corpus(folder / "server-corpus", 300, 100)
        for name in ("a.jsonl", "b.jsonl.gz"):
            self._store.put(f"texts/{name}", (texts / name).read_bytes())
        self._hub = self._stack.enter_context(LoopbackHub({"datasets/own/texts": texts}))
        self.requests, self.made, self.refused = Counter[str](), 0, 0
        self._whole = {kind: self._sound(kind) for kind in ("s3", "hub")}

    def close(self) -> None:
        self._stack.close()

    def dataset(self) -> str:
        """Make one dataset; "" if it is byte for byte the sound one, at the latest when the server behaves again."""
        kind, share = self._chance.choice(["s3", "hub"]), self._chance.choice([0.02, 0.1, 0.3])
        self._remove(kind, "bad")
        port = self._store.port if kind == "s3" else int(self._hub.url.rpartition(":")[2])
        with BadProxy(port, self._chance, share) as proxy:
            done = self._run(kind, "bad", proxy.url)
            if done.returncode:
                self.refused += 1
                errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
                if "Traceback" in done.stderr or len(errors) != 1:
                    return f"{kind}: exit code {done.returncode}: {done.stderr[-3000:]}"
                proxy.share = 0.0
                done = self._run(kind, "bad", proxy.url)
            self.requests += proxy.done
        if done.returncode:
            return f"{kind}: given again: {done.stderr[-3000:]}"
        self.made += 1
        found, whole = self._tree(kind, "bad"), self._whole[kind]
        return "".join(f"{kind}: {name} differs; " for name in {*found, *whole} if found.get(name) != whole.get(name))

    def _sound(self, kind: str) -> dict[str, object]:
        self._remove(kind, "sound")
        endpoint = self._store.environment["AWS_ENDPOINT_URL"] if kind == "s3" else self._hub.url
        done = self._run(kind, "sound", endpoint)
        if done.returncode:
            raise AssertionError(done.stderr)
        return self._tree(kind, "sound")

    def _run(self, kind: str, name: str, endpoint: str) -> subprocess.CompletedProcess:
        cut = ["--val-docs", 50, "--docs-per-shard", 150, "--workers", 2]
        if kind == "s3":
            texts = [self._store.url(f"texts/{name}") for name in ("a.jsonl", "b.jsonl.gz")]
            arguments = ["files", *texts, "--out", self._store.url(name)]
            environment = self._store.environment | {"AWS_ENDPOINT_URL": endpoint}
        else:
            arguments = ["hf", "own/texts", "--out", self._folder / name]
            home = self._folder / "home"
            shutil.rmtree(home, ignore_errors=True)
            environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
        command = [str(Path(sys.executable).with_name("gpt2wds-shard")), *map(str, [*arguments, *cut])]
        return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)

    def _tree(self, kind: str, name: str) -> dict[str, object]:
        return dict(self._store.tree(name) if kind == "s3" else tree(self._folder / name))

    def _remove(self, kind: str, name: str) -> None:
        if kind == "hub":
            shutil.rmtree(self._folder / name, ignore_errors=True)
        else:
            for below in self._store.names(name):
                self._store.client.delete_object(Bucket="corpus", Key=f"{name}/{below}")
