"""A web server as `python -m http.server` is one: it ignores byte ranges, and nothing can be written to it."""

from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

from serving import LoopbackServer


class PlainServer(LoopbackServer):
    """Serves a directory on the loopback address. A context manager; `ranges` lists the files asked for by range.

    cuts: it knows ranges, and gives one byte less, as a consistent answer.
    """

    def __init__(self, directory: Path, *, cuts: bool = False):
        server = self

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *arguments: Any):
                super().__init__(*arguments, directory=str(directory))

            def do_GET(self) -> None:
                asked = self.headers.get("Range")
                if asked:
                    server.ranges.append(self.path)
                if not (asked and cuts):
                    return super().do_GET()
                data = Path(self.translate_path(self.path)).read_bytes()
                start, end = map(int, asked.removeprefix("bytes=").split("-"))
                part = data[start:end]
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(data)}")
                self.send_header("Content-Length", str(len(part)))
                self.end_headers()
                self.wfile.write(part)

            def copyfile(self, *files: Any) -> None:
                try:
                    super().copyfile(*files)
                except ConnectionError:  # who asked saw by the head that it is the wrong answer
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        self.ranges: list[str] = []
        super().__init__(Handler)
