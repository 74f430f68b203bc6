"""Parameter groups, optimizers and learning-rate schedules."""

import math
from collections.abc import Callable

import torch
from torch import nn

from ..errors import Error

OPTIMIZERS = ("adamw", "muon")
STATE_KEYS = {"AdamW": ("step", "exp_avg", "exp_avg_sq"), "Muon": ("momentum_buffer",)}
SCHEDULES = ("cosine", "linear", "constant", "wsd")


class Muon(torch.optim.Optimizer):
    """torch.optim.Muon with its Newton-Schulz in float32, for CPUs: its bfloat16 most of them have to emulate.

    On every CPU, so that an update does not depend on what the CPU has. The state is that of torch's.
    """

    MOMENTUM = 0.95

    def __init__(self, parameters: list[nn.Parameter], lr: float, weight_decay: float):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient, rate = parameter.grad, group["lr"]
                if gradient is None:
                    continue
                if not (state := self.state[parameter]):
                    state["momentum_buffer"] = torch.zeros_like(gradient)
                momentum = state["momentum_buffer"]
                momentum.lerp_(gradient, 1 - self.MOMENTUM)
                direction = orthogonalized(gradient.lerp(momentum, self.MOMENTUM))
                rows, columns = parameter.shape
                parameter.mul_(1 - rate * group["weight_decay"])
                parameter.add_(direction, alpha=-rate * math.sqrt(max(1, rows / columns)))


def orthogonalized(matrix: torch.Tensor) -> torch.Tensor:
    """Five Newton-Schulz steps with Muon's coefficients: the same singular vectors, singular values near 1."""
    a, b, c = 3.4445, -4.7750, 2.0315
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


