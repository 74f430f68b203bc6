"""A directory in Hugging Face layout → a GPT-2, or why it is not one that we compute."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import Error, reason
from ..model import GPT2, VOCAB_SIZE, GPT2Config
from .checkpoint import CONFIG, WEIGHTS

SHARDED, PICKLED = "model.safetensors.index.json", "pytorch_model.bin"
PADDED_VOCAB_SIZE = 50304  # GPT-2's vocabulary with rows that no token has, as nanoGPT and others save it

# What our model computes; an absent setting is transformers' default, which is the first of these.
COMPUTED: dict[str, tuple[Any, ...]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}


def load_weights(path: str | Path) -> GPT2:
    """A model from a directory in Hugging Face layout, a checkpoint for example.

    Reads model.safetensors, also in several files, or else pytorch_model.bin, of which only tensors are unpickled.
    Raises Error for what is no GPT-2, and for one that computes anything that ours does not.

    >>> load_weights("runs/gpt2-124m/checkpoints/step-0019073").config.n_layer  # doctest: +SKIP
    12
    """
    path = Path(path)
    try:
        config = json.loads((path / CONFIG).read_text())
        tensors = _tensors(path)
    except (OSError, ValueError) as error:
        raise Error(f"model {path}: expected {CONFIG} and {WEIGHTS} in Hugging Face layout ({error})") from None
    except SafetensorError as error:
        raise Error(f"model {path}: cannot read {WEIGHTS} ({error})") from None
    shape = _shape(path, config)
    # As torch.compile and DataParallel name them, and without what transformers once stored as buffers.
    tensors = {re.sub(r"^(_orig_mod\.|module\.)*(transformer\.)?", "", name): t for name, t in tensors.items()}
    tensors = {name: t for name, t in tensors.items() if not re.fullmatch(r"h\.\d+\.attn\.(masked_)?bias", name)}
    head = tensors.pop("lm_head.weight", None)
    if head is not None and "wte.weight" in tensors and not torch.equal(head, tensors["wte.weight"]):
        raise Error(f"model {path}: lm_head.weight differs from wte.weight; we compute a head that is tied to it")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise Error(
                f"model {path}: {name}: expected floating-point numbers, got {tensor.dtype}, which we do not use"
            )
    if VOCAB_SIZE < shape["vocab_size"] <= PADDED_VOCAB_SIZE:
        shape["vocab_size"] = VOCAB_SIZE
        if "wte.weight" in tensors:
            tensors["wte.weight"] = tensors["wte.weight"][:VOCAB_SIZE]
    model = GPT2(GPT2Config(**shape))
    unknown = sorted(tensors.keys() - dict(model.named_parameters()).keys())
    if unknown:
        raise Error(
            f"model {path}: {unknown[0]}: expected no such tensor with n_layer = {shape['n_layer']} in {CONFIG}"
        )
    model.load_hf_state_dict(tensors)
    return model


def weights_hash(path: Path) -> str:
    """SHA-256 of a model's weights: of model.safetensors, or of all its files, sorted by name."""
    digest = hashlib.sha256()
    for file in _weights_files(path):
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 24):
                digest.update(chunk)
    return digest.hexdigest()


def _weights_files(path: Path) -> list[Path]:
    if not (path / WEIGHTS).exists() and (path / SHARDED).exists():
        names = sorted(set(json.loads((path / SHARDED).read_text())["weight_map"].values()))
        if any("/" in name for name in names):
            raise ValueError(f"{SHARDED} names files outside the directory")
        return [path / name for name in names]
    return [path / (PICKLED if (path / PICKLED).exists() and not (path / WEIGHTS).exists() else WEIGHTS)]


def _tensors(path: Path) -> dict[str, Tensor]:
    files = _weights_files(path)
    if files[0].name == PICKLED:
        try:
            return torch.load(path / PICKLED, map_location="cpu", weights_only=True)
        except Exception as error:  # of pickle, zipfile, torch: a damaged file may raise anything
            raise ValueError(f"{PICKLED} holds more than tensors, or is damaged: {reason(error)}") from None
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _shape(path: Path, config: Any) -> dict[str, int]:
    """What the model's shape is, once all of the configuration is what we compute."""
    if not isinstance(config, dict) or config.get("model_type") != "gpt2":
        kind = config.get("model_type") if isinstance(config, dict) else config
        raise Error(f"model {path}: expected a GPT-2, got model_type {kind!r} in {CONFIG}")
    names = ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")
    shape: dict[str, Any] = {name: config.get(name) for name in names}
    if not all(isinstance(value, int) for value in shape.values()):
        raise Error(f"model {path}: expected whole numbers in {CONFIG}, got {shape}")
    if config.get("quantization_config"):
        raise Error(f"model {path}: quantization_config: expected none, its numbers are not the weights themselves")
    if config.get("n_inner") not in (None, 4 * shape["n_embd"]):
        raise Error(f"model {path}: n_inner: expected {4 * shape['n_embd']}, got {config['n_inner']}")
    for name, values in COMPUTED.items():
        if config.get(name, values[0]) not in values:
            raise Error(f"model {path}: {name}: expected {values[0]!r}, got {config[name]!r}, which we do not compute")
    return shape
