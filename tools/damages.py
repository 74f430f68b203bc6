"""One file of a dataset or checkpoint damaged at random: what is read then, and whether anything says so.

A trial damages one file of a sound directory, reads everything that the directory decides, and ends in one of OUTCOMES:

    same       nothing that is read differs (a blank of JSON, a receipt that no reader needs)
    refused    an Error, in one line; for a checkpoint also: the one before is taken, and it is said
    SILENT     something else was read, and nothing said so
    CRASH      a traceback, or more than a minute

A dataset is also verified: `verify` must see every change of a file but for the layout of JSON.
"""

import hashlib
import json
import random
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
from small import corpus, files_of

from gpt2wds import Cut, Dataset, Error, MultipleChoice, StepBatches, load_weights, make_dataset
from gpt2wds.dataset.manifest import SPLITS
from gpt2wds.dataset.verify import verify_dataset, verify_shard
from gpt2wds.model import GPT2, GPT2Config
from gpt2wds.train.checkpoint import State, load_state, newest_sound_checkpoint, save_checkpoint

Read = Callable[[Path], dict[str, str]]  # what a directory decides, and a hash of each; raises Error
DAMAGES = ("flip", "truncate", "append", "overwrite", "duplicate", "cut", "digit", "swap", "remove", "empty")
OUTCOMES = ("same", "refused", "SILENT", "CRASH")
HUNG_SECONDS = 60


@dataclass(frozen=True)
class Target:
    """A sound directory, the files of it that are damaged, and how it is read."""

    name: str
    folder: Path
    files: Sequence[str]
    read: Read


@dataclass(frozen=True)
class Trial:
    """What was done, and what came of it."""

    target: str
    damage: str
    file: str
    outcome: str
    said: str


class _Hung(Exception):
    pass


# What is read


def read_dataset(path: Path) -> dict[str, str]:
    """Every token, every step of the loader, and every member of the manifest."""
    dataset = Dataset(path)
    found = {"manifest": dataset.manifest.to_json(), **_contents(dataset)}
    batches = StepBatches(dataset, seq_len=256, sequences_per_step=16, seed=1)
    steps = hashlib.sha256()
    for _, sequences in zip(range(batches.steps_per_epoch), batches, strict=False):
        steps.update(sequences.tobytes())
    return found | {"steps": steps.hexdigest()}


def read_older_dataset(path: Path) -> dict[str, str]:
    """Of a dataset without hashes of manifest and index only tokens are promised."""
    return _contents(Dataset(path))


def read_examples(path: Path) -> dict[str, str]:
    dataset = Dataset(path)
    examples = [repr(sorted(example.items(), key=lambda item: item[0])) for example in dataset.examples("val")]
    return {"manifest": dataset.manifest.to_json(), "examples": hash_of(*examples)}


def verify(path: Path) -> list[str]:
    """Everything that is wrong with a dataset, opening it included."""
    try:
        dataset = Dataset(path)
    except Error as error:
        return [str(error)]
    places = [(split, number) for split in SPLITS for number in range(len(dataset.shards(split)))]
    return verify_dataset(dataset) + [problem for place in places for problem in verify_shard(dataset, *place)]


def read_newest(path: Path) -> dict[str, str]:
    """As a run resumes. Raises Error where the newest is passed over, once the one before it was read."""
    warnings: list[str] = []
    newest = newest_sound_checkpoint(path, warnings.append)
    assert newest is not None
    found = _checkpoint(newest)
    if warnings:
        if newest.name != "step-0000001" or len(warnings) != 1:
            raise AssertionError(f"{newest}: {warnings}")
        _checkpoint(newest)
        raise Error(warnings[0])
    return found


def read_weights(path: Path) -> dict[str, str]:
    """As one who scores a checkpoint."""
    return _weights(path / "step-0000002")


def _contents(dataset: Dataset) -> dict[str, str]:
    found = {"id": dataset.id, "kind": dataset.kind}
    for split in SPLITS:
        tokens = hashlib.sha256()
        for number in range(len(dataset.shards(split))):
            for piece in dataset.iterate_tokens(split, number):
                tokens.update(piece.tobytes())
        found[split] = f"{len(dataset.shards(split))} shards, tokens {tokens.hexdigest()}"
    return found


def _checkpoint(path: Path) -> dict[str, str]:
    state, tensors = load_state(path)
    names = sorted(tensors)
    optimizer = hash_of(*names, *(tensors[name].numpy() for name in names))
    return {"state": state.to_json(), "optimizer": optimizer, **_weights(path)}


def _weights(path: Path) -> dict[str, str]:
    model = load_weights(path)
    return {
        "config": str(model.config),
        "weights": hash_of(*(p.detach().numpy().tobytes() for p in model.parameters())),
    }


def hash_of(*pieces: str | bytes | np.ndarray) -> str:
    return hashlib.sha256(b"".join(p.encode() if isinstance(p, str) else bytes(p) for p in pieces)).hexdigest()


# Sound directories


