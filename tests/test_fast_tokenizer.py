"""The faster engine against tiktoken, and the proof of its ids."""

import random
import subprocess
import sys
import threading
import time
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2wds import fast_tokenizer
from gpt2wds.errors import EngineError
from gpt2wds.fast_tokenizer import FastTokenizer, with_engine
from gpt2wds.tokenizer import END_OF_TEXT, load_tokenizer, remembered


@pytest.fixture(scope="module", autouse=True)
def one_engine() -> None:
    """Here each tokenizer has an engine of its own, as in the commands."""


@pytest.fixture(scope="module")
def differing() -> str:
    """The characters on which the fast engine was found to differ."""
    pytest.importorskip("gigatoken", reason="needs the extra 'fast'")
    return fast_tokenizer.prove(load_tokenizer())


@pytest.fixture
def fast(differing):
    return FastTokenizer(load_tokenizer(), differing)


def test_characters_on_which_the_engines_differ_are_all_found(fast, differing):
    # One by one, where the proof takes whole pages and looks closer only where one differs.
    sample = random.Random(1).sample([c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF], 20_000)
    for c in map(chr, sample):
        probe = f" {c}'s {c}1\n"
        same = fast.engine.encode(probe.encode()).tolist() == fast.encoding.encode_ordinary(probe)
        assert same == (c not in differing), hex(ord(c))
    assert not any(c.isascii() for c in differing)


# Characters of all sorts, close together: words, contractions, digits, marks, spaces, several scripts.
MIXED = st.text(
    st.sampled_from("aZé'sllreve0९½Ⅷ \t\n\r\x0b\u00a0\u2003\u3000\u200b\u200d\ufe0f\u0301’中字𠀀😀👍🏽ß<|>\x00\x85")
)


@settings(max_examples=400, deadline=None)
@given(st.text() | MIXED)
def test_the_fast_engine_gives_tiktokens_ids(differing, text):
    fast = one_tokenizer(differing)
    assert fast.encode(text).tolist() == fast.encoding.encode_ordinary(text)


# What encoding several texts in one call may trip over: the mark between them, whole and cut, and texts that go alone.
TRAPS = st.sampled_from(
    ["<|endoftext|>", "<|endoftext|", "|>", "a <|endoftext|>b", "\ud800", "\u088f", " \U00010940", " "]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text() | MIXED | TRAPS, max_size=9), st.booleans())
def test_documents_encoded_together_have_tiktokens_ids(differing, texts, as_bytes):
    fast = one_tokenizer(differing)
    given = [text.encode() if as_bytes and "\ud800" not in text else text for text in texts]
    found = fast.encode_documents(given)
    assert sum(count for count, _ in found) == len(texts)
    wanted = [id for text in texts for id in [END_OF_TEXT, *fast.encoding.encode_ordinary(text)]]
    assert [id for _, tokens in found for id in tokens.tolist()] == wanted


def test_documents_go_to_the_engine_in_one_call_but_for_those_that_must_go_alone(fast):
    calls, encode = [], fast.engine.encode
    fast.engine = Stub(lambda data: calls.append(data) or encode(data))
    texts = [b"one", b"two", "thr\u00e9e", b"x" * 300_000, "\u088f", b"six", b"seven"]
    found = fast.encode_documents(texts)
    assert [count for count, _ in found] == [3, 1, 1, 2]
    assert calls[0] == b"<|endoftext|>one<|endoftext|>two<|endoftext|>thr\xc3\xa9e"
    assert calls[-1] == b"<|endoftext|>six<|endoftext|>seven"
    calls.clear()
    texts = [b"a", b"b", b"a <|endoftext|>", b"c", b"d"]
    assert [count for count, _ in fast.encode_documents(texts)] == [2, 1, 2]
    apart = [b"<|endoftext|>a<|endoftext|>b", b"<|endoftext|>c<|endoftext|>d"]
    assert calls == [b"<|endoftext|>a <|endoftext|>".join([apart[0], apart[1]]), *apart]


def test_other_threads_run_while_the_engine_encodes(fast):
    data, longest, is_done = b" some words of a text" * 500_000, 0.0, threading.Event()
    fast.engine.encode(b"first")

    def look() -> None:
        nonlocal longest
        last = time.perf_counter()
        while not is_done.wait(0.0005):
            last, before = time.perf_counter(), last
            longest = max(longest, last - before)

    thread = threading.Thread(target=look)
    thread.start()
    start = time.perf_counter()
    fast.engine.encode(data)
    took = time.perf_counter() - start
    is_done.set()
    thread.join()
    assert longest < took / 2


