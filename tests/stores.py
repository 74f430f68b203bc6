"""An S3 server on the loopback address, in a process of its own, and what commands need to find it."""

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import TracebackType
from typing import Any

import fsspec
import pytest
from serving import LoopbackServer

from gpt2wds import stores as clients

BUCKET = "corpus"
KEPT = {"Content-Type", "Content-Length", "Content-Range", "ETag", "Last-Modified", "Accept-Ranges"}
BIN = Path(sys.executable).parent
_SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


class ObjectStore:
    """moto's S3 server with an empty bucket. `client` is boto3's, beside the code that is tested."""

    def __init__(self) -> None:
        import boto3

        self._server = subprocess.Popen(
            [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._server.stdout is not None
        self.port = int(self._server.stdout.readline())
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
        self.client: Any = boto3.client("s3", endpoint_url=self.environment["AWS_ENDPOINT_URL"], **keys)
        self.client.create_bucket(Bucket=BUCKET)

    def __enter__(self) -> "ObjectStore":
        return self

    def __exit__(self, _: type | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._server.kill()
        self._server.communicate()

    def url(self, name: str) -> str:
        return f"s3://{BUCKET}/{name}"

    @contextmanager
    def found(self, endpoint: str = "") -> Iterator[None]:
        """This process finds the server too, or what stands before it."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment.items():
                patch.setenv(name, value)
            if endpoint:
                patch.setenv("AWS_ENDPOINT_URL", endpoint)
            fsspec.get_filesystem_class("s3").clear_instance_cache()
            clients.forget()
            yield
        clients.forget()

    def unfinished(self) -> list[str]:
        """Names of which parts are there, and no more."""
        found = self.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
        return [upload["Key"] for upload in found]

    def remove_unfinished(self) -> None:
        for upload in self.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []):
            self.client.abort_multipart_upload(Bucket=BUCKET, Key=upload["Key"], UploadId=upload["UploadId"])

    def put(self, name: str, data: bytes) -> str:
        self.client.put_object(Bucket=BUCKET, Key=name, Body=data)
        return self.url(name)

    def get(self, name: str) -> bytes:
        return self.client.get_object(Bucket=BUCKET, Key=name)["Body"].read()

    def names(self, below: str) -> list[str]:
        """All objects below a name, without it; also more than a thousand."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{below}/")
        return [found["Key"].removeprefix(f"{below}/") for page in pages for found in page.get("Contents", [])]

    def tree(self, below: str) -> dict[str, bytes]:
        return {name: self.get(f"{below}/{name}") for name in self.names(below)}

    def start(self, command: str, *arguments: object, **more: str) -> subprocess.Popen:
        """One of our commands, in a process group of its own, that finds this server."""
        environment = {**os.environ, **self.environment, **more}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            [str(BIN / command), *map(str, arguments)], env=environment, start_new_session=True, text=True, **pipes
        )

    def run(self, command: str, *arguments: object, **more: str) -> subprocess.CompletedProcess:
        process = self.start(command, *arguments, **more)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@dataclass(frozen=True)
class Fault:
    """What a proxy answers in the store's place: a status with S3's code for it; a broken connection without; or half
    of what the store says."""

    status: int = 0
    code: str = ""
    cuts: bool = False


class FaultyProxy(LoopbackServer):
    """Stands before an object store: `fault(method, path)` says what goes wrong, None for nothing. Counts requests.

    is_exclusive: whether it knows `If-None-Match`, or says that it does not.
    """

    def __init__(
        self,
        store: ObjectStore,
        fault: Callable[[str, str], Fault | None] = lambda *_: None,
        *,
        is_exclusive: bool = True,
    ):
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else what follows the head waits for the client, 40 milliseconds

            def pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                proxy.requests.append((self.command, self.path))
                fault = proxy.fault(self.command, self.path)
                if "If-None-Match" in self.headers and not is_exclusive:
                    fault = Fault(501, "NotImplemented")
                if fault is None or fault.cuts:
                    connection = HTTPConnection("127.0.0.1", store.port, timeout=60)
                    connection.request(self.command, self.path, body, dict(self.headers))
                    answer = connection.getresponse()
                    data = answer.read()
                    if fault:
                        data, self.close_connection = data[: len(data) // 2], True
                    self.answer(answer.status, [h for h in answer.getheaders() if h[0] in KEPT], data)
                    if fault:
                        self.connection.shutdown(socket.SHUT_RDWR)  # also where a forked process has it open
                    connection.close()
                elif fault.status:
                    text = f"<Error><Code>{fault.code}</Code><Message>told to say {fault.code}</Message></Error>"
                    self.answer(fault.status, [("Content-Type", "application/xml")], text.encode())
                else:
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.close_connection = True  # a reset, when the handler lets go of the socket
                    self.connection.shutdown(socket.SHUT_RDWR)

            def answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
                self.send_response(status)
                length = dict(headers).get("Content-Length", str(len(data)))
                for name, value in headers:
                    if name != "Content-Length":
                        self.send_header(name, value)
                self.send_header("Content-Length", length)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = pass_on

            def log_message(self, *_: object) -> None:
                pass

        self.fault = fault
        self.requests: list[tuple[str, str]] = []
        super().__init__(Handler)
