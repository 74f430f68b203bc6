"""The pictures of a run's page: inline SVG whose text is text and whose colours are the page's CSS variables.

So they follow the page into dark mode. The same rows give the same bytes: no clock, no random ids.
"""

import html
import io
import math
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]
Series = tuple[NDArray[np.float64], NDArray[np.float64]]  # steps and values, both (N,)

# Colours that stand for CSS variables: matplotlib writes the left, the page gets the right.
INK, SOFT, RULE, TRAIN, SMOOTH, VAL = (f"#00000{n}" for n in range(1, 7))
VARIABLES = {INK: "ink", SOFT: "soft", RULE: "rule", TRAIN: "train", SMOOTH: "smooth", VAL: "val"}

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


def as_html(value: object) -> str:
    """Any text as HTML. Characters HTML forbids become U+FFFD: a young model samples any bytes."""
    return html.escape(re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]", "\ufffd", str(value)))


def series(rows: Iterable[Row], name: str) -> Series:
    points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    steps, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
    return steps, values


def measured(rows: list[Row]) -> list[Row]:
    """The multiple-choice results, each with its step; only those of the set and mode used last."""
    results = [{"step": row["step"], **row["hellaswag"]} for row in rows if row.get("hellaswag")]
    kinds = [[result.get(key) for key in KIND] for result in results]
    return [result for result, kind in zip(results, kinds, strict=True) if kind == kinds[-1]]


def set_name(result: Row) -> str:
    name, examples, mode = (result.get(key) for key in KIND)
    parts = [name or "unnamed set", f"{examples:,} examples" if examples else "", f"{mode} mode" if mode else ""]
    return ", ".join(filter(None, parts))


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


def loss_figure(rows: list[Row], facts: Row) -> str:
    train, val = series(rows, "train_loss"), series(rows, "val_loss")
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


def choice_figure(rows: list[Row]) -> str:
    results = [result for result in measured(rows) if result.get("acc_norm_tokens") is not None]
    if not results:
        return ""

    def draw(axes: "Axes") -> None:
        steps, values = points = series(results, "acc_norm_tokens")
        errors = np.array([result.get("acc_norm_tokens_stderr") or 0.0 for result in results])
        axes.fill_between(steps, values - errors, values + errors, color=VAL, alpha=0.25, linewidth=0)
        _plot(axes, points, VAL)
        _mark(axes, 0.25, "chance 0.25", values)
        if [results[-1].get(key) for key in KIND] == ["HellaSwag", 10042, "completion"]:
            for size, accuracy in GPT2_HELLASWAG.items():
                _mark(axes, accuracy, f"OpenAI GPT-2 {size} {accuracy:.4f}", values, left=True)

    caption = f"Accuracy: {as_html(set_name(results[-1]))}<small>acc_norm by tokens ± one standard error</small>"
    return _figure(caption, "Multiple-choice accuracy", 4.4, rows[-1]["step"], draw)


def rate_figure(rows: list[Row], name: str) -> str:
    points = series(rows, name)
    if not points[0].size:
        return ""

    def draw(axes: "Axes") -> None:
        if name == "learning_rate":
            _plot(axes, points, SMOOTH)
        else:
            _plot_noisy(axes, points)
        if name == "tokens_per_second":
            axes.set_ylim(bottom=0)
        if name == "grad_norm" and points[1].min() > 0:
            axes.set_yscale("log", subs=(2, 5))  # the first steps are a hundred times the last
            axes.yaxis.set_minor_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:,.12g}" if name == "tokens_per_second" else "{x:g}")

    return _figure(RATES[name], RATES[name], 3.9, rows[-1]["step"], draw)
