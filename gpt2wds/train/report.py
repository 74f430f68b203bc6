"""A run directory as one HTML page that needs nothing else: no script, no font, no address.

The same run directory gives the same bytes. Its pictures are in figures.py.
"""

import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from .. import files
from ..errors import Error
from .figures import (
    RATES,
    Row,
    as_html,
    choice_figure,
    loss_figure,
    measured,
    rate_figure,
    series,
    set_name,
)
from .rundir import RunDirectory

if TYPE_CHECKING:
    pass

SCORES = {"acc": "acc", "acc_norm_tokens": "acc_norm by tokens",
          "acc_norm_characters": "acc_norm by characters", "acc_norm_bytes": "acc_norm by bytes"}  # fmt: skip
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
    rows, facts = run.read_metrics(), run.read_facts()
    if not rows:
        raise Error(f"expected training steps in {run.metrics}, got none; start the run, or wait for its step 0")
    config = run.config.read_text(encoding="utf-8", errors="replace") if run.config.exists() else ""
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
    notice = ""
    if max_steps is not None and step < max_steps:
        notice = (
            f'<p class="unfinished">Unfinished: step {step:,} of {max_steps:,}, {step / max_steps:.1%}. '
            "The command that made this page renews it.</p>\n"
        )
    large = loss_figure(rows, facts) + choice_figure(rows)
    small = "".join(rate_figure(rows, name) for name in RATES)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{as_html(title)}, {subtitle}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        f"<h1>{as_html(title)}</h1>\n<p>{subtitle}</p>\n{notice}"
        f'<div class="grid">\n{_table(_results(rows, facts))}{_table(_setting(rows, facts))}</div>\n'
        f'<div class="grid">\n{large}</div>\n<div class="grid small">\n{small}</div>\n'
        f"{_samples(rows)}<h2>Configuration</h2>\n"
        f"<details><summary>config.toml</summary>\n<pre>\n{as_html(config)}</pre></details>\n</body>\n</html>\n"
    )


def _results(rows: list[Row], facts: Row) -> list[tuple[str, str]]:
    """Name and value of each line of the first table; what was not measured has none."""
    max_steps = facts.get("max_steps")
    of = f" of {max_steps:,}" if max_steps is not None else ""
    lines = [("last step", f"{rows[-1]['step']:,}{of}")]
    for name, label in (("train_loss", "training loss"), ("val_loss", "validation loss")):
        # metrics.jsonl has null for a number that is none, and no member for what was not measured.
        bad = [row["step"] for row in rows if name in row and row[name] is None and row["step"] > 0]
        if bad:
            lines.append(
                (f"{label}, not a number", f"{len(bad):,} times, first at step {bad[0]:,}, last at {bad[-1]:,}")
            )
    (_, train), (steps, val) = series(rows, "train_loss"), series(rows, "val_loss")
    if train.size:
        lines.append(("training loss, last", f"{train[-1]:.4f}"))
    if val.size:
        lines.append(("validation loss, best", f"{val.min():.4f} at step {steps[val.argmin()]:,.0f}"))
        lines.append(("validation loss, last", f"{val[-1]:.4f} at step {steps[-1]:,.0f}"))
        lines.append(("perplexity, last", f"{math.exp(val[-1]):,.2f}" if val[-1] < 50 else "beyond e^50"))
    for result in measured(rows)[-1:]:
        truncated = f", {result['truncated']:,} truncated" if result.get("truncated") else ""
        lines.append(("multiple choice, last", f"{set_name(result)}{truncated}, at step {result['step']:,}"))
        for key, label in SCORES.items():
            if result.get(key) is not None:
                error = result.get(f"{key}_stderr")
                lines.append((label, f"{result[key]:.4f}" + (f" ± {error:.4f}" if error is not None else "")))
    return lines


def _setting(rows: list[Row], facts: Row) -> list[tuple[str, str]]:
    """Name and value of each line of the second table."""
    _, rates = series(rows, "tokens_per_second")
    tokens, corpus_tokens = rows[-1].get("tokens"), facts.get("train_tokens")
    epochs = f", {tokens / corpus_tokens:.2f} epochs" if tokens is not None and corpus_tokens else ""
    candidates = {
        "tokens trained on": f"{tokens:,}{epochs}" if tokens is not None else None,
        "tokens per second, median": f"{statistics.median(rates):,.0f}" if rates.size else None,
        "train split, tokens": corpus_tokens, "validation text, tokens used": facts.get("val_tokens"),
        "tokens per step": facts.get("tokens_per_step"), "sequence length": facts.get("seq_len"),
        "ranks": facts.get("world_size"), "device": facts.get("device"), "torch": facts.get("torch"),
        "gpt2wds": facts.get("version"), "dataset": facts.get("dataset_id"), "began from": _origin(facts),
    }  # fmt: skip
    return [(k, f"{v:,}" if isinstance(v, int) else str(v)) for k, v in candidates.items() if v is not None]


def _origin(facts: Row) -> str | None:
    origin = facts.get("origin")
    if not origin:
        return None
    step = "" if origin.get("step") is None else f", step {origin['step']:,}"
    return f"{origin.get('path')}{step}, SHA-256 of its weights {origin.get('sha256')}"


def _table(lines: list[tuple[str, str]]) -> str:
    cells = "".join(f'<tr><th scope="row">{as_html(k)}</th><td>{as_html(v)}</td></tr>\n' for k, v in lines)
    return f"<table>\n{cells}</table>\n"


def _samples(rows: list[Row]) -> str:
    for row in reversed(rows):
        if row.get("samples"):
            texts = []
            for sample in row["samples"]:
                text, prompt = sample.get("text") or "", sample.get("prompt") or ""
                start = prompt if text.startswith(prompt) else ""
                # HTML drops a line end right after <pre>: one to drop, so that the text keeps its own.
                texts.append(f"<pre>\n<b>{as_html(start)}</b>{as_html(text[len(start) :])}</pre>\n")
            return f"<h2>Samples at step {row['step']:,}</h2>\n<p>The prompt is bold.</p>\n{''.join(texts)}"
    return ""
