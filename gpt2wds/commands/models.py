"""MODEL on a command line → a directory with weights."""

import re
import sys
from pathlib import Path

from .. import files
from ..dataset.manifest import member
from ..distributed import World
from ..errors import Error, reason
from ..model import GPT2
from ..train.checkpoint import CONFIG, STATE, WEIGHTS, newest_sound_checkpoint, refuse_damaged
from ..train.rundir import RunDirectory
from ..train.weights import SHARDED, load_weights, weights_hash
from .output import say


def _warn(text: str) -> None:
    say(text, file=sys.stderr)


def step_of(weights: Path) -> int | None:
    """The step a checkpoint is of, None for other weights."""
    found = re.fullmatch(r"step-(\d{7,})", weights.name)
    return int(found[1]) if found else None


def _here(what: str, name: str) -> Path:
    """A path of this machine. Weights at a URL are copied here first."""
    try:
        return files.local_path(name)
    except Error as error:
        raise Error(f"{what}: {error}") from None


def find_checkpoint(name: str) -> Path:
    """A checkpoint that is whole, or the newest of a run directory."""
    path = _here("run.fork_from", name)
    if (path / STATE).exists():
        refuse_damaged(path)
        return path
    newest = newest_sound_checkpoint(RunDirectory(path).checkpoints, _warn)
    if newest is None:
        raise Error(f"run.fork_from: expected a checkpoint, or a run directory that has one, got {path}")
    return newest


def weights_before(run: RunDirectory, step: int) -> Path:
    """The newest sound weights before a step of a run: a checkpoint of its own, or what it began from. Raises Error."""
    own = newest_sound_checkpoint(run.checkpoints, _warn, before=step)
    if own is not None:
        return own
    none = f"{run.checkpoints}: expected a checkpoint before step {step}, got none"
    origin = run.read_facts().get("origin")
    if not isinstance(origin, dict):
        raise Error(f"{none}: a run keeps its newest, as many as checkpoint.keep says, and has none before its first")
    begun, path = origin.get("step"), Path(member(origin, "path", str))
    if "fork_from" in origin and isinstance(begun, int) and begun >= step:
        raise Error(f"{none}: it was forked after step {begun}, from {path}; ask the run that this is of")
    if not (path / CONFIG).exists():
        raise Error(f"{none}, and what the run began from is gone: {path}")
    if weights_hash(path) != origin.get("sha256"):
        raise Error(f"{none}, and what the run began from has changed since: {path}")
    return path


def find_weights(model: str) -> Path:
    """A run directory (its newest checkpoint), a checkpoint, a directory in Hugging Face layout, or a Hub name."""
    path = _here(f"model {model}", model)
    if path.is_dir():
        if (path / CONFIG).exists():
            return path
        newest = newest_sound_checkpoint(RunDirectory(path).checkpoints, _warn)
        if newest is None:
            if RunDirectory(path).config.exists():
                raise Error(f"model {model}: expected a run with a checkpoint, got one without any yet; let it go on")
            raise Error(f"model {model}: expected a run directory with a checkpoint or {CONFIG}, found neither")
        return newest
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=[CONFIG, WEIGHTS, SHARDED, "model-*.safetensors"]))
    except Exception as error:  # of HTTP clients, which share no base
        raise Error(f"model {model}: expected a directory, or a name that the Hub knows ({reason(error)})") from None


def load(model: str, world: World) -> tuple[GPT2, int | None]:
    """The model of a command line's MODEL, ready to read, and the step it is of."""
    weights = find_weights(model)
    return load_weights(weights).to(world.device).eval(), step_of(weights)
