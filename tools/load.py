"""What goes wrong with time: a long run, many short starts, many readers of data that come and go.

python tools/load.py steps --steps 100000    # memory, descriptors and threads of a tiny model's long run
python tools/load.py starts --starts 200     # loaders made, used once, thrown away
python tools/load.py readers --seconds 60    # eight readers while shards are removed and made again
"""

import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import click
from damages import read_dataset
from small import SMALL_RUN, corpus, files_of

from gpt2wds import Cut, Dataset, Error, StepBatches, make_dataset

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Use:
    """What a process holds: MiB of memory, open descriptors, threads."""

    mebibytes: float
    descriptors: int
    threads: int

    def __str__(self) -> str:
        return f"{self.mebibytes:8.1f} MiB, {self.descriptors:3} descriptors, {self.threads:3} threads"


def use_of(process: int) -> Use:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    kibibytes = int(status["VmRSS"].split()[0])
    return Use(kibibytes / 1024, len(os.listdir(f"/proc/{process}/fd")), int(status["Threads"]))


def growth(uses: list[Use]) -> list[str]:
    """What grew from the second quarter to the last, of what is always held; the first is for what is made once."""
    quarter = len(uses) // 4
    early, late = uses[quarter : 2 * quarter], uses[-quarter:]
    found = []
    for name, allowed in (("mebibytes", 1.05), ("descriptors", 1.0), ("threads", 1.0)):
        before, after = (min(getattr(use, name) for use in part) for part in (early, late))
        if after > before * allowed:
            found.append(f"{name}: {before:,.1f} → {after:,.1f}")
    return found


@contextmanager
def small_dataset() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield make_small(Path(name))


def make_small(folder: Path) -> Path:
    """Two validation and two training shards of random words, or what is missing of them."""
    texts = folder / "texts"
    if not texts.exists():
        corpus(texts, 60, 400)
    make_dataset(folder / "dataset", files_of(texts), Cut(val_docs=20, docs_per_shard=60), workers=1)
    return folder / "dataset"


# A long run

# One update of eight tokens after the other.
LONG = """
data.seq_len=8 eval.val_tokens=512 eval.sample_prompts=[]
train.tokens_per_step=8 train.micro_batch_sequences=1
train.learning_rate=1e-3 train.min_learning_rate=1e-4 train.warmup_steps=10
"""


def long_run(folder: Path, steps: int) -> tuple[list[tuple[int, Use]], str]:
    """A run of a tiny model, looked at about forty times: (step, use) of each look; what is wrong in the end."""
    run = folder / "run"
    (folder / "long.toml").write_text(SMALL_RUN)
    every = max(1, steps // 50)
    command = [BIN / "gpt2wds-train", folder / "long.toml", f"run.dir={run}", f"data.path={make_small(folder)}",
               *LONG.split(),
               f"train.max_steps={steps}", f"eval.every_steps={every}", f"checkpoint.every_steps={every}"]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (folder / "said").open("w") as said:
        process = subprocess.Popen(list(map(str, command)), stdout=said, stderr=said, env=environment)
    looks: list[tuple[int, Use]] = []
    while process.poll() is None:
        time.sleep(0.2)
        step = last_step(run / "log.txt")
        if step > 0 and (not looks or step >= looks[-1][0] + steps // 40):
            try:
                looks.append((step, use_of(process.pid)))
            except (OSError, KeyError):  # it ended meanwhile
                break
    if process.wait() != 0:
        return looks, (folder / "said").read_text()[-1000:]
    rows = [int(line.split()[0]) for line in (run / "log.txt").read_text().splitlines()[1:]]
    if rows != list(range(steps + 1)):
        return looks, f"log.txt: expected each of {steps:,} steps once, got {len(rows):,} rows"
    return looks, "; ".join(growth([use for _, use in looks]))


def last_step(log: Path) -> int:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 200))
            lines = file.read().split(b"\n")
        return int(lines[-2].split()[0]) if len(lines) > 1 and not lines[-2].startswith(b"#") else -1
    except (OSError, ValueError, IndexError):
        return -1


# Many short starts


def short_starts(dataset: Path, starts: int, num_workers: int) -> tuple[list[Use], str]:
    """The same loader made, asked for two steps and thrown away: what this process holds after each, what is wrong."""
    uses, first = [], set()
    for _ in range(starts):
        batches = StepBatches(Dataset(dataset), seq_len=64, sequences_per_step=4, seed=1, num_workers=num_workers)
        stream: Any = iter(batches)
        first.add(hashlib.sha256(next(stream).tobytes() + next(stream).tobytes()).hexdigest())
        stream.close()
        uses.append(use_of(os.getpid()))
    problem = f"{len(first)} different first steps" if len(first) != 1 else ""
    return uses, "; ".join(filter(None, [problem, *growth(uses)]))


