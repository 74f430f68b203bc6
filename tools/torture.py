"""Attacks at random, for as long as asked; a table of what came of them, and every failure (exit code 1).

    damages   a file of a dataset or checkpoint damaged (damages.py)
    kills     gpt2wds-shard and its workers killed at any moment
    ranks     the launcher of three ranks, or one of them, killed at any moment
    writers   each writer killed at one of its writes, or its disk full or read-only from then on (writers.py; as root)
    servers   a Hub and an S3 server that misbehave (bad_servers.py)

They take turns, each has the same time.

    python tools/torture.py --seed 1 --hours 0.05
    python tools/torture.py --seed 1 --hours 0.05 --only writers --only servers
    python tools/torture.py --seed 1 --trial 1234        # that damage again, with what it said

Long runs, short starts and readers of data that come and go are in load.py; hostile bytes in fuzz.py.
"""

import os
import random
import resource
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import click
from bad_servers import BadServers
from damages import DAMAGES, OUTCOMES, Torturer, make_targets
from load import last_step
from small import SMALL_RUN, corpus, tree
from writers import FAULTS, Stopper, can_mount, pages_left, sharding_writers, small_disk, training_writers

from gpt2wds import Cut, Files, make_dataset


class Attack(Protocol):
    """One kind of attack. `trial` makes one, and returns what went wrong, or nothing."""

    def trial(self) -> str: ...

    def told(self) -> list[str]: ...


class Damages:
    """A file of a dataset or checkpoint damaged at random."""

    def __init__(self, folder: Path, seed: int):
        self.torturer = Torturer(make_targets(folder), folder, seed)
        self._counts: Counter[tuple[str, str]] = Counter()
        self._number = 0

    def trial(self) -> str:
        done = self.torturer.trial(self._number)
        for row in (done.target, done.damage):
            self._counts[row, done.outcome] += 1
        self._number += 1
        if done.outcome.isupper():
            return f"trial {self._number - 1}: {done.outcome}: {done.damage} of {done.file}: {done.said}"
        return ""

    def told(self) -> list[str]:
        lines = [f"{'':16}" + "".join(f"{outcome:>10}" for outcome in OUTCOMES)]
        for row in sorted({name for name, _ in self._counts}, key=lambda name: (name in DAMAGES, name)):
            lines.append(f"{row:16}" + "".join(f"{self._counts[row, outcome]:>10,}" for outcome in OUTCOMES))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return [*lines, f"{self._number:,} damages, at most {peak:.2f} GiB of memory"]


class Writers:
    """Each writer stopped at one of its writes."""

    def __init__(self, disk: Path, folder: Path, seed: int):
        self._stopper, self._chance = Stopper(disk, folder), random.Random(f"{seed} writers")
        self._writers = [*sharding_writers(folder), *training_writers(folder)]
        self._counts: Counter[tuple[str, str]] = Counter()

    def trial(self) -> str:
        writer, fault = self._chance.choice(self._writers), self._chance.choice(FAULTS)
        write = self._chance.randint(1, self._stopper.writes(writer))
        done = self._stopper.stop(writer, fault, write, pages_left(self._chance))
        self._counts[writer.name, fault] += 1
        return "; ".join((f"{writer.name}, {fault} at write {write}", *done.problems)) if done.problems else ""

    def told(self) -> list[str]:
        lines = [f"{'':16}" + "".join(f"{fault:>10}" for fault in FAULTS)]
        for writer in self._writers:
            counts = "".join(f"{self._counts[writer.name, fault]:>10,}" for fault in FAULTS)
            lines.append(f"{writer.name:16}{counts}, of {self._stopper.writes(writer)} writes")
        return lines


class Servers:
    """A Hub and an S3 server that misbehave."""

    def __init__(self, folder: Path, seed: int):
        self._servers = BadServers(folder, seed)

    def trial(self) -> str:
        return self._servers.dataset()

    def told(self) -> list[str]:
        found = self._servers
        misdeeds = ", ".join(f"{count:,} {name}" for name, count in sorted(found.requests.items()))
        return [f"{found.made:,} datasets from bad servers, {found.refused:,} refused at first; requests: {misdeeds}"]


