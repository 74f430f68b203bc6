"""The numbers of metrics.jsonl once more, where others look at them: TensorBoard, and Weights & Biases."""

import importlib.util
import json
import math
import os
import secrets
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

from .. import files
from ..dataset.manifest import member
from ..errors import Error, reason
from ..rows import Row
from ..strict_json import load_json

BOARDS = ("tensorboard", "wandb")  # packages, extras and keys of [run]
SECONDS = 30.0  # that Weights & Biases may take to answer; training waits for it at its beginning and its end


class Board(Protocol):
    """Takes the rows of a run, each step once."""

    def add(self, row: Row) -> None: ...

    def close(self) -> None: ...


def refuse_absent(boards: Iterable[str]) -> None:
    """Raise Error for a board whose package is not installed."""
    for name in boards:
        if importlib.util.find_spec(name) is None:
            raise Error(
                f"run.{name}: expected the package {name}, which is not installed; pip install 'gpt2wds[{name}]', or "
                "leave it off"
            )


class TensorBoard:
    """Event files in a folder; what was written of steps after `step` is not shown again."""

    def __init__(self, folder: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=step + 1)

    def add(self, row: Row) -> None:
        for name, value in numbers(row).items():
            self._writer.add_scalar(name, value, row["step"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """One run at Weights & Biases for a run directory, however often it is started.

    wandb.json has its id, and the last step that it was sent: later ones follow, earlier ones never again. Where nobody
    is logged in or nothing answers it writes into the run directory, from where `wandb sync` sends it later. Nothing
    that goes wrong there ends the training.
    """

    def __init__(self, folder: Path, logged: int, say: Callable[[str], None]):
        """logged: the last step of metrics.jsonl, before a resumed run drops what it does again."""
        import wandb

        self._say, self._path = say, folder / "wandb.json"
        identity, self._sent = self._known(logged)
        files.replace(self._path, json.dumps({"id": identity, "sent": self._sent}) + "\n")
        config = folder / "config.toml"
        options: dict[str, Any] = {
            "project": os.environ.get("WANDB_PROJECT", "gpt2wds"),
            "name": folder.resolve().name,
            "id": identity,
            "resume": "allow",
            "dir": str(folder),
            "config": tomllib.loads(config.read_text(encoding="utf-8")) if config.exists() else {},
        }
        # gpt.log has what is printed. An id that is the server's already goes on there.
        settings = {"console": "off", "init_timeout": SECONDS, "login_timeout": SECONDS, "finish_timeout": SECONDS}
        try:
            self._run: Any = wandb.init(**options, settings=wandb.Settings(**settings))
        except Exception as error:  # of clients of the network, which share no base
            say(f"WARNING: run.wandb: {reason(error)}; kept in {folder / 'wandb'}, wandb sync sends it later")
            self._run = wandb.init(**options, settings=wandb.Settings(**settings), mode="offline")

    def add(self, row: Row) -> None:
        if self._run is not None and row["step"] > self._sent:
            self._trying(lambda: self._run.log(numbers(row), step=row["step"]))
            self._sent = row["step"]

    def close(self) -> None:
        if self._run is not None:
            files.replace(self._path, json.dumps({"id": self._run.id, "sent": self._sent}) + "\n")
            self._trying(self._run.finish)

    def _trying(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:
            self._say(f"WARNING: run.wandb: {reason(error)}; nothing more is sent, training continues")
            self._run = None

    def _known(self, logged: int) -> tuple[str, int]:
        """The run's id, a new one where there is none, and the last step that was sent."""
        if not self._path.exists():
            return secrets.token_hex(8), -1
        try:
            record = load_json(self._path.read_bytes())
            sent = record.get("sent") if isinstance(record, dict) else None
            # What a kill left unsaid was logged, and then sent.
            return member(record, "id", str), max(logged, sent if isinstance(sent, int) else -1)
        except Error as error:
            raise Error(f"{self._path}: {error}; restore it, or remove it for a new run there") from None


def numbers(row: Row) -> dict[str, float]:
    """What of a row is a number, but its step; null stands for NaN."""
    values = {name: math.nan if value is None else value for name, value in row.items() if name != "step"}
    return {name: value for name, value in values.items() if isinstance(value, int | float)}
