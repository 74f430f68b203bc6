"""GPT-2 (Radford et al. 2019), as small as it can be and still agree with `transformers` to float error.

Parameter names are OpenAI's. Shapes in comments: B sequences, T positions, C = n_embd, V = vocabulary.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .arguments import whole
from .attention import Attention, KeyValues, Past, Visible, positions_in_documents, visible_in_documents
from .errors import Error
from .head import head_loss

VOCAB_SIZE = 50257
# (n_layer, n_head, n_embd) of the four published sizes, by their Hugging Face names.
SIZES = {"gpt2": (12, 12, 768), "gpt2-medium": (24, 16, 1024), "gpt2-large": (36, 20, 1280), "gpt2-xl": (48, 25, 1600)}


@dataclass(frozen=True)
class GPT2Config:
    """The shape of a GPT-2. `vocab_size` counts real tokens; in memory rows are padded to a multiple of 128.

    With `document_masking` the model reads each document of a row by itself: positions count from its beginning, and
    nothing is seen across it. A document begins with `end_of_text`.
    """

    n_layer: int
    n_head: int
    n_embd: int
    n_positions: int = 1024
    vocab_size: int = VOCAB_SIZE
    document_masking: bool = False

    def __post_init__(self) -> None:
        for name in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size"):
            number = whole(f"model: {name}", getattr(self, name))
            if number < 1:
                raise Error(f"model: {name} must be at least 1, got {number}")
            object.__setattr__(self, name, number)
        if not isinstance(self.document_masking, bool):
            raise Error(f"model: document_masking: expected True or False, got {repr(self.document_masking)[:80]}")
        if self.n_embd % self.n_head:
            raise Error(
                f"model: n_embd must be a multiple of n_head, got n_embd={self.n_embd} and n_head={self.n_head}; "
                f"try n_embd={math.ceil(self.n_embd / self.n_head) * self.n_head}"
            )

    @property
    def padded_vocab_size(self) -> int:
        return math.ceil(self.vocab_size / 128) * 128

    @property
    def end_of_text(self) -> int:
        """The token `<|endoftext|>`, the last of GPT-2's vocabulary."""
        return self.vocab_size - 1


class MLP(nn.Module):
    def __init__(self, config: GPT2Config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, config: GPT2Config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = Attention(config.n_head, config.n_embd)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, past: Past, visible: Visible) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        attended, present = self.attn(self.ln_1(x), past, visible)
        x = x + attended
        return x + self.mlp(self.ln_2(x)), present


