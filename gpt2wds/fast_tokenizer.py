"""A faster engine for the tokenizer (the package gigatoken), and the proof of its ids.

tiktoken stays the reference. The engine is compared with it over all Unicode code points before it is used; a text with
a character on which they differ goes to tiktoken, and one document in so many is encoded by both.
"""

import importlib.util
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import numpy as np

from .errors import EngineError, Error
from .tokenizer import END_OF_TEXT, TIKTOKEN, WINDOW_CHARACTERS, Tokenizer, all_code_points, probe, remembered

END = b"<|endoftext|>"  # between texts that the engine encodes in one call

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
        self.engine, self._reference = FastEngine(tokenizer), tokenizer
        self._uncertain = Characters(differing)
        self._encoded = self._encoded_bytes = 0

    def encode_documents(self, texts: Sequence[str | bytes]) -> list[tuple[int, np.ndarray | Error]]:
        """All that the engine can take in one call, in one call; the others, and what is between them, one by one."""
        short = [_short_utf8(text) for text in texts]
        alone = {place for place, data in enumerate(short) if data is None}
        datas = [data or b"" for data in short]
        stream = _stream(datas)
        ends = np.cumsum([len(END) + len(data) for data in datas])
        alone.update(np.searchsorted(ends, self._uncertain.places(stream), "right").tolist())
        return list(self._found(texts, datas, stream, range(len(texts)), alone))

    def _found(
        self,
        texts: Sequence[str | bytes],
        datas: Sequence[bytes],
        stream: bytes,
        places: Sequence[int],
        alone: set[int],
    ) -> Iterator[tuple[int, np.ndarray | Error]]:
        for is_alone, run in groupby(places, alone.__contains__):
            chosen = list(run)
            together = [datas[place] for place in chosen]
            is_all = len(chosen) == len(texts)
            found = None if is_alone else self._together(together, stream if is_all else _stream(together))
            if found is not None:
                yield from found
            elif not is_alone and (marked := {place for place in chosen if END in datas[place]}):
                yield from self._found(texts, datas, stream, chosen, marked)  # looked for only now: few texts have it
            else:
                yield from ((1, self._document_or_error(texts[place])) for place in chosen)

    def _together(self, datas: Sequence[bytes], stream: bytes) -> list[tuple[int, np.ndarray | Error]] | None:
        """As encode_documents, of documents that `stream` has end to end, up to one on which the engine was found to
        disagree; None where one of them has END in its text, or the engine fails."""
        tokens = self._engine_ids(stream)
        if tokens is None or np.count_nonzero(tokens == END_OF_TEXT) != len(datas):
            return None
        for place in range(-self._encoded % CHECK_EVERY, len(datas), CHECK_EVERY):
            begins = np.append(np.flatnonzero(tokens == END_OF_TEXT), len(tokens))
            ids = tokens[begins[place] + 1 : begins[place + 1]]
            if not np.array_equal(ids, self.reference_ids(datas[place].decode())):
                before = [(place, tokens[: begins[place]].astype(np.uint16))] if place else []
                return [*before, (1, _disagreement())]
        self._encoded += len(datas)
        return [(len(datas), tokens.astype(np.uint16))]

    def _ids(self, text: str) -> np.ndarray:
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError:
            return self.reference_ids(text)
        if len(self._uncertain.places(data)) or END in data:
            return self.reference_ids(text)
        ids = self._engine_ids(data)
        if ids is None:
            return self.reference_ids(text)
        if self._encoded % CHECK_EVERY == 0 and not np.array_equal(ids, self.reference_ids(text)):
            raise _disagreement()
        self._encoded += 1
        return ids

    def _engine_ids(self, data: bytes) -> np.ndarray | None:
        """The engine's ids of UTF-8, None where it fails: with a panic in its Rust code, for example."""
        try:
            ids = self.engine.encode(data)
        except BaseException as error:
            if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
                raise
            return None
        self._encoded_bytes += len(data)
        if self._encoded_bytes >= RENEW_AFTER:
            self.engine, self._encoded_bytes = FastEngine(self._reference), 0
        return ids


class FastEngine:
    """gigatoken with tiktoken's own ranks: many times faster, and the same ids but for characters it knows otherwise.

    Which characters are letters comes from Unicode tables here too, of another version than tiktoken's. END in a text
    becomes END_OF_TEXT, and what is before and after it is as if it were alone.
    """

    def __init__(self, tokenizer: Tokenizer):
        import gigatoken

        with tempfile.NamedTemporaryFile(suffix=".tiktoken") as file:
            file.write(tokenizer.rank_lines)
            file.flush()
            special = {END.decode(): END_OF_TEXT}
            made = gigatoken.Tokenizer.from_tiktoken(file.name, pretokenizer="gpt2", special_tokens=special)
        self._encode, self._source = made.encode_batch_padded, gigatoken.BytesSource

    def encode(self, data: bytes) -> np.ndarray:
        """UTF-8 → (tokens,) ids. Other threads run meanwhile, as they would not in its plain `encode`."""
        (ids,), _ = self._encode(self._source(data), 0, parallel=False)  # of a list it would first import awkward
        return ids


class Characters:
    """Characters of no ASCII, quickly looked for in UTF-8: few bytes begin one, and only what begins so is decoded."""

    def __init__(self, characters: str):
        leads = sorted({c.encode()[0] for c in characters})
        self._first_lead = leads[0] if leads else 0xFF
        self._is_lead, self._is_one = np.zeros(0x100, bool), np.zeros(0x200000, bool)
        self._is_lead[leads] = True
        self._is_one[[ord(c) for c in characters]] = True

    def places(self, data: bytes) -> np.ndarray:
        """Where in UTF-8 one of them begins, ascending."""
        if data.isascii():
            return np.empty(0, np.intp)
        units = np.frombuffer(data, np.uint8)
        at = np.flatnonzero(units >= self._first_lead)
        at = at[self._is_lead[units[at]]]
        return at[self._is_one[_code_points(units, at)]]


def _code_points(units: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The characters that begin at places of UTF-8, none of them ASCII."""
    lead, *rest = (np.take(units, at + n, mode="clip").astype(np.int64) & (0x3F if n else 0xFF) for n in range(4))
    two = (lead & 0x1F) << 6 | rest[0]
    three = (lead & 0xF) << 12 | rest[0] << 6 | rest[1]
    four = (lead & 7) << 18 | rest[0] << 12 | rest[1] << 6 | rest[2]
    return np.where(lead < 0xE0, two, np.where(lead < 0xF0, three, four))


def _stream(datas: Iterable[bytes]) -> bytes:
    return END.join([b"", *datas])


def _short_utf8(text: str | bytes) -> bytes | None:
    """None for a text that is better encoded in windows, and for one with surrogates."""
    try:
        data = text if isinstance(text, bytes) else text.encode("utf-8")
    except UnicodeEncodeError:
        return None
    return data if len(data) <= WINDOW_CHARACTERS else None


def _disagreement() -> EngineError:
    return EngineError("the fast tokenizer engine disagrees with tiktoken; pip uninstall gigatoken")
