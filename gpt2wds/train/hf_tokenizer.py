"""GPT-2's tokenizer as the files that `transformers` reads, so that a checkpoint is all it needs.

    vocab.json               token → id
    merges.txt               pairs of tokens, in the order in which byte-pair encoding joins them
    tokenizer_config.json    which of its tokenizers that is

Made from the ranks that the ids come from, so that there is one vocabulary and no second download.
"""

import json
from functools import lru_cache
from itertools import pairwise

from ..tokenizer import END_OF_TEXT, Tokenizer, remembered

_END_OF_TEXT_NAME = "<|endoftext|>"
_PRINTABLE = (*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1))


@lru_cache(maxsize=1)
def tokenizer_files(tokenizer: Tokenizer, n_positions: int) -> dict[str, bytes]:
    """File name → content, about 1.5 MB in all. `n_positions` is the longest text the model takes, in tokens."""
    tokens = tokenizer.token_bytes()
    letters = _byte_letters()
    names = ["".join(letters[byte] for byte in token) for token in tokens]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    vocabulary = {name: rank for rank, name in enumerate(names)} | {_END_OF_TEXT_NAME: END_OF_TEXT}

    def merges() -> str:
        pairs = (_parts(token, rank, ranks) for rank, token in enumerate(tokens) if len(token) > 1)
        return "".join(f"{names[ranks[left]]} {names[ranks[right]]}\n" for left, right in pairs)

    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "model_max_length": n_positions,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        **{f"{role}_token": _END_OF_TEXT_NAME for role in ("bos", "eos", "unk")},
    }
    return {
        "vocab.json": json.dumps(vocabulary).encode(),
        "merges.txt": f"#version: 0.2\n{remembered('merges', tokenizer, [], merges)}".encode(),
        "tokenizer_config.json": (json.dumps(config, indent=2) + "\n").encode(),
    }


def _byte_letters() -> list[str]:
    """A visible letter for each byte: printable ones stand for themselves, the rest for U+0100 and on (OpenAI's)."""
    others = [byte for byte in range(256) if byte not in _PRINTABLE]
    return [chr(byte if byte in _PRINTABLE else 256 + others.index(byte)) for byte in range(256)]


def _parts(token: bytes, rank: int, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that are joined to this one: what encoding it gives, stopped before the last join."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(left + right, rank) for left, right in pairwise(parts)]
        i = joined.index(min(joined))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts[0], parts[1]
