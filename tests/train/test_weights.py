"""Models from directories in Hugging Face layout: what we compute is read as it is, everything else refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from gpt2wds.errors import Error
from gpt2wds.model import GPT2, GPT2Config
from gpt2wds.train.checkpoint import State, save_checkpoint
from gpt2wds.train.weights import load_weights

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def model() -> GPT2:
    return GPT2(GPT2Config(2, 2, 32, n_positions=64, vocab_size=300), seed=1)


@pytest.fixture
def folder(model: GPT2, tmp_path: Path) -> Path:
    """Of a stranger, who gives no hashes."""
    path = save_checkpoint(tmp_path, State(1), model, {}, keep=1)
    (path / "SHA256SUMS").unlink()
    return path


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_checkpoints_weights_are_compared_with_their_hashes(model: GPT2, tmp_path: Path, name: str) -> None:
    path = save_checkpoint(tmp_path, State(1), model, {}, keep=1)
    data = bytearray((path / name).read_bytes())
    data[-20] ^= 1  # of a number, or of a blank
    (path / name).write_bytes(data)
    with pytest.raises(Error, match=f"{name} is not what was written, SHA256SUMS has another hash; restore it, or rem"):
        load_weights(path)
    (path / "SHA256SUMS").write_bytes(b"\xff")
    with pytest.raises(Error, match="cannot compare it with its SHA256SUMS"):
        load_weights(path)


def change(folder: Path, edit: Callable[[Tensors], object] = lambda t: None, **config: object) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


def same(one: GPT2, other: GPT2) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_head_that_is_tied_is_read_and_another_refused(model: GPT2, folder: Path) -> None:
    change(folder, lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"].clone()}))
    assert same(load_weights(folder), model)
    change(folder, lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"] + 1}))
    with pytest.raises(Error, match=r"lm_head\.weight differs from wte\.weight; we compute a head that is tied to it"):
        load_weights(folder)


@pytest.mark.parametrize(
    ("edit", "config", "said"),
    [
        (
            lambda t: t.update({"transformer.ln_f.bias": torch.zeros(32, dtype=torch.int8)}),
            {},
            "ln_f.bias: expected fl",
        ),
        (
            lambda t: t.update({"lm_head.weight": torch.zeros(300, 32, dtype=torch.bool)}),
            {},
            "lm_head.weight: expected fl",
        ),
        (lambda t: t.update({"lm_head.weight": torch.zeros(300, 32).half()}), {}, "lm_head.weight differs"),
        (lambda t: t.update({"transformer.wte.weight": torch.ones(())}), {"vocab_size": 50304}, "wte.weight must be"),
        (lambda t: None, {"quantization_config": {"bits": 8}}, "quantization_config: expected none"),
        (lambda t: None, {"n_layer": 1}, r"h.1.attn.c_attn.bias: expected no such tensor with n_layer = 1"),
        (lambda t: None, {"n_layer": 3}, "expected a GPT-2 tensor 'h.2.ln_1.weight'"),
        (lambda t: t.update({"score.weight": torch.zeros(2, 32)}), {}, "score.weight: expected no such tensor"),
        (lambda t: None, {"n_inner": 100}, "n_inner: expected 128, got 100"),
        (lambda t: None, {"scale_attn_weights": False}, "scale_attn_weights: expected True, got False"),
    ],
)
def test_another_model_than_we_compute_is_refused(folder: Path, edit: Callable, config: dict, said: str) -> None:
    change(folder, edit, **config)
    with pytest.raises(Error, match=said):
        load_weights(folder)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"n_layer": 10**9},
            r"expected a GPT-2 tensor 'h\.2\.ln_1\.weight', which the file does not have; config\.json",
        ),
        ({"n_embd": 10**6}, r"wte\.weight must be \(300, 1000000\), got \(300, 32\)"),
        ({"n_positions": 10**9}, r"wpe\.weight must be \(1000000000, 32\)"),
        ({"vocab_size": 10**9}, r"wte\.weight must be \(1000000000, 32\)"),
        ({"n_layer": 10**30}, "expected whole numbers from 1 on"),
        ({"n_embd": int("1" + "0" * 400)}, "expected whole numbers from 1 on"),
        ({"n_layer": 0}, "expected whole numbers from 1 on"),
        ({"n_head": -2}, "expected whole numbers from 1 on"),
        ({"n_layer": True}, "expected whole numbers from 1 on"),
        ({"n_layer": "two"}, "expected whole numbers from 1 on"),
        ({"n_head": 3}, "n_embd must be a multiple of n_head"),
    ],
)
def test_a_model_is_measured_against_its_file_before_it_is_built(folder: Path, config: dict, said: str) -> None:
    change(folder, **config)
    with pytest.raises(Error, match=said) as caught:
        load_weights(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"n_layer": ' * 500, b'{"n_layer": 1e999}', b" " * (1 << 25)],
)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_json_that_is_none_is_one_line(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    if name != "config.json":
        (folder / "model.safetensors").unlink()
    with pytest.raises(Error, match=r"^model [^\n]+$"):
        load_weights(folder)


@pytest.mark.parametrize(
    "found",
    [{}, {"weight_map": []}, {"weight_map": {"a": 1}}, {"weight_map": {"a": ".."}}, {"weight_map": {"a": ""}},
     {"weight_map": {"a": "nothing.safetensors"}}, {"weight_map": {"a": "config.json"}}],
)  # fmt: skip
def test_an_index_of_files_that_cannot_be_is_one_line(folder: Path, found: dict) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(found))
    with pytest.raises(Error, match=r"^model [^\n]+$"):
        load_weights(folder)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda t: [t], "holds no tensors by name"),
        (lambda t: t | {1: torch.ones(1)}, "holds '1', which is no plain tensor"),
        (lambda t: t | {"more": 1}, "holds 'more', which is no plain tensor"),
        (lambda t: t | {"more": {"a": torch.ones(1)}}, "holds 'more', which is no plain tensor"),
        (lambda t: t | {"more": torch.ones(1).expand(1 << 40)}, "holds 'more', which is no plain tensor"),
        (lambda t: t | {"more": torch.ones(2, 2).to_sparse()}, "holds 'more', which is no plain tensor"),
        (lambda t: t | {"more": torch.empty(1 << 40, device="meta")}, "holds 'more', which is no plain tensor"),
        (lambda t: t | {"wte.weight": t["transformer.wte.weight"]}, "wte.weight is there twice"),
    ],
)
def test_what_stands_for_more_than_it_holds_is_refused(folder: Path, made: Callable, said: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(made(tensors), folder / "pytorch_model.bin")
    with pytest.raises(Error, match=said):
        load_weights(folder)


@pytest.mark.parametrize("prefix", ["", "transformer.", "_orig_mod.", "_orig_mod.transformer.", "module._orig_mod."])
def test_prefixes_and_old_buffers(model: GPT2, folder: Path, prefix: str) -> None:
    def edit(tensors: Tensors) -> None:
        renamed = {prefix + name.removeprefix("transformer."): value for name, value in tensors.items()}
        tensors.clear()
        tensors.update(renamed)
        tensors.update({f"{prefix}h.0.attn.{name}": torch.ones(1) for name in ("bias", "masked_bias")})

    change(folder, edit)
    assert same(load_weights(folder), model)


def test_weights_in_several_files(model: GPT2, folder: Path, tmp_path: Path) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    theirs.save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 1
    assert same(load_weights(tmp_path / "sharded"), model)
    index = tmp_path / "sharded" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    with pytest.raises(Error, match="names files outside the directory"):
        load_weights(tmp_path / "sharded")


def test_pickled_weights_are_read_and_nothing_else_is_unpickled(model: GPT2, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    assert same(load_weights(folder), model)
    torch.save({"a": Path("/")}, folder / "pytorch_model.bin")
    with pytest.raises(Error, match=r"pytorch_model\.bin holds more than tensors, or is damaged"):
        load_weights(folder)


def test_a_padded_vocabulary_is_gpt2s(tmp_path: Path) -> None:
    """nanoGPT saves 50,304 rows; what is saved again has 50,257 and the right end of text."""
    model = GPT2(GPT2Config(1, 2, 32, n_positions=64), seed=1)
    folder = save_checkpoint(tmp_path, State(1), model, {}, keep=1)
    (folder / "SHA256SUMS").unlink()

    def pad(tensors: Tensors) -> None:
        rows = tensors["transformer.wte.weight"]
        tensors["transformer.wte.weight"] = torch.cat([rows, torch.ones(47, 32)])

    change(folder, pad, vocab_size=50304)
    found = load_weights(folder)
    assert same(found, model)
    again = save_checkpoint(tmp_path, State(2), found, {}, keep=2)
    config = json.loads((again / "config.json").read_text())
    assert (config["vocab_size"], config["eos_token_id"]) == (50257, 50256)


def test_what_is_no_path_is_one_line() -> None:
    with pytest.raises(Error, match="^model: expected a path or a URL, got None$"):
        load_weights(None)
