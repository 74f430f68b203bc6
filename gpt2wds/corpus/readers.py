"""Which reader reads what: by the end of a file's name."""

from urllib.parse import urlsplit

from . import compression
from .documents import Reader
from .json_lines import JSONLines
from .parquet import Parquet
from .text import Text

BY_SUFFIX: dict[str, Reader] = {".parquet": Parquet()}
for _compressed, _decompressor in {"": None, **compression.BY_SUFFIX}.items():
    BY_SUFFIX |= {f"{plain}{_compressed}": JSONLines(_decompressor) for plain in (".jsonl", ".ndjson", ".json")}
    BY_SUFFIX[f".txt{_compressed}"] = Text(_decompressor)


def suffix_of(name: str) -> str | None:
    """The end of a file name that says its format, in small letters; None for none that is known.

    >>> suffix_of("texts/a.jsonl.zst"), suffix_of("https://host/a.parquet?download=true")
    ('.jsonl.zst', '.parquet')
    """
    url = urlsplit(name)
    path = (url.netloc + url.path if "://" in name else name).lower()
    return next((suffix for suffix in BY_SUFFIX if path.endswith(suffix)), None)
