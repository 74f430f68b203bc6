"""A checkpoint: a directory that is whole or not there.

    model.safetensors, config.json   GPT-2 in Hugging Face layout: `transformers` opens the directory as it is
    optimizer.safetensors            state tensors by parameter name
    state.json                       step, position in the data, and what else an exact resume needs
    vocab.json, merges.txt, …        the tokenizer, for `transformers`; no part of a resume
    SHA256SUMS                       of all of these; `sha256sum -c` checks a checkpoint by hand

Nothing in it is ever unpickled.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..dataset.manifest import member
from ..errors import Error, reason
from ..files import naming_full_disk, sync
from ..model import GPT2, hf_config
from ..rows import Beginning, Row
from ..strict_json import Record

WEIGHTS, CONFIG, OPTIMIZER = "model.safetensors", "config.json", "optimizer.safetensors"
STATE, SUMS = "state.json", "SHA256SUMS"
NEEDED = (WEIGHTS, CONFIG, OPTIMIZER, STATE)  # for a resume


@dataclass(frozen=True)
class State:
    """What an exact resume needs beside weights and optimizer.

    step: updates done; row: that step's numbers; batches: `StepBatches.state_dict()`, None before the first step;
    origin: what the run began from where it is not random weights.
    """

    step: int = 0
    row: Row = field(default_factory=lambda: Row(step=0, tokens=0))
    batches: Record | None = None
    origin: Beginning | None = None

    def to_json(self) -> str:
        record = {"step": self.step, "row": self.row, "batches": self.batches}
        return json.dumps(record | ({"origin": self.origin} if self.origin else {}), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "State":
        """Raises Error for what is no state, whoever wrote it."""
        try:
            record = json.loads(text)  # NaN, which a row may have, is not JSON's
        except (ValueError, RecursionError) as error:
            raise Error(f"it is no JSON ({reason(error)})") from None
        step, row = member(record, "step", int), member(record, "row", dict)
        if member(row, "step", int) != step or member(row, "tokens", int) < step:
            raise Error(f"'row': expected that of step {step}, got {repr(row)[:80]}")
        if not all(value is None or isinstance(value, int | float) for value in row.values()):
            raise Error(f"'row': expected numbers, got {repr(row)[:80]}")
        # Before 0.1 the members of `batches` stood beside the others.
        batches, origin = record.get("batches", record), record.get("origin")
        if batches is not None:
            batches = member({"batches": batches}, "batches", dict)
        if origin is not None:
            member(member(record, "origin", dict), "path", str)
        return cls(step, cast(Row, row), batches, cast(Beginning | None, origin))


def save_checkpoint(
    folder: Path,
    state: State,
    model: GPT2,
    optimizer_tensors: dict[str, torch.Tensor],
    *,
    keep: int,
    beside: Mapping[str, bytes] = MappingProxyType({}),
    warn: Callable[[str], None] = print,
) -> Path:
    """Write `folder`/step-0000100 under a temporary name, rename it, and remove all but `keep`: it and those before.

    `beside`: name → content of further files, for those who read the weights. An old one that cannot be removed is a
    warning. Raises OSError when the new one cannot be written (disk full); then no part of it is left and the older
    ones stay.
    """
    folder.mkdir(exist_ok=True)  # never what is above it: that is a run which is gone
    final = folder / f"step-{state.step:07d}"
    temporary = folder / f".{final.name}.{os.getpid()}.tmp"
    _clear(folder)
    try:
        with naming_full_disk(temporary):
            temporary.mkdir()
            _write_tensors(model.hf_state_dict(), temporary / WEIGHTS)
            (temporary / CONFIG).write_text(json.dumps(hf_config(model.config), indent=2) + "\n")
            _write_tensors({n: tensor.contiguous() for n, tensor in optimizer_tensors.items()}, temporary / OPTIMIZER)
            (temporary / STATE).write_text(state.to_json())
            for name, content in beside.items():
                (temporary / name).write_bytes(content)
            for name in (WEIGHTS, OPTIMIZER):  # safetensors makes them readable for their owner alone
                (temporary / name).chmod((temporary / STATE).stat().st_mode)
            sums = "".join(f"{sha256_of(temporary / name)}  {name}\n" for name in (*NEEDED, *beside))
            (temporary / SUMS).write_text(sums)
            for path in (*temporary.iterdir(), temporary):
                sync(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if final.exists():
        # A damaged one that a fall-back trained past again.
        shutil.rmtree(_hidden(final))
    temporary.rename(final)
    sync(folder)
    # What is further on is damaged, and training fell back past it: kept, it would push a sound one out.
    found = list_checkpoints(folder)
    kept = found[: found.index(final) + 1][-keep:]
    for old in found:
        if old not in kept:
            _remove(old, warn)
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first: only exactly our names, a copy under another name is its owner's."""
    try:
        names = os.listdir(folder)  # glob finds nothing where it may not look
    except FileNotFoundError:
        return []
    found = [folder / name for name in names if re.fullmatch(r"step-\d{7,}", name)]
    return sorted((path for path in found if path.is_dir()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint is of.

    >>> step_of(Path("runs/mine/checkpoints/step-0000400"))
    400
    """
    return int(checkpoint.name.removeprefix("step-"))


def newest_sound_checkpoint(folder: Path, warn: Callable[[str], None], before: int | None = None) -> Path | None:
    """The newest checkpoint whose every byte is as it was written, or None when there is none at all.

    Of those of a step before `before`, where that is given.
    Says through `warn` which are skipped. Raises Error when there are some and all are damaged: starting
    from nothing is not what anybody would want then; and for one that may not be read, which is not damaged, and would
    be replaced when the run comes by again.
    """
    found = [path for path in list_checkpoints(folder) if before is None or step_of(path) < before]
    damaged, sound = [], None
    for path in reversed(found):
        problem = _damage(path)
        if problem is None:
            sound = path
            break
        damaged.append(f"WARNING: checkpoint {path} is damaged ({problem})")
    for line in damaged:
        warn(line + ("; falling back to the one before" if sound else ""))
    if found and sound is None:
        raise Error(
            f"{folder}: expected a sound checkpoint, all {len(found)} are damaged; "
            "restore one, or choose another run.dir to start from nothing"
        )
    return sound


def refuse_damaged(path: Path) -> None:
    """Raise Error for a checkpoint that is not whole."""
    if (problem := _damage(path)) is not None:
        raise Error(f"checkpoint {path}: expected every file as it was written, got {problem}; take another one")


def load_state(path: Path) -> tuple[State, dict[str, torch.Tensor]]:
    """A checkpoint's state, and its optimizer's tensors by name. Raises Error where they are none."""
    try:
        state = State.from_json((path / STATE).read_text(encoding="utf-8"))
    except ValueError as error:  # Error, or of UTF-8
        raise Error(f"{path / STATE}: expected a checkpoint's state, {error}; take another checkpoint") from None
    try:
        return state, load_file(path / OPTIMIZER)
    except SafetensorError as error:
        raise Error(f"{path / OPTIMIZER}: expected tensors, {reason(error)}; take another checkpoint") from None


def state_hash(path: Path) -> str:
    """SHA-256 of a sound checkpoint: of its list of the hashes of its files."""
    return sha256_of(path / SUMS)


def read_sums(path: Path) -> dict[str, str]:
    """What SHA256SUMS says of each file of a checkpoint. Raises OSError or ValueError where it cannot be read."""
    lines = [line.partition("  ") for line in (path / SUMS).read_text().splitlines()]
    return {name: sha256 for sha256, _, name in lines}


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove(old: Path, warn: Callable[[str], None]) -> None:
    try:
        old = _hidden(old)
        shutil.rmtree(old)
    except OSError as error:
        warn(f"WARNING: the old checkpoint {old} could not be removed ({reason(error)}); remove it by hand")


def _hidden(checkpoint: Path) -> Path:
    """A checkpoint under another name: who is killed while removing it leaves no half under its own."""
    if checkpoint.is_symlink():  # its owner's: rmtree refuses it
        return checkpoint
    return checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}.{os.getpid()}.old.tmp"))


def _write_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        # A full disk among others, in an exception class of its own: "… (os error 28)".
        code = re.search(r"\(os error (\d+)\)", str(error))
        if code:
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from None
        raise OSError(f"{path.name}: {error}") from None


def _damage(path: Path) -> str | None:
    try:
        sums = read_sums(path)
        for name in NEEDED:
            if sums.get(name) != sha256_of(path / name):
                return f"{name} is not what was written"
    except PermissionError as error:
        raise Error(f"checkpoint {path}: expected to read it ({reason(error)}); make it readable, then go on") from None
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _clear(folder: Path) -> None:
    for stray in folder.glob(".step-*.tmp"):
        shutil.rmtree(stray, ignore_errors=True)
