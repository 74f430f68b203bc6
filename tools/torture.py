"""Datasets and checkpoints damaged at random (damages.py), and sharding killed at random moments.

It goes on for as long as asked, and prints a table of what came of it, and every failure; exit code 1 if there is one.

    python tools/torture.py --seed 1 --hours 0.05
    python tools/torture.py --seed 1 --trial 1234        # that damage again, with what it said
"""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import click
from damages import DAMAGES, OUTCOMES, Torturer, corpus, hash_of, make_targets


class Killer:
    """gpt2wds-shard, killed at random moments and given again, until it ends; then every byte is compared."""

    def __init__(self, folder: Path, seed: int):
        self._folder, self._chance = folder, random.Random(f"{seed} kills")
        self._corpus = corpus(folder / "killed-corpus", 3000, 400)
        self.kills = self.directories = 0
        start = time.monotonic()
        subprocess.run(self._command(folder / "whole", 1), check=True, capture_output=True)
        self._seconds = time.monotonic() - start
        self._whole = _hashes(folder / "whole")

    def directory(self) -> str:
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
        found = _hashes(out)
        return "".join(
            f"{name} differs; " for name in {*found, *self._whole} if found.get(name) != self._whole.get(name)
        )

    def _command(self, out: Path, workers: int) -> list[str]:
        paths = [self._corpus / "a.jsonl", self._corpus / "b.jsonl.gz"]
        options = ["--val-docs", 200, "--docs-per-shard", 500, "--workers", workers, "--out", out]
        return list(map(str, [Path(sys.executable).with_name("gpt2wds-shard"), "files", *paths, *options]))


def _hashes(folder: Path) -> dict[str, str]:
    """Of all that is there: strays would be seen, too."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hash_of(path.read_bytes()) for path in files}


@click.command()
@click.option("--seed", default=1, show_default=True, help="Trials of the same seed and number are the same.")
@click.option("--hours", default=0.02, show_default=True, help="How long; half of it for kills.")
@click.option("--trial", type=int, help="Only this one, with all it said.")
@click.option("--no-kills", is_flag=True, help="Damages alone.")
def main(seed: int, hours: float, trial: int | None, no_kills: bool) -> None:
    """Damage and kill at random; a table of what came of it, exit code 1 if anything failed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torturer = Torturer(make_targets(folder), folder, seed)
        if trial is not None:
            print(torturer.trial(trial))
            return
        killer = None if no_kills else Killer(folder, seed)
        failures = _torture(torturer, killer, time.monotonic() + 3600 * hours)
    for failure in failures:
        print(failure)
    sys.exit(1 if failures else 0)


def _torture(torturer: Torturer, killer: Killer | None, end: float) -> list[str]:
    counts: Counter[tuple[str, str]] = Counter()
    failures, number = [], 0
    spent = {"damages": 0.0, "kills": 0.0}
    while time.monotonic() < end:
        start = time.monotonic()
        kind = "damages" if killer is None or spent["damages"] <= spent["kills"] else "kills"
        if kind == "damages":
            done = torturer.trial(number)
            for row in (done.target, done.damage):
                counts[row, done.outcome] += 1
            if done.outcome.isupper():
                failures.append(f"trial {number}: {done.outcome}: {done.damage} of {done.file}: {done.said}")
            number += 1
        elif killer is not None and (problem := killer.directory()):
            failures.append(f"killed directory {killer.directories}: {problem}")
        spent[kind] += time.monotonic() - start
    print(f"{'':16}" + "".join(f"{outcome:>10}" for outcome in OUTCOMES))
    for row in sorted({name for name, _ in counts}, key=lambda name: (name in DAMAGES, name)):
        print(f"{row:16}" + "".join(f"{counts[row, outcome]:>10,}" for outcome in OUTCOMES))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{number:,} damages, at most {peak:.2f} GiB of memory")
    if killer is not None:
        print(f"{killer.kills:,} kills of gpt2wds-shard, {killer.directories:,} datasets finished after them")
    return failures


if __name__ == "__main__":
    main()