class GPT2(nn.Module):
    """The language model. Calling it gives the training loss; `hidden` and `logits` are for everything else.

    With `activation_checkpointing` set, a block keeps only its input for the backward pass and is computed again there:
    less memory, more time, the same numbers.

    >>> model = GPT2(GPT2Config(n_layer=2, n_head=2, n_embd=64, n_positions=32))
    >>> tokens = torch.randint(50257, (3, 17))
    >>> loss = model(tokens[:, :-1], tokens[:, 1:], torch.ones(3)) / 3
    >>> 10 < loss.item() < 12
    True
    """

    def __init__(self, config: GPT2Config, *, seed: int = 0):
        super().__init__()
        if not isinstance(config, GPT2Config):
            raise Error(f"model: expected a GPT2Config, such as GPT2Config(12, 12, 768), got {repr(config)[:80]}")
        self.config = config
        self.activation_checkpointing = False
        self.wte = nn.Embedding(config.padded_vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self._initialise(torch.Generator().manual_seed(whole("seed", seed)))

    def _initialise(self, generator: torch.Generator) -> None:
        # GPT-2's own: normal(0, 0.02), residual projections divided by sqrt(2 n_layer), biases 0.
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                residual = name.endswith("c_proj.weight")
                std = 0.02 / math.sqrt(2 * self.config.n_layer) if residual else 0.02
                nn.init.normal_(parameter, 0.0, std, generator=generator)
        # Padding rows never take part: zero now, and without a gradient zero for ever.
        with torch.no_grad():
            self.wte.weight[self.config.vocab_size :] = 0

    def forward(self, inputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Sum over sequences of weight × mean loss in nats: a scalar.

        inputs, targets: (B, T) token ids; weights: (B,), 0 for padding sequences. Divide by the sequences
        of the whole step, not of this call, to get the gradient of the step's mean.
        """
        hidden, _ = self.hidden(inputs)
        per_token = (weights / inputs.shape[1]).repeat_interleave(inputs.shape[1])  # (B T,)
        return head_loss(hidden.flatten(0, 1), self.wte.weight, targets.flatten(), per_token, self.config.vocab_size)

    def hidden(
        self,
        tokens: Tensor,
        past: KeyValues | None = None,
        positions: Tensor | None = None,
        visible: Visible = None,
    ) -> tuple[Tensor, KeyValues]:
        """Final hidden states (B, T, C) of tokens (B, T), and the keys and values to go on from.

        `past` is what an earlier call gave; then `tokens` is the one next position, (B, 1). Several texts in one row
        say their own `positions`, (B, T), and what each token sees: `visible`, (B, 1, T, T) bool. Where they say
        nothing, a model with `document_masking` tells documents apart by itself. With `activation_checkpointing`, where
        gradients are wanted, there are no keys and values.
        """
        assert past is None or tokens.shape[1] == 1
        if self.config.document_masking and past is None and positions is None and visible is None:
            positions = positions_in_documents(tokens, self.config.end_of_text)
            visible = visible_in_documents(tokens, self.config.end_of_text, self._query_dtype(tokens.device.type))
        if positions is None:
            start = past[0][0].shape[2] if past is not None else 0
            positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        x = self.wte(tokens) + self.wpe(positions)  # (B, T, C)
        presents: KeyValues = []
        again = self.activation_checkpointing and torch.is_grad_enabled()
        for i, block in enumerate(self.h):
            if again:
                # Nothing is random in a block, so no generator's state need be kept.
                x, _ = checkpoint(block, x, None, visible, use_reentrant=False, preserve_rng_state=False)
                continue
            x, present = block(x, past[i] if past is not None else None, visible)
            presents.append(present)
        return self.ln_f(x), presents

    def _query_dtype(self, device: str) -> torch.dtype:
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.wte.weight.dtype

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores over the real vocabulary: (…, C) → (…, vocab_size)."""
        return F.linear(hidden, self.wte.weight)[..., : self.config.vocab_size]

    def parameter_count(self) -> int:
        """Parameters of the published model: the tied head once, padding rows not at all."""
        padding = (self.config.padded_vocab_size - self.config.vocab_size) * self.config.n_embd
        return sum(p.numel() for p in self.parameters()) - padding

    def hf_state_dict(self) -> dict[str, Tensor]:
        """Weights in the layout of Hugging Face's GPT2LMHeadModel: no padding rows, projections as (in, out)."""
        return {f"transformer.{name}": _to_hf(name, p.detach(), self.config) for name, p in self.named_parameters()}

    def load_hf_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take weights in Hugging Face layout, with or without the prefix `transformer.`."""
        state = {name.removeprefix("transformer."): value for name, value in state.items()}
        check_hf_shapes(state, self.config)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                value = state[name].T if _is_projection(name) else state[name]
                (parameter[: self.config.vocab_size] if name == "wte.weight" else parameter).copy_(value)


def check_hf_shapes(state: Mapping[str, Tensor], config: GPT2Config) -> None:
    """Hold tensors in Hugging Face layout, without `transformer.`, to the shape of a model that need not exist yet.

    Raises Error for the first that is missing or has another shape; a model of a billion layers is refused at once.
    """
    for name, shape in _hf_shapes(config):
        if name not in state:
            raise Error(f"weights: expected a GPT-2 tensor {name!r}, which the file does not have")
        if state[name].shape != shape:
            raise Error(f"weights: {name} must be {shape}, got {tuple(state[name].shape)}")


def _hf_shapes(config: GPT2Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    C = config.n_embd
    yield "wte.weight", (config.vocab_size, C)
    yield "wpe.weight", (config.n_positions, C)
    for layer in range(config.n_layer):
        for name in ("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias"):
            yield f"h.{layer}.{name}", (C,)
        for name, outputs, inputs in (
            ("attn.c_attn", 3 * C, C),
            ("attn.c_proj", C, C),
            ("mlp.c_fc", 4 * C, C),
            ("mlp.c_proj", C, 4 * C),
        ):
            yield f"h.{layer}.{name}.weight", (inputs, outputs)
            yield f"h.{layer}.{name}.bias", (outputs,)
    yield "ln_f.weight", (C,)
    yield "ln_f.bias", (C,)


def autocast(device: torch.device, dtype: str) -> AbstractContextManager[Any]:
    """Matrix products in `dtype` ("float32" or "bfloat16"), everything else as it is."""
    if dtype == "float32":
        return nullcontext()
    if dtype != "bfloat16":
        raise Error(f"dtype: expected float32 or bfloat16, got {repr(dtype)[:80]}")
    return torch.autocast(device.type, dtype=torch.bfloat16)


def hf_config(config: GPT2Config) -> dict[str, object]:
    """`config.json` with which `transformers` opens our weights; it does not know `document_masking`."""
    masking = {"document_masking": True} if config.document_masking else {}
    return masking | {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "n_positions": config.n_positions,
        "n_ctx": config.n_positions,
        "vocab_size": config.vocab_size,
        "bos_token_id": config.end_of_text,
        "eos_token_id": config.end_of_text,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        # We train without dropout; a fine-tuning that starts here should not find it switched on.
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }


def _is_projection(name: str) -> bool:
    # OpenAI's "Conv1D" stores (in, out), nn.Linear (out, in).
    return name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))


def _to_hf(name: str, value: Tensor, config: GPT2Config) -> Tensor:
    if name == "wte.weight":
        value = value[: config.vocab_size]
    return (value.T if _is_projection(name) else value).contiguous()