# Readers while data come and go


def read_again_and_again(path: str, sound: dict[str, str], stop: Event, told: Any) -> None:
    """Read all of a dataset until told to stop; tells how often what came of it."""
    outcomes: Counter[str] = Counter()
    while not stop.is_set():
        try:
            found = read_dataset(Path(path))
            outcomes["same" if found == sound else "SILENT: something else was read"] += 1
        except (Error, OSError) as error:
            outcomes["refused" if "\n" not in str(error) else f"CRASH: {error}"] += 1
            time.sleep(0.02)  # leave the processor to who makes it again
        except Exception as error:
            outcomes[f"CRASH: {type(error).__name__}: {error}"] += 1
    told.put(outcomes)


def readers_and_remover(folder: Path, seconds: float, readers: int, seed: int) -> tuple[Counter[str], int]:
    """Outcomes of all readers, and how often something was removed and made again."""
    dataset = make_small(folder)
    sound = read_dataset(dataset)
    context = get_context("fork")
    stop, told = context.Event(), context.Queue()
    arguments = (str(dataset), sound, stop, told)
    processes = [context.Process(target=read_again_and_again, args=arguments) for _ in range(readers)]
    for process in processes:
        process.start()
    chance, removed, end = random.Random(seed), 0, time.monotonic() + seconds
    outcomes: Counter[str] = Counter()
    while time.monotonic() < end:
        everything = sorted(path for path in dataset.rglob("*") if path.is_file() and path.name != "plan.json")
        gone = chance.sample(everything, chance.randint(1, 3))
        for path in gone:
            path.unlink()
        time.sleep(chance.uniform(0, 0.2))
        # A shard without its receipt is made again, so is a receipt without its shard; then all that sums them up.
        for name in ("manifest.json", "train.blocks.npy", "val.blocks.npy"):
            (dataset / name).unlink(missing_ok=True)
        make_small(folder)
        removed += len(gone)
    stop.set()
    for _ in processes:
        outcomes += told.get(timeout=120)
    for process in processes:
        process.join()
    if read_dataset(dataset) != sound:
        outcomes["SILENT: what was made again differs"] += 1
    return outcomes, removed


@click.group()
def main() -> None:
    """Load of one kind; exit code 1 if anything is wrong."""


@main.command()
@click.option("--steps", default=100_000, show_default=True)
def steps(steps: int) -> None:
    """A tiny model's long run."""
    with tempfile.TemporaryDirectory() as name:
        start = time.monotonic()
        looks, problem = long_run(Path(name), steps)
    print(f"{steps:,} steps in {time.monotonic() - start:,.0f} s")
    for step, use in looks[:: max(1, len(looks) // 10)] + looks[-1:]:
        print(f"  step {step:7,}: {use}")
    _end(problem)


@main.command()
@click.option("--starts", default=200, show_default=True)
@click.option("--workers", default=2, show_default=True)
def starts(starts: int, workers: int) -> None:
    """Loaders made, used once, thrown away."""
    with small_dataset() as dataset:
        uses, problem = short_starts(dataset, starts, workers)
    for number in range(0, starts, max(1, starts // 4)):
        print(f"  start {number + 1:4}: {uses[number]}")
    print(f"  start {starts:4}: {uses[-1]}")
    _end(problem)


@main.command()
@click.option("--seconds", default=60.0, show_default=True)
@click.option("--readers", default=8, show_default=True)
@click.option("--seed", default=1, show_default=True)
def readers(seconds: float, readers: int, seed: int) -> None:
    """Readers of a dataset whose files are removed and made again."""
    with tempfile.TemporaryDirectory() as name:
        outcomes, removed = readers_and_remover(Path(name), seconds, readers, seed)
    print(f"{removed:,} files removed and made again; {readers} readers")
    for outcome, count in sorted(outcomes.items()):
        print(f"  {outcome}: {count:,}")
    _end("; ".join(outcome for outcome in outcomes if outcome[0].isupper()))


def _end(problem: str) -> None:
    print(f"WRONG: {problem}" if problem else "all well")
    sys.exit(1 if problem else 0)


if __name__ == "__main__":
    main()
