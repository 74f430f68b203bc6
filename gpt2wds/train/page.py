"""The HTML around a report: escaping, tables, style, and a script that shows a picture's values under the pointer.

The page asks for nothing over a network, and its own policy forbids it. Without scripts only the values are missing.
"""

import base64
import hashlib
import html
import re
from collections.abc import Sequence

VIEWS = {"linear": "linear", "log-loss": "log loss", "log-x": "log {x}", "log-both": "log both", "half": "last half"}
RUN_COLORS = 8
_CSS = """
:root { color-scheme: light dark; --paper: #fdfdfb; --ink: #24272b; --soft: #646a73; --rule: #dcdee2;
  --smooth: #2463a8; --val: #c2500f; --run0: #2463a8; --run1: #c2500f; --run2: #2b7d4b;
  --run3: #8a3f94; --run4: #9a7400; --run5: #0c8189; --run6: #b12a48; --run7: #5c6068; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181c; --ink: #e4e6ea; --soft: #9aa1ac; --rule: #363b44;
  --smooth: #7db3ef; --val: #f2995c; --run0: #7db3ef; --run1: #f2995c; --run2: #72c894;
  --run3: #d498dd; --run4: #dcbc58; --run5: #5fccd4; --run6: #f2879b; --run7: #b0b6c0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 2rem clamp(1rem, 4vw, 3rem) 4rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0; font-size: clamp(1.4rem, 4vw, 2rem); line-height: 1.2; }
h2 { margin: 2.5rem 0 .75rem; font-size: 1.15rem; }
p { margin: .4rem 0; color: var(--soft); }
.notice { margin: 1rem 0; padding-left: .8rem; border-left: 3px solid var(--val); color: var(--ink); }
.grid { display: grid; gap: 2rem 3rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr));
  margin-top: 1.5rem; align-items: start; }
.small { gap: 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem 0; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top; }
th { width: 45%; padding-right: 1rem; font-weight: normal; color: var(--soft); }
.scroll { margin-top: 1.5rem; overflow-x: auto; }
.runs th, .runs td { width: auto; min-width: 9rem; padding-right: 1.2rem; }
.runs thead th { color: var(--ink); font-weight: 600; }
.legend { position: sticky; top: 0; z-index: 2; display: flex; flex-wrap: wrap; gap: .2rem 1.5rem; margin: 1rem 0 0;
  padding: .5rem 0; background: var(--paper); color: var(--ink); }
.key::before { content: ""; display: inline-block; width: 1.2em; margin-right: .4em; vertical-align: .25em;
  border-top: 3px solid var(--color); }
.dashed::before { border-top-style: dashed; }
.view { position: absolute; opacity: 0; }
.view + label { margin-right: 1rem; color: var(--soft); white-space: nowrap; cursor: pointer; }
.view + label::before { content: "\\25cb\\a0"; }
.view:checked + label { color: var(--ink); }
.view:checked + label::before { content: "\\25cf\\a0"; color: var(--smooth); }
.view:focus-visible + label { outline: 2px solid var(--smooth); outline-offset: 2px; }
figure { margin: 0; min-width: 0; max-width: 46rem; }
figcaption { margin-bottom: .5rem; font-weight: 600; line-height: 1.35; }
figcaption small { display: block; font-size: .85rem; font-weight: normal; color: var(--soft); }
figcaption .key { margin-right: .8em; }
.plots { position: relative; }
svg { display: none; width: 100%; max-width: 100%; height: auto; }
svg text { font-family: system-ui, sans-serif !important; }
.guide { position: absolute; width: 1px; background: var(--soft); pointer-events: none; }
.values { position: absolute; top: 0; z-index: 1; width: max-content; max-width: 85%; padding: .3rem .6rem;
  border: 1px solid var(--rule); border-radius: 4px; background: var(--paper); font-size: .8rem; line-height: 1.4;
  opacity: .93; pointer-events: none; }
.values table { width: auto; } .values th, .values td { width: auto; padding: 0 .8rem 0 0; border: 0; }
.values td { text-align: right; white-space: nowrap; } .values td:last-child { padding: 0; color: var(--soft); }
pre { margin: .75rem 0; padding: .8rem 1rem; border: 1px solid var(--rule); border-radius: 4px; font-size: .85rem;
  white-space: pre-wrap; }
summary { cursor: pointer; }
@media print { .legend { position: static; } }
""" + "".join(f"#{view}:checked ~ .grid svg.{view} {{ display: block; }}\n" for view in VIEWS)
_SCRIPT = """
"use strict";
const made = (tag, name, text) => {
  const node = document.createElement(tag);
  node.className = name;
  node.textContent = text;
  return node;
};
// The point of a curve that is nearest to x; its xs rise.
const nearest = (xs, x) => {
  let low = 0, high = xs.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle + 1; else high = middle;
  }
  return low > 0 && x - xs[low - 1] < xs[low] - x ? low - 1 : low;
};
const shown = value => value.toLocaleString("en", {maximumSignificantDigits: 6});
for (const figure of document.querySelectorAll("figure")) {
  const {unit, curves} = JSON.parse(figure.querySelector("script").textContent);
  const plots = figure.querySelector(".plots"), guide = made("div", "guide", ""), box = made("div", "values", "");
  const hide = () => { guide.hidden = box.hidden = true; };
  const show = event => {
    const svg = [...plots.querySelectorAll("svg")].find(each => each.getClientRects().length);
    if (!svg) return hide();
    const place = svg.getBoundingClientRect(), scale = place.width / svg.viewBox.baseVal.width;
    const [left, right, top, bottom, first, last, isLog] = svg.dataset.axes.split(" ").map(Number);
    const at = ((event.clientX - place.left) / scale - left) / (right - left);
    if (at < -0.02 || at > 1.02) return hide();
    const x = isLog ? first * (last / first) ** at : first + at * (last - first);
    const table = document.createElement("table");
    for (const curve of curves) {
      const i = nearest(curve.x, x), row = table.insertRow(), name = made("th", "", ""), key = made("span", "key", "");
      key.style.setProperty("--color", `var(--${curve.color})`);
      key.append(curve.name);
      name.append(key);
      row.append(name, made("td", "", shown(curve.y[i])), made("td", "", `${unit} ${curve.x[i].toLocaleString("en")}`));
    }
    box.replaceChildren(table);
    guide.hidden = box.hidden = false;
    const pixel = (left + at * (right - left)) * scale;
    guide.style.cssText = `left: ${pixel}px; top: ${top * scale}px; height: ${(bottom - top) * scale}px`;
    box.style.left = "0";
    const width = box.offsetWidth, room = plots.clientWidth - width;
    const beside = pixel < plots.clientWidth / 2 ? pixel + 12 : pixel - width - 12;
    box.style.left = `${Math.max(0, Math.min(room, beside))}px`;
  };
  hide();
  plots.append(guide, box);
  plots.addEventListener("pointermove", show);
  plots.addEventListener("pointerdown", show);
  plots.addEventListener("pointerleave", hide);
}
"""
_HASH = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
_POLICY = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{_HASH}'"


