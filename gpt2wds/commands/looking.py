"""What can be done with a finished dataset directory: info, verify, cat, export."""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypedDict

import click

from ..dataset.directory import COUNTS, Dataset
from ..dataset.export import LLMC, NANOGPT, export_dataset
from ..dataset.manifest import MULTIPLE_CHOICE, SPLITS
from ..dataset.prompts import Example
from ..dataset.verify import verify_dataset, verify_shard
from ..errors import Error, NoRanges, Unanswered, counted
from ..tokenizer import load_tokenizer
from .audit import verify_with_sources
from .common import LocalPath
from .output import ProgressLine, print_json, say

SOURCES_SHOWN = 20  # of a split; --json has them all
DIRECTORY = click.argument("directory", metavar="DIR")


class SourceRow(TypedDict):
    """What a split has of a source: documents, if they are known, and so many of what its spans count."""

    split: str
    source: str
    documents: int | None
    unit: str  # "row" or "byte"
    count: int


def totals(dataset: Dataset) -> str:
    parts = []
    for split in SPLITS:
        if dataset.shards(split):
            documents = "example" if dataset.kind == MULTIPLE_CHOICE else "document"
            shards = counted(len(dataset.shards(split)), "shard")
            amounts = [counted(dataset.total(split, f"{noun}s"), noun) for noun in ("document", "token")]
            parts.append(f"{split} {shards}, {amounts[0].replace('document', documents)}, {amounts[1]}")
    return f"{dataset.corpus}: {'; '.join(parts)}"


def skipped(dataset: Dataset) -> dict[str, list[str]]:
    """Places of skipped documents, "train-00000 #17" being the shard's 18th document, by reason."""
    places: dict[str, list[str]] = {}
    for split in SPLITS:
        for entry in dataset.shards(split):
            for reason, ordinals in entry.skipped.items():
                places.setdefault(reason, []).extend(f"{entry.name} #{ordinal}" for ordinal in ordinals)
    return places


def sources(dataset: Dataset) -> list[SourceRow]:
    """A row for each source and split."""
    rows: list[SourceRow] = []
    for split in SPLITS:
        documents: dict[str, int | None] = {}
        counts, units = Counter[str](), {}
        for entry in dataset.shards(split):
            for source, count in entry.documents_by_source().items():
                before = documents.get(source, 0)
                documents[source] = None if before is None or count is None else before + count
            for span in entry.spans:
                counts[span.source] += span.count
                units[span.source] = span.unit
        rows += [
            {"split": split, "source": name, "documents": number, "unit": units[name], "count": counts[name]}
            for name, number in documents.items()
        ]
    return rows


@click.command("info")
@DIRECTORY
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, and nothing else.")
def info_command(directory: str, as_json: bool) -> None:
    """What is in a dataset directory: documents, tokens and bytes of each split, and the documents of each source.

    DIR is a local directory or any URL that fsspec reads (s3://bucket/data).
    """
    dataset = Dataset(directory)
    manifest = dataset.manifest
    splits = {
        split: {"shards": len(dataset.shards(split)), **{field: dataset.total(split, field) for field in COUNTS}}
        for split in SPLITS
    }
    corpus, given = manifest.corpus, sources(dataset)
    left_out = {reason: len(places) for reason, places in skipped(dataset).items()}
    if as_json:
        named = {"corpus": corpus.record(), "kind": dataset.kind, "dataset_id": dataset.id}
        made = {"tokenizer": dict(manifest.tokenizer), "format_version": manifest.format_version}
        print_json({**named, "splits": splits, "sources": given, "skipped": left_out, **made})
        return
    say(f"{corpus.name} ({' '.join(filter(None, (corpus.source, corpus.revision)))})")
    say(f"{dataset.kind}, dataset_id {dataset.id}, format {manifest.format_version}")
    say(f"{'split':8}{'shards':>8}" + "".join(f"{field:>16}" for field in COUNTS) + f"{'bytes/token':>14}")
    for split, total in splits.items():
        rate = f"{total['bytes'] / total['tokens']:14.3f}" if total["tokens"] else f"{'-':>14}"
        say(f"{split:8}{total['shards']:>8,}" + "".join(f"{total[field]:>16,}" for field in COUNTS) + rate)
    for split in SPLITS:
        rows = [row for row in given if row["split"] == split]
        for row in rows[:SOURCES_SHOWN]:
            say(f"{split:8}{_amount(row):>24}  {row['source']}")
        if len(rows) > SOURCES_SHOWN:
            say(f"{split:8}{'':24}  … and {len(rows) - SOURCES_SHOWN:,} more")
    for reason, count in left_out.items():
        say(f"skipped {counted(count, 'document')}: {reason}")


