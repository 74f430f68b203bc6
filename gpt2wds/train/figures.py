"""The pictures of a report: inline SVG whose text is text and whose colours are the page's CSS variables.

So they follow the page into dark mode. The same curves give the same bytes: no clock, no random ids.
"""

import io
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import Error
from .page import RUN_COLORS, as_html

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation

# matplotlib writes the colour, the page gets the variable.
_VARIABLES = ("ink", "soft", "rule", "smooth", "val", *(f"run{n}" for n in range(RUN_COLORS)))
_COLORS = {name: f"#0000{n:02x}" for n, name in enumerate(_VARIABLES, 1)}
_INK, _SOFT, _RULE = (_COLORS[name] for name in ("ink", "soft", "rule"))

_STYLE = {
    "axes.axisbelow": True, "axes.edgecolor": _RULE, "axes.grid": True, "axes.grid.axis": "y", "axes.labelcolor": _SOFT,
    "axes.spines.left": False, "axes.spines.right": False, "axes.spines.top": False, "axes.xmargin": 0.02,
    "axes.ymargin": 0.08, "figure.dpi": 72, "font.size": 9, "grid.color": _RULE, "grid.linewidth": 0.6,
    "lines.linewidth": 1.4, "lines.markersize": 3, "path.simplify": False, "svg.fonttype": "none", "text.color": _INK,
    "xtick.color": _RULE, "xtick.labelcolor": _SOFT, "ytick.color": _RULE, "ytick.labelcolor": _SOFT,
    "ytick.major.size": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """Points of one run: `x` and `y`, and where there are `errors` a band of them, all (N,), x rising."""

    name: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    color: str  # a CSS variable of the page
    errors: NDArray[np.float64] | None = None
    is_faint: bool = False  # values under their mean
    is_dashed: bool = False

    def thinned(self) -> "Curve":
        """About 1,200 points that keep every peak: the lowest and highest value of each run of points.

        The runs are short at the beginning, which a logarithmic axis shows large.
        """
        count = len(self.x)
        if count <= 1200 or self.errors is not None:
            return self
        edges = np.unique(np.concatenate([np.linspace(0, count, 450), np.geomspace(1, count, 150)]).astype(np.int64))
        parts = np.split(np.arange(count), edges[1:-1])
        peaks = [(part[self.y[part].argmin()], part[self.y[part].argmax()]) for part in parts]
        return self.points(np.unique([0, count - 1, *np.ravel(peaks)]))

    def points(self, kept: NDArray | slice) -> "Curve":
        errors = None if self.errors is None else self.errors[kept]
        return replace(self, x=self.x[kept], y=self.y[kept], errors=errors)

    def named(self, name: str, color: str, *, dashed: bool = False) -> "Curve":
        return replace(self, name=name, color=color, is_dashed=dashed)

    def mean(self) -> "Curve":
        """The exponential mean, over a hundredth of the points or a tenth of those yet seen."""
        total = weight = 0.0
        means = np.empty_like(self.y)
        for i, value in enumerate(self.y):
            decay = 1 - 1 / max(1.0, min(len(self.y) / 100, i / 10))
            total, weight = decay * total + value, decay * weight + 1
            means[i] = total / weight
        return replace(self, name=f"{self.name}, smoothed", y=means)


@dataclass(frozen=True)
class Picture:
    """Curves on the same axes, with values that are known beforehand as dashed lines.

    The caption is HTML, the label plain text and another one for each picture of a page. `scale` is that of the values:
    "linear", "log", or "either", which the reader chooses.
    """

    caption: str
    label: str
    curves: Sequence[Curve]
    references: Mapping[str, float] = field(default_factory=dict)
    scale: str = "linear"
    from_zero: bool = False
    is_small: bool = False
    decimals: str = "{x:g}"


@dataclass(frozen=True)
class _View:
    """One drawing of a picture. `names`: the views of the page that show it."""

    names: str
    log_x: bool = False
    log_y: bool = False
    first: float | None = None  # the curves before it are not drawn


def draw(picture: Picture, x_name: str, unit: str, last: float) -> str:
    """A <figure>: the picture in every view, from 0 to `last`, and its values for the page's script."""
    curves = [curve.thinned() for curve in picture.curves if curve.x.size]
    if not curves:
        return ""
    positive = all(curve.y.min() > 0 for curve in curves)
    log, either = (picture.scale == scale and positive for scale in ("log", "either"))
    if either:
        views = [_View("linear"), _View("log-loss", log_y=True), _View("log-x", log_x=True)]
        views.append(_View("log-both", log_x=True, log_y=True))
    else:
        views = [_View("linear log-loss", log_y=log), _View("log-x log-both", log_x=True, log_y=log)]
    views.append(_View("half", log_y=log, first=last / 2))
    drawings = "".join(_svg(picture, curves, view, x_name, last) for view in views)
    values = [{"name": c.name, "color": c.color, "x": _numbers(c.x), "y": _numbers(c.y)} for c in curves]
    data = json.dumps({"unit": unit, "curves": values}, separators=(",", ":")).replace("<", "\\u003c")
    return (
        f'<figure>\n<figcaption>{picture.caption}</figcaption>\n<div class="plots">\n{drawings}</div>\n'
        f'<script type="application/json">{data}</script>\n</figure>\n'
    )


def _numbers(values: NDArray[np.float64]) -> list[float]:
    return [int(v) if v == int(v) else float(f"{v:.6g}") for v in values.tolist()]


def _svg(picture: Picture, curves: Sequence[Curve], view: _View, x_name: str, last: float) -> str:
    try:
        from matplotlib import style
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Error(f"expected matplotlib for the pictures, got: {error}; pip install 'gpt2wds[plot]'") from error
    buffer = io.StringIO()
    width = 3.9 if picture.is_small else 4.6  # inches; less makes larger text on the page
    # The salt also keeps ids apart in the page.
    with style.context(["default", {**_STYLE, "svg.hashsalt": f"{picture.label} {view.names}"}]):
        figure = Figure(figsize=(width, 0.64 * width), layout="constrained")
        axes = figure.add_subplot()
        for curve in curves:
            _plot(axes, curve, view)
        if view.first is not None:
            _leave_out_peaks(axes, curves, view.first)
        _scale_x(axes, view, x_name, last)
        labels = _refer(axes, picture.references, view)
        _scale_y(axes, picture, view)
        engine = figure.get_layout_engine()
        assert engine is not None
        engine.execute(figure)
        figure.set_layout_engine(None)  # laid out once: that is most of the time; "none" would draw twice
        if labels:
            _spread(axes, labels)
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    body = re.sub('<g id="[^"]*"', "<g", buffer.getvalue())  # matplotlib's names repeat in every picture
    body = re.sub(r'(?<= )(d|x|y)="[^"]*"', lambda found: re.sub(r"\.(\d\d)\d+", r".\1", found[0]), body)
    head = re.search('<svg [^>]*(viewBox="[^"]*")[^>]*>', body)
    assert head
    box = axes.get_window_extent()
    places = [box.x0, box.x1, figure.bbox.height - box.y1, figure.bbox.height - box.y0, *axes.get_xlim(), view.log_x]
    svg = (
        f'<svg class="{view.names}" {head[1]} role="img" aria-label="{as_html(picture.label)}" '
        f'data-axes="{" ".join(f"{place:.8g}" for place in places)}">{body[head.end() :]}'
    )
    for variable, color in _COLORS.items():
        svg = svg.replace(color, f"var(--{variable})")
    return svg


def _plot(axes: "Axes", curve: Curve, view: _View) -> None:
    least = view.first if view.first is not None else np.nextafter(0, 1) if view.log_x else -np.inf
    begin = int(np.searchsorted(curve.x, least))
    curve = curve.points(slice(begin, None))
    if not curve.x.size:
        return
    color, points = _COLORS[curve.color], len(curve.x) < 40
    if curve.errors is not None:
        low, high = curve.y - curve.errors, curve.y + curve.errors
        axes.fill_between(curve.x, low, high, color=color, alpha=0.2, linewidth=0)
    axes.plot(
        curve.x, curve.y, color=color, marker="o" if points else "", linestyle="--" if curve.is_dashed else "-",
        alpha=0.3 if curve.is_faint else None, linewidth=0.8 if curve.is_faint else None,
    )  # fmt: skip


def _leave_out_peaks(axes: "Axes", curves: Sequence[Curve], first: float) -> None:
    """Let the outermost hundredth of faint values from `first` on lie beyond the axes: a spike flattens the rest."""
    parts = [(curve, curve.y[curve.x >= first]) for curve in curves]
    ends = [np.percentile(part, [1, 99] if curve.is_faint else [0, 100]) for curve, part in parts if part.size]
    if ends and any(curve.is_faint for curve in curves):
        axes.dataLim.intervaly = np.min(ends), np.max(ends)


def _scale_x(axes: "Axes", view: _View, x_name: str, last: float) -> None:
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    last = max(last, 1)
    axes.set_xlabel(x_name)
    if view.log_x:
        drawn = [float(np.min(line.get_xdata())) for line in axes.lines]
        first = min(drawn, default=1.0)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(0.9 * first, 1.1 * max(last, 10 * first))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 2.5, 5, 10]))
        first = view.first or 0
        axes.set_xlim(first - 0.02 * (last - first), last + 0.02 * (last - first))
    shown = EngFormatter(sep="")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: shown(x).replace("G", "B")))


