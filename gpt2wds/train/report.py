"""A run directory as one HTML page that needs nothing else: no script, no font, no address.

Pictures are inline SVG whose text is text and whose colours are the page's CSS variables, so they follow
the page into dark mode. The same run directory gives the same bytes: no clock, no random ids.
"""

import html
import io
import json
import math
import re
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import files
from ..errors import Error
from .rundir import RunDirectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]
Series = tuple[NDArray[np.float64], NDArray[np.float64]]  # steps and values, both (N,)

# Colours that stand for CSS variables: matplotlib writes the left, the page gets the right.
INK, SOFT, RULE, TRAIN, SMOOTH, VAL = (f"#00000{n}" for n in range(1, 7))
VARIABLES = {INK: "ink", SOFT: "soft", RULE: "rule", TRAIN: "train", SMOOTH: "smooth", VAL: "val"}

SCORES = {"acc": "acc", "acc_norm_tokens": "acc_norm by tokens",
          "acc_norm_characters": "acc_norm by characters", "acc_norm_bytes": "acc_norm by bytes"}  # fmt: skip
RATES = {"learning_rate": "Learning rate", "grad_norm": "Gradient norm", "tokens_per_second": "Tokens per second"}
KIND = ("name", "examples", "mode")  # results that differ in one of them are never compared
UNIFORM_LOSS = math.log(50257)
GPT2_LOSS = 3.2924  # OpenAI's 124M on FineWeb-Edu's validation tokens
GPT2_HELLASWAG = {"124M": 0.2955, "350M": 0.3752, "774M": 0.4320, "1558M": 0.4889}  # by tokens, completion mode

STYLE = {
    "axes.axisbelow": True, "axes.edgecolor": RULE, "axes.grid": True, "axes.grid.axis": "y", "axes.grid.which": "both",
    "axes.labelcolor": SOFT, "axes.spines.left": False, "axes.spines.right": False, "axes.spines.top": False,
    "axes.ymargin": 0.1, "font.size": 9, "grid.color": RULE, "grid.linewidth": 0.6,
    "lines.linewidth": 1.4, "lines.markersize": 3, "svg.fonttype": "none", "text.color": INK, "xtick.color": RULE,
    "xtick.labelcolor": SOFT, "ytick.color": RULE, "ytick.labelcolor": SOFT, "ytick.major.size": 0,
    "ytick.minor.size": 0,
}  # fmt: skip

CSS = """
:root { color-scheme: light dark; --paper: #fdfdfb; --ink: #24272b; --soft: #646a73; --rule: #dcdee2;
  --train: #a9c4e4; --smooth: #2463a8; --val: #c2500f; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181c; --ink: #e4e6ea; --soft: #9aa1ac; --rule: #363b44;
  --train: #3f6695; --smooth: #7db3ef; --val: #f2995c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 2rem clamp(1rem, 4vw, 3rem) 4rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0; font-size: clamp(1.4rem, 4vw, 2rem); line-height: 1.2; }
h2 { margin: 2.5rem 0 .75rem; font-size: 1.15rem; }
p { margin: .4rem 0; color: var(--soft); }
.unfinished { margin: 1rem 0; padding-left: .8rem; border-left: 3px solid var(--val); color: var(--ink); }
.grid { display: grid; gap: 2rem 3rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr));
  margin-top: 2rem; align-items: start; }
.small { gap: 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem 0; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top; }
th { width: 45%; padding-right: 1rem; font-weight: normal; color: var(--soft); }
figure { margin: 0; max-width: 46rem; }
figcaption { margin-bottom: .5rem; font-weight: 600; line-height: 1.35; }
figcaption small { display: block; font-size: .85rem; font-weight: normal; color: var(--soft); }
.train::before, .smooth::before, .val::before { content: "\\2501\\a0"; font-weight: 900; }
.train::before { color: var(--train); } .smooth::before { color: var(--smooth); } .val::before { color: var(--val); }
svg { display: block; width: 100%; max-width: 100%; height: auto; }
svg text { font-family: system-ui, sans-serif !important; paint-order: stroke; stroke: var(--paper);
  stroke-width: 2.5px; stroke-linejoin: round; }
pre { margin: .75rem 0; padding: .8rem 1rem; border: 1px solid var(--rule); border-radius: 4px; font-size: .85rem;
  white-space: pre-wrap; }
summary { cursor: pointer; }
"""


