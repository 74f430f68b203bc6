"""gpt2wds-eval: scores, losses, samples and reports of a trained model.

Importing torch takes longer than a trace does, so here and in text.py only the commands that need it do it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from .. import files
from ..dataset.directory import Dataset
from ..dataset.prompts import ENDINGS, MODES
from ..errors import Error, counted
from ..rows import Scores, number
from ..train import report
from ..train.curves import X_NAMES
from ..version import __version__
from . import importing
from .common import DEVICE, DTYPE, Commands, LocalPath
from .output import ProgressLine, heading, print_json, say
from .text import loss_command, sample_command
from .trace import trace_command

if TYPE_CHECKING:
    from ..distributed import World
    from ..evaluate.hellaswag import Comparison
    from ..evaluate.questions import Questions
    from ..model import GPT2


class Scored(Scores):
    """Scores of a model, and the step that it is of, if of any."""

    model: str
    step: int | None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Score, sample, trace, report. MODEL is a run directory, a checkpoint, a Hugging Face directory or a Hub name."""


for command in (loss_command, sample_command, trace_command):
    main.add_command(command)


@main.command(name="hellaswag")
@click.argument("model")
@click.argument("other", required=False, metavar="[MODEL]")
@click.option(
    "--data",
    required=True,
    multiple=True,
    help="Dataset directory made by gpt2wds-shard hellaswag; several with --data … --data ….",
)
@click.option("--mode", type=click.Choice(MODES), default="completion", show_default=True, help="How prompts are made.")
@click.option("--limit", type=click.IntRange(1), help="Only the first so many examples.")
@click.option("--per-example", type=LocalPath(), help="Write one JSON object per example here.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@DEVICE
@DTYPE
def hellaswag_command(
    model: str,
    other: str | None,
    data: tuple[str, ...],
    mode: str,
    limit: int | None,
    per_example: Path | None,
    as_json: bool,
    device: str,
    dtype: str,
) -> None:
    """Multiple-choice accuracy: acc, and acc_norm by tokens, characters and bytes.

    A second MODEL is compared with the first on the same examples: differences, and McNemar's exact p-values.
    Scores on several datasets are one table.
    """
    with importing():
        from ..distributed import join_world
        from ..evaluate import hellaswag as multiple_choice
        from ..evaluate.questions import load_questions
        from .models import load

    if per_example and not per_example.parent.is_dir():
        raise Error(f"--per-example: expected a file in a directory that exists, got {per_example}")
    found: list[list[Scored]] = [[] for _ in data]  # of each dataset the results of each model
    sums: list[list[np.ndarray]] = [[] for _ in data]
    records, all_questions = [], []
    with join_world(device) as world:
        datasets = _different(data)
        for name in (model, other) if other else (model,):
            gpt2, step = load(name, world)
            all_questions = [load_questions(dataset, mode, gpt2.config.n_positions, limit) for dataset in datasets]
            for i, questions in enumerate(all_questions):
                sums[i].append(_score(gpt2, questions, world, dtype))
                found[i].append({"model": name, "step": step, **multiple_choice.scores(questions, sums[i][-1])})
                which = {"model": name} | ({"data": data[i]} if len(data) > 1 else {})
                records += [which | record for record in multiple_choice.per_example(questions, sums[i][-1])]
        if not world.is_main:
            return
    if per_example:
        files.replace(per_example, "".join(json.dumps(record) + "\n" for record in records))
    pairs = [multiple_choice.compare(q, *s) if other else {} for q, s in zip(all_questions, sums, strict=True)]
    if as_json:
        answers = [{"models": r, "comparison": p} if other else r[0] for r, p in zip(found, pairs, strict=True)]
        of_each = [{"data": path, **answer} for path, answer in zip(data, answers, strict=True)]
        print_json(answers[0] if len(data) == 1 else {"datasets": of_each})
        return
    if len(data) > 1:
        _print_table([result for results in found for result in results])
    for results, comparison in zip(found, pairs, strict=True):
        if len(data) == 1:
            for result in results:
                _print_scores(result)
        if other:
            on = "" if len(data) == 1 else f" on {results[0]['name']}"
            say(f"{other} less {model}{on}, with McNemar's exact two-sided p")
        _print_comparison(comparison)


def _different(data: tuple[str, ...]) -> list[Dataset]:
    datasets = [Dataset(path) for path in data]
    for i, dataset in enumerate(datasets):
        if dataset.id in (same := [other.id for other in datasets[:i]]):
            first = data[same.index(dataset.id)]
            raise Error(f"--data: expected different datasets, {first} and {data[i]} are the same; leave one out")
    return datasets


def _print_comparison(comparison: dict[str, Comparison]) -> None:
    for score, pair in comparison.items():
        only = f"only the first right {pair['only_first_right']:,}, only the second {pair['only_second_right']:,}"
        say(f"  {score:20} {pair['difference']:+.4f}{_error(pair['difference_stderr'])}, p = {pair['p']:.4g}, {only}")


def _print_table(results: list[Scored]) -> None:
    """All scores, a line for each dataset and model."""
    from ..evaluate.hellaswag import SCORES

    header = ("dataset", "examples", *SCORES, "model")
    lines = [header]
    for result in results:
        values = (_value(result, score) for score in SCORES)
        lines.append((result["name"], f"{result['examples']:,}", *values, heading(result)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    say(f"{results[0]['mode']} mode, chance {1 / ENDINGS}")
    for line in lines:
        say("  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip())
    for result in results:
        if result["truncated"]:
            say(f"{result['name']}, {heading(result)}: {_truncated(result)}")


def _score(model: GPT2, questions: Questions, world: World, dtype: str) -> np.ndarray:
    from ..evaluate.hellaswag import ending_log_probabilities

    endings = len(questions.labels) * ENDINGS
    if not world.is_main:
        return ending_log_probabilities(model, questions, world, dtype)
    progress = ProgressLine("scoring", endings, " endings")
    # The ranks go at about the same pace, so this one's share stands for all.
    sums = ending_log_probabilities(
        model, questions, world, dtype, progress=lambda done: progress.update(done * world.world_size)
    )
    progress.close()
    return sums


def _print_scores(result: Scored) -> None:
    from ..evaluate.hellaswag import SCORES

    kind = f"{result['name']}, {result['mode']} mode, {counted(result['examples'], 'example')}"
    say(f"{heading(result)}: {kind}, chance {1 / ENDINGS}")
    for score in SCORES:
        say(f"  {score:20} {_value(result, score)}")
    if result["truncated"]:
        say(f"  {_truncated(result)}")


def _value(result: Scored, score: str) -> str:
    return f"{number(result, score):.4f}{_error(number(result, f'{score}_stderr'))}"


def _truncated(result: Scored) -> str:
    endings = counted(result["truncated"], "ending")
    return f"{endings} had a context longer than the model's positions, cut on the left"


def _error(standard_error: float | None) -> str:
    return "" if standard_error is None else f" ± {standard_error:.4f}"


@main.command(name="report")
@click.argument("run_dirs", nargs=-1, required=True, metavar="RUN_DIR...", type=LocalPath())
@click.option(
    "--out",
    type=LocalPath(),
    help="HTML file to write; if not given, report.html in RUN_DIR, for several in the current directory.",
)
@click.option("--by", type=click.Choice(list(X_NAMES)), default="step", show_default=True, help="What curves go by.")
def report_command(run_dirs: tuple[Path, ...], out: Path | None, by: str) -> None:
    """One self-contained HTML page of a run: curves, scores, samples, configuration; or of several side by side."""
    say(report.write_report(*run_dirs, out=out, by=by))


if __name__ == "__main__":  # python -m gpt2wds.commands.eval
    main()
