"""gpt2wds-eval loss and sample: a model's loss on a split, and what it makes of a prompt."""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from ..dataset.directory import Dataset
from ..dataset.manifest import SPLITS
from ..dataset.validation import validation_sequences
from ..errors import Error, counted
from ..tokenizer import load_tokenizer
from . import importing
from .common import DEVICE, DTYPE
from .output import ProgressLine, heading, print_json, say

if TYPE_CHECKING:
    from ..distributed import World


@click.command("loss")
@click.argument("model")
@click.option("--data", required=True, help="Dataset directory of tokens.")
@click.option("--split", type=click.Choice(SPLITS), default="val", show_default=True, help="Which split to read.")
@click.option("--limit", type=click.IntRange(1), help="Only the first so many tokens of the split.")
@click.option(
    "--document-masking/--no-document-masking",
    "masking",
    default=None,
    help="Whether documents are read singly.  [default: as the model was trained]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@DEVICE
@DTYPE
def loss_command(
    model: str, data: str, split: str, limit: int | None, masking: bool | None, as_json: bool, device: str, dtype: str
) -> None:
    """Loss on a split, in the model's whole context: nats per token, perplexity and bits per byte of text."""
    with importing():
        from ..distributed import join_world
        from ..evaluate.text import text_loss
        from .models import load

    with join_world(device) as world:
        gpt2, step = load(model, world)
        if masking is not None:
            gpt2.config = dataclasses.replace(gpt2.config, document_masking=masking)
        dataset = Dataset(data)
        seq_len = gpt2.config.n_positions
        if limit is not None and limit < seq_len:
            raise Error(f"--limit: expected at least one context of the model, {seq_len:,} tokens, got {limit:,}")
        batches = validation_sequences(
            dataset,
            split=split,
            seq_len=seq_len,
            max_tokens=min(limit or sys.maxsize, dataset.total(split, "tokens")),
            batch_sequences=max(1, 8192 // seq_len),
            rank=world.rank,
            world_size=world.world_size,
        )
        watched = _watched(batches, limit or dataset.total(split, "tokens"), world) if world.is_main else batches
        found = text_loss(gpt2, watched, load_tokenizer(), world, dtype)
        if not world.is_main:
            return
    masking = gpt2.config.document_masking
    named = {"corpus": dataset.corpus, "split": split, "document_masking": masking}
    result = {"model": model, "step": step, **named, **found}
    if as_json:
        print_json(result)
        return
    singly = ", documents read singly" if masking else ""
    per_byte = "" if found["bits_per_byte"] is None else f", {found['bits_per_byte']:.4f} bits per byte"
    amount = f"{counted(found['tokens'], 'token')} of {counted(found['text_bytes'], 'byte')}"
    say(
        f"{heading(result)}: {dataset.corpus}, {split}{singly}: loss {found['loss']:.4f} nats per token, perplexity "
        f"{found['perplexity']:,.2f}{per_byte}; {amount}"
    )


def _watched(batches: Iterator[np.ndarray], tokens: int, world: World) -> Iterator[np.ndarray]:
    """The batches, with progress shown; this rank's share stands for all."""
    progress = ProgressLine("reading", tokens, " tokens")
    for batch in batches:
        yield batch
        progress.update(batch[:, 1:].size * world.world_size)
    progress.close()


@click.command("sample")
@click.argument("model")
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    default=["Hello, I'm a language model,"],
    show_default=True,
    help="What a text begins with; several with --prompt … --prompt ….",
)
@click.option("--num", type=click.IntRange(1), default=1, show_default=True, help="Samples of each prompt.")
@click.option("--tokens", type=click.IntRange(1), default=100, show_default=True, help="At most so many per sample.")
@click.option("--temperature", type=float, default=1.0, show_default=True, help="0: always the likeliest.")
@click.option("--top-k", type=click.IntRange(0), default=50, show_default=True, help="0: all tokens.")
@click.option(
    "--top-p",
    type=float,
    default=1.0,
    show_default=True,
    help="Only the likeliest tokens that together have this probability.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the first sample; the next has the next seed.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@DEVICE
def sample_command(
    model: str,
    prompts: tuple[str, ...],
    num: int,
    tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    as_json: bool,
    device: str,
) -> None:
    """Text that the model makes of a prompt."""
    with importing():
        from ..distributed import join_world
        from ..evaluate.text import Sampling, generate
        from .models import load

    if seed + num > 1 << 64:
        raise Error(f"--seed: expected one that leaves room for {counted(num, 'sample')} below 2^64, got {seed}")
    for prompt in prompts:
        if prompt.encode("utf-8", "replace") != prompt.encode("utf-8", "surrogateescape"):
            raise Error(f"--prompt: expected text in UTF-8, got {os.fsencode(prompt)!r}")
    tokenizer = load_tokenizer()
    with join_world(device) as world:
        gpt2, step = load(model, world)
        if not world.is_main:
            return
        choices: dict[str, Any] = {"tokens": tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        samples = []
        for prompt, number in itertools.product(prompts, range(num)):
            sampling = Sampling(**choices, seed=seed + number)
            text = generate(gpt2, tokenizer, prompt, sampling, device=world.device)
            samples.append({"prompt": prompt, "seed": sampling.seed, "text": text})
            if not as_json:
                say(("---\n" if len(samples) > 1 else "") + text, keep="\n\t")
    if as_json:
        print_json({"model": model, "step": step, **choices, "samples": samples})
