"""From the rows of runs to the pictures of a report: which curves lie on the same axes, and which lines hold there."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import counted
from ..rows import Facts, Row, Scores
from ..tokenizer import END_OF_TEXT
from .figures import Curve, Picture
from .page import RUN_COLORS, as_html, key, run_key

X_NAMES = {"step": "step", "tokens": "tokens trained on"}  # by the member of a row that pictures go by
RATES = {"learning_rate": "Learning rate", "grad_norm": "Gradient norm", "tokens_per_second": "Tokens per second"}
# Facts that decide what a validation loss is of, and what they are called.
VALIDATION_SET = {
    "corpus": "dataset",
    "dataset_id": "dataset",
    "val_tokens": "validation tokens",
    "seq_len": "sequence length",
    "document_masking": "document masking",
}
KIND = ("name", "examples", "mode")  # results that differ in one of them are never compared
UNIFORM_LOSS = math.log(END_OF_TEXT + 1)
# Corpus, tokens from the beginning of its validation split, and context of a loss of OpenAI's weights.
GPT2_LOSSES: dict[tuple[Any, ...], float] = {("fineweb-edu sample-10BT", 10_485_760, 1024): 3.2924}
GPT2_HELLASWAG = {"124M": 0.2955, "350M": 0.3752, "774M": 0.4320, "1558M": 0.4889}  # by tokens, completion mode


class Result(Scores):
    """Scores of a step."""

    step: int
    tokens: int | None


@dataclass(frozen=True)
class Run:
    """What a run directory says: its rows of metrics.jsonl, its run.json, and its config.toml as text."""

    name: str
    rows: list[Row]
    facts: Facts
    config: str

    def series(self, name: str, by: str) -> Curve:
        """One number against the step or tokens, where it was measured and is a number."""
        return _curve(self.rows, name, by)

    def results(self) -> list[Result]:
        """The multiple-choice results, each with its step and tokens; only those of the set and mode used last."""
        rows = [row for row in self.rows if row.get("hellaswag")]
        results: list[Result] = [{"step": r["step"], "tokens": r.get("tokens"), **r["hellaswag"]} for r in rows]
        return [result for result in results if kind(result) == kind(results[-1])]

    def validation_set(self) -> tuple[Any, ...]:
        """What a validation loss is of. Runs that differ in it have losses of different texts, or read otherwise."""
        return tuple(self.facts.get(name) for name in VALIDATION_SET)


def kind(result: Result) -> list[Any]:
    return [result.get(name) for name in KIND]


def set_name(result: Result) -> str:
    name, examples, mode = kind(result)
    parts = [name or "unnamed set", counted(examples, "example") if examples else "", f"{mode} mode" if mode else ""]
    return ", ".join(filter(None, parts))


def pictures(runs: Sequence[Run], by: str) -> tuple[list[Picture], list[Picture]]:
    """The large pictures and the small ones, of one run or of several beside each other."""
    large = [_losses_of_one(runs[0], by)] if len(runs) == 1 else _losses_of_several(runs, by)
    small = [_rates(runs, name, caption, by) for name, caption in RATES.items()]
    return large + _choices(runs, by), small


def _curve(rows: Iterable[Mapping[str, object]], name: str, by: str) -> Curve:
    points = [(row[by], row[name]) for row in rows if row.get(name) is not None]
    x, y = np.array(points, dtype=np.float64).reshape(-1, 2).T
    return Curve(name, x, y, "smooth")


def _of_run(curve: Curve, runs: Sequence[Run], number: int) -> Curve:
    """The curve in its run's colour, by its run's name; of one run alone, in that of validation."""
    if len(runs) == 1:
        return curve.named(curve.name, "val")
    dashed = number % (2 * RUN_COLORS) >= RUN_COLORS
    return curve.named(runs[number].name, f"run{number % RUN_COLORS}", dashed=dashed)


def _with_means(curves: Iterable[Curve]) -> list[Curve]:
    """Each curve, faint, and all their means over them."""
    kept = [curve for curve in curves if curve.x.size]
    return [replace(curve, is_faint=True) for curve in kept] + [curve.mean() for curve in kept]


def _losses_of_one(run: Run, by: str) -> Picture:
    train, val = run.series("train_loss", by), run.series("val_loss", by)
    curves = [*_with_means([train.named("training", "smooth")]), val.named("validation", "val")]
    keys = key("training, smoothed over its values", "smooth") + key("validation", "val")
    caption = f"Loss, nats per token<small>{keys}</small>"
    return Picture(caption, "Loss", curves, _known_losses([run]), scale="either")


def _losses_of_several(runs: Sequence[Run], by: str) -> list[Picture]:
    val, train = (
        [_of_run(run.series(name, by), runs, number) for number, run in enumerate(runs)]
        for name in ("val_loss", "train_loss")
    )
    caption = "Validation loss, nats per token<small>&nbsp;</small>"
    validation = Picture(caption, "Validation loss", val, _known_losses(runs), scale="either")
    caption = "Training loss, nats per token<small>smoothed, over its values</small>"
    references = {_reference("uniform guess", UNIFORM_LOSS): UNIFORM_LOSS}
    return [validation, Picture(caption, "Training loss", _with_means(train), references, scale="either")]


def _known_losses(runs: Sequence[Run]) -> dict[str, float]:
    """Losses known beforehand that hold for the validation text of all runs."""
    known = {_reference("uniform guess", UNIFORM_LOSS): UNIFORM_LOSS}
    if len({run.validation_set() for run in runs}) == 1:
        facts = runs[0].facts
        if (entropy := facts.get("val_unigram_entropy")) is not None:
            known[_reference("unigram entropy", entropy)] = entropy
        loss = GPT2_LOSSES.get((facts.get("corpus"), facts.get("val_tokens"), facts.get("seq_len")))
        if loss is not None and not facts.get("document_masking"):
            known[_reference("OpenAI 124M", loss, 4)] = loss
    return known


def _reference(name: str, value: float, decimals: int = 2) -> str:
    return f"{name}\n{value:.{decimals}f}"


def _choices(runs: Sequence[Run], by: str) -> list[Picture]:
    """Accuracies: a picture for each set and mode."""
    found: dict[str, list[Curve]] = {}
    for number, run in enumerate(runs):
        results = [result for result in run.results() if result.get("acc_norm_tokens") is not None]
        if results:
            curve = _of_run(_curve(results, "acc_norm_tokens", by), runs, number)
            errors = [result.get("acc_norm_tokens_stderr") or 0.0 for result in results]
            found.setdefault(set_name(results[-1]), []).append(replace(curve, errors=np.array(errors)))
    return [_accuracy(name, curves) for name, curves in found.items()]


def _accuracy(name: str, curves: list[Curve]) -> Picture:
    references = {_reference("chance", 0.25): 0.25}
    if name == "HellaSwag, 10,042 examples, completion mode":
        references |= {_reference(f"OpenAI {size}", value, 4): value for size, value in GPT2_HELLASWAG.items()}
    caption = f"Accuracy: {as_html(name)}<small>acc_norm by tokens ± one standard error</small>"
    return Picture(caption, f"Accuracy: {name}", curves, references)


def _rates(runs: Sequence[Run], name: str, caption: str, by: str) -> Picture:
    curves = [_of_run(run.series(name, by), runs, number) for number, run in enumerate(runs)]
    if len(runs) == 1:
        curves = [curve.named(caption, "smooth") for curve in curves]
    if name != "learning_rate":
        curves = _with_means(curves)
    whole = name == "tokens_per_second"
    return Picture(
        caption, caption, curves, scale="log" if name == "grad_norm" else "linear",  # it begins at a hundredfold
        from_zero=whole, is_small=True, decimals="{x:,.12g}" if whole else "{x:g}",
    )  # fmt: skip


def legend(runs: Sequence[Run]) -> str:
    keys = "".join(run_key(run.name, number) for number, run in enumerate(runs))
    return f'<div class="legend">{keys}</div>\n'
