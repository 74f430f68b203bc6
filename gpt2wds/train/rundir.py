"""A run directory: what a training run leaves behind, and how it is read back.

    config.toml     the resolved configuration
    run.json        facts that stay the same for the whole run: data, sizes, hardware
    gpt.log         everything that was printed
    log.txt         step train_loss val_loss hella_acc, one row per step; nan: not measured, -nan: not a number
    metrics.jsonl   the same and more, one JSON object per step
    checkpoints/    see checkpoint.py
    tensorboard/    the numbers of metrics.jsonl once more, where asked for

`log.txt` holds nothing that differs between two identical runs: no clock, no rates.
"""

import importlib.util
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import files
from ..errors import Error

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
        self.path = Path(path)
        self._is_main, self._wants_board = is_main, tensorboard
        self._board: Any = None
        self._unlogged: list[str] | None = []  # said before the run was claimed
        self.config = self.path / "config.toml"
        self.facts_path = self.path / "run.json"
        self.printed = self.path / "gpt.log"
        self.log = self.path / "log.txt"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"

    def claim(self, config: str) -> None:
        """Make the directory this run's, with its configuration; what is said from now on is kept in gpt.log."""
        if not self._is_main:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        files.replace(self.config, config)
        said, self._unlogged = self._unlogged or [], None
        for text in said:
            self._keep(text)

    def say(self, text: str) -> None:
        """Print a line, and keep it in gpt.log once the run is claimed."""
        if not self._is_main:
            return
        print(text, flush=True)
        if self._unlogged is None:
            self._keep(text)
        else:
            self._unlogged.append(text)

    def _keep(self, text: str) -> None:
        with self.printed.open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def rewind(self, step: int) -> None:
        """Drop all rows after `step` (and half-written ones): a resumed run writes them again.

        A killed run may have logged steps that its last checkpoint does not have.
        """
        if not self._is_main:
            return
        rows = [row for row in _whole_lines(self.log) if not row.startswith("#") and int(row.split()[0]) <= step]
        objects = [line for line in _whole_lines(self.metrics) if json.loads(line)["step"] <= step]
        files.replace(self.log, LOG_HEADER + "".join(rows))
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
        columns = [metrics.get(name) for name in ("train_loss", "val_loss", "hella_acc")]
        row = " ".join(map(_word, columns))
        with self.log.open("a", encoding="utf-8") as f:
            f.write(f"{metrics['step']} {row}\n")
        with self.metrics.open("a", encoding="utf-8") as f:
            f.write(json.dumps(_without_nan(metrics), ensure_ascii=False) + "\n")
        if self._board is not None:
            for name, value in metrics.items():
                if isinstance(value, int | float) and name != "step":
                    self._board.add_scalar(name, value, metrics["step"])
            self._board.flush()

    def read_metrics(self) -> list[dict[str, Any]]:
        """All objects of `metrics.jsonl`, in order; a last line cut short by a kill is left out."""
        return [json.loads(line) for line in _whole_lines(self.metrics)]

    def write_facts(self, facts: dict[str, Any]) -> None:
        if self._is_main:
            files.replace(self.facts_path, json.dumps(facts, indent=1) + "\n")

    def read_facts(self) -> dict[str, Any]:
        return json.loads(self.facts_path.read_text(encoding="utf-8")) if self.facts_path.exists() else {}


def _whole_lines(path: Path) -> Iterator[str]:
    if path.exists():
        with path.open("rb") as f:
            # A kill may have cut the last line, even in the middle of a character.
            yield from (line.decode("utf-8") for line in f if line.endswith(b"\n"))


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
