"""A directory in Hugging Face layout → a GPT-2, or why it is not one that we compute."""

import hashlib
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..arguments import path_text
from ..errors import Error, reason
from ..model import GPT2, VOCAB_SIZE, GPT2Config, check_hf_shapes
from ..strict_json import load_json
from .checkpoint import CONFIG, SUMS, WEIGHTS, read_sums, sha256_of

SHARDED, PICKLED = "model.safetensors.index.json", "pytorch_model.bin"
PADDED_VOCAB_SIZE = 50304  # GPT-2's vocabulary with rows that no token has, as nanoGPT and others save it
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MAX_JSON_BYTES = 1 << 24

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


def load_weights(path: str | Path, *, is_checked: bool = False) -> GPT2:
    """A model from a directory in Hugging Face layout, a checkpoint for example.

    Reads model.safetensors, also in several files, or else pytorch_model.bin, of which only tensors are unpickled.
    A checkpoint's weights are compared with their hashes, unless `is_checked` says that they just were. Raises Error
    for what is damaged, for what is no GPT-2, and for one that computes anything that ours does not.

    >>> load_weights("runs/gpt2-124m/checkpoints/step-0019073").config.n_layer  # doctest: +SKIP
    12
    """
    path = Path(path_text("model", path))
    if not is_checked:
        _refuse_damage(path)
    try:
        config = _read_json(path / CONFIG)
        tensors = _named(_tensors(path))
    except (OSError, ValueError) as error:
        raise Error(f"model {path}: expected {CONFIG} and {WEIGHTS} in Hugging Face layout ({error})") from None
    except SafetensorError as error:
        raise Error(f"model {path}: cannot read {WEIGHTS} ({error})") from None
    shape = _shape(path, config)
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise Error(
                f"model {path}: {name}: expected floating-point numbers, got {tensor.dtype}, which we do not use"
            )
    head = tensors.pop("lm_head.weight", None)
    tied = tensors.get("wte.weight")
    if head is not None and tied is not None and not torch.equal(head.to(tied.dtype), tied):
        raise Error(f"model {path}: lm_head.weight differs from wte.weight; we compute a head that is tied to it")
    if VOCAB_SIZE < shape["vocab_size"] <= PADDED_VOCAB_SIZE:
        shape["vocab_size"] = VOCAB_SIZE
        if tied is not None and tied.dim():
            tensors["wte.weight"] = tied[:VOCAB_SIZE]
    gpt2 = GPT2Config(**shape, document_masking=_document_masking(path, config))
    try:
        check_hf_shapes(tensors, gpt2)  # before the model is built: what is claimed must be in the file
    except Error as error:
        raise Error(f"model {path}: {error}; {CONFIG} says {shape}") from None
    model = GPT2(gpt2)
    unknown = sorted(tensors.keys() - dict(model.named_parameters()).keys())
    if unknown:
        raise Error(
            f"model {path}: {unknown[0]}: expected no such tensor with n_layer = {shape['n_layer']} in {CONFIG}"
        )
    model.load_hf_state_dict(tensors)
    return model


def _refuse_damage(path: Path) -> None:
    """Raises Error where a checkpoint's weights are not those that were written."""
    if not (path / SUMS).exists():
        return
    try:
        sums = read_sums(path)
        damaged = [name for name in (CONFIG, WEIGHTS) if name in sums and sums[name] != sha256_of(path / name)]
    except (OSError, ValueError) as error:
        raise Error(f"model {path}: cannot compare it with its {SUMS} ({reason(error)})") from None
    if damaged:
        raise Error(
            f"model {path}: {damaged[0]} is not what was written, {SUMS} has another hash; restore it, "
            f"or remove {SUMS} if you changed it"
        )


def _read_json(path: Path) -> Any:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path.name} has more than {MAX_JSON_BYTES:,} bytes")
    try:
        return load_json(path.read_bytes())
    except Error as error:
        raise ValueError(f"{path.name}: {error}") from None


