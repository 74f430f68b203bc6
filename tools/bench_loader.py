"""Training sequences per second of one core: gpt2wds's loader against four others, on the same tokens.

    gpt2wds       this package: compressed shards, global order, every sequence once
    webdataset    one sample per sequence in plain tar files, shards and a buffer of 1,000 shuffled
    litdata       StreamingDataset with TokensLoader, shuffled (left out where it is not installed)
    memmap        nanoGPT's get_batch: random places of one file, so some tokens never and some often come
    npy           build-nanogpt's loader: shards read whole, in order

All but ours read uncompressed files. Each run is a process of its own on one core, forked from this one; rounds
alternate, and what counts is the processor's time, so that what else the machine does disturbs little; medians are
compared. Batches are taken and dropped.

    python tools/bench_loader.py data/fineweb-edu --batches 2000
    python tools/bench_loader.py data/fineweb-edu --sequences 512 --only gpt2wds    # the 124M recipe on one rank
"""

import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import webdataset

from gpt2wds.dataset.directory import Dataset
from gpt2wds.dataset.loader import StepBatches

SEQ_LEN = 1024
Batches = Iterator[Any]


def tokens_of(dataset: Dataset) -> Iterator[np.ndarray]:
    """Tokens of each training shard, as one array."""
    for shard in range(len(dataset.shards("train"))):
        yield np.concatenate(list(dataset.iterate_tokens("train", shard)))


def sequences_of(tokens: np.ndarray) -> np.ndarray:
    """(sequences, 1025): consecutive ones share a token, as everywhere here."""
    return np.lib.stride_tricks.sliding_window_view(tokens, SEQ_LEN + 1)[::SEQ_LEN]


def gpt2wds(dataset: Dataset, folder: Path, sequences: int) -> Callable[[], Batches]:
    return lambda: iter(StepBatches(dataset, seq_len=SEQ_LEN, sequences_per_step=sequences, seed=1))


def one_sample_per_sequence(dataset: Dataset, folder: Path, sequences: int) -> Callable[[], Batches]:
    for number, tokens in enumerate(tokens_of(dataset)):
        with webdataset.TarWriter(str(folder / f"{number:05}.tar")) as tar:
            for i, sequence in enumerate(sequences_of(tokens)):
                tar.write({"__key__": f"{number:05}-{i:07}", "bin": sequence.tobytes()})
    urls = sorted(str(path) for path in folder.glob("*.tar"))

    def start() -> Batches:
        samples = webdataset.WebDataset(urls, shardshuffle=100, empty_check=False).shuffle(1000)
        rows = samples.map(lambda sample: np.frombuffer(sample["bin"], dtype="<u2"))
        return iter(rows.batched(sequences, collation_fn=np.stack))

    return start


def memmap(dataset: Dataset, folder: Path, sequences: int) -> Callable[[], Batches]:
    with (folder / "train.bin").open("wb") as file:
        for tokens in tokens_of(dataset):
            file.write(tokens.tobytes())

    def start() -> Batches:
        while True:
            data = np.memmap(folder / "train.bin", dtype=np.uint16, mode="r")  # each time anew, as nanoGPT does
            places = torch.randint(len(data) - SEQ_LEN, (sequences,))
            x = torch.stack([torch.from_numpy(data[i : i + SEQ_LEN].astype(np.int64)) for i in places])
            y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + SEQ_LEN].astype(np.int64)) for i in places])
            yield x, y

    return start


def npy_shards(dataset: Dataset, folder: Path, sequences: int) -> Callable[[], Batches]:
    for number, tokens in enumerate(tokens_of(dataset)):
        np.save(folder / f"{number:05}.npy", tokens)

    def start() -> Batches:
        while True:
            for path in sorted(folder.glob("*.npy")):
                tokens = torch.tensor(np.load(path).astype(np.int32), dtype=torch.long)
                for at in range(0, len(tokens) - sequences * SEQ_LEN, sequences * SEQ_LEN):
                    part = tokens[at : at + sequences * SEQ_LEN + 1]
                    yield part[:-1].view(sequences, SEQ_LEN), part[1:].view(sequences, SEQ_LEN)

    return start


