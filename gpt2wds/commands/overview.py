"""What a run says of itself before it begins, and the facts its report tells."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend

from ..dataset.directory import Dataset
from ..dataset.loader import StepBatches
from ..dataset.mixture import Portion, identity, shares
from ..dataset.order import even_share
from ..distributed import World
from ..errors import counted
from ..evaluate.text import unigram_entropy
from ..model import GPT2
from ..rows import DatasetFacts, Facts
from ..train.cost import activation_bytes, flops_per_token, training_bytes
from ..train.update import micro_batch_shape
from ..version import __version__
from .measuring import mean_of_shares
from .settings import Config


def introduce(settings: Config, model: GPT2, batches: StepBatches, world: World, say: Callable[[str], None]) -> None:
    """Hardware, sizes, steps, and what of the data is left out."""
    steps = settings.train.max_steps
    say(f"gpt2wds {__version__}, torch {torch.__version__}, {device_name(world)}, {counted(world.world_size, 'rank')}")
    c = model.config
    say(
        f"model: {model.parameter_count():,} parameters, {counted(c.n_layer, 'layer')}, "
        f"{counted(c.n_head, 'head')}, {c.n_embd:,} channels"
    )
    for line in _about_data(settings, batches.portions):
        say(line)
    for line in _idle(settings, batches):
        say(f"WARNING: {line}")
    if settings.data.skip_steps:
        left_out = sum(any(step in skipped for skipped in settings.data.skipped) for step in range(1, steps + 1))
        names = ", ".join(settings.data.skip_steps)
        say(f"left out by data.skip_steps: {names}, {counted(left_out, 'step')} not trained on")
    if settings.data.document_masking:
        say("documents: attention and positions stay within each, in training and in validation")
    say(
        f"precision: {settings.train.dtype}; attention: {attention_kernel(settings, model, world)}; "
        f"checkpoints of {checkpoint_bytes(model, settings.train.optimizer) / 1e6:,.0f} MB"
    )


def _idle(settings: Config, batches: StepBatches) -> Iterator[str]:
    """What was set and does nothing."""
    yield from settings.idle
    asked, cores = settings.data.num_workers, os.cpu_count() or 1
    if asked > batches.num_workers:
        least = f"no more than the {counted(len(batches.slots), 'sequence')} that a rank has of a step"
        yield f"data.num_workers={asked}: {batches.num_workers} read ahead, {least}"
    if batches.num_workers > cores:
        yield f"data.num_workers={asked}: more of each rank than the {counted(cores, 'core')} here only wait"


def _about_data(settings: Config, portions: Sequence[Portion]) -> Iterator[str]:
    """What is read: of each dataset how much, how often, and what is left out."""
    steps, tokens, total = settings.train.max_steps, settings.train.tokens_per_step, settings.sequences_per_step
    if len(portions) == 1:
        yield f"data: {portions[0].dataset.path}: {_named(portions[0])}"
        yield f"steps: {steps:,} of {counted(tokens, 'token')}, {_epochs(portions[0], steps)}"
        return
    yield f"steps: {steps:,} of {counted(tokens, 'token')}, which {len(portions)} datasets share by their weights"
    for portion, part in zip(portions, shares([portion.weight for portion in portions]), strict=True):
        slots, path, share = len(portion.slots), portion.dataset.path, float(part)
        yield f"data: {path}: {_named(portion)}"
        yield (
            f"{path}: weight {portion.weight:g}, {share:.2%}, is {slots:,} of {total:,} sequences of "
            f"a step, {slots / total:.2%}; {steps * slots * settings.data.seq_len:,} tokens, {_epochs(portion, steps)}"
        )
        if not portion.dataset.shards("val"):
            yield f"{path}: no validation text; the validation loss is that of the others"


def _named(portion: Portion) -> str:
    dataset = portion.dataset
    return f"{dataset.corpus}, {dataset.total('train', 'tokens'):,} training tokens, dataset_id {dataset.id}"


def _epochs(portion: Portion, steps: int) -> str:
    return (
        f"{steps / portion.steps_per_epoch:.2f} epochs of {counted(portion.steps_per_epoch, 'step')}; left out of an "
        f"epoch: {counted(portion.left_out, 'sequence')} (fewer than a step) and "
        f"{counted(portion.trailing_tokens, 'token')} at shards' ends (fewer than a sequence)"
    )


def say_epochs(batches: StepBatches, say: Callable[[str], None]) -> None:
    """How often each of several datasets was read so far; of one alone the number of steps says it."""
    if len(batches.portions) > 1:
        pairs = zip(batches.portions, batches.epochs_read(), strict=True)
        say(f"epochs read so far: {', '.join(f'{portion.dataset.path} {epochs:.2f}' for portion, epochs in pairs)}")


def forecast(settings: Config, model: GPT2, batches: StepBatches, world: World, say: Callable[[str], None]) -> None:
    """What a dry run adds: who takes what of a step, and an estimate of the memory it needs."""
    total, ranks = settings.sequences_per_step, world.world_size
    micro_steps, size = micro_batch_shape(total, ranks, settings.train.micro_batch_sequences)
    for rank in range(ranks):
        slots = even_share(total, rank, ranks)
        first = next(portion for portion in batches.portions if slots.start in portion.slots)
        begin = (slots.start - first.slots.start) * first.steps_per_epoch
        starts = range(begin, begin + min(3, first.steps_per_epoch, settings.train.max_steps))
        of = f" of {first.dataset.path}" if len(batches.portions) > 1 else ""
        say(
            f"rank {rank}: slots {slots.start:,} to {slots.stop - 1:,} of {total:,}, "
            f"{counted(micro_steps, 'micro-step')} of at most {counted(size, 'sequence')}; "
            f"its first steps begin at positions {', '.join(f'{s:,}' for s in starts)} of "
            f"{first.sequences:,}{of}"
        )
    # Whether the head's logits exist as a whole: on a CPU they do not.
    on_cpu = world.device.type == "cpu"
    activations = activation_bytes(
        model.config,
        size * settings.data.seq_len,
        settings.train.dtype,
        head=not on_cpu,
        checkpointing=settings.train.activation_checkpointing,
    )
    weights = training_bytes(model, ranks if settings.train.parallel == "fsdp" else 1)
    say(
        f"memory of each rank, estimated: {(weights + activations) / 1e9:,.1f} GB, of which {weights / 1e9:,.1f} for "
        f"weights, gradients and optimizer, {activations / 1e9:,.1f} for a micro-step (less when compiled)"
    )
    flops = flops_per_token(model, settings.data.seq_len) * settings.train.tokens_per_step
    amount = f"{flops / 1e12:,.1f} teraflops" if flops > 1e12 else f"{flops / 1e9:,.3f} gigaflops"
    say(f"computation: {amount} a step (6 N + 12 L H Q T per token, PaLM's appendix B)")


def checkpoint_bytes(model: GPT2, optimizer: str) -> int:
    """Weights and moments in float32: two for each parameter, one for a matrix that Muon has."""
    hidden = sum(p.numel() for p in model.h.parameters() if p.dim() == 2) if optimizer == "muon" else 0
    return 4 * (3 * model.parameter_count() - hidden)


def attention_kernel(settings: Config, model: GPT2, world: World) -> str:
    """The back end that scaled_dot_product_attention takes here for our shapes, and cuDNN's version."""
    masking, seq_len = settings.data.document_masking, settings.data.seq_len
    if masking and world.device.type == "cuda" and settings.train.compile:
        return "flex_attention, within documents"
    if world.device.type not in ("cpu", "cuda"):
        return "torch's choice"
    c = model.config
    dtype = torch.bfloat16 if settings.train.dtype == "bfloat16" else torch.float32
    # A gradient is wanted: some back ends only serve inference.
    q = torch.zeros(1, c.n_head, seq_len, c.n_embd // c.n_head, dtype=dtype, device=world.device, requires_grad=True)
    mask = torch.zeros(1, 1, seq_len, seq_len, dtype=dtype, device=world.device) if masking else None
    name = SDPBackend(torch._fused_sdp_choice(q, q, q, mask, 0.0, not masking)).name.lower()
    if world.device.type != "cuda":
        return name
    slow = "; WARNING: no fused kernel takes these shapes here" if name == "math" else ""
    return f"{name} (cuDNN {torch.backends.cudnn.version()}){slow}"


def run_facts(settings: Config, portions: Sequence[Portion], model: GPT2, world: World) -> Facts:
    """What the report tells of the run as a whole."""
    datasets = [portion.dataset for portion in portions]
    entropies = [_unigram_entropy(dataset) for dataset in datasets]
    facts: Facts = {
        "version": __version__,
        "corpus": " + ".join(dataset.corpus for dataset in datasets),
        "dataset_id": identity(portions),
        "train_tokens": sum(dataset.total("train", "tokens") for dataset in datasets),
        "val_split_tokens": sum(dataset.total("val", "tokens") for dataset in datasets),
        "parameters": model.parameter_count(),
        "tokens_per_step": settings.train.tokens_per_step,
        "seq_len": settings.data.seq_len,
        "max_steps": settings.train.max_steps,
        "world_size": world.world_size,
        "device": device_name(world),
        "torch": torch.__version__,
        "val_unigram_entropy": mean_of_shares(entropies, portions),
    }
    if len(portions) > 1:
        facts["datasets"] = [_facts_of(portion) for portion in portions]
    return facts


def _facts_of(portion: Portion) -> DatasetFacts:
    dataset = portion.dataset
    return {
        "path": str(dataset.path),
        "corpus": dataset.corpus,
        "dataset_id": dataset.id,
        "weight": portion.weight,
        "sequences_per_step": len(portion.slots),
        "steps_per_epoch": portion.steps_per_epoch,
        "train_tokens": dataset.total("train", "tokens"),
        "val_split_tokens": dataset.total("val", "tokens"),
    }


def _unigram_entropy(dataset: Dataset) -> float | None:
    blocks = (dataset.read_tokens("val", block) for block in range(len(dataset.blocks["val"])))
    return unigram_entropy(blocks) if len(dataset.blocks["val"]) else None


def device_name(world: World) -> str:
    """The GPU's name, or the processor's and the threads used."""
    if world.device.type == "cuda":
        return torch.cuda.get_device_name(world.device)
    if world.device.type == "cpu":
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.exists() else []
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        return f"CPU {names[0] if names else ''}, {counted(torch.get_num_threads(), 'thread')}"
    return world.device.type
