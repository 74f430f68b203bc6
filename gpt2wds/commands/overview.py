"""What a run says of itself before it begins, and the facts its report tells."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..dataset import Dataset
from ..distributed import World
from ..evaluation import unigram_entropy
from ..loader import StepBatches
from ..model import GPT2
from .settings import Config


def introduce(
    settings: Config, dataset: Dataset, model: GPT2, batches: StepBatches, world: World, say: Callable[[str], None]
) -> None:
    """Hardware, sizes, steps, and what of the data is left out."""
    steps, tokens = settings.train.max_steps, settings.train.tokens_per_step
    say(f"gpt2wds {__version__}, torch {torch.__version__}, {device_name(world)}, {world.world_size} rank(s)")
    c = model.config
    say(f"model: {model.parameter_count():,} parameters, {c.n_layer} layers, {c.n_head} heads, {c.n_embd} channels")
    say(f"data: {dataset.corpus}, {dataset.total('train', 'tokens'):,} training tokens, dataset_id {dataset.id}")
    say(
        f"steps: {steps:,} of {tokens:,} tokens, {steps / batches.steps_per_epoch:.2f} epochs of "
        f"{batches.steps_per_epoch:,} steps; left out of an epoch: {batches.left_out:,} sequences that fill no step, "
        f"{batches.trailing_tokens:,} tokens at shards' ends that fill no sequence"
    )
    say(f"precision: {settings.train.dtype}; checkpoints of {model.parameter_count() * 12 / 1e6:,.0f} MB")


def facts(settings: Config, dataset: Dataset, model: GPT2, world: World) -> dict[str, Any]:
    """What the report tells of the run as a whole."""
    blocks = (dataset.read_tokens("val", block) for block in range(len(dataset.blocks["val"])))
    return {
        "version": __version__,
        "corpus": dataset.corpus,
        "dataset_id": dataset.id,
        "train_tokens": dataset.total("train", "tokens"),
        "val_tokens": min(settings.eval.val_tokens, dataset.total("val", "tokens")),
        "parameters": model.parameter_count(),
        "tokens_per_step": settings.train.tokens_per_step,
        "seq_len": settings.data.seq_len,
        "max_steps": settings.train.max_steps,
        "world_size": world.world_size,
        "device": device_name(world),
        "torch": torch.__version__,
        "val_unigram_entropy": unigram_entropy(blocks) if len(dataset.blocks["val"]) else None,
    }


def device_name(world: World) -> str:
    """The GPU's name, or the processor's and the threads used."""
    if world.device.type == "cuda":
        return torch.cuda.get_device_name(world.device)
    if world.device.type == "cpu":
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.exists() else []
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        return f"CPU {names[0] if names else ''}, {torch.get_num_threads()} threads"
    return world.device.type
