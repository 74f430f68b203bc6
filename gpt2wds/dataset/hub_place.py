"""A dataset repository on the Hub as a place to publish in, by the Hub's own client: several files in a commit."""

import hashlib
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ..errors import Error
from ..folder import Folder
from ..stores import ask
from .publish import Piece

HUB = "hf://"
FILES_PER_COMMIT = 50
FILES_AT_ONCE = 4  # uploaded between two reports of progress
_PLACE = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)")

Answer = TypeVar("Answer")


class HubPlace:
    """A repository, made if there is none. url: hf://datasets/OWNER/NAME; is_private: of one that is made.

    A file is seen when its commit is there. Each commit names the one before it, so that what another writes
    in between is never overwritten. Raises Error for what the Hub says.
    """

    def __init__(self, url: str, *, is_private: bool = False):
        from huggingface_hub import HfApi

        named = _PLACE.fullmatch(url.rstrip("/"))
        if not named:
            raise Error(
                f"{url}: expected hf://datasets/OWNER/NAME, a dataset repository's main branch and no directory"
            )
        self._url, self._repo, self._api = url.rstrip("/"), named[1], HfApi()
        self._is_private = is_private or None  # None leaves it to the account's own default

    def names(self) -> set[str]:
        from huggingface_hub import get_token
        from huggingface_hub.hf_api import RepoFile

        if get_token() is None:
            raise Error(f"{self._url}: expected a login to the Hub, got none; run `hf auth login`, or set HF_TOKEN")
        repo: dict[str, Any] = {"repo_id": self._repo, "repo_type": "dataset"}
        self._ask("the repository", lambda: self._api.create_repo(**repo, private=self._is_private, exist_ok=True))
        self._head = str(self._ask("the repository", lambda: self._api.repo_info(**repo)).sha)
        tree = self._ask("its list", lambda: list(self._api.list_repo_tree(**repo, revision=self._head)))
        self._files = {file.path: file for file in tree if isinstance(file, RepoFile)}  # else a directory
        return set(self._files)

    def has(self, piece: Piece) -> bool:
        file = self._files.get(piece.name)
        if file is None:
            return False
        if file.size != piece.size or not _is_same(file, piece):
            piece.refuse_another(self._url)
        return True

    def send(self, pieces: Sequence[Piece], sent: Callable[[int], None], message: str) -> None:
        for start in range(0, len(pieces), FILES_PER_COMMIT):
            batch = pieces[start : start + FILES_PER_COMMIT]
            with tempfile.TemporaryDirectory(prefix="gpt2wds-") as folder, _no_bars():
                self._commit(batch, Path(folder), sent, message)

    def _commit(self, batch: Sequence[Piece], folder: Path, sent: Callable[[int], None], message: str) -> None:
        from huggingface_hub import CommitOperationAdd

        repo: dict[str, Any] = {"repo_id": self._repo, "repo_type": "dataset"}
        operations = []
        for piece in batch:
            content = piece.content if isinstance(piece.content, bytes) else str(_local(piece, folder))
            operations.append(CommitOperationAdd(piece.name, content))
        todo = list(zip(batch, operations, strict=True))
        for start in range(0, len(todo), FILES_AT_ONCE):
            some = todo[start : start + FILES_AT_ONCE]
            for piece, operation in some:
                piece.check(operation.upload_info.sha256.hex())
            upload = partial(self._api.preupload_lfs_files, additions=[o for _, o in some], free_memory=False, **repo)
            self._ask(", ".join(piece.name for piece, _ in some), upload)
            for piece, _ in some:
                sent(piece.size)
        commit = self._ask(
            "the commit",
            lambda: self._api.create_commit(
                operations=operations, commit_message=message, parent_commit=self._head, **repo
            ),
        )
        self._head = commit.oid

    def _ask(self, what: str, question: Callable[[], Answer]) -> Answer:
        def answered(_: object, __: str) -> Answer:
            try:
                return question()
            except RuntimeError as error:  # says of a file that it was not uploaded; why is in its cause
                raise error.__cause__ or error from None
            except ValueError as error:  # a card that the Hub does not take, in lines
                if type(error) is not ValueError:
                    raise
                raise Error(" ".join(str(error).split())) from None

        return ask(self._url, answered, what=what)


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


@contextmanager
def _no_bars() -> Iterator[None]:
    """Without the client's own progress bars: one line of ours says it all."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