def write_report(run_dir: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a run, finished or not, and return its path (by default `run_dir`/report.html).

    Raises Error where there is no run, no step in it, or no matplotlib to draw with.
    """
    run = RunDirectory(run_dir)
    if not run.path.is_dir():
        raise Error(f"expected a run directory at {run.path}, got no directory; check the path (`run.dir`)")
    try:
        rows, facts = [row for row in run.read_metrics() if row.get("step") is not None], run.read_facts()
    except json.JSONDecodeError as error:
        raise Error(f"expected JSON in {run.metrics} and {run.facts_path}, got {error}; restore the file") from error
    if not rows:
        raise Error(f"expected training steps in {run.metrics}, got none; start the run, or wait for its step 0")
    config = run.config.read_text(encoding="utf-8") if run.config.exists() else ""
    path = Path(out) if out is not None else run.path / "report.html"
    page = _page(rows, facts, config)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.replace(path, page)
    return path


def _page(rows: list[Row], facts: Row, config: str) -> str:
    title = f"GPT-2 on {facts.get('corpus') or 'unnamed text'}"
    parameters = facts.get("parameters")
    subtitle = f"{parameters:,} parameters" if parameters else "number of parameters not recorded"
    step, max_steps = rows[-1]["step"], facts.get("max_steps")
    refresh = notice = ""
    if max_steps is not None and step < max_steps:
        refresh = '<meta http-equiv="refresh" content="30">\n'
        notice = (
            f'<p class="unfinished">Unfinished: step {step:,} of {max_steps:,}, {step / max_steps:.1%}. '
            "The page reloads every 30 seconds and shows what the report last wrote.</p>\n"
        )
    large = _loss_figure(rows, facts) + _choice_figure(rows)
    small = "".join(_rate_figure(rows, name) for name in RATES)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n{refresh}'
        f"<title>{_text(title)}, {subtitle}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        f"<h1>{_text(title)}</h1>\n<p>{subtitle}</p>\n{notice}"
        f'<div class="grid">\n{_table(_results(rows, facts))}{_table(_setting(rows, facts))}</div>\n'
        f'<div class="grid">\n{large}</div>\n<div class="grid small">\n{small}</div>\n'
        f"{_samples(rows)}<h2>Configuration</h2>\n"
        f"<details><summary>config.toml</summary>\n<pre>\n{_text(config)}</pre></details>\n</body>\n</html>\n"
    )


def _text(value: object) -> str:
    """Any text as HTML. Characters HTML forbids become U+FFFD: a young model samples any bytes."""
    return html.escape(re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]", "\ufffd", str(value)))


def _series(rows: Iterable[Row], name: str) -> Series:
    points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    steps, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
    return steps, values


def _measured(rows: list[Row]) -> list[Row]:
    """The multiple-choice results, each with its step; only those of the set and mode used last."""
    results = [{"step": row["step"], **row["hellaswag"]} for row in rows if row.get("hellaswag")]
    kinds = [[result.get(key) for key in KIND] for result in results]
    return [result for result, kind in zip(results, kinds, strict=True) if kind == kinds[-1]]


def _set_name(result: Row) -> str:
    name, examples, mode = (result.get(key) for key in KIND)
    parts = [name or "unnamed set", f"{examples:,} examples" if examples else "", f"{mode} mode" if mode else ""]
    return ", ".join(filter(None, parts))


def _results(rows: list[Row], facts: Row) -> list[tuple[str, str]]:
    """Name and value of each line of the first table; what was not measured has none."""
    max_steps = facts.get("max_steps")
    of = f" of {max_steps:,}" if max_steps is not None else ""
    lines = [("last step", f"{rows[-1]['step']:,}{of}")]
    (_, train), (steps, val) = _series(rows, "train_loss"), _series(rows, "val_loss")
    if train.size:
        lines.append(("training loss, last", f"{train[-1]:.4f}"))
    if val.size:
        lines.append(("validation loss, best", f"{val.min():.4f} at step {steps[val.argmin()]:,.0f}"))
        lines.append(("validation loss, last", f"{val[-1]:.4f} at step {steps[-1]:,.0f}"))
        lines.append(("perplexity, last", f"{math.exp(val[-1]):,.2f}" if val[-1] < 50 else "beyond e^50"))
    for result in _measured(rows)[-1:]:
        truncated = f", {result['truncated']:,} truncated" if result.get("truncated") else ""
        lines.append(("multiple choice, last", f"{_set_name(result)}{truncated}, at step {result['step']:,}"))
        for key, label in SCORES.items():
            if result.get(key) is not None:
                error = result.get(f"{key}_stderr")
                lines.append((label, f"{result[key]:.4f}" + (f" ± {error:.4f}" if error is not None else "")))
    return lines


def _setting(rows: list[Row], facts: Row) -> list[tuple[str, str]]:
    """Name and value of each line of the second table."""
    _, rates = _series(rows, "tokens_per_second")
    tokens, corpus_tokens = rows[-1].get("tokens"), facts.get("train_tokens")
    epochs = f", {tokens / corpus_tokens:.2f} epochs" if tokens is not None and corpus_tokens else ""
    candidates = {
        "tokens trained on": f"{tokens:,}{epochs}" if tokens is not None else None,
        "tokens per second, median": f"{statistics.median(rates):,.0f}" if rates.size else None,
        "train split, tokens": corpus_tokens, "val split, tokens": facts.get("val_tokens"),
        "tokens per step": facts.get("tokens_per_step"), "sequence length": facts.get("seq_len"),
        "ranks": facts.get("world_size"), "device": facts.get("device"), "torch": facts.get("torch"),
        "gpt2wds": facts.get("version"), "dataset": facts.get("dataset_id"),
    }  # fmt: skip
    return [(k, f"{v:,}" if isinstance(v, int) else str(v)) for k, v in candidates.items() if v is not None]


def _table(lines: list[tuple[str, str]]) -> str:
    cells = "".join(f'<tr><th scope="row">{_text(k)}</th><td>{_text(v)}</td></tr>\n' for k, v in lines)
    return f"<table>\n{cells}</table>\n"


def _samples(rows: list[Row]) -> str:
    for row in reversed(rows):
        if row.get("samples"):
            texts = []
            for sample in row["samples"]:
                text, prompt = sample.get("text") or "", sample.get("prompt") or ""
                start = prompt if text.startswith(prompt) else ""
                # HTML drops a line end right after <pre>: one to drop, so that the text keeps its own.
                texts.append(f"<pre>\n<b>{_text(start)}</b>{_text(text[len(start) :])}</pre>\n")
            return f"<h2>Samples at step {row['step']:,}</h2>\n<p>The prompt is bold.</p>\n{''.join(texts)}"
    return ""


def _figure(caption: str, label: str, width: float, last: int, draw: Callable[["Axes"], None]) -> str:
    """A <figure> of what `draw` puts on the axes, over steps 0 to `last`.

    The caption is HTML, the label plain and ours; a smaller `width` (inches) makes larger text on the page.
    """
    try:
        from matplotlib import style
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter, MaxNLocator
    except ImportError as error:
        raise Error(f"expected matplotlib for the pictures, got: {error}; pip install 'gpt2wds[plot]'") from error
    buffer = io.StringIO()
    with style.context(["default", {**STYLE, "svg.hashsalt": label}]):  # the salt also keeps ids apart in the page
        figure = Figure(figsize=(width, 0.66 * width), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.set(xlabel="step", xlim=(-0.02 * max(last, 1), 1.02 * max(last, 1)))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    body = re.sub('<g id="[^"]*"', "<g", buffer.getvalue())  # matplotlib's names repeat in every picture
    head = re.search('<svg [^>]*(viewBox="[^"]*")[^>]*>', body)
    assert head
    svg = f'<svg {head[1]} role="img" aria-label="{label}">{body[head.end() :]}'
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var(--{variable})")
    return f"<figure>\n<figcaption>{caption}</figcaption>\n{svg}</figure>\n"


def _plot(axes: "Axes", series: Series, color: str) -> None:
    """A line of about 1,200 points that keeps every peak: the lowest and highest value of each run of steps."""
    steps, values = series
    if len(steps) > 1200:
        parts = np.array_split(np.arange(len(steps)), 600)
        peaks = [(part[values[part].argmin()], part[values[part].argmax()]) for part in parts]
        kept = np.unique([0, len(steps) - 1, *np.ravel(peaks)])
        steps, values = steps[kept], values[kept]
    axes.plot(steps, values, color=color, marker="o" if len(steps) < 40 else "")


def _plot_noisy(axes: "Axes", series: Series) -> None:
    """The values, light, under their mean: exponential, over a hundredth of the run or a tenth of what was run yet."""
    steps, values = series
    total = weight = 0.0
    means = np.empty_like(values)
    for i, value in enumerate(values):
        decay = 1 - 1 / max(1.0, min(len(values) / 100, i / 10))
        total, weight = decay * total + value, decay * weight + 1
        means[i] = total / weight
    _plot(axes, series, TRAIN)
    _plot(axes, (steps, means), SMOOTH)


def _mark(axes: "Axes", value: float, label: str, curve: NDArray[np.float64], left: bool = False) -> None:
    """A horizontal line with a label at its right or left end, on the side where `curve` is not."""
    below = curve[0 if left else -1] > value
    axes.axhline(value, color=SOFT, linewidth=0.9, dashes=(4, 3), zorder=1.5)
    axes.annotate(
        label, (0.01 if left else 0.99, value), xycoords=axes.get_yaxis_transform(), xytext=(0, -3 if below else 3),
        textcoords="offset points", ha="left" if left else "right", va="top" if below else "bottom", fontsize=8,
        zorder=1.6,
    ).set_in_layout(False)  # fmt: skip


def _loss_figure(rows: list[Row], facts: Row) -> str:
    train, val = _series(rows, "train_loss"), _series(rows, "val_loss")
    if not train[0].size and not val[0].size:
        return ""

    def draw(axes: "Axes") -> None:
        _plot_noisy(axes, train)
        _plot(axes, val, VAL)
        curve = val[1] if val[1].size else train[1]
        _mark(axes, UNIFORM_LOSS, f"uniform guess {UNIFORM_LOSS:.2f}", curve)
        if (entropy := facts.get("val_unigram_entropy")) is not None:
            _mark(axes, entropy, f"unigram entropy of the validation text {entropy:.2f}", curve)
        # The whole name: fineweb-edu-score-2 and its like are other texts.
        if re.search(r"(?<![\w-])fineweb-edu(?![\w-])", facts.get("corpus") or "", re.IGNORECASE):
            _mark(axes, GPT2_LOSS, f"OpenAI GPT-2 124M {GPT2_LOSS}", curve, left=True)

    caption = """Loss, nats per token<small><span class="train">training</span>
<span class="smooth">smoothed</span> <span class="val">validation</span></small>"""
    return _figure(caption, "Loss", 4.4, rows[-1]["step"], draw)


def _choice_figure(rows: list[Row]) -> str:
    results = [result for result in _measured(rows) if result.get("acc_norm_tokens") is not None]
    if not results:
        return ""

    def draw(axes: "Axes") -> None:
        steps, values = series = _series(results, "acc_norm_tokens")
        errors = np.array([result.get("acc_norm_tokens_stderr") or 0.0 for result in results])
        axes.fill_between(steps, values - errors, values + errors, color=VAL, alpha=0.25, linewidth=0)
        _plot(axes, series, VAL)
        _mark(axes, 0.25, "chance 0.25", values)
        if [results[-1].get(key) for key in KIND] == ["HellaSwag", 10042, "completion"]:
            for size, accuracy in GPT2_HELLASWAG.items():
                _mark(axes, accuracy, f"OpenAI GPT-2 {size} {accuracy:.4f}", values, left=True)

    caption = f"Accuracy: {_text(_set_name(results[-1]))}<small>acc_norm by tokens ± one standard error</small>"
    return _figure(caption, "Multiple-choice accuracy", 4.4, rows[-1]["step"], draw)


def _rate_figure(rows: list[Row], name: str) -> str:
    series = _series(rows, name)
    if not series[0].size:
        return ""

    def draw(axes: "Axes") -> None:
        if name == "learning_rate":
            _plot(axes, series, SMOOTH)
        else:
            _plot_noisy(axes, series)
        if name == "tokens_per_second":
            axes.set_ylim(bottom=0)
        if name == "grad_norm" and series[1].min() > 0:
            axes.set_yscale("log", subs=(2, 5))  # the first steps are a hundred times the last
            axes.yaxis.set_minor_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:,.12g}" if name == "tokens_per_second" else "{x:g}")

    return _figure(RATES[name], RATES[name], 3.9, rows[-1]["step"], draw)
