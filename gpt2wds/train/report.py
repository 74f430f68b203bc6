"""Run directories as one HTML page that needs nothing else: no font, no address, no network.

The same run directories give the same bytes. What is drawn is in curves.py, how in figures.py, the page in page.py.
"""

import json
import math
import statistics
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .. import files
from ..dataset.manifest import FILES
from ..errors import Error
from ..rows import Facts, Row, number
from . import page
from .curves import VALIDATION_SET, X_NAMES, Run, legend, pictures, set_name
from .figures import draw
from .rundir import RunDirectory

LABELS = {"acc": "acc", "acc_norm_tokens": "acc_norm by tokens",
          "acc_norm_characters": "acc_norm by characters", "acc_norm_bytes": "acc_norm by bytes"}  # fmt: skip


def write_report(*run_dirs: str | Path, out: str | Path | None = None, by: str = "step") -> Path:
    """Write the page of a run, finished or not, or of several beside each other, and return its path.

    Pictures go by "step" or "tokens". Without `out` the page of one run is report.html in its directory, that of
    several report.html in the current one.

    Raises Error where there is no run, no step in it, or no matplotlib to draw with.

    >>> write_report("runs/a", "runs/b", by="tokens")  # doctest: +SKIP
    PosixPath('report.html')
    """
    if not run_dirs:
        raise Error("expected run directories, got none; give at least one")
    if by not in X_NAMES:
        raise Error(f"by: expected {' or '.join(X_NAMES)}, got {by!r}; take one of them")
    runs = [_read(Path(path), name, by) for path, name in zip(run_dirs, _short_names(run_dirs), strict=True)]
    if out is None:
        out = Path(run_dirs[0], "report.html") if len(runs) == 1 else "report.html"
    text = _page_of_one(runs[0], by) if len(runs) == 1 else _page_of_several(runs, by)
    if Path(out).is_dir():
        raise Error(f"out: expected a file to write, got the directory {out}")
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    files.remove_dead(Path(out).parent)  # of reports that were stopped
    files.replace(Path(out), text)
    return Path(out)


def _short_names(run_dirs: Sequence[str | Path]) -> list[str]:
    """What tells the runs apart. Raises Error where one is given twice."""
    parts = [Path(path).resolve().parts for path in run_dirs]
    for path, own in zip(run_dirs, parts, strict=True):
        if parts.count(own) > 1:
            raise Error(f"expected different run directories, got {path} more than once; leave one out")
    return _ends(parts)


def _ends(paths: Sequence[Sequence[str]]) -> list[str]:
    """The last components of each path, as many as it takes to tell all apart."""
    for count in range(1, max(map(len, paths)) + 1):
        names = ["/".join(own[-count:]) for own in paths]
        if len(set(names)) == len(names):
            break
    return names


def _read(path: Path, name: str, by: str) -> Run:
    run = RunDirectory(path)
    if not path.is_dir():
        raise Error(f"expected a run directory at {path}, got no directory; check the path (`run.dir`)")
    if not run.metrics.exists():
        if (path / "manifest.json").exists():
            raise Error(f"expected a run directory, got the dataset {path}; gpt2wds-shard info {path} tells of it")
        if (path / "model.safetensors").exists():
            raise Error(f"expected a run directory, got the weights {path}; give the directory that gpt2wds-train made")
    rows = run.read_metrics()
    if not rows:
        raise Error(f"expected training steps in {run.metrics}, got none; start the run, or wait for its step 0")
    if by == "tokens" and any("tokens" not in row for row in rows):
        raise Error(f"expected tokens in every row of {run.metrics}, got rows without; compare by step")
    config = run.config.read_text(encoding="utf-8", errors="replace") if run.config.exists() else ""
    return Run(name, rows, run.read_facts(), config)


def _page_of_one(run: Run, by: str) -> str:
    body = _unfinished(run, "Unfinished")
    setting = [(name, value) for name, value in _setting(run).items() if name != "parameters"]  # below the title
    body += f'<div class="grid">\n{page.table(list(_results(run).items()))}{page.table(setting)}'
    body += f"</div>\n{_pictures([run], by)}{_samples(run.rows)}<h2>Configuration</h2>\n{_config(run, 'config.toml')}"
    return page.document(_title(run), _size(run), body)


