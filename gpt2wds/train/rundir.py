"""A run directory: what a training run leaves behind, and how it is read back.

    config.toml     the resolved configuration
    run.json        facts that stay the same for the whole run: data, sizes, hardware
    gpt.log         everything that was printed
    log.txt         step train_loss val_loss hella_acc, one row per step; nan: not measured, -nan: not a number
    metrics.jsonl   the same and more, one JSON object per step
    checkpoints/    see checkpoint.py
    tensorboard/    the numbers of metrics.jsonl once more, where asked for
    lock-1          who writes now; gone when it has ended. See lock.py

`log.txt` holds nothing that differs between two identical runs: no clock, no rates.
"""

import importlib.util
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from .. import files
from ..errors import Error
from .lock import Lock

LOG_HEADER = "# step train_loss val_loss hella_acc\n"


class RunDirectory:
    """Paths, row files and printed lines of one run.

    Only the main rank writes and prints; on the others `say`, `append`, `rewind` and `claim` do nothing. With
    `tensorboard`, rows are written for it too. Raises Error where that package is not installed.
    """

    def __init__(self, path: str | Path, *, is_main: bool = True, tensorboard: bool = False):
        if tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise Error(
                "run.tensorboard: expected the package tensorboard, which is not installed; "
                "pip install 'gpt2wds[tensorboard]', or leave it off"
            )
        try:
            self.path = files.local_path(path)
        except Error as error:
            raise Error(f"run.dir: {error}") from None
        self._is_main, self._wants_board = is_main, tensorboard
        self._board: Any = None
        self._unlogged: list[str] | None = []  # said before the run was claimed
        self.config = self.path / "config.toml"
        self.facts_path = self.path / "run.json"
        self.printed = self.path / "gpt.log"
        self.log = self.path / "log.txt"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self._lock = Lock(self.path, self.say)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Have the directory for this run alone. Raises Error where another process writes to it."""
        if not self._is_main:
            yield
            return
        self._lock.take()
        try:
            self._remove_strays()
            yield
        finally:
            self._lock.release()

    def _remove_strays(self) -> None:
        """What a killed run left: it holds the directory no more."""
        for path in self.path.glob(files.TEMPORARY):
            if path.is_file():
                path.unlink(missing_ok=True)
        for path in self.checkpoints.glob(files.TEMPORARY):
            shutil.rmtree(path, ignore_errors=True)

    def check(self) -> None:
        """Raise Error where the directory of a claimed run is gone, or not this process's any more."""
        if self._is_main and self._unlogged is None:
            if not self.config.exists():
                raise self._gone()
            self._lock.check()

    def claim(self, config: str) -> None:
        """Make the directory this run's, with its configuration; what is said from now on is kept in gpt.log."""
        if not self._is_main:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        self.checkpoints.mkdir(exist_ok=True)
        files.replace(self.config, config)
        said, self._unlogged = self._unlogged or [], None
        for text in said:
            self._keep(text)

    def say(self, text: str) -> None:
        """Print a line, and keep it in gpt.log once the run is claimed."""
        if not self._is_main:
            return
        tqdm.write(text)  # above a progress bar, where there is one
        sys.stdout.flush()
        if self._unlogged is None:
            self._keep(text)
        else:
            self._unlogged.append(text)

    def _keep(self, text: str) -> None:
        with self._appending(self.printed) as file:
            file.write(text + "\n")

    @contextmanager
    def _appending(self, path: Path) -> Iterator[TextIO]:
        try:
            with files.naming_full_disk(path), path.open("a", encoding="utf-8") as file:
                yield file
        except (FileNotFoundError, NotADirectoryError):
            raise self._gone() from None

    def _gone(self) -> Error:
        return Error(
            f"{self.path}: the run directory is gone, removed or moved while it was trained in, and is not made anew; "
            "bring it back, then the same command goes on from its newest checkpoint"
        )

    def rewind(self, step: int) -> None:
        """Drop all rows after `step` (and half-written ones): a resumed run writes them again.

        A killed run may have logged steps that its last checkpoint does not have. Rows that log.txt lost otherwise come
        back from metrics.jsonl, which has the same numbers.
        """
        if not self._is_main:
            return
        rows = {number: line for number, line in _checked(self.log, _log_step) if 0 <= number <= step}
        objects = [line for number, line in _checked(self.metrics, _metrics_step) if number <= step]
        lost = {number: line for number, line in map(_log_row, objects) if number not in rows}
        if lost:
            first, last = min(lost), max(lost)
            self.say(f"WARNING: {self.log}: steps {first:,} to {last:,} were missing, taken from {self.metrics.name}")
        files.replace(self.log, LOG_HEADER + "".join(line for _, line in sorted((lost | rows).items())))
        files.replace(self.metrics, "".join(objects))
        if self._wants_board:
            from torch.utils.tensorboard import SummaryWriter

            # What was written of later steps is not shown again.
            self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=step + 1)

    def append(self, metrics: dict[str, Any]) -> None:
        """Write one step's row to `log.txt` and its object to `metrics.jsonl`.

        `metrics` needs "step"; "train_loss", "val_loss" and "hella_acc" go to both files.
        Nine significant digits give a float32 back exactly.
        """
        if not self._is_main:
            return
        with self._appending(self.log) as file:
            file.write(_row(metrics))
        with self._appending(self.metrics) as file:
            file.write(json.dumps(_without_nan(metrics), ensure_ascii=False) + "\n")
        if self._board is not None:
            for name, value in metrics.items():
                if isinstance(value, int | float) and name != "step":
                    self._board.add_scalar(name, value, metrics["step"])
            self._board.flush()

    def read_metrics(self) -> list[dict[str, Any]]:
        """All objects of `metrics.jsonl`, in order; a last line cut short by a kill is left out.

        Raises Error that names the line for any other that is damaged.
        """
        return [json.loads(line) for _, line in _checked(self.metrics, _metrics_step)]

    def write_facts(self, facts: dict[str, Any]) -> None:
        if self._is_main:
            files.replace(self.facts_path, json.dumps(facts, indent=1) + "\n")

    def read_facts(self) -> dict[str, Any]:
        if not self.facts_path.exists():
            return {}
        try:
            facts = json.loads(self.facts_path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise Error(f"{self.facts_path}: expected JSON ({error}); remove it, training writes it again") from None
        return facts if isinstance(facts, dict) else {}


def _checked(path: Path, step_of: Callable[[str], int]) -> Iterator[tuple[int, str]]:
    """(step, line) of each whole line. Raises Error that names a damaged one and says what to do."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, data in enumerate(file, 1):
            if not data.endswith(b"\n"):
                return  # a kill cut the last line, perhaps in the middle of a character
            try:
                line = data.decode("utf-8")
                yield step_of(line), line
            except (ValueError, RecursionError, IndexError, TypeError, KeyError):
                raise Error(
                    f"{path} line {number}: expected a row of one step, got {data[:40]!r}; restore the file, or delete "
                    "that line: the run itself does not need it"
                ) from None


def _log_step(line: str) -> int:
    return -1 if line.startswith("#") else int(line.split()[0])


def _metrics_step(line: str) -> int:
    record = json.loads(line)
    if type(record["step"]) is not int or any(isinstance(value, str) for value in record.values()):
        raise TypeError(record)
    return int(record["step"])


def _log_row(line: str) -> tuple[int, str]:
    """The step of a line of metrics.jsonl, and its row of log.txt."""
    record = json.loads(line)
    # null stands for what is not a number; what was not measured is not there.
    return record["step"], _row({name: math.nan if value is None else value for name, value in record.items()})


def _row(metrics: dict[str, Any]) -> str:
    columns = " ".join(_word(metrics.get(name)) for name in ("train_loss", "val_loss", "hella_acc"))
    return f"{metrics['step']} {columns}\n"


def _word(value: float | None) -> str:
    """A number in log.txt: nan where it was not measured, -nan where it was and is not a number."""
    return "nan" if value is None else "-nan" if math.isnan(value) else f"{value:.9g}"


def _without_nan(value: Any) -> Any:
    # JSON has no NaN: null stands for it.
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return value
