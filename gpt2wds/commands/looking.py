"""What can be done with a finished dataset directory: info, verify, cat, export."""

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import click

from ..dataset import export as exporting
from ..dataset.directory import MULTIPLE_CHOICE, SPLITS, Dataset
from ..errors import Error
from ..tokenizer import load_tokenizer
from .common import ProgressLine, print_json


def totals(dataset: Dataset) -> str:
    parts = []
    for split in SPLITS:
        if dataset.shards(split):
            count, noun = len(dataset.shards(split)), "examples" if dataset.kind == MULTIPLE_CHOICE else "documents"
            parts.append(
                f"{split} {count} shard{'s' if count != 1 else ''}, {dataset.total(split, 'documents'):,} {noun}, "
                f"{dataset.total(split, 'tokens'):,} tokens"
            )
    return f"{dataset.corpus}: {'; '.join(parts)}"


def skipped(dataset: Dataset) -> dict[str, list[str]]:
    """Places of skipped documents, "train-00000 #17" being the shard's 18th document, by reason."""
    places: dict[str, list[str]] = {}
    for split in SPLITS:
        for shard in dataset.shards(split):
            name = shard["file"].split(".")[0]
            for reason, ordinals in shard["skipped"].items():
                places.setdefault(reason, []).extend(f"{name} #{ordinal}" for ordinal in ordinals)
    return places


@click.command()
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
        "skipped": {reason: len(places) for reason, places in skipped(dataset).items()},
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


@click.command()
@click.argument("directory", type=str)
@click.option("--workers", type=click.IntRange(1), help="Threads; as many as there are cores if not given.")
def verify(directory: str, workers: int | None) -> None:
    """Every byte of a dataset directory against its manifest; exit code 1 and what is wrong if anything is."""
    dataset = Dataset(directory)
    total = sum(dataset.total(split, "bytes") for split in SPLITS)
    progress = ProgressLine("verifying", total, "B")
    problems: list[str] = []
    every = [(split, number) for split in SPLITS for number in range(len(dataset.shards(split)))]
    # Threads are enough: decompressing and hashing let each other run.
    with ThreadPoolExecutor(workers or os.cpu_count()) as threads:
        checks = threads.map(lambda place: dataset.verify_shard(*place), every)
        for (split, number), found in zip(every, checks, strict=True):
            problems += found
            progress.update(dataset.shards(split)[number]["bytes"])
    progress.close()
    for problem in problems:
        print(problem)
    if problems:
        raise Error(f"{directory}: {len(problems)} problem{'s' if len(problems) > 1 else ''} found, named above")
    print(f"{directory}: all right, {totals(dataset)}")


@click.command()
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


@click.command()
@click.argument("directory", type=str)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Directory for the files.")
@click.option("--format", "file_format", type=click.Choice([exporting.LLMC, exporting.NANOGPT]), required=True)
def export(directory: str, out: Path, file_format: str) -> None:
    """Tokens for other trainers: llmc (llm.c, modded-nanogpt; a .bin per shard) or nanogpt (train.bin, val.bin)."""
    dataset = Dataset(directory)
    progress = ProgressLine("exporting", sum(dataset.total(split, "tokens") for split in SPLITS), " tokens")
    written = exporting.export(dataset, out, file_format, progress.update)
    progress.close()
    print(f"{out}: {len(written)} file{'s' if len(written) != 1 else ''}, {totals(dataset)}")


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