def _not_compared(runs: list[Run]) -> str:
    """Which runs' validation losses are not of the same text, or not read the same way, and why."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for run in runs:
        groups.setdefault(run.validation_set(), []).append(run.name)
    if len(groups) == 1:
        return ""
    differing = dict.fromkeys(
        word for word, *values in zip(VALIDATION_SET.values(), *groups, strict=True) if len(set(values)) > 1
    )
    within = " | ".join(", ".join(names) for names in groups.values())
    return page.notice(
        f"Validation losses do not compare between {within}: these runs differ in {' and '.join(differing)}."
    )


def _page_of_several(runs: list[Run], by: str) -> str:
    titles = {_title(run) for run in runs}
    body = "".join(_unfinished(run, f"{run.name} is unfinished") for run in runs)
    body += _not_compared(runs)
    if by == "step" and len({run.facts.get("tokens_per_step") for run in runs}) > 1:
        body += page.notice("A step is not the same number of tokens in all runs. --by tokens compares them by tokens.")
    names = [run.name for run in runs]
    body += _pictures(runs, by)
    told = _side_by_side([_results(run) | _setting(run) for run in runs])
    body += f"<h2>Results</h2>\n{page.run_table(names, told)}"
    differing = _differences(runs)
    body += "<h2>What their configurations differ in</h2>\n"
    body += page.run_table(names, differing) if differing else "<p>Nothing but the directory.</p>\n"
    body += "<h2>Configurations</h2>\n" + "".join(_config(run, run.name) for run in runs)
    title = f"{len(runs)} runs" + (f" of {titles.pop()}" if len(titles) == 1 else "")
    return page.document(title, ", ".join(names), body)


def _title(run: Run) -> str:
    """What the run read: each dataset's corpus, or its directory where the corpus does not tell which it is."""
    datasets = [(one["corpus"], one["path"]) for one in run.facts.get("datasets", ())]
    datasets = datasets or [(run.facts.get("corpus") or "unnamed text", _data_path(run))]
    corpora = [corpus for corpus, _ in datasets]
    tells = [corpus != FILES and corpora.count(corpus) == 1 for corpus in corpora]
    paths = [path.rstrip("./").split("/") for (_, path), told in zip(datasets, tells, strict=True) if not told]
    names = iter(_ends(paths) if paths else [])
    return f"GPT-2 on {' + '.join(c if told else next(names) or c for c, told in zip(corpora, tells, strict=True))}"


def _data_path(run: Run) -> str:
    """Of a run of one dataset; "" where its configuration does not tell."""
    with suppress(ValueError, LookupError, TypeError):
        path = tomllib.loads(run.config)["data"]["path"]
        return str(path[0]["path"] if isinstance(path, list) else path)
    return ""


def _size(run: Run) -> str:
    parameters = run.facts.get("parameters")
    return f"{parameters:,} parameters" if parameters else "number of parameters not recorded"


def _unfinished(run: Run, begin: str) -> str:
    step, max_steps = run.rows[-1]["step"], run.facts.get("max_steps")
    if max_steps is None or step >= max_steps:
        return ""
    reached = f"step {step:,} of {max_steps:,}, {step / max_steps:.1%}"
    return page.notice(f"{begin}: {reached}. The command that made this page renews it.")


def _pictures(runs: list[Run], by: str) -> str:
    last = max(number(run.rows[-1], by) or 0 for run in runs)
    large, small = ("".join(draw(each, X_NAMES[by], by, last) for each in group) for group in pictures(runs, by))
    if not large and not small:
        return ""
    head = "<h2>Pictures</h2>\n" + page.view_switch("steps" if by == "step" else by)
    keys = legend(runs) if len(runs) > 1 else ""
    grids = f'<div class="grid">\n{large}</div>\n<div class="grid small">\n{small}</div>\n'
    return f"<section>\n{head}{keys}{grids}</section>\n"


def _results(run: Run) -> dict[str, str]:
    """Lines of the table of results; what was not measured has none."""
    max_steps = run.facts.get("max_steps")
    of = f" of {max_steps:,}" if max_steps is not None else ""
    lines = {"last step": f"{run.rows[-1]['step']:,}{of}"}
    for name, label in (("train_loss", "training loss"), ("val_loss", "validation loss")):
        lines |= _loss(run.rows, name, label)
    for result in run.results()[-1:]:
        truncated = f", {result['truncated']:,} truncated" if result.get("truncated") else ""
        lines["multiple choice, last"] = f"{set_name(result)}{truncated}, at step {result['step']:,}"
        for key, label in LABELS.items():
            if (value := number(result, key)) is not None:
                error = number(result, f"{key}_stderr")
                lines[label] = f"{value:.4f}" + (f" ± {error:.4f}" if error is not None else "")
    return lines


def _loss(rows: list[Row], name: str, label: str) -> dict[str, str]:
    # metrics.jsonl has null for NaN, and no member for what was not measured.
    steps = [row["step"] for row in rows if name in row and (row["step"] > 0 or number(row, name) is not None)]
    values = {row["step"]: value for row in rows if (value := number(row, name)) is not None}
    bad = [step for step in steps if step not in values]
    lines = {}
    if bad:
        lines[f"{label}, not a number"] = f"{len(bad):,} times, first at step {bad[0]:,}, last at {bad[-1]:,}"
    if not values:
        return lines
    last = max(values)
    if name == "val_loss":
        best = min(values, key=values.__getitem__)
        lines[f"{label}, best"] = f"{values[best]:.4f} at step {best:,}"
    since = f"; from step {min(s for s in bad if s > last):,} on not a number" if bad and bad[-1] > last else ""
    # The training loss of the last step needs no step beside it.
    place = f" at step {last:,}" if name == "val_loss" or last < rows[-1]["step"] else ""
    lines[f"{label}, last"] = f"{values[last]:.4f}{place}{since}"
    if name == "val_loss":
        lines["perplexity, last"] = f"{math.exp(values[last]):,.2f}" if values[last] < 50 else "beyond e^50"
    return lines