class Optimizers:
    """One or two torch optimizers that step together, with a learning rate that is a factor of each one's own."""

    def __init__(self, optimizers: list[torch.optim.Optimizer]):
        self.all = optimizers
        self._rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]

    def step(self, factor: float) -> None:
        """Update the parameters at `factor` times the configured learning rates, and drop the gradients."""
        for optimizer, rates in zip(self.all, self._rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimizer.step()
        self.drop_gradients()

    def drop_gradients(self) -> None:
        """Without gradients a step changes nothing, the optimizers' own state included."""
        for optimizer in self.all:
            optimizer.zero_grad(set_to_none=True)

    def state(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """All state tensors by parameter name: {"h.0.attn.c_attn.weight:exp_avg": …}."""
        names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
        return {
            f"{names[parameter]}:{key}": value
            for optimizer in self.all
            for parameter, state in optimizer.state.items()
            for key, value in state.items()
            if isinstance(value, torch.Tensor)
        }

    def load_state(self, model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
        """Go on from a state. Raises Error for that of other optimizers or of another model."""
        parameters = dict(model.named_parameters())
        names = {parameter: name for name, parameter in parameters.items()}
        expected = {
            f"{names[parameter]}:{key}"
            for optimizer in self.all
            for group in optimizer.param_groups
            for parameter in group["params"]
            for key in STATE_KEYS[type(optimizer).__name__]
        }
        if other := sorted(tensors.keys() ^ expected):
            if not tensors:
                return  # of no update yet
            raise Error(
                f"optimizer state: expected that of {' and '.join(type(o).__name__ for o in self.all)}, got another's "
                f"({other[0]}, …); take the train.optimizer that it is of, or begin with its weights alone "
                "(model.init_from)"
            )
        owner = {p: optimizer for optimizer in self.all for group in optimizer.param_groups for p in group["params"]}
        for name, value in tensors.items():
            parameter_name, _, key = name.rpartition(":")
            parameter = parameters[parameter_name]
            if value.dim() and value.shape != parameter.shape:
                shapes = f"expected {tuple(parameter.shape)}, got {tuple(value.shape)}"
                raise Error(f"optimizer state: {name}: {shapes}; take the checkpoint of another step")
            state = owner[parameter].state[parameter]
            # AdamW's step count lives on the CPU unless the update is fused on a GPU; it moves it there itself.
            state[key] = value.clone() if value.dim() == 0 else _placed_as(parameter, value)


def _placed_as(parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A copy of `value` where the parameter is: its device, and this rank's part where it is in parts."""
    copy = value.to(parameter.device, copy=True)
    if not hasattr(parameter, "device_mesh"):  # of a DTensor
        return copy
    from torch.distributed.tensor import distribute_tensor  # with SymPy, so it takes as long as half of torch

    # Every rank has the whole value: nothing needs to be sent.
    return distribute_tensor(copy, parameter.device_mesh, parameter.placements, src_data_rank=None)  # type: ignore[attr-defined]


def make_optimizers(
    model: nn.Module,
    kind: str,
    *,
    learning_rate: float,
    weight_decay: float,
    muon_learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.95),
) -> Optimizers:
    """GPT-2's AdamW (eps 1e-8), decaying matrices and not vectors; or Muon for the hidden matrices.

    kind "muon": Muon (Jordan et al. 2024) for the matrices inside the blocks, AdamW for embeddings and vectors.
    """
    if kind not in OPTIMIZERS:
        raise Error(f"train.optimizer: expected {' or '.join(OPTIMIZERS)}, got {kind!r}")
    hidden: list[nn.Parameter] = []
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            vectors.append(parameter)
        else:
            (hidden if kind == "muon" and name.startswith("h.") else matrices).append(parameter)
    device = next(model.parameters()).device.type
    adamw = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=learning_rate,
        betas=betas,
        eps=1e-8,
        fused=device in ("cuda", "cpu"),
    )
    if kind == "adamw":
        return Optimizers([adamw])
    if device == "cpu":
        return Optimizers([adamw, Muon(hidden, lr=muon_learning_rate, weight_decay=weight_decay)])
    if not hasattr(torch.optim, "Muon"):
        raise Error(f"train.optimizer: muon needs torch 2.9 or later, this is {torch.__version__}; use adamw")
    return Optimizers([adamw, torch.optim.Muon(hidden, lr=muon_learning_rate, weight_decay=weight_decay)])


def learning_rate_factor(
    schedule: str, *, warmup_steps: int, max_steps: int, min_factor: float, decay_steps: int = 0
) -> Callable[[int], float]:
    """Step (counted from 1) → factor of the learning rate: linear warm-up, then what the schedule says.

    cosine, linear: down to `min_factor` over all the other steps. constant: 1. wsd (warm-up, stable, decay; Hu et
    al. 2024): 1, and linear to `min_factor` over the last `decay_steps`, which no other schedule looks at.

    >>> factor = learning_rate_factor("cosine", warmup_steps=10, max_steps=110, min_factor=0.1)
    >>> factor(1), factor(10), round(factor(61), 3), round(factor(111), 3)
    (0.1, 1.0, 0.55, 0.1)
    """
    if schedule not in SCHEDULES:
        raise Error(f"train.schedule: expected {', '.join(SCHEDULES)}, got {schedule!r}")
    if not 0 <= warmup_steps <= max_steps:
        raise Error(f"train.warmup_steps: expected 0 to max_steps = {max_steps}, got {warmup_steps}")
    falling = {"constant": 0, "wsd": decay_steps}.get(schedule, max_steps - warmup_steps)
    if schedule == "wsd" and not 1 <= decay_steps <= max_steps - warmup_steps:
        raise Error(
            f"train.decay_steps: with schedule wsd expected 1 to max_steps - warmup_steps = "
            f"{max_steps - warmup_steps}, got {decay_steps}; a fifth of max_steps is usual"
        )

    def factor(step: int) -> float:
        # The lesson counts from 0: its step i is our step i + 1.
        if step <= warmup_steps:
            return step / warmup_steps
        if not falling:
            return 1.0
        done = min(1.0, max(0, step - 1 - (max_steps - falling)) / falling)
        shape = 0.5 * (1 + math.cos(math.pi * done)) if schedule == "cosine" else 1 - done
        return min_factor + (1 - min_factor) * shape

    return factor