def make_targets(folder: Path) -> list[Target]:
    """One of each kind: a dataset, one as before there were hashes of manifests, examples, checkpoints."""
    texts = corpus(folder / "corpus", 100, 400)
    dataset = folder / "dataset"
    make_dataset(dataset, files_of(texts), Cut(val_docs=20, docs_per_shard=100), workers=1)
    older = shutil.copytree(dataset, folder / "older")
    manifest = json.loads((older / "manifest.json").read_text())
    del manifest["blocks_sha256"], manifest["check"]
    (older / "manifest.json").write_text(json.dumps(manifest, indent=1))
    make_dataset(folder / "examples", MultipleChoice("sample"), workers=1)
    for step in (1, 2):
        model = GPT2(GPT2Config(2, 2, 32, n_positions=64, vocab_size=300), seed=step)
        moments = {f"h.{step}.moment": next(model.parameters()).detach().clone()}
        save_checkpoint(folder / "checkpoints", State(step, {"step": step, "tokens": step}), model, moments, keep=2)
    newest = _files(folder / "checkpoints", "step-0000002/*")
    weights = [name for name in newest if name.endswith(("model.safetensors", "config.json", "SHA256SUMS"))]
    return [
        Target("dataset", dataset, _files(dataset), read_dataset),
        Target("older dataset", older, _files(older), read_older_dataset),
        Target("examples", folder / "examples", _files(folder / "examples"), read_examples),
        Target("resume", folder / "checkpoints", newest, read_newest),
        Target("weights", folder / "checkpoints", weights, read_weights),
    ]


def _files(folder: Path, pattern: str = "**/*") -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.glob(pattern) if path.is_file())


# Damage


def damaged(data: bytes, kind: str, chance: random.Random, other: bytes) -> bytes | None:
    """A file's bytes after a damage; None for a file that is gone. `other` is another file's content."""
    new = bytearray(data)
    at, length = chance.randrange(len(new) + 1), chance.randint(1, chance.choice([4, 64, 4096]))
    if kind == "flip":
        for _ in range(chance.choice([1, 1, 1, 2, 8]) if new else 0):
            new[chance.randrange(len(new))] ^= 1 << chance.randrange(8)
    elif kind == "digit":  # of a number in JSON, or anything else that looks like one
        places = [i for i, byte in enumerate(new[:100_000]) if 48 <= byte < 58]
        if places:
            new[chance.choice(places)] = chance.randrange(48, 58)
    elif kind == "truncate":
        del new[at:]
    elif kind == "append":
        new += chance.randbytes(length)
    elif kind == "overwrite":
        new[at : at + length] = chance.choice([bytes(length), chance.randbytes(length)])[: len(new) - at]
    elif kind == "duplicate":
        new[at:at] = new[at : at + length]
    elif kind == "cut":
        del new[at : at + length]
    elif kind == "swap":
        new = bytearray(other)
    elif kind == "empty":
        new.clear()
    return None if kind == "remove" else bytes(new)


class Torturer:
    """Trials on a working copy of each target. A trial depends on nothing but its seed and number."""

    def __init__(self, targets: list[Target], folder: Path, seed: int):
        self._targets, self._seed = targets, seed
        self._copies = {target.name: folder / f"copy {target.name}".replace(" ", "-") for target in targets}
        for target in targets:
            shutil.copytree(target.folder, self._copies[target.name])
        self._sound = {target.name: target.read(self._copies[target.name]) for target in targets}

    def trial(self, number: int) -> Trial:
        """Damage, read, and mend again."""
        chance = random.Random(f"{self._seed} {number}")
        target = self._targets[number % len(self._targets)]
        bad: bytes | None = b""
        good = b""
        while bad == good:
            kind, name, other = chance.choice(DAMAGES), chance.choice(target.files), chance.choice(target.files)
            good = (target.folder / name).read_bytes()
            bad = damaged(good, kind, chance, (target.folder / other).read_bytes())
        copy = self._copies[target.name]
        _write(copy / name, bad)
        try:
            outcome, said = self._outcome(target, copy, has_changed=not _says_the_same(name, good, bad))
        finally:
            _write(copy / name, good)
        return Trial(target.name, kind, name, outcome, said)

    def _outcome(self, target: Target, copy: Path, has_changed: bool) -> tuple[str, str]:
        try:
            with _at_most(HUNG_SECONDS):
                is_dataset = (copy / "receipts").exists()
                problems = verify(copy) if is_dataset else []
                try:
                    found = target.read(copy)
                except (Error, OSError) as error:
                    said = str(error)
                    return ("refused" if "\n" not in said and len(said) < 1000 else "CRASH"), said
        except Exception:
            return "CRASH", traceback.format_exc()
        sound = self._sound[target.name]
        differing = [name for name, value in sound.items() if found.get(name) != value]
        if differing:
            return "SILENT", f"{', '.join(differing)} differ"
        if is_dataset and has_changed and not problems:
            return "SILENT", "verify sees nothing"
        return "same", "; ".join(problems)


def _says_the_same(name: str, good: bytes, bad: bytes | None) -> bool:
    """Whether JSON differs in its layout alone, or what is gone is a file that no reader needs."""
    if bad is None:
        return name.startswith(("plan", "receipts"))
    try:
        return name.endswith(".json") and bool(json.loads(good) == json.loads(bad))
    except (ValueError, RecursionError):
        return False


def _write(path: Path, data: bytes | None) -> None:
    path.unlink(missing_ok=True)  # a new file: the old one may still be mapped
    if data is not None:
        path.write_bytes(data)


@contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise _Hung(f"more than {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
