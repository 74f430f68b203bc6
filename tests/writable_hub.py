"""The loopback Hub's write side: repositories are made, files uploaded and committed, as huggingface_hub does it."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from loopback_hub import LoopbackHub, send

REGULAR = (".md", ".json")  # in git itself; all else is large


class WritableHub(LoopbackHub):
    """A Hub whose repositories are folders below `root`, empty at first.

    `puts` lists the SHA-256 of every upload, `commits` the files of every commit. `refused` says what gets a 403: an
    upload by its SHA-256, a commit by a file that it adds. `licences`: what a card may say. `unsaid`: so many commits
    are made and answered with a 503.
    """

    def __init__(self, root: Path):
        super().__init__({})
        self.root, self.objects = root, dict[str, bytes]()
        self.puts: list[str] = []
        self.commits: list[list[str]] = []
        self.refused: set[str] = set()
        self.licences = {"mit", "odc-by"}
        self.ignored = ""  # the end of names that a .gitignore there leaves out
        self.unsaid = 0
        self._writing = threading.Lock()

    @property
    def name(self) -> str:
        """A repository of this test's own: clients of one process remember what they found of a name."""
        return f"me/{self.root.parent.name}"

    @property
    def mine(self) -> str:
        return f"hf://datasets/{self.name}"

    @property
    def environment(self) -> dict[str, str]:
        """What commands need to find it."""
        return {"HF_ENDPOINT": self.url, "HF_TOKEN": "hf_of_this_test", "HF_HUB_DISABLE_XET": "1"}

    def make(self) -> Path:
        """The repository, made as its owner does."""
        folder = self.repositories[f"datasets/{self.name}"] = self.root / self.name
        folder.mkdir(parents=True)
        return folder

    def files(self) -> set[str]:
        return {path.name for path in (self.root / self.name).iterdir()}

    def write(self, request: BaseHTTPRequestHandler, posted: bytes) -> bool:
        path = unquote(urlsplit(request.path).path)
        if request.command == "PUT" and path.startswith("/lfs/"):
            self._upload(request, path.removeprefix("/lfs/"), posted)
            return True
        if request.command != "POST":
            return False
        written = re.match(r"/api/(datasets/[^/]+/[^/]+)/(preupload|commit)/", path)
        if written and written[1] not in self.repositories:
            _say(request, {"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return True
        asked = json.loads(posted) if posted[:1] == b"{" and b"\n{" not in posted else {}
        if path == "/api/validate-yaml":
            self._validate(request, asked["content"])
        elif path == "/api/repos/create":
            self._create(request, asked)
        elif preupload := re.fullmatch(r"/api/(datasets/[^/]+/[^/]+)/preupload/main", path):
            files = [self._mode(self.repositories[preupload[1]], file["path"]) for file in asked["files"]]
            _say(request, {"files": files})
        elif re.fullmatch(r"/datasets/.+\.git/info/lfs/objects/batch", path):
            _say(request, {"transfer": "basic", "objects": [self._action(each) for each in asked["objects"]]})
        elif commit := re.fullmatch(r"/api/(datasets/[^/]+/[^/]+)/commit/main", path):
            with self._writing:
                self._commit(request, commit[1], [json.loads(line) for line in posted.splitlines()])
        else:
            return False
        return True

    def listed(self, folder: Path) -> list[dict[str, Any]]:
        entries = super().listed(folder)
        for entry in entries:
            if entry["path"].endswith(REGULAR):
                del entry["lfs"]
                entry["oid"] = _blob((folder / entry["path"]).read_bytes())
        return entries

    def _validate(self, request: BaseHTTPRequestHandler, card: str) -> None:
        said = re.search(r"^license: (.+)$", card, flags=re.MULTILINE)
        if said and said[1] not in self.licences:
            _say(request, {"errors": [{"message": '"license" must be one of the list'}], "warnings": []}, 400)
        else:
            _say(request, {"errors": [], "warnings": []})

    def _create(self, request: BaseHTTPRequestHandler, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        url = f"{self.url}/datasets/{name}"
        if f"datasets/{name}" in self.repositories:
            _say(request, {"error": "You already created this dataset repo", "url": url}, 409)
            return
        folder = self.root / name
        folder.mkdir(parents=True)
        self.repositories[f"datasets/{name}"] = folder
        self.visibility = asked.get("visibility", "public")
        _say(request, {"url": url, "name": name, "id": name})

    def _mode(self, folder: Path, name: str) -> dict[str, Any]:
        here = next((entry for entry in self.listed(folder) if entry["path"] == name), {"oid": None})
        is_ignored = bool(self.ignored) and name.endswith(self.ignored)
        mode = "regular" if name.endswith(REGULAR) else "lfs"
        return {"path": name, "uploadMode": mode, "shouldIgnore": is_ignored, "oid": here["oid"]}

    def _action(self, each: dict[str, Any]) -> dict[str, Any]:
        upload = {"actions": {"upload": {"href": f"{self.url}/lfs/{each['oid']}", "header": {}}}}
        return {"oid": each["oid"], "size": each["size"], **({} if each["oid"] in self.objects else upload)}

    def _upload(self, request: BaseHTTPRequestHandler, oid: str, data: bytes) -> None:
        if oid in self.refused or hashlib.sha256(data).hexdigest() != oid:
            _say(request, {"error": "forbidden"}, 403)
            return
        self.objects[oid] = data
        self.puts.append(oid)
        _say(request, {})

    def _commit(self, request: BaseHTTPRequestHandler, repo: str, lines: list[dict[str, Any]]) -> None:
        header, files = lines[0]["value"], [line["value"] for line in lines[1:]]
        names, folder = [file["path"] for file in files], self.repositories[repo]
        absent = [line["value"]["path"] for line in lines[1:] if line["key"] == "deletedFile"]
        if header.get("parentCommit", self.head) != self.head:
            _say(request, {"error": "A commit has happened since. Please refresh and try again."}, 412)
        elif self.refused & set(names):
            _say(request, {"error": "forbidden"}, 403)
        elif any(not (folder / name).exists() for name in absent):
            _say(request, {"error": "A file with this name doesn't exist"}, 404, {"X-Error-Code": "EntryNotFound"})
        else:
            for line in lines[1:]:
                self._change(folder / line["value"]["path"], line["key"], line["value"])
            self.commits.append(names)
            self.head = hashlib.sha1(f"{self.head} {names}".encode()).hexdigest()
            answer = {"success": True, "commitOid": self.head, "commitUrl": f"{self.url}/{repo}/commit/{self.head}"}
            self.unsaid -= 1
            _say(request, answer, 503 if self.unsaid >= 0 else 200)

    def _change(self, path: Path, kind: str, file: dict[str, Any]) -> None:
        if kind == "deletedFile":
            path.unlink()
            return
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(self.objects[file["oid"]] if kind == "lfsFile" else base64.b64decode(file["content"]))


def _blob(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def _say(
    request: BaseHTTPRequestHandler, answer: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None
) -> None:
    said = {"Content-Type": "application/json", **(headers or {})}
    send(request, json.dumps(answer).encode(), True, said, status=status)
