"""A run directory: what a training run leaves behind, and how it is read back.

    config.toml     the resolved configuration
    run.json        facts that stay the same for the whole run: data, sizes, hardware
    gpt.log         everything that was printed
    log.txt         step train_loss val_loss hella_acc, one row per step; nan: not measured, -nan: not a number
    metrics.jsonl   the same and more, one JSON object per step
    checkpoints/    see checkpoint.py
    tensorboard/    the numbers of metrics.jsonl once more, where asked for
    wandb.json      the run at Weights & Biases that has them, where asked for; wandb/ is its package's own
    lock-1          who writes now; gone when it has ended. See lock.py

`log.txt` holds nothing that differs between two identical runs: no clock, no rates.
"""

import json
import math
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast

from tqdm import tqdm

from .. import files
from ..errors import Error, shown
from ..rows import Facts, Row, number
from ..strict_json import load_json
from .boards import Board, TensorBoard, Wandb, refuse_absent
from .lock import Lock

LOG_HEADER = "# step train_loss val_loss hella_acc\n"
DAMAGED = (ValueError, RecursionError, IndexError, TypeError, KeyError)  # what reading a damaged row raises


class RunDirectory:
    """Paths, row files and printed lines of one run.

    Only the main rank writes and prints; on the others `say`, `append`, `rewind` and `claim` do nothing. Rows go to
    `boards` too, of boards.BOARDS. Raises Error where such a package is not installed.
    """

    def __init__(self, path: str | Path, *, is_main: bool = True, boards: Sequence[str] = ()):
        refuse_absent(boards)
        try:
            self.path = files.local_path(path)
        except Error as error:
            raise Error(f"run.dir: {error}") from None
        self._is_main, self._wanted_boards = is_main, boards
        self._boards: list[Board] = []
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
            for board in self._boards:
                board.close()
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
        text = shown(text)
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

    def refuse_damaged_rows(self) -> None:
        """Raise Error where `rewind` would."""
        for path, step_of in ((self.log, _log_step), (self.metrics, _metrics_step)):
            deque(_checked(path, step_of), maxlen=0)

    def rewind(self, step: int) -> None:
        """Drop all rows after `step` (and half-written ones): a resumed run writes them again.

        A killed run may have logged steps that its last checkpoint does not have. Rows that log.txt lost otherwise come
        back from metrics.jsonl, which has the same numbers.
        """
        if not self._is_main:
            return
        logged = self.last_step()
        rows = {number: line for number, line in _checked(self.log, _log_step) if 0 <= number <= step}
        objects = [line for number, line in _checked(self.metrics, _metrics_step) if number <= step]
        lost = {number: line for number, line in map(_log_row, objects) if number not in rows}
        if lost:
            first, last = min(lost), max(lost)
            self.say(f"WARNING: {self.log}: steps {first:,} to {last:,} were missing, taken from {self.metrics.name}")
        files.replace(self.log, LOG_HEADER + "".join(line for _, line in sorted((lost | rows).items())))
        files.replace(self.metrics, "".join(objects))
        if "tensorboard" in self._wanted_boards:
            self._boards.append(TensorBoard(self.path / "tensorboard", step))
        if "wandb" in self._wanted_boards:
            self._boards.append(Wandb(self.path, logged, self.say))
            for row in self.read_metrics():  # of a time before it was asked for
                self._boards[-1].add(row)

    def append(self, metrics: Row) -> None:
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
        for board in self._boards:
            board.add(metrics)

    def read_metrics(self) -> list[Row]:
        """All objects of `metrics.jsonl`, in order; a last line cut short by a kill is left out.

        Raises Error that names the line for any other that is damaged.
        """
        return [json.loads(line) for _, line in _checked(self.metrics, _metrics_step)]

    def last_step(self) -> int:
        """The last step that is logged, in whatever state the files are; 0 where none can be read."""
        for path, step_of in ((self.metrics, _metrics_step), (self.log, _log_step)):
            for data in reversed(path.read_bytes().splitlines() if path.exists() else []):
                with suppress(*DAMAGED):
                    return max(0, step_of(data.decode("utf-8")))
        return 0

    def write_facts(self, facts: Facts) -> None:
        if self._is_main:
            files.replace(self.facts_path, json.dumps(facts, indent=1) + "\n")

    def read_facts(self) -> Facts:
        if not self.facts_path.exists():
            return {}
        try:
            facts = load_json(self.facts_path.read_bytes())
            if not isinstance(facts, dict):
                raise Error(f"it is no object but {repr(facts)[:40]}")
        except Error as error:
            raise Error(f"{self.facts_path}: expected JSON ({error}); remove it, training writes it again") from None
        return cast(Facts, facts)


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
            except DAMAGED:
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
    row = {name: math.nan if value is None else value for name, value in record.items()}
    return record["step"], _row(cast(Row, row))


def _row(metrics: Row) -> str:
    columns = " ".join(_word(number(metrics, name)) for name in ("train_loss", "val_loss", "hella_acc"))
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