def weights_hash(path: Path) -> str:
    """SHA-256 of a model's weights: of model.safetensors, or of all its files, sorted by name."""
    digest = hashlib.sha256()
    for file in _weights_files(path):
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 24):
                digest.update(chunk)
    return digest.hexdigest()


def _weights_files(path: Path) -> list[Path]:
    if (path / WEIGHTS).exists():
        return [path / WEIGHTS]
    if (path / SHARDED).exists():
        index = _read_json(path / SHARDED)
        files = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
            raise ValueError(f"{SHARDED} has no names of files")
        names = sorted(set(files.values()))
        if any("/" in name or name in ("", ".", "..") for name in names):
            raise ValueError(f"{SHARDED} names files outside the directory")
        return [path / name for name in names]
    return [path / (PICKLED if (path / PICKLED).exists() else WEIGHTS)]


def _tensors(path: Path) -> dict[str, Tensor]:
    files = _weights_files(path)
    if files[0].name == PICKLED:
        return _unpickled(files[0])
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _unpickled(path: Path) -> dict[str, Tensor]:
    """Tensors by name. What is no tensor, or stands for more numbers than it holds, is a ValueError."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of pickle, zipfile, torch: a damaged file may raise anything
        raise ValueError(f"{path.name} holds more than tensors, or is damaged: {reason(error)}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} holds no tensors by name")
    for name, tensor in found.items():
        plain = isinstance(tensor, Tensor) and tensor.device.type == "cpu" and tensor.layout == torch.strided
        if (
            not isinstance(name, str)
            or not plain
            or tensor.untyped_storage().nbytes() < tensor.numel() * tensor.itemsize
        ):
            raise ValueError(f"{path.name} holds {str(name)[:80]!r}, which is no plain tensor")
    return found


def _named(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by OpenAI's names: torch.compile, DataParallel and transformers put something before them.

    Buffers that transformers once stored are left out.
    """
    renamed: dict[str, Tensor] = {}
    for stored, tensor in tensors.items():
        name = re.sub(r"^(_orig_mod\.|module\.)*(transformer\.)?", "", stored)
        if re.fullmatch(r"h\.\d+\.attn\.(masked_)?bias", name):
            continue
        if name in renamed:
            raise ValueError(f"{name} is there twice")
        renamed[name] = tensor
    return renamed


def _document_masking(path: Path, config: dict[str, object]) -> bool:
    """How the model was trained to read documents; only our own configurations say so."""
    found = config.get("document_masking", False)
    if type(found) is not bool:
        raise Error(f"model {path}: document_masking: expected true or false in {CONFIG}, got {repr(found)[:80]}")
    return found


def _shape(path: Path, config: Any) -> dict[str, int]:
    """What the model's shape is, once all of the configuration is what we compute."""
    if not isinstance(config, dict) or config.get("model_type") != "gpt2":
        kind = config.get("model_type") if isinstance(config, dict) else config
        raise Error(f"model {path}: expected a GPT-2, got model_type {repr(kind)[:80]} in {CONFIG}")
    names = ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")
    said = {name: config.get(name) for name in names}
    shape = {name: value for name, value in said.items() if type(value) is int and 0 < value < 2**31}
    if shape != said:
        raise Error(f"model {path}: expected whole numbers from 1 on in {CONFIG}, got {repr(said)[:200]}")
    if config.get("quantization_config"):
        raise Error(f"model {path}: quantization_config: expected none, its numbers are not the weights themselves")
    if config.get("n_inner") not in (None, 4 * shape["n_embd"]):
        raise Error(f"model {path}: n_inner: expected {4 * shape['n_embd']}, got {repr(config['n_inner'])[:80]}")
    for name, values in COMPUTED.items():
        if config.get(name, values[0]) not in values:
            found = repr(config[name])[:80]
            raise Error(f"model {path}: {name}: expected {values[0]!r}, got {found}, which we do not compute")
    return shape
