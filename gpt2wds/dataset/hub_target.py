"""A dataset repository on the Hub as a target: several files in a commit."""

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import Error
from ..folder import Folder
from ..repository import Repository
from .publish import Piece

HUB = "hf://"
FILES_PER_COMMIT = 50
FILES_AT_ONCE = 4  # uploaded between two reports of progress


class HubTarget:
    """A repository, made if there is none. url: hf://datasets/OWNER/NAME; is_private: of one that is made.

    A file is seen when its commit is there. Each commit names the one before it, so that what another writes
    in between is never overwritten. Raises Error for what the Hub says.
    """

    def __init__(self, url: str, *, is_private: bool = False):
        repository = Repository.of(url.rstrip("/"))
        if repository is None or repository.below:
            raise Error(
                f"{url}: expected hf://datasets/OWNER/NAME, a dataset repository's main branch and no directory"
            )
        self._repository = repository
        self._is_private = is_private or None  # None leaves it to the account's own default

    def names(self) -> set[str]:
        from huggingface_hub import get_token

        if get_token() is None:
            raise Error(
                f"{self._repository.url}: expected a login to the Hub, got none; run `hf auth login`, or set HF_TOKEN"
            )
        made: dict[str, Any] = {"private": self._is_private, "exist_ok": True}
        self._repository.ask("the repository", lambda api, repo: api.create_repo(**made, **repo))
        return self._look()

    def _look(self) -> set[str]:
        """What the last commit has."""
        from huggingface_hub.hf_api import RepoFile

        self._head = self._repository.head()
        tree = self._repository.ask("its list", lambda api, repo: list(api.list_repo_tree(**repo, revision=self._head)))
        self._files = {file.path: file for file in tree if isinstance(file, RepoFile)}  # else a directory
        return set(self._files)

    def has(self, piece: Piece) -> bool:
        file = self._files.get(piece.name)
        if file is None:
            return False
        if file.size != piece.size or not _is_same(file, piece):
            piece.refuse_another(self._repository.url)
        return True

    def send(self, pieces: Sequence[Piece], sent: Callable[[int], None], message: str) -> None:
        for start in range(0, len(pieces), FILES_PER_COMMIT):
            batch = pieces[start : start + FILES_PER_COMMIT]
            with tempfile.TemporaryDirectory(prefix="gpt2wds-") as folder:
                self._commit(batch, Path(folder), sent, message)

    def _commit(self, batch: Sequence[Piece], folder: Path, sent: Callable[[int], None], message: str) -> None:
        additions = []
        for piece in batch:
            content = piece.content if isinstance(piece.content, bytes) else _local(piece, folder)
            additions.append(self._repository.addition(piece.name, content))
        todo = list(zip(batch, additions, strict=True))
        for start in range(0, len(todo), FILES_AT_ONCE):
            some = todo[start : start + FILES_AT_ONCE]
            for piece, addition in some:
                piece.check(addition.upload_info.sha256.hex())
            self._repository.upload([addition for _, addition in some])
            for piece, _ in some:
                sent(piece.size)
        head = self._repository.commit(additions, message, self._head)
        if head is not None:
            self._head = head
            return
        self._look()  # it may be our own commit, whose answer was lost
        if not all(map(self.has, batch)):
            raise Error(f"{self._repository.url}: another writer's commit came first; push again")


def _is_same(file: Any, piece: Piece) -> bool:
    """Whether a file of the Hub has a piece's content: large ones are known by SHA-256, others by git's hash."""
    if file.lfs is not None:
        return bool(file.lfs.sha256 == piece.sha256)
    digest = hashlib.sha1(f"blob {piece.size}\0".encode())
    for data in piece.pieces():
        digest.update(data)
    return bool(digest.hexdigest() == file.blob_id)


def _local(piece: Piece, folder: Path) -> Path:
    """A piece's file on this machine: its own, or one of a URL brought to `folder`."""
    assert isinstance(piece.content, Folder)
    if piece.content.is_local:
        path = Path(piece.content.path, piece.name)
        if not path.exists():
            piece.tail()  # says so
        return path
    path = folder / piece.name
    with path.open("wb") as file:
        piece.copy_to(file)
    return path