def test_the_engine_starts_without_awkward(differing):
    """Its plain way would import that when first used, which takes longer than all else at the start."""
    program = (
        "import sys; from gpt2wds.fast_tokenizer import FastEngine; from gpt2wds.tokenizer import load_tokenizer;"
        "FastEngine(load_tokenizer()).encode(b'a'); sys.exit('awkward' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@lru_cache
def one_tokenizer(differing: str) -> FastTokenizer:
    return FastTokenizer(load_tokenizer(), differing)


@pytest.mark.parametrize(
    "text",
    ["a\ud800b", "", "<|endoftext|>", "a <|endoftext|>b", " " * 100_000, "x" * 1_000_000, "é\r\n\u3000 1'S's"],
)
def test_the_fast_engine_takes_hard_texts_as_tiktoken_does(fast, text):
    assert fast.encode(text).tolist() == fast.encoding.encode_ordinary(text)


class Stub:
    """An engine that gives what a test wants."""

    def __init__(self, encode):
        self.encode = encode


def test_a_text_with_a_character_the_engines_differ_on_goes_to_tiktoken():
    fast = FastTokenizer(load_tokenizer(), "é")
    fast.encode("not the one in so many that is compared")
    fast.engine = Stub(lambda data: np.array([7], dtype=np.uint16))
    assert fast.encode("caf\u00e9").tolist() == fast.encoding.encode_ordinary("café")
    assert fast.encode("cafè").tolist() == [7]  # the same first byte, another character


def test_an_engine_that_is_not_proven_or_differs_on_ascii_is_not_used(differing):
    tokenizer = load_tokenizer()
    assert with_engine(tokenizer, None) is tokenizer
    assert with_engine(tokenizer, "é'") is tokenizer
    assert isinstance(with_engine(tokenizer, differing), FastTokenizer)


def test_with_and_without_the_engine_spaces_that_tiktoken_refuses_are_the_same(fast):
    text = "a" + " " * 1_000_000 + "x"
    for _ in range(2):  # compared, and not
        assert np.array_equal(fast.encode(text), load_tokenizer().encode(text))


@pytest.mark.parametrize("wrong", [0, 511, 512, 900])
def test_one_document_in_so_many_of_those_encoded_together_is_compared(fast, wrong):
    encode = fast.engine.encode

    def encode_wrong(data):
        ids = encode(data)
        begins = np.append(np.flatnonzero(ids == END_OF_TEXT), len(ids))
        ids[begins[wrong] + 1 : begins[wrong + 1]] = 7
        return ids

    fast.engine = Stub(encode_wrong)
    *before, (count, found) = fast.encode_documents([b"Hello world"] * 1000)
    assert isinstance(found, EngineError) == (wrong % fast_tokenizer.CHECK_EVERY == 0)
    if isinstance(found, EngineError):
        assert (sum(number for number, _ in before), count) == (wrong, 1)  # so it can be named
        assert sum(map(len, (tokens for _, tokens in before))) == 3 * wrong


@pytest.mark.parametrize("panic", [True, False])
def test_where_the_engine_fails_tiktoken_takes_over(fast, panic):
    class PanicException(BaseException):
        pass

    def encode(data):
        raise PanicException("index out of bounds") if panic else RuntimeError("no")

    fast.engine = Stub(encode)
    assert fast.encode("Hello world").tolist() == [15496, 995]
    found = fast.encode_documents([b"Hello world", "Hi"])
    assert [tokens.tolist() for _, tokens in found] == [[END_OF_TEXT, 15496, 995], [END_OF_TEXT, 17250]]


WIDE = st.characters(min_codepoint=0x80, exclude_categories=["Cs"])


@given(st.sets(WIDE, max_size=4), st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 0x3FF))
def test_characters_are_found_wherever_they_are(characters, text, near):
    neighbours = "".join(chr(ord(c) ^ near) for c in characters if not 0xD800 <= ord(c) ^ near <= 0xDFFF)
    found = fast_tokenizer.Characters("".join(sorted(characters)))
    for candidate in (text, text + neighbours, text + "".join(characters) + text):
        assert bool(len(found.places(candidate.encode()))) == (not characters.isdisjoint(candidate))


def test_every_character_is_found_among_those_of_its_first_byte():
    of_lead: dict[int, list[str]] = {}
    for character in (chr(c) for c in range(0x80, 0x110000) if not 0xD800 <= c <= 0xDFFF):
        of_lead.setdefault(character.encode()[0], []).append(character)
    for characters in of_lead.values():
        found = fast_tokenizer.Characters("".join(characters))
        # Ranges can only be wrong at their ends, and where the surrogates are left out.
        for character in {*characters[:70], *characters[-70:], *characters[::997]}:
            assert found.places(character.encode()).tolist() == [0], hex(ord(character))


def test_a_disagreement_during_a_run_is_an_error(fast):
    fast.engine = Stub(lambda data: np.array([1], dtype=np.uint16))
    with pytest.raises(EngineError, match="disagrees with tiktoken"):
        fast.encode("hello")


def test_the_engine_is_renewed_so_that_its_memory_stays_bounded(fast, monkeypatch):
    monkeypatch.setattr(fast_tokenizer, "RENEW_AFTER", 1000)
    engines = []
    for _ in range(30):
        fast.encode("word " * 20)
        engines.append(fast.engine)
    assert len(set(map(id, engines))) >= 2


def test_without_the_package_there_is_no_fast_engine(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert fast_tokenizer.prove(load_tokenizer()) is None


def test_what_was_proven_is_remembered_for_the_same_binaries_only(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []

    def compute() -> str:
        calls.append(1)
        return f"é{len(calls)}"

    def ask(modules: list[str]) -> str:
        return remembered("test", load_tokenizer(), modules, compute)

    assert [ask(["tiktoken._tiktoken"]) for _ in range(3)] == ["é1"] * 3
    assert ask(["zstandard.backend_c"]) == "é2"
    (kept, _) = sorted((tmp_path / "gpt2wds").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for damage in (b"", b"\xff", kept.read_bytes()[:-1] + b"7"):
        kept.write_bytes(damage)
        assert ask(["tiktoken._tiktoken"]) == f"é{len(calls)}"
    assert len(calls) == 5
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert ask(["tiktoken._tiktoken"]) == "é6"
