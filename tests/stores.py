"""An S3 server on the loopback address, in a process of its own, and what commands need to find it."""

import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

BUCKET = "corpus"
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