def _scale_y(axes: "Axes", picture: Picture, view: _View) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    if picture.from_zero:
        axes.set_ylim(bottom=0)
    if view.log_y:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        ratio = high / low
        subs = (1, 2, 3, 4, 5, 7) if ratio < 20 else (1, 2, 5) if ratio < 1000 else (1,)
        axes.yaxis.set_major_locator(MaxNLocator(6) if ratio < 3 else LogLocator(subs=subs))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(picture.decimals)


def _refer(axes: "Axes", references: Mapping[str, float], view: _View) -> "list[Annotation]":
    """Dashed lines, with labels right of the axes, where no curve is. Lowest first."""
    low, high = axes.get_ylim()
    span = np.inf if view.first is None else high - low  # a part is not made small for a line that is far away
    labels = []
    for label, value in sorted(references.items(), key=lambda item: item[1]):
        if low - span / 2 < value < high + span / 2:
            axes.axhline(value, color=_SOFT, linewidth=0.9, dashes=(4, 3), zorder=1.5)
            labels.append(
                axes.annotate(
                    label, (1, value), xycoords=axes.get_yaxis_transform(), xytext=(6, 0), textcoords="offset points",
                    va="center", fontsize=8, linespacing=1.05, annotation_clip=False,
                )
            )  # fmt: skip
    return labels


def _spread(axes: "Axes", labels: "Sequence[Annotation]") -> None:
    """Move labels apart that would lie on one another, as little as it takes, and within the height of the axes."""
    boxes = [label.get_window_extent() for label in labels]
    middles = np.array([(box.y0 + box.y1) / 2 for box in boxes])
    steps = np.cumsum([0.0] + [(a.height + b.height) / 2 + 2 for a, b in itertools.pairwise(boxes)])
    # Labels in contact move as one block, to where its members' mean is.
    blocks: list[list[float]] = []
    for offset in middles - steps:
        blocks.append([offset])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    placed = np.concatenate([[np.mean(block)] * len(block) for block in blocks])
    frame = axes.get_window_extent()
    bottom, top = frame.y0 + boxes[0].height / 2, frame.y1 - boxes[-1].height / 2 - steps[-1]
    placed = np.clip(placed, bottom, max(bottom, top)) + steps
    for label, moved in zip(labels, placed - middles, strict=True):
        label.set_position((6, float(moved)))
