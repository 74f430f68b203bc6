"""Operations and memory: formulas against published figures and against what autograd really keeps."""

import dataclasses

import pytest
import torch

from gpt2wds.model import GPT2, GPT2Config, autocast
from gpt2wds.train.cost import activation_bytes, flops_per_token, peak_flops, training_bytes


def test_operations_of_gpt2() -> None:
    with torch.device("meta"):
        model = GPT2(GPT2Config(12, 12, 768))
    palm, nanogpt = (flops_per_token(model, 1024, way) for way in ("palm", "nanogpt"))
    assert palm == 6 * 124_439_808 + 12 * 12 * 768 * 1024
    assert nanogpt == 6 * (124_439_808 - 1024 * 768) + 12 * 12 * 12 * (768 // 12) * 1024
    assert training_bytes(model) == 16 * (124_439_808 + 47 * 768)
    assert training_bytes(model, 4) == training_bytes(model) // 4


def test_peaks_are_of_the_device_named() -> None:
    names = (
        "NVIDIA H100 80GB HBM3",
        "NVIDIA H100 PCIe",
        "NVIDIA A100-SXM4-80GB",
        "NVIDIA GeForce RTX 4090",
        "Tesla T4",
    )
    assert [peak_flops(name, "bfloat16") for name in names] == [989.4e12, 756e12, 312e12, 165.2e12, None]
    assert peak_flops(names[0], "float32") is None


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activations_are_what_autograd_keeps(dtype: str, checkpointing: bool) -> None:
    config = GPT2Config(3, 4, 128, n_positions=256, vocab_size=300)
    model = GPT2(config)
    model.activation_checkpointing = checkpointing
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        # Weights' copies in bfloat16 are no activations: they do not grow with tokens.
        if storage.data_ptr() not in own and tensor.shape[0] in (4, 4 * 256):
            kept[storage.data_ptr()] = storage.nbytes()
        held.append(tensor)  # so that no address is given twice
        return tensor

    held: list[torch.Tensor] = []
    tokens = torch.randint(300, (4, 256))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast(torch.device("cpu"), dtype):
        model.hidden(tokens)
    expected = activation_bytes(config, 4 * 256, dtype, head=False, checkpointing=checkpointing)
    if checkpointing:
        # What the one layer that is computed again keeps comes later, in the backward pass.
        expected -= activation_bytes(dataclasses.replace(config, n_layer=1), 4 * 256, dtype, head=False)
    assert sum(kept.values()) == pytest.approx(expected, rel=0.1)
