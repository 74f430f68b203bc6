"""A Hub on 127.0.0.1 that speaks the real protocol to the unmodified huggingface_hub and datasets."""

import contextlib
import hashlib
import json
import re
import socket
import struct
import time
from functools import lru_cache
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from serving import LoopbackServer

COMMIT = hashlib.sha1(b"the only commit").hexdigest()


class LoopbackHub(LoopbackServer):
    """Serves folders as repositories: {"datasets/owner/name": folder, "owner/model": folder}.

    A context manager. `url` is what HF_ENDPOINT must be; `requests` lists what was asked, `ranges` the (file, first
    byte, bytes) sent of ranged reads. Faults are strings in `faults`, each used up by one ranged read: "429", "503",
    "reset", "short", "stall", "whole" (the range ignored), "changed" (another ETag), "elsewhere" (a range of another
    place, as it says), "total" (of a file of another size), "unsaid" (no Content-Range), "empty" (no body), "hour"
    (to be asked again in an hour), "drip" (twenty bytes a second).
    """

    def __init__(self, repositories: dict[str, Path]):
        self.repositories = repositories
        self.requests: list[str] = []
        self.ranges: list[tuple[str, int, int]] = []
        self.faults: list[str] = []
        self.delay = 0.0  # seconds before each answer
        self.head = COMMIT
        self.api_faults: dict[str, list[str]] = {}  # of a repository's API: statuses, "reset", "loop", "hour"
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else what follows the head waits for the client, 40 milliseconds

            def do_GET(self) -> None:
                hub._answer(self, body=True)

            def do_HEAD(self) -> None:
                hub._answer(self, body=False)

            def do_POST(self) -> None:
                hub._answer(self, body=True)

            do_PUT = do_POST

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(Handler)

    def _answer(self, request: BaseHTTPRequestHandler, body: bool) -> None:
        time.sleep(self.delay)
        posted = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        self.requests.append(f"{request.command} {request.path}")
        if not self.write(request, posted):
            self._read(request, posted, body)

    def write(self, request: BaseHTTPRequestHandler, posted: bytes) -> bool:
        """Answer a request that writes; False where it is none. Here nothing can be written."""
        return False

    def listed(self, folder: Path) -> list[dict[str, Any]]:
        """The files of a repository as the Hub describes them."""
        return [_entry(folder, path) for path in sorted(folder.rglob("*")) if path.is_file()]

    def _read(self, request: BaseHTTPRequestHandler, posted: bytes, body: bool) -> None:
        path = unquote(urlsplit(request.path).path).lstrip("/")
        if api := re.fullmatch(r"api/(datasets|models)/([^/]+/[^/]+)(/(?:revision|tree|paths-info)/.+)?", path):
            if faults := self.api_faults.get(api[2]):
                self._refuse(request, faults.pop(0), body)
                return
            folder = self.repositories.get(api[2] if api[1] == "models" else f"datasets/{api[2]}")
            if folder:
                kind, _, below = (api[3] or "/revision/main").lstrip("/").partition("/")
                files = self.listed(folder)
                answer: Any = {"id": api[2], "sha": self.head, "siblings": [{"rfilename": f["path"]} for f in files]}
                if kind == "tree":
                    answer = _tree(files, below.partition("/")[2], "recursive=true" in request.path)
                elif kind == "paths-info":
                    wanted = _paths(posted)
                    answer = [f for f in files if f["path"] in wanted]
                send(request, json.dumps(answer).encode(), body, {"Content-Type": "application/json"})
            else:
                send(request, b"not found", body, {"X-Error-Code": "RepoNotFound"}, status=404)
            return
        if file := re.fullmatch(r"(.+)/resolve/[^/]+/(.+)", path):
            target = self.repositories.get(file[1], Path("/nonexistent")) / file[2]
            if target.is_file():
                self._file(request, file[2], *_content(target, target.stat().st_mtime_ns), body)
                return
        send(request, b"not found", body, {"X-Error-Code": "EntryNotFound"}, status=404)

    def _refuse(self, request: BaseHTTPRequestHandler, fault: str, body: bool) -> None:
        if fault == "reset":
            request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            request.close_connection = True
        elif fault == "loop":
            send(request, b"", body, {"Location": f"{self.url}{request.path}"}, status=307)
        elif fault == "hour":
            send(request, b"later", body, {"Retry-After": "3600"}, status=429)
        else:
            send(request, b"{}", body, {}, status=int(fault))

    def _file(self, request: BaseHTTPRequestHandler, name: str, data: bytes, digest: str, body: bool) -> None:
        headers = {"ETag": f'"{digest}"', "X-Repo-Commit": self.head, "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if not wanted:
            send(request, data, body, headers)
            return
        fault = self.faults.pop(0) if self.faults else ""
        first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
        if first >= len(data):
            send(request, b"", body, {"Content-Range": f"bytes */{len(data)}"}, status=416)
            return
        if fault == "elsewhere":
            shift = -1 if first else 1
            first, last = first + shift, last + shift
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data) + (fault == 'total')}"
        if fault == "unsaid":
            del headers["Content-Range"]
        part = b"" if fault == "empty" else data[first : last + 1]
        if fault in ("429", "503"):
            send(request, b"later", body, {"Retry-After": "1"}, status=int(fault))
        elif fault == "hour":
            send(request, b"later", body, {"Retry-After": "3600"}, status=429)
        elif fault == "drip":
            send(request, part, False, headers, status=206)
            with contextlib.suppress(OSError):  # the client has given up
                for byte in part:
                    time.sleep(0.05)
                    request.wfile.write(bytes([byte]))
            request.close_connection = True
        elif fault in ("short", "reset", "stall"):
            send(request, part, False, headers, status=206)
            request.wfile.write(part[: len(part) // 2])
            if fault == "stall":
                time.sleep(4)
            if fault == "reset":
                request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            request.close_connection = True
        elif fault == "whole":
            send(request, data, body, headers)
        else:
            if fault == "changed":
                headers["ETag"] = '"another"'
            if not fault:
                self.ranges.append((name, first, len(part)))
            send(request, part, body, headers, status=206)


def send(request: BaseHTTPRequestHandler, data: bytes, body: bool, headers: dict[str, str], status: int = 200) -> None:
    request.send_response(status)
    for name, value in {**headers, "Content-Length": str(len(data))}.items():
        request.send_header(name, value)
    request.end_headers()
    if body:
        request.wfile.write(data)


@lru_cache(maxsize=64)
def _content(path: Path, _: int) -> tuple[bytes, str]:
    data = path.read_bytes()
    return data, _sha256(data)


def _entry(folder: Path, path: Path) -> dict[str, Any]:
    data, digest = _content(path, path.stat().st_mtime_ns)
    entry = {"type": "file", "path": str(path.relative_to(folder)), "size": len(data), "oid": COMMIT}
    # Large files are described as the Hub describes them: their content's hash is the ETag.
    return {**entry, "lfs": {"oid": digest, "size": len(data), "pointerSize": 134}}


def _tree(files: list[dict[str, Any]], folder: str, recursive: bool) -> list[dict[str, Any]]:
    prefix = f"{folder}/" if folder else ""
    inside = [f for f in files if f["path"].startswith(prefix)]
    if recursive:
        return inside
    folders = {prefix + f["path"].removeprefix(prefix).split("/")[0] for f in inside if "/" in f["path"][len(prefix) :]}
    here = [f for f in inside if "/" not in f["path"][len(prefix) :]]
    return here + [{"type": "directory", "path": path, "oid": COMMIT, "size": 0} for path in sorted(folders)]


def _paths(posted: bytes) -> list[str]:
    try:
        paths = json.loads(posted)["paths"]
    except ValueError:
        paths = parse_qs(posted.decode()).get("paths", [])
    return [paths] if isinstance(paths, str) else list(paths)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
