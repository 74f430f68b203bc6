"""How a dataset of 1.5 trillion tokens feels: time and peak memory of `info`, of the loader's start, and of a trace.

The dataset is synthetic: manifest and block index of 15,000 shards and 23 million blocks (FineWeb-Edu whole), no
shards but for the blocks of the step that is traced. The loader's start is all that happens before the first frame is
read: opening, the epoch's order, the schedule of one rank's slots.

    python tools/simulate_scale.py
    python tools/simulate_scale.py --shards 100
"""

import dataclasses
import hashlib
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np

from gpt2wds.dataset import shards
from gpt2wds.dataset.directory import Dataset
from gpt2wds.dataset.loader import StepBatches
from gpt2wds.dataset.manifest import SPLITS, TOKENS, CorpusName, Manifest, ShardEntry, SourceSpan, dataset_id
from gpt2wds.dataset.order import EpochOrder, even_share
from gpt2wds.tokenizer import END_OF_TEXT, load_tokenizer

BLOCKS_PER_SHARD = 1533  # 100 million tokens
FRAME_BYTES = 80_000
DOCUMENTS = 65  # that start in each block
TRACED_STEP = 100


def make(folder: Path, count: int) -> None:
    """Manifest and index of a dataset of `count` training shards, as gpt2wds-shard would write them."""
    entries = tuple(
        ShardEntry(
            file=f"train-{number:05d}.tar.zst",
            bytes=FRAME_BYTES * BLOCKS_PER_SHARD,
            sha256=f"{number:064x}",
            tokens_sha256=f"{number:064x}",
            tokens=BLOCKS_PER_SHARD * shards.BLOCK_TOKENS + 1,
            documents=DOCUMENTS * BLOCKS_PER_SHARD,
            blocks=BLOCKS_PER_SHARD,
            text_bytes=450_000_000,
            skipped={"copy of a validation document": [17, 4711]},
            spans=(SourceSpan(f"hf://datasets/owner/name@commit/data/{number}.parquet", 0, 100_002, "row"),),
        )
        for number in range(count)
    )
    rows = np.zeros(count * BLOCKS_PER_SHARD, dtype=shards.BLOCK_ROW)
    rows["shard"] = np.repeat(np.arange(count), BLOCKS_PER_SHARD)
    rows["offset"] = np.tile(np.arange(BLOCKS_PER_SHARD) * FRAME_BYTES, count)
    rows["length"], rows["tokens"], rows["documents"] = FRAME_BYTES, shards.BLOCK_TOKENS + 1, DOCUMENTS
    np.save(folder / "train.blocks.npy", rows)
    np.save(folder / "val.blocks.npy", rows[:0])
    both: dict[str, tuple[ShardEntry, ...]] = {"train": entries, "val": ()}
    identity = load_tokenizer().identity()
    corpus = CorpusName("synthetic", "none")
    manifest = Manifest(TOKENS, dataset_id(both), corpus, identity, {}, {}, both, hashes(folder))
    (folder / "manifest.json").write_text(manifest.to_json())


def hashes(folder: Path) -> dict[str, str]:
    """What the manifest says of the block indices."""
    return {split: hashlib.sha256((folder / f"{split}.blocks.npy").read_bytes()).hexdigest() for split in SPLITS}


