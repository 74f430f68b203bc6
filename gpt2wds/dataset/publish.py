"""A finished dataset → another place that others can read: a directory, an object store, the Hub.

Card and plan go first (the Hub reads a card before it takes it), then indices and shards, and the manifest last: until
all is there, readers find none, and call it unfinished. Every file is held to its SHA-256 on the way, so that damage is
never published. What is there already stays, is not sent again, and must be the same.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, BinaryIO, Protocol

from ..errors import Error, refuse_other_bytes
from ..files import remove_dead
from ..folder import PIECE_BYTES, Folder
from ..locations import PACKAGE
from ..strict_json import Record, checked, load_json, refuse_damage
from .card import CARD, card
from .directory import REPAIR, Dataset
from .manifest import SPLITS

MANIFEST, PLAN = "manifest.json", "plan.json"
TAIL_BYTES = 1 << 16  # of a shard that is there already: its seek table, which has a checksum of every frame
_SHARD = re.compile(rf"({'|'.join(SPLITS)})-[0-9]+\.tar\.zst")
_LOCAL = re.compile(r"[/~\\]|file:|[A-Za-z]:[/\\]")
_SECRET = re.compile(r"://[^/]*@|://.*[?&][^=]*(sig|token|key|credential)[^=]*=", re.IGNORECASE)


class AnotherFile(Error):
    """A target has another file than one to be published."""


@dataclass(frozen=True)
class Piece:
    """A file to publish: its bytes, or the directory that it is in."""

    name: str
    size: int
    sha256: str
    content: bytes | Folder = field(repr=False)

    @property
    def is_shard(self) -> bool:
        return bool(_SHARD.fullmatch(self.name))

    def pieces(self) -> Iterator[bytes]:
        """Its bytes, some megabytes at a time. Raises Error at the end if they are not what they must be."""
        if isinstance(self.content, bytes):
            yield self.content
            return
        digest = hashlib.sha256()
        for start in range(0, self.size, PIECE_BYTES):
            data = self._read(start, min(self.size, start + PIECE_BYTES))
            digest.update(data)
            yield data
        self.check(digest.hexdigest())

    def check(self, sha256: str) -> None:
        """Raises Error where this is not its content's."""
        if sha256 != self.sha256:
            where = f"{self.content}/" if isinstance(self.content, Folder) else ""
            raise Error(
                f"{where}{self.name}: expected SHA-256 {self.sha256}, got {sha256}; nothing of it was "
                f"published; {REPAIR}, then push again"
            )

    def copy_to(self, file: BinaryIO) -> None:
        for data in self.pieces():
            file.write(data)

    def tail(self) -> bytes:
        start = max(0, self.size - TAIL_BYTES)
        return self.content[start:] if isinstance(self.content, bytes) else self._read(start, self.size)

    def refuse_another(self, where: object) -> None:
        raise AnotherFile(
            f"{where}/{self.name}: another file of this name is there already, and nothing is ever overwritten; "
            "push to an empty place"
        )

    def _read(self, start: int, end: int) -> bytes:
        assert isinstance(self.content, Folder)
        try:
            return self.content.read(self.name, start, end)
        except FileNotFoundError:
            raise Error(f"{self.content}/{self.name}: the file is missing; {REPAIR}, then push again") from None


class Target(Protocol):
    """Where a dataset is published."""

    def names(self) -> set[str]:
        """The files that are there."""

    def has(self, piece: Piece) -> bool:
        """Whether a file is there with this content. Raises AnotherFile where it has another."""

    def send(self, pieces: Sequence[Piece], sent: Callable[[int], None], message: str) -> None:
        """Create these files; `sent` is told the bytes of each. Raises Error where another came first."""


class DirectoryTarget:
    """A directory, here or at a URL."""

    def __init__(self, folder: Folder):
        folder.refuse_unwritable()
        self._folder = folder

    def names(self) -> set[str]:
        self._sizes = self._folder.sizes()
        return set(self._sizes)

    def has(self, piece: Piece) -> bool:
        if piece.name not in self._sizes:
            return False
        if self._sizes[piece.name] != piece.size or not self._is_same(piece):
            piece.refuse_another(self._folder)
        return True

    def send(self, pieces: Sequence[Piece], sent: Callable[[int], None], message: str) -> None:
        self._folder.make()
        if self._folder.is_local:
            remove_dead(Path(self._folder.path))
        for piece in pieces:
            _, is_first = self._folder.create(piece.name, piece.copy_to)
            if not is_first and (self._folder.size(piece.name) != piece.size or not self._is_same(piece)):
                piece.refuse_another(self._folder)
            sent(piece.size)

    def _is_same(self, piece: Piece) -> bool:
        if piece.is_shard and not self._folder.is_local:  # to read it whole would be to fetch it
            return self._folder.read(piece.name, max(0, piece.size - TAIL_BYTES), piece.size) == piece.tail()
        return self._folder.sha256(piece.name, piece.size) == piece.sha256


@dataclass(frozen=True)
class Stage:
    """Files that are sent together, before those of the next stage. after: names that must be there before."""

    message: str
    pieces: list[Piece]
    after: frozenset[str] = frozenset()


