"""Questions to a store: asked again, refused in one line, and by a client of each process's own."""

import gzip
import multiprocessing
from http.server import BaseHTTPRequestHandler
from multiprocessing.connection import Connection

import pytest
from serving import LoopbackServer

from gpt2wds import patience, stores
from gpt2wds.errors import Error


def test_a_store_that_is_busy_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "WAITS", (0, 0))
    answers: list[object] = [TimeoutError("slow"), OSError(16, "busy"), b"data"]

    def question(*_: object) -> object:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert stores.ask("memory://x", question) == b"data"
    answers[:] = [ConnectionResetError("reset")] * 3
    with pytest.raises(Error, match="memory://x/a: it did not arrive .reset.; the same command goes on"):
        stores.ask("memory://x", question, "a")
    answers[:] = [PermissionError("denied"), b"data"]
    with pytest.raises(Error, match="denied.; check your credentials"):
        stores.ask("memory://x", question)
    assert answers == [b"data"]  # what is refused is not asked again


def _own_filesystem(pipe: Connection) -> None:
    pipe.send(id(stores.filesystem("https://127.0.0.1/a")[0].loop))  # raises where it is the parent's


def test_a_forked_process_has_a_client_of_its_own() -> None:
    stores.filesystem("https://127.0.0.1/a")[0].loop  # noqa: B018
    ours, theirs = multiprocessing.get_context("fork").Pipe()
    process = multiprocessing.get_context("fork").Process(target=_own_filesystem, args=(theirs,))
    process.start()
    process.join(60)
    assert process.exitcode == 0 and ours.poll()


def test_an_answer_that_unfolds_is_not_unfolded() -> None:
    """Identity is asked for, and where a server packs its answer all the same, its bytes are what came."""
    asked, answer = [], gzip.compress(bytes(10_000_000))

    class Packing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers["Accept-Encoding"])
            self.send_response(200)
            self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None: ...

    with LoopbackServer(Packing) as server:
        url = f"{server.url}/manifest.json"
        assert stores.ask(url, lambda system, path: system.cat_file(path)) == answer
    assert set(asked) == {"identity"}
