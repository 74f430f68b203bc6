"""A Hub on 127.0.0.1 that speaks the real protocol to the unmodified huggingface_hub."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = hashlib.sha1(b"the only commit").hexdigest()


class LoopbackHub:
    """Serves folders as repositories: {"datasets/owner/name": folder, "owner/model": folder}.

    Used as a context manager; `url` is what HF_ENDPOINT must be, `requests` lists what was asked.
    """

    def __init__(self, repositories: dict[str, Path]):
        self.repositories = repositories
        self.requests: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub._answer(self, body=True)

            def do_HEAD(self) -> None:
                hub._answer(self, body=False)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler, body: bool) -> None:
        self.requests.append(f"{request.command} {request.path}")
        path = request.path.split("?")[0].lstrip("/")
        if api := re.fullmatch(r"api/(datasets|models)/([^/]+/[^/]+)(/revision/[^/]+|/tree/[^/]+)?", path):
            folder = self.repositories.get(api[2] if api[1] == "models" else f"datasets/{api[2]}")
            if folder:
                files = {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}
                answer: object = {"id": api[2], "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
                if "/tree/" in path:
                    answer = [
                        {"type": "file", "path": name, "size": file.stat().st_size, "oid": COMMIT}
                        for name, file in files.items()
                    ]
                self._send(request, json.dumps(answer).encode(), body, {"Content-Type": "application/json"})
                return
        if file := re.fullmatch(r"(.+)/resolve/[^/]+/(.+)", path):
            target = self.repositories.get(file[1], Path("/nonexistent")) / file[2]
            if target.is_file():
                data = target.read_bytes()
                etag = hashlib.sha256(data).hexdigest()
                headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
                self._send(request, data, body, headers)
                return
        self._send(request, b"not found", body, {"X-Error-Code": "RepoNotFound"}, status=404)

    def _send(
        self, request: BaseHTTPRequestHandler, data: bytes, body: bool, headers: dict[str, str], status: int = 200
    ) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if wanted and status == 200:
            first, last = int(wanted[1]), int(wanted[2] or len(data) - 1)
            headers = {**headers, "Content-Range": f"bytes {first}-{min(last, len(data) - 1)}/{len(data)}"}
            data, status = data[first : last + 1], 206
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            request.send_header(name, value)
        request.end_headers()
        if body:
            request.wfile.write(data)