def make_step(folder: Path, run: Path) -> None:
    """The blocks that TRACED_STEP reads, in shards that have nothing else, and the run directory of such a run."""
    path = folder / "train.blocks.npy"
    rows = np.load(path)
    order = EpochOrder(rows["tokens"], seq_len=1024, seed=1, epoch=0)
    rng = np.random.default_rng(0)
    for slot in range(512):
        position = slot * (order.sequences // 512) + TRACED_STEP - 1
        (window,), _ = order.windows(position, 1)
        (block,), _ = order.window_sequences(window, position, position + 1)
        tokens = rng.geometric(0.03, shards.BLOCK_TOKENS + 1).astype(np.uint16)
        tokens[: shards.BLOCK_TOKENS : -(-shards.BLOCK_TOKENS // DOCUMENTS)] = END_OF_TEXT
        shard, number = divmod(int(block), BLOCKS_PER_SHARD)
        name = f"train-{shard:05d}"
        frame = io.BytesIO()
        writer = shards.FrameWriter(frame)
        content = shards.tar_member(f"{shards.block_key(name, number)}.tokens.npy", shards.npy_bytes(tokens))
        writer.add(content, tokens=len(tokens), documents=DOCUMENTS)
        row = writer.finish(tokens_sha256="", tokens=len(tokens), documents=DOCUMENTS).rows[0]
        assert row["length"] <= FRAME_BYTES
        rows["length"][block], rows["checksum"][block] = row["length"], row["checksum"]
        file_name = folder / f"{name}.tar.zst"
        file_name.touch()
        with file_name.open("r+b") as file:
            file.seek(number * FRAME_BYTES)
            file.write(frame.getvalue()[: row["length"]])
    np.save(path, rows)
    manifest = Manifest.from_json((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(dataclasses.replace(manifest, blocks_sha256=hashes(folder)).to_json())
    run.mkdir()
    (run / "config.toml").write_text(
        f'[run]\nseed = 1\n[data]\npath = "{folder}"\nseq_len = 1024\n'
        f"[train]\ntokens_per_step = {1024 * 512}\nmax_steps = 19073\n"
    )


class _Started(Exception):
    """The loader asked for its first frame."""


class _Shardless(Dataset):
    def read_frame(self, split: str, block: int) -> bytes:
        raise _Started


def start_loader(path: str, world_size: int) -> None:
    """Start one rank's loader at the lesson's step of 512 sequences of 1,024 tokens, up to its first read."""
    part = even_share(512, 0, world_size)
    batches = StepBatches(
        _Shardless(path),
        seq_len=1024,
        sequences_per_step=512,
        seed=1,
        rank=0,
        world_size=world_size,
    )
    try:
        next(iter(batches))
    except _Started:
        print(f"{len(part)} slots of 512, {batches.steps_per_epoch:,} steps an epoch")


def measure(label: str, command: list[str]) -> None:
    """Run a program and print what it took."""
    script = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:], check=True, capture_output=True, text=True)\n"
        "print(done.stdout.strip().splitlines()[-1])\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script, *command], check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    *said, peak = done.stdout.splitlines()
    print(f"{label:28}{seconds:8.1f} s{int(peak) / 2**20:8.2f} GiB   {said[-1].strip()[:70]}")


@click.command()
@click.option("--shards", "count", type=click.IntRange(1), default=15_000, show_default=True)
@click.option("--only-loader", nargs=2, type=(str, int), hidden=True)
def main(count: int, only_loader: tuple[str, int] | None) -> None:
    if only_loader:
        start_loader(*only_loader)
        return
    with tempfile.TemporaryDirectory() as name:
        make(Path(name), count)
        tokens, blocks = count * BLOCKS_PER_SHARD * shards.BLOCK_TOKENS, count * BLOCKS_PER_SHARD
        size = sum(path.stat().st_size for path in Path(name).iterdir()) / 1e6
        print(f"{count:,} shards, {blocks:,} blocks, {tokens:,} tokens; manifest and index {size:,.0f} MB")
        programs = Path(sys.executable).parent
        measure("gpt2wds-shard info", [str(programs / "gpt2wds-shard"), "info", name])
        for world_size in (1, 8):
            command = [sys.executable, __file__, "--only-loader", name, str(world_size)]
            measure(f"loader's start, 1 of {world_size} ranks", command)
        make_step(Path(name), Path(name, "run"))
        trace = [str(programs / "gpt2wds-eval"), "trace", f"{name}/run"]
        measure("trace --step", [*trace, "--step", str(TRACED_STEP)])
        found = subprocess.run([*trace, "--step", str(TRACED_STEP), "--json"], check=True, capture_output=True).stdout
        document = json.loads(found)["sequences"][0]["documents"][0]
        measure("trace --document", [*trace, "--document", f"{document['source']}:{document['number']}"])


if __name__ == "__main__":
    main()