@click.command("verify")
@DIRECTORY
@click.option("--workers", type=click.IntRange(1), help="Threads; as many as there are cores if not given.")
@click.option(
    "--source", "count", type=click.IntRange(1), metavar="N", help="Make N random shards again from their sources."
)
@click.option("--seed", type=click.IntRange(0), help="Which shards --source takes; another each time if not given.")
@click.option("--trust", "trusts", is_flag=True, help="With --source: read what the plan names without asking.")
def verify_command(directory: str, workers: int | None, count: int | None, seed: int | None, trusts: bool) -> None:
    """Every byte of a dataset directory against its manifest; exit code 1 and what is wrong if anything is.

    With --source N only N shards are read, and made again from their sources in a temporary place: their tokens must
    be the same. A plan may be somebody else's, and name files and addresses that its writer wants read: they are shown
    and asked for before one is opened. Datasets on the Hub go without asking.
    """
    if count is None and (trusts or seed is not None):
        raise click.UsageError("--seed and --trust: expected with --source N, got them without")
    dataset = Dataset(directory)
    if count is not None:
        verify_with_sources(dataset, count, seed, trusts)
        return
    total = sum(dataset.total(split, "bytes") for split in SPLITS)
    progress = ProgressLine("verifying", total, "B")
    problems, unread, is_away = verify_dataset(dataset), list[str](), False
    every = [(split, number) for split in SPLITS for number in range(len(dataset.shards(split)))]
    # Threads are enough: decompressing and hashing let each other run.
    threads = ThreadPoolExecutor(workers or os.cpu_count())
    checks = [(dataset.shards(s)[n].bytes, threads.submit(verify_shard, dataset, s, n)) for s, n in every]
    try:
        for size, check in checks:
            try:
                problems += check.result()
                is_away = False
            except NoRanges:
                raise
            except Unanswered as error:
                unread.append(str(error).removeprefix(f"{dataset.path}/"))
                if is_away:  # two in a row: nobody waits for each of ten thousand
                    break
                is_away = True
            progress.update(size)
    finally:
        threads.shutdown(cancel_futures=True)
    progress.close()
    for problem in problems + unread:
        say(problem)
    if problems or unread:
        said = f"{counted(len(problems), 'problem')} found" if problems else ""
        missed = f"not all was read: its store did not give {counted(len(unread), 'shard')}" if unread else ""
        raise Error(f"{directory}: {', '.join(filter(None, (said, missed)))}, named above")
    say(f"{directory}: all right, {totals(dataset)}")


@click.command("cat")
@DIRECTORY
@click.option("--split", type=click.Choice(SPLITS), help="One split only; both, training first, if not given.")
@click.option("--docs", type=click.IntRange(1), help="Only the first so many documents; all if not given.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per document: split, text (or the example).")
def cat_command(directory: str, split: str | None, docs: int | None, as_json: bool) -> None:
    """Documents back as text, unchanged and one after the other; examples with their endings, the right one marked."""
    dataset = Dataset(directory)
    records = ((name, record) for name in ((split,) if split else SPLITS) for record in _records(dataset, name))
    for name, (record, text) in islice(records, docs):
        if as_json:
            print_json({"split": name, **record})
        else:
            # Bytes, so that no line end or encoding of the terminal changes a document.
            sys.stdout.buffer.write(text.encode("utf-8"))
    sys.stdout.flush()


@click.command("export")
@DIRECTORY
@click.option("--out", required=True, type=LocalPath(), help="Directory for the .bin files, which has no others.")
@click.option(
    "--format",
    "file_format",
    type=click.Choice([LLMC, NANOGPT]),
    required=True,
    help="llmc: a .bin per shard with a header of 1,024 bytes; nanogpt: train.bin and val.bin. Tokens as uint16.",
)
def export_command(directory: str, out: Path, file_format: str) -> None:
    """Tokens for other trainers: llmc (llm.c, modded-nanogpt; a .bin per shard) or nanogpt (train.bin, val.bin)."""
    dataset = Dataset(directory)
    progress = ProgressLine("exporting", sum(dataset.total(split, "tokens") for split in SPLITS), " tokens")
    written = export_dataset(dataset, out, file_format, progress.update)
    progress.close()
    say(f"{out}: {counted(len(written), 'file')}, {totals(dataset)}")


def _amount(row: SourceRow) -> str:
    """A source's documents, or where they are not known one by one, what its spans count."""
    number, noun = (row["count"], row["unit"]) if row["documents"] is None else (row["documents"], "document")
    return counted(number, noun)


def _records(dataset: Dataset, split: str) -> Iterator[tuple[dict[str, object], str]]:
    """Each document, or example, as a JSON object and as text."""
    if dataset.kind == MULTIPLE_CHOICE:
        for example in dataset.examples(split):
            yield {name: value for name, value in example.items() if name != "prompts"}, _readable(example)
        return
    tokenizer = load_tokenizer()
    for shard in range(len(dataset.shards(split))):
        for text in tokenizer.decode_documents(dataset.iterate_tokens(split, shard)):
            yield {"text": text}, text


def _readable(example: Example) -> str:
    endings = [f"  {'*' if i == example['label'] else ' '} {text}\n" for i, text in enumerate(example["endings"])]
    return f"{example['ind']} [{example['activity_label']}] {example['ctx']}\n{''.join(endings)}"
