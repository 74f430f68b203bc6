"""A faster engine for the tokenizer (the package gigatoken), and the proof of its ids.

tiktoken stays the reference. The engine is compared with it over all Unicode code points before it is used; a text with
a character on which they differ goes to tiktoken, and one document in so many is encoded by both.
"""

import base64
import importlib.util
import re
import tempfile

import numpy as np

from .errors import EngineError
from .tokenizer import TIKTOKEN, Tokenizer, all_code_points, probe, remembered

CHECK_EVERY = 512  # documents: so often the engine's ids are compared with tiktoken's during a run
RENEW_AFTER = 1 << 27  # bytes of text: the engine remembers every word it saw, so it begins anew


def prove(tokenizer: Tokenizer) -> str | None:
    """Characters on which the engine differs from tiktoken, "" if there are none; None where it is not installed.

    Compares ids over all Unicode code points, as Tokenizer.fingerprint does.
    """
    if importlib.util.find_spec("gigatoken") is None:
        return None

    def differing() -> str:
        engine, found = FastEngine(tokenizer), []
        for (text, points), ids in zip(all_code_points(), tokenizer.code_point_ids, strict=True):
            if not np.array_equal(engine.encode(text.encode()), ids):
                probes = ((c, probe(c)) for c in points)
                found += [
                    c for c, p in probes if not np.array_equal(engine.encode(p.encode()), tokenizer.reference_ids(p))
                ]
        return "".join(found)

    return remembered("differing", tokenizer, [TIKTOKEN, "gigatoken.gigatoken_rs"], differing)


def with_engine(tokenizer: Tokenizer, differing: str | None) -> Tokenizer:
    """A tokenizer of the same ids that uses the engine as far as it was proven; `tokenizer` itself where it was not.

    differing: what `prove` gave. An engine that differs on an ASCII character is not used: hardly a text would be left
    for it.
    """
    if differing is None or any(map(str.isascii, differing)):
        return tokenizer
    return FastTokenizer(tokenizer, differing)


class FastTokenizer(Tokenizer):
    """A tokenizer that encodes with the engine. Raises EngineError where it was found to disagree with tiktoken."""

    def __init__(self, tokenizer: Tokenizer, differing: str):
        super().__init__(tokenizer.encoding)
        self.engine = FastEngine(tokenizer)
        self._uncertain = Characters(differing)
        self._encoded = self._encoded_bytes = 0

    def _ids(self, text: str) -> np.ndarray:
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError:
            return self.reference_ids(text)
        if self._uncertain.occur_in(text, data):
            return self.reference_ids(text)
        try:
            ids = self.engine.encode(data)
        except BaseException as error:
            if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
                raise
            return self.reference_ids(text)  # a panic in its Rust code, for example
        self._encoded += 1
        if self._encoded % CHECK_EVERY == 1 and not np.array_equal(ids, self.reference_ids(text)):
            raise EngineError("the fast tokenizer engine disagrees with tiktoken; pip uninstall gigatoken")
        self._encoded_bytes += len(data)
        if self._encoded_bytes >= RENEW_AFTER:
            self.engine, self._encoded_bytes = FastEngine(self), 0
        return ids


class FastEngine:
    """gigatoken with tiktoken's own ranks: many times faster, and the same ids but for characters it knows otherwise.

    Which characters are letters comes from Unicode tables here too, of another version than tiktoken's.
    """

    def __init__(self, tokenizer: Tokenizer):
        import gigatoken

        ranks = tokenizer.ranks
        with tempfile.NamedTemporaryFile(suffix=".tiktoken") as file:
            file.write(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))
            file.flush()
            made = gigatoken.Tokenizer.from_tiktoken(file.name, pretokenizer="gpt2", special_tokens={})
        self._encode = made.encode

    def encode(self, data: bytes) -> np.ndarray:
        """UTF-8 → (tokens,) ids."""
        return self._encode(data)


class Characters:
    """Characters of no ASCII, quickly looked for in a text.

    A regular expression of thousands of them would try their ranges one by one for each character of a text. Few bytes
    begin such a character in UTF-8: those are looked for, and then the characters that begin with one of them.
    """

    def __init__(self, characters: str):
        self._all = frozenset(characters)
        leads = sorted({c.encode()[0] for c in characters})
        self._leads = re.compile(b"[" + re.escape(bytes(leads)) + b"]") if leads else None
        self._suspects = re.compile("[" + "".join(map(_range_of_lead_byte, leads)) + "]") if leads else None

    def occur_in(self, text: str, data: bytes) -> bool:
        """Whether `text`, `data` in UTF-8, has one of them."""
        if self._leads is None or self._suspects is None or text.isascii() or not self._leads.search(data):
            return False
        return not self._all.isdisjoint(self._suspects.findall(text))


def _range_of_lead_byte(lead: int) -> str:
    """The characters whose UTF-8 begins with a byte of no ASCII, as a range for a regular expression."""
    length, smallest = (2, 0x80) if lead < 0xE0 else (3, 0x800) if lead < 0xF0 else (4, 0x10000)
    bits = 6 * (length - 1)
    first = (lead & (0x3F >> (length - 1))) << bits
    return f"\\U{max(first, smallest):08x}-\\U{min(first + (1 << bits) - 1, 0x10FFFF):08x}"