class Ranks:
    """Training by three ranks whose launcher, or one of which, is killed; given again, the log is one rank's."""

    def __init__(self, folder: Path, seed: int):
        self._folder, self._chance = folder, random.Random(f"{seed} ranks")
        texts = corpus(folder / "ranks-corpus", 60, 100)
        make_dataset(folder / "ranks-data", Files((str(texts / "a.jsonl"),)), Cut(val_docs=20), workers=1)
        (folder / "ranks.toml").write_text(SMALL_RUN)
        subprocess.run(self._command("ranks-whole"), check=True, capture_output=True, env=self._environment())
        self._kills: Counter[str] = Counter()

    def trial(self) -> str:
        shutil.rmtree(self._folder / "ranks-killed", ignore_errors=True)
        mark = f"TORTURED={secrets.token_hex(8)}"
        environment = self._environment() | dict([mark.split("=")])
        process = subprocess.Popen(
            self._command("ranks-killed"), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._wait(process, mark)
        if process.poll() is None:
            ranks = [pid for pid in _marked(mark) if pid != process.pid]
            is_launcher = not ranks or self._chance.random() < 0.5
            self._kills["launcher" if is_launcher else "rank"] += 1
            os.kill(process.pid if is_launcher else self._chance.choice(ranks), signal.SIGKILL)
        end = time.monotonic() + 90  # half a minute is torchrun's own grace, and ours
        while (left := _marked(mark)) and time.monotonic() < end:
            process.poll()  # a process that ended is there until it was asked for
            time.sleep(0.1)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        process.wait()
        if left:
            return f"90 seconds after a kill {len(left)} of its processes still lived"
        done = subprocess.run(self._command("ranks-killed"), capture_output=True, text=True, env=self._environment())
        if done.returncode:
            return f"given again: exit code {done.returncode}: {done.stderr[-3000:]}"
        last = "checkpoints/step-0000060"
        names = ("log.txt", f"{last}/model.safetensors", f"{last}/optimizer.safetensors")
        whole, killed = self._folder / "ranks-whole", self._folder / "ranks-killed"
        different = [name for name in names if (whole / name).read_bytes() != (killed / name).read_bytes()]
        return f"{', '.join(different)}: not as if nothing had happened" if different else ""

    def _wait(self, process: subprocess.Popen[bytes], mark: str) -> None:
        """Until a moment at which to kill: while it starts, just when its ranks have begun, or at a step."""
        kind, log = self._chance.choice(["start", "ranks", "step", "step"]), self._folder / "ranks-killed" / "log.txt"
        moment = time.monotonic() + self._chance.uniform(0, 6) if kind == "start" else 0.0
        step = self._chance.randint(-1, 55)
        while process.poll() is None and (
            time.monotonic() < moment
            or (kind == "ranks" and len(_marked(mark)) < 4)
            or (kind == "step" and last_step(log) < step)
        ):
            time.sleep(0.01)
        time.sleep(self._chance.uniform(0, 0.5))

    def told(self) -> list[str]:
        return [f"kills of three ranks: {self._kills['launcher']:,} of the launcher, {self._kills['rank']:,} of a rank"]

    def _command(self, run: str) -> list[str]:
        programs = Path(sys.executable).parent
        launcher = [programs / "torchrun", "--standalone", "--nproc-per-node=3", "--no-python"]
        data = f"data.path={self._folder / 'ranks-data'}"
        command = [programs / "gpt2wds-train", self._folder / "ranks.toml", f"run.dir={self._folder / run}", data]
        return list(map(str, [*launcher, *command, "train.max_steps=60", "checkpoint.every_steps=5"]))

    def _environment(self) -> dict[str, str]:
        return os.environ | {"OMP_NUM_THREADS": "1"}


def _marked(mark: str) -> list[int]:
    """The processes that have this in their environment: ranks are in sessions of their own, orphans have no parent."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


class Kills:
    """gpt2wds-shard, killed at random moments and given again, until it ends; then every byte is compared."""

    def __init__(self, folder: Path, seed: int):
        self._folder, self._chance = folder, random.Random(f"{seed} kills")
        self._corpus = corpus(folder / "killed-corpus", 3000, 400)
        self.kills = self.directories = 0
        start = time.monotonic()
        subprocess.run(self._command(folder / "whole", 1), check=True, capture_output=True)
        self._seconds = time.monotonic() - start
        self._whole = tree(folder / "whole")

    def trial(self) -> str:
        """Make one dataset with up to eight kills; "" if it is byte for byte the one that was made in one go."""
        out = self._folder / "killed"
        shutil.rmtree(out, ignore_errors=True)
        for _ in range(self._chance.randint(1, 8)):
            workers = self._chance.randint(1, 3)
            process = subprocess.Popen(
                self._command(out, workers),
                start_new_session=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            start = time.monotonic()
            try:
                process.wait(timeout=self._chance.uniform(0, self._seconds))
                self._seconds = time.monotonic() - start  # it had less to do, or more workers
                break
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                self.kills += 1
        done = subprocess.run(self._command(out, 2), capture_output=True, text=True)
        self.directories += 1
        if done.returncode:
            return f"exit code {done.returncode}: {done.stderr}"
        found = tree(out)
        return "".join(
            f"{name} differs; " for name in {*found, *self._whole} if found.get(name) != self._whole.get(name)
        )

    def told(self) -> list[str]:
        return [f"{self.kills:,} kills of gpt2wds-shard, {self.directories:,} datasets finished after them"]

    def _command(self, out: Path, workers: int) -> list[str]:
        paths = [self._corpus / "a.jsonl", self._corpus / "b.jsonl.gz"]
        options = ["--val-docs", 200, "--docs-per-shard", 500, "--workers", workers, "--out", out]
        return list(map(str, [Path(sys.executable).with_name("gpt2wds-shard"), "files", *paths, *options]))


ATTACKS = ("damages", "kills", "ranks", "writers", "servers")


@contextmanager
def attacks(folder: Path, seed: int, names: tuple[str, ...]) -> Iterator[dict[str, Attack]]:
    """The attacks that are asked for and possible here."""
    made: dict[str, Attack] = {}
    simple: dict[str, Callable[[Path, int], Attack]] = {"damages": Damages, "kills": Kills, "ranks": Ranks}
    made |= {name: simple[name](folder, seed) for name in names if name in simple}
    servers = Servers(folder, seed) if "servers" in names else None
    if servers:
        made["servers"] = servers
    if "writers" not in names or not can_mount(folder):
        if "writers" in names:
            print("writers: passed over, mounting is not allowed here")
        yield made
        return
    with small_disk(folder / "disk") as disk:
        made["writers"] = Writers(disk, folder, seed)
        yield made


@click.command()
@click.option("--seed", default=1, show_default=True, help="Damages of the same seed and number are the same.")
@click.option("--hours", default=0.02, show_default=True, help="How long, for all attacks together.")
@click.option(
    "--only", type=click.Choice(ATTACKS), multiple=True, default=ATTACKS, help="These attacks; may be repeated."
)
@click.option("--trial", type=int, help="Only this damage, with all it said.")
def main(seed: int, hours: float, only: tuple[str, ...], trial: int | None) -> None:
    """Attack at random; a table of what came of it, exit code 1 if anything failed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if trial is not None:
            print(Damages(folder, seed).torturer.trial(trial))
            return
        with attacks(folder, seed, only) as made:
            failures = _torture(made, time.monotonic() + 3600 * hours)
    for failure in failures:
        print(failure)
    sys.exit(1 if failures else 0)


def _torture(made: dict[str, Attack], end: float) -> list[str]:
    """The attacks in turns, each for the same time; what failed."""
    spent, failures = dict.fromkeys(made, 0.0), []
    while made and time.monotonic() < end:
        name = min(spent, key=lambda name: spent[name])
        start = time.monotonic()
        if problem := made[name].trial():
            failures.append(f"{name}: {problem}")
            print(f"{name}: {problem}", file=sys.stderr, flush=True)
        spent[name] += time.monotonic() - start
    for attack in made.values():
        print("\n".join(attack.told()))
    return failures


if __name__ == "__main__":
    main()