def _setting(run: Run) -> dict[str, str]:
    """Lines of the table of what the run was given."""
    rates = [row["tokens_per_second"] for row in run.rows if row.get("tokens_per_second") is not None]
    facts, tokens = run.facts, run.rows[-1].get("tokens")
    corpus_tokens, val_split = facts.get("train_tokens"), facts.get("val_split_tokens")
    datasets = _datasets(run)
    epochs = f", {tokens / corpus_tokens:.2f} epochs" if tokens is not None and corpus_tokens and not datasets else ""
    used = facts.get("val_tokens")
    of_split = f" of the split's {val_split:,}" if val_split is not None else ""
    candidates = {
        "tokens trained on": f"{tokens:,}{epochs}" if tokens is not None else None,
        "tokens per second, median": f"{statistics.median(rates):,.0f}" if rates else None,
        "parameters": facts.get("parameters"), "begun from": _origin(facts), "train split, tokens": corpus_tokens,
        "validation text, tokens used": f"{used:,}{of_split}" if used is not None else None,
        "documents": "read singly, in training and validation" if facts.get("document_masking") else None,
        "tokens per step": facts.get("tokens_per_step"), "sequence length": facts.get("seq_len"),
        "ranks": facts.get("world_size"), "device": facts.get("device"), "torch": facts.get("torch"),
        "gpt2wds": facts.get("version"), "dataset": facts.get("dataset_id"),
    }  # fmt: skip
    return {k: f"{v:,}" if isinstance(v, int) else str(v) for k, v in candidates.items() if v is not None} | datasets


def _datasets(run: Run) -> dict[str, str]:
    """A line for each of several datasets: its part of a step, how often it was read, its own validation loss."""
    lines, step = {}, run.rows[-1]["step"]
    losses: list[float | None] = next((row["val_losses"] for row in reversed(run.rows) if "val_losses" in row), [])
    for place, one in enumerate(run.facts.get("datasets", ())):
        own, seq_len = one["sequences_per_step"], run.facts["seq_len"]
        line = (
            f"weight {one['weight']:g}, {own * seq_len / run.facts['tokens_per_step']:.2%} of a step, "
            f"{step / one['steps_per_epoch']:.2f} epochs of {one['train_tokens']:,} tokens"
        )
        loss = losses[place] if place < len(losses) else None
        lines[f"of {one['path']}"] = line + (f"; validation loss, last, {loss:.4f}" if loss is not None else "")
    return lines


def _origin(facts: Facts) -> str | None:
    """What the run's first weights were: a path or name, or an object with the path and more about it."""
    origin = facts.get("origin")
    if isinstance(origin, dict):
        names = {"path": "", "sha256": "SHA-256 of its weights "}
        return ", ".join(f"{names.get(k, f'{k} ')}{v}" for k, v in origin.items() if v is not None)
    return str(origin) if origin else None


def _side_by_side(columns: list[dict[str, str]]) -> dict[str, list[str]]:
    """One line per name in any of the columns, with each column's value."""
    return {name: [column.get(name, "–") for column in columns] for column in columns for name in column}


def _differences(runs: list[Run]) -> dict[str, list[str]]:
    lines = _side_by_side([_configured(run) for run in runs])
    return {name: values for name, values in lines.items() if name != "run.dir" and len(set(values)) > 1}


def _configured(run: Run) -> dict[str, str]:
    """Every `section.key` of a configuration and its value, as text."""
    try:
        sections = tomllib.loads(run.config)
    except ValueError as error:
        raise Error(f"run {run.name}: expected TOML in config.toml, got {error}; restore it") from None
    pairs = {f"{section}.{key}": value for section, keys in sections.items() for key, value in _members(keys)}
    return {key: value if isinstance(value, str) else json.dumps(value, default=str) for key, value in pairs.items()}


def _members(keys: Any) -> list[tuple[str, Any]]:
    return list(keys.items()) if isinstance(keys, dict) else [("", keys)]


def _config(run: Run, summary: str) -> str:
    return f"<details><summary>{page.as_html(summary)}</summary>\n<pre>\n{page.as_html(run.config)}</pre></details>\n"


def _samples(rows: list[Row]) -> str:
    for row in reversed(rows):
        if row.get("samples"):
            texts = []
            for sample in row["samples"]:
                text, prompt = sample.get("text") or "", sample.get("prompt") or ""
                start = prompt if text.startswith(prompt) else ""
                # HTML drops a line end right after <pre>: one to drop, so that the text keeps its own.
                texts.append(f"<pre>\n<b>{page.as_html(start)}</b>{page.as_html(text[len(start) :])}</pre>\n")
            return f"<h2>Samples at step {row['step']:,}</h2>\n<p>The prompt is bold.</p>\n{''.join(texts)}"
    return ""
