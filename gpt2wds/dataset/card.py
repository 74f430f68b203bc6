"""A dataset's card: the README.md that stands beside published shards, with the front matter that the Hub reads."""

import re
from typing import Any

from ..errors import Error, shown
from .directory import Dataset
from .manifest import FILES, MULTIPLE_CHOICE, SPLITS, CorpusName

CARD = "README.md"
SOURCES_NAMED = 20
# The Hub's names for orders of size, by documents.
_SIZES = (
    *((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M")),
    *((10**8, "10M<n<100M"), (10**9, "100M<n<1B"), (10**10, "1B<n<10B"), (10**11, "10B<n<100B")),
    *((10**12, "100B<n<1T"),),
)
_HUB = "hf://datasets/"
_LICENCE = re.compile(r"[A-Za-z0-9.+_-]+")


def size_category(documents: int) -> str:
    """
    >>> size_category(999), size_category(9_672_101)
    ('n<1K', '1M<n<10M')
    """
    return next((name for bound, name in _SIZES if documents < bound), "n>1T")


def card(dataset: Dataset, url: str, licence: str | None = None) -> str:
    """The text of README.md. url: where the dataset will be; licence: the Hub's name for it, left out if None.

    Raises Error for a licence that no name on the Hub can be: the Hub reads it as YAML.
    """
    if licence is not None and not _LICENCE.fullmatch(licence):
        raise Error(
            "license: expected a name as the Hub has them, of letters, digits, '-', '.', '+' and '_', such as odc-by, "
            f"mit or cc-by-4.0, got {repr(licence)[:80]}"
        )
    url = shown(url)
    parts = [_title(dataset, url), _contents(dataset), _origin(dataset), _reading(dataset, url), _auditing(url)]
    return f"---\n{_front_matter(dataset, url, licence)}\n---\n\n" + "\n".join(parts)


def _front_matter(dataset: Dataset, url: str, licence: str | None) -> str:
    from huggingface_hub import DatasetCardData

    source = dataset.manifest.corpus.source
    more: dict[str, Any] = {"license": licence} if licence else {}
    if source.startswith(_HUB):
        more["source_datasets"] = [source.removeprefix(_HUB)]
    data = DatasetCardData(
        pretty_name=_name(dataset, url),
        tags=["gpt2", "tokenized", "webdataset"],
        task_categories=["multiple-choice" if dataset.kind == MULTIPLE_CHOICE else "text-generation"],
        size_categories=[size_category(sum(dataset.total(split, "documents") for split in SPLITS))],
        viewer=False,  # the Hub's viewer reads text, not tokens
        **more,
    )
    return str(data.to_yaml())


def _name(dataset: Dataset, url: str) -> str:
    """What is made of files, which have no name in common, is called as the place where it will be."""
    name = shown(dataset.corpus) if dataset.corpus != FILES else url.rstrip("/").rpartition("/")[2]
    return f"{name}, GPT-2 tokens"


def _code(name: str) -> str:
    """Any name in Markdown, as it is: one that has backticks stands between more of them."""
    fence = "`" * (1 + max(map(len, re.findall("`+", name)), default=0))
    space = " " if name.startswith("`") or name.endswith("`") else ""
    return f"{fence}{space}{shown(name)}{space}{fence}"


def _title(dataset: Dataset, url: str) -> str:
    what = "Multiple-choice examples" if dataset.kind == MULTIPLE_CHOICE else "Text"
    return (
        f"# {_name(dataset, url)}\n\n{what} in GPT-2 tokens: WebDataset shards in independent zstd frames "
        f"(`.tar.zst`), made with gpt2wds. `dataset_id` {dataset.id}.\n"
    )


def _contents(dataset: Dataset) -> str:
    fields = ("documents", "tokens", "text_bytes", "bytes")
    rows = ["| split | shards | documents | tokens | bytes of text | bytes of shards |", "| --- " + "| ---: " * 5 + "|"]
    for split in SPLITS:
        amounts = " | ".join(f"{dataset.total(split, field):,}" for field in fields)
        rows.append(f"| {split} | {len(dataset.shards(split)):,} | {amounts} |")
    return "\n".join(rows) + "\n"


def _origin(dataset: Dataset) -> str:
    manifest = dataset.manifest
    corpus: CorpusName = manifest.corpus
    names = list(dict.fromkeys(s.source for split in SPLITS for entry in dataset.shards(split) for s in entry.spans))
    tokenizer = ", ".join(f"{name} {value}" for name, value in manifest.tokenizer.items() if name != "name")
    lines = [
        f"* Corpus: {shown(corpus.name)}{f', {_code(corpus.source)}' if corpus.source else ''}",
        f"* Revision: {_code(corpus.revision) if corpus.revision else 'none, the sources have no common one'}",
        f"* Sources: {len(names):,}; `manifest.json` says which rows or bytes of which are in which shard",
        *(f"  * {_code(name)}" for name in names[:SOURCES_NAMED]),
        *([f"  * … and {len(names) - SOURCES_NAMED:,} more"] if len(names) > SOURCES_NAMED else []),
        f"* Tokenizer: {_code(str(manifest.tokenizer.get('name')))} ({shown(tokenizer)})",
    ]
    if dataset.kind != MULTIPLE_CHOICE:
        lines.append("* A document is token 50256 (`<|endoftext|>`) and the tokens of its text.")
    return "## Where it comes from\n\n" + "\n".join(lines) + "\n"


def _reading(dataset: Dataset, url: str) -> str:
    split = "train" if dataset.shards("train") else "val"
    last = len(dataset.shards(split)) - 1
    shards = f"{split}-{{00000..{last:05d}}}" if last > 0 else f"{split}-00000"
    fetch = f"    gpt2wds-train CONFIG data.path={url}          # nothing is downloaded first\n"
    if dataset.kind == MULTIPLE_CHOICE:
        fetch = f"    gpt2wds-eval hellaswag MODEL --data {url}\n"
    copy = f"copy the directory from {url} to `data`"
    if url.startswith(_HUB):
        copy = f"`hf download {url.removeprefix(_HUB)} --repo-type dataset --local-dir data`"
    member = ".tokens.npy" if dataset.kind != MULTIPLE_CHOICE else ".completion.npy"
    program = (
        "    import io\n    import numpy\n    import webdataset\n\n"
        f'    shards = webdataset.WebDataset("pipe:zstd -dcq data/{shards}.tar.zst", shardshuffle=False)\n'
        "    for sample in shards:\n"
        f'        tokens = numpy.load(io.BytesIO(sample["{member[1:]}"]), allow_pickle=False)\n'
        '        print(sample["__key__"], tokens.shape, tokens.dtype)\n'
    )
    blocks = (
        "A sample is a block of 65,536 tokens and the one that follows, so that consecutive blocks of a shard overlap "
        "by one.\n"
    )
    return (
        f"## How to read it\n\nWith gpt2wds:\n\n{fetch}\nWith webdataset alone and the command `zstd`: {copy}, then\n\n"
        f"{program}\n{blocks if dataset.kind != MULTIPLE_CHOICE else ''}"
        "Do not use webdataset's `.decode()`, which may run what somebody pickled.\n"
    )


def _auditing(url: str) -> str:
    return (
        "## How to check it\n\n"
        f"    gpt2wds-shard verify {url}               # every byte against manifest.json\n"
        f"    gpt2wds-shard verify {url} --source 3    # three random shards made again from their sources\n"
    )