def as_html(value: object) -> str:
    """Any text as HTML. Characters HTML forbids become U+FFFD: a young model samples any bytes."""
    return html.escape(re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]", "\ufffd", str(value)))


def document(title: str, subtitle: str, body: str) -> str:
    """A whole page; title and subtitle are plain text, the body is HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{as_html(title)}, {as_html(subtitle)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        f"<h1>{as_html(title)}</h1>\n<p>{as_html(subtitle)}</p>\n{body}<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def notice(text: str) -> str:
    return f'<p class="notice">{as_html(text)}</p>\n'


def key(name: str, color: str, *, dashed: bool = False) -> str:
    """A name behind a dash of its colour, which is one of the page's CSS variables."""
    return f'<span class="key{" dashed" * dashed}" style="--color: var(--{color})">{as_html(name)}</span>'


def run_key(name: str, number: int) -> str:
    """The name of one of several runs, behind its colour."""
    return key(name, f"run{number % RUN_COLORS}", dashed=number % (2 * RUN_COLORS) >= RUN_COLORS)


def table(lines: Sequence[tuple[str, str]]) -> str:
    """Names and their values."""
    cells = "".join(f'<tr><th scope="row">{as_html(k)}</th><td>{as_html(v)}</td></tr>\n' for k, v in lines)
    return f"<table>\n{cells}</table>\n"


def run_table(names: Sequence[str], lines: dict[str, list[str]]) -> str:
    """Names and their values, one column per run."""
    head = "".join(f'<th scope="col">{run_key(name, number)}</th>' for number, name in enumerate(names))
    rows = "".join(
        f'<tr><th scope="row">{as_html(k)}</th>{"".join(f"<td>{as_html(v)}</td>" for v in values)}</tr>\n'
        for k, values in lines.items()
    )
    return f'<div class="scroll"><table class="runs">\n<thead><tr><td></td>{head}</tr></thead>\n{rows}</table></div>\n'


def view_switch(x: str) -> str:
    """Buttons that choose how all pictures are scaled: without a script, so they work where none may run."""
    buttons = [
        f'<input class="view" type="radio" name="view" id="{view}"{" checked" * (view == "linear")}>'
        f'<label for="{view}">{text.format(x=x)}</label>\n'
        for view, text in VIEWS.items()
    ]
    return "".join(buttons)
