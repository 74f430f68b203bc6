"""gpt2wds-eval: scores, losses, samples and reports of a trained model."""

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

from .. import __version__
from ..dataset.directory import Dataset
from ..dataset.manifest import SPLITS
from ..dataset.prompts import ENDINGS, MODES
from ..dataset.validation import validation_sequences
from ..distributed import World, join_world
from ..errors import Error
from ..evaluate import hellaswag as multiple_choice
from ..evaluate.questions import Questions, load_questions
from ..evaluate.text import generate, text_loss
from ..model import GPT2
from ..tokenizer import load_tokenizer
from ..train import report
from ..train.weights import load_weights
from .common import Commands, LocalPath, ProgressLine, counted, print_json
from .models import find_weights, step_of

DEVICE = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
DTYPE = click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Score, sample and report. MODEL is a run directory, a checkpoint, a Hugging Face directory or a Hub name."""


@main.command(name="hellaswag")
@click.argument("model")
@click.argument("other", required=False, metavar="[MODEL]")
@click.option("--data", required=True, help="Dataset directory made by gpt2wds-shard hellaswag.")
@click.option("--mode", type=click.Choice(MODES), default="completion", show_default=True, help="How prompts are made.")
@click.option("--limit", type=click.IntRange(1), help="Only the first so many examples.")
@click.option("--per-example", type=LocalPath(), help="Write one JSON object per example here.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@DEVICE
@DTYPE
def hellaswag_command(
    model: str,
    other: str | None,
    data: str,
    mode: str,
    limit: int | None,
    per_example: Path | None,
    as_json: bool,
    device: str,
    dtype: str,
) -> None:
    """Multiple-choice accuracy: acc, and acc_norm by tokens, characters and bytes.

    A second MODEL is compared with the first on the same examples: differences, and McNemar's exact p-values.
    """
    if per_example and not per_example.parent.is_dir():
        raise Error(f"--per-example: expected a file in a directory that exists, got {per_example}")
    results, records, sums = [], [], []
    with join_world(device) as world:
        dataset = Dataset(data)
        for name in (model, other) if other else (model,):
            gpt2, step = _load(name, world)
            questions = load_questions(dataset, mode, gpt2.config.n_positions, limit)
            sums.append(_score(gpt2, questions, world, dtype))
            results.append({"model": name, "step": step, **multiple_choice.scores(questions, sums[-1])})
            records += [{"model": name, **record} for record in multiple_choice.per_example(questions, sums[-1])]
        if not world.is_main:
            return
    if per_example:
        per_example.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    comparison = multiple_choice.compare(questions, *sums) if other else {}
    if as_json:
        print_json({"models": results, "comparison": comparison} if other else results[0])
        return
    for result in results:
        _print_scores(result)
    if other:
        print(f"{other} less {model}, with McNemar's exact two-sided p")
    for score, pair in comparison.items():
        only = f"only the first right {pair['only_first_right']:,}, only the second {pair['only_second_right']:,}"
        print(f"  {score:20} {pair['difference']:+.4f}{_error(pair['difference_stderr'])}, p = {pair['p']:.4g}, {only}")


def _load(name: str, world: World) -> tuple[GPT2, int | None]:
    """The model of a command line's MODEL, ready to read, and the step it is of."""
    weights = find_weights(name)
    return load_weights(weights).to(world.device).eval(), step_of(weights)


def _heading(result: dict[str, Any]) -> str:
    return result["model"] + ("" if result["step"] is None else f", step {result['step']:,}")


def _score(model: GPT2, questions: Questions, world: World, dtype: str) -> np.ndarray:
    endings = len(questions.labels) * ENDINGS
    if not world.is_main:
        return multiple_choice.ending_log_probabilities(model, questions, world, dtype)
    progress = ProgressLine("scoring", endings, " endings")
    # The ranks go at about the same pace, so this one's share stands for all.
    sums = multiple_choice.ending_log_probabilities(
        model, questions, world, dtype, progress=lambda done: progress.update(done * world.world_size)
    )
    progress.close()
    return sums


def _print_scores(result: dict[str, Any]) -> None:
    kind = f"{result['name']}, {result['mode']} mode, {counted(result['examples'], 'example')}"
    print(f"{_heading(result)}: {kind}, chance {1 / ENDINGS}")
    for score in multiple_choice.SCORES:
        print(f"  {score:20} {result[score]:.4f}{_error(result[f'{score}_stderr'])}")
    if result["truncated"]:
        endings = counted(result["truncated"], "ending")
        print(f"  {endings} had a context longer than the model's positions, cut on the left")


def _error(standard_error: float | None) -> str:
    return "" if standard_error is None else f" ± {standard_error:.4f}"


@main.command(name="loss")
@click.argument("model")
@click.option("--data", required=True, help="Dataset directory of tokens.")
@click.option("--split", type=click.Choice(SPLITS), default="val", show_default=True, help="Which split to read.")
@click.option("--limit", type=click.IntRange(1), help="Only the first so many tokens of the split.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@DEVICE
@DTYPE
def loss_command(model: str, data: str, split: str, limit: int | None, as_json: bool, device: str, dtype: str) -> None:
    """Loss on a split, in the model's whole context: nats per token, perplexity and bits per byte of text."""
    with join_world(device) as world:
        gpt2, step = _load(model, world)
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
    result = {"model": model, "step": step, "corpus": dataset.corpus, "split": split, **found}
    if as_json:
        print_json(result)
        return
    per_byte = "" if result["bits_per_byte"] is None else f", {result['bits_per_byte']:.4f} bits per byte"
    print(
        f"{_heading(result)}: {dataset.corpus}, {split}: loss {result['loss']:.4f} nats per token, perplexity "
        f"{result['perplexity']:,.2f}{per_byte}; {result['tokens']:,} tokens of {result['text_bytes']:,} bytes"
    )


def _watched(batches: Iterator[np.ndarray], tokens: int, world: World) -> Iterator[np.ndarray]:
    """The batches, with progress shown; this rank's share stands for all."""
    progress = ProgressLine("reading", tokens, " tokens")
    for batch in batches:
        yield batch
        progress.update(batch[:, 1:].size * world.world_size)
    progress.close()


@main.command(name="sample")
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
    tokenizer = load_tokenizer()
    with join_world(device) as world:
        gpt2, step = _load(model, world)
        if not world.is_main:
            return
        choices: dict[str, Any] = {"tokens": tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        samples = []
        for prompt, number in itertools.product(prompts, range(num)):
            text = generate(gpt2, tokenizer, prompt, seed=seed + number, device=world.device, **choices)
            samples.append({"prompt": prompt, "seed": seed + number, "text": text})
            if not as_json:
                print(("---\n" if len(samples) > 1 else "") + text)
    if as_json:
        print_json({"model": model, "step": step, **choices, "samples": samples})


@main.command(name="report")
@click.argument("run_dir", type=LocalPath())
@click.option("--out", type=LocalPath(), help="HTML file to write; RUN_DIR/report.html if not given.")
def report_command(run_dir: Path, out: Path | None) -> None:
    """One self-contained HTML page with a run's curves, scores, samples and configuration."""
    print(report.write_report(run_dir, out))