def to_send(dataset: Dataset, target: Target, url: str, licence: str | None = None) -> list[Stage]:
    """What of a dataset is not at a target yet, in the order in which it must be sent; [] if all is there.

    url: by which its readers will know the target; licence: the Hub's name for it, for the card.
    Raises Error for another dataset there, and for what the target says.
    """
    if dataset.folder.path == url or dataset.folder.holds(url):
        raise Error(f"{url}: expected another place, got the dataset's own directory {dataset.path} or one within it")
    refuse_other_bytes("push", url)  # the card names it
    words, data, manifest = _pieces(dataset, url, licence)
    there = target.names()
    for name in sorted(there - {piece.name for piece in data}):
        if _SHARD.fullmatch(name):
            raise Error(f"{url}: a shard of another dataset is there ({name}); push to an empty place")
    if CARD in there:  # it is its owner's, who may have edited it there
        words = [piece for piece in words if piece.name != CARD]
    names = frozenset(piece.name for piece in (*words, *data))
    last = Stage("The manifest: all is there", _missing([manifest], target), names)  # asked first: it names the dataset
    stages = Stage("Card and plan", _missing(words, target)), Stage("Indices and shards", _missing(data, target)), last
    return [stage for stage in stages if stage.pieces]


def has_another_card(dataset: Dataset, target: Target, url: str, licence: str | None) -> bool:
    """Whether a target has a card that is not the one with this licence, which is then not written."""
    try:
        return CARD in target.names() and not target.has(_card(dataset, url, licence))
    except AnotherFile:
        return True


def send(target: Target, stages: Sequence[Stage], sent: Callable[[int], None] = lambda _: None) -> None:
    """Send what `to_send` found missing; `sent` is told the bytes of each file. Raises Error for damage, too."""
    for stage in stages:
        absent = stage.after - target.names() if stage.after else ()
        if absent:  # a .gitignore of the Hub's can do that, or somebody else
            raise Error(f"{min(absent)}: it was sent and is not there; look what removes it, then push again")
        target.send(stage.pieces, sent, stage.message)


def _missing(pieces: Sequence[Piece], target: Target) -> list[Piece]:
    return [piece for piece in pieces if not target.has(piece)]


def telling(dataset: Dataset) -> list[str]:
    """What manifest and plan would tell everybody of this machine: absolute paths, and URLs with a secret in them."""
    records = [dataset.manifest.corpus.record(), dataset.manifest.parameters, published_plan(dataset)]
    spans = [span.source for split in SPLITS for entry in dataset.shards(split) for span in entry.spans]
    found = (text for text in _texts([*records, spans]) if _LOCAL.match(text) or _SECRET.search(text))
    return list(dict.fromkeys(found))


def published_plan(dataset: Dataset) -> Record | None:
    """The plan as others get it, None if there is none: its local files are where their names say, from wherever a
    reader works, and of any time of change. Nothing that a shard's tokens depend on is another.
    """
    try:
        plan = load_json(dataset.folder.read(PLAN))
        if not isinstance(plan, dict) or not isinstance(plan.get("sources"), list):
            raise Error("expected an object with sources")
        refuse_damage(plan)
    except FileNotFoundError:
        return None
    except Error as error:
        raise Error(
            f"{dataset.path}/{PLAN}: {error}; restore it, or delete it: then nobody can audit the dataset"
        ) from None
    return checked({**plan, "sources": [_placed(source) for source in plan["sources"]]})


def _placed(source: Any) -> Any:
    path = source.get("path") if isinstance(source, dict) else None
    if not isinstance(path, str) or "repo" in source or path.startswith(PACKAGE):
        return source
    kept = {name: value for name, value in source.items() if name != "mtime_ns"}
    return {**kept, "path": str(PurePath(str(source.get("name", ""))))}


def _pieces(dataset: Dataset, url: str, licence: str | None) -> tuple[list[Piece], list[Piece], Piece]:
    """Card and plan, then indices and shards, then the manifest."""
    words = [_card(dataset, url, licence)]
    plan = published_plan(dataset)
    if plan is not None:
        words.append(_of_text(PLAN, (json.dumps(plan, indent=1, ensure_ascii=False) + "\n").encode("utf-8")))
    data = []
    for split in SPLITS:
        name = f"{split}.blocks.npy"
        size = dataset.folder.size(name)
        digest = dataset.manifest.blocks_sha256.get(split) or dataset.folder.sha256(name, size)
        data.append(Piece(name, size, digest, dataset.folder))
    for entry in (entry for split in SPLITS for entry in dataset.shards(split)):
        data.append(Piece(entry.file, entry.bytes, entry.sha256, dataset.folder))
    return words, data, _of_text(MANIFEST, dataset.folder.read(MANIFEST))


def _card(dataset: Dataset, url: str, licence: str | None) -> Piece:
    return _of_text(CARD, card(dataset, url, licence).encode("utf-8"))


def _of_text(name: str, data: bytes) -> Piece:
    return Piece(name, len(data), hashlib.sha256(data).hexdigest(), data)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _texts(each)