def litdata(dataset: Dataset, folder: Path, sequences: int) -> Callable[[], Batches]:
    from litdata.streaming import StreamingDataLoader, StreamingDataset, TokensLoader
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_bytes="64MB", item_loader=TokensLoader(SEQ_LEN + 1))
    number = 0
    for tokens in tokens_of(dataset):
        for part in np.array_split(tokens, max(1, len(tokens) // 50_000)):  # about a document's worth
            writer.add_item(number, torch.from_numpy(part.copy()))
            number += 1
    writer.done()
    writer.merge()

    def start() -> Batches:
        loader = TokensLoader(SEQ_LEN + 1)
        data = StreamingDataset(str(folder), item_loader=loader, shuffle=True, drop_last=True, seed=1)
        return iter(StreamingDataLoader(data, batch_size=sequences, num_workers=0))

    return start


CONTESTANTS = {
    "gpt2wds": gpt2wds,
    "webdataset": one_sample_per_sequence,
    "litdata": litdata,
    "memmap": memmap,
    "npy": npy_shards,
}


def memory(field: str) -> int:
    """Bytes of VmRSS or VmHWM of this process."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def measure(start: Callable[[], Batches], batches: int, sequences: int) -> dict[str, float]:
    """Seconds to the first batch, tokens per second of the processor's time, and memory beyond what the process had.

    In a child of its own.
    """
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        torch.set_num_threads(1)
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM from here on
        before, began, busy = memory("VmRSS"), time.perf_counter(), time.process_time()
        source = start()
        next(source)
        first = time.perf_counter() - began
        count = sum(1 for _ in islice(source, batches))
        # The first batch counts too: it is where ours opens its windows.
        rate = (count + 1) * sequences * SEQ_LEN / (time.process_time() - busy)
        found = {"first": first, "rate": rate, "memory": memory("VmHWM") - before, "count": count}
        os.write(send, json.dumps(found).encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text)


@click.command()
@click.argument("data")
@click.option("--batches", type=click.IntRange(1), default=1000, show_default=True, help="How many to take.")
@click.option("--sequences", type=click.IntRange(1), default=8, show_default=True, help="Of each batch.")
@click.option("--only", type=click.Choice(list(CONTESTANTS)), multiple=True, help="Leave the others out.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
def main(data: str, batches: int, sequences: int, only: tuple[str, ...], rounds: int) -> None:
    dataset = Dataset(data)
    available = sum(max(0, shard.tokens - 1) // (sequences * SEQ_LEN) for shard in dataset.shards("train"))
    batches = min(batches, available - 2)
    with tempfile.TemporaryDirectory() as scratch:
        starts: dict[str, Callable[[], Batches]] = {}
        for name in only or CONTESTANTS:
            folder = Path(scratch) / name
            folder.mkdir()
            try:
                starts[name] = CONTESTANTS[name](dataset, folder, sequences)
            except ImportError as error:
                print(f"{name}: left out ({error})")
        for start in starts.values():
            measure(start, min(10, batches), sequences)  # files are in the page cache afterwards
        found: dict[str, list[dict[str, float]]] = {name: [] for name in starts}
        for _ in range(rounds):
            for name, start in starts.items():
                found[name].append(measure(start, batches, sequences))
    print(
        f"{dataset.total('train', 'tokens'):,} tokens, {batches} batches of {sequences} × {SEQ_LEN}, median of {rounds}"
    )
    middle = {n: {k: statistics.median(r[k] for r in runs) for k in runs[0]} for n, runs in found.items()}
    for name, m in middle.items():
        assert m["count"] == batches, (name, m)
        ours = middle.get("gpt2wds", m)["rate"] / m["rate"]
        print(
            f"  {name:10} {m['rate'] / 1e6:8.1f} M tokens/s, first batch {m['first'] * 1e3:7.1f} ms, "
            f"{math.ceil(m['memory'] / 1e6):5} MB; gpt2wds is {ours:.2f} times as fast"
        )


if __name__ == "__main__":
    main()
