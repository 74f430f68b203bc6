"""gpt2wds-eval trace: what a step of a run read, and when a document was read."""

import math
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from ..dataset.directory import Dataset
from ..dataset.manifest import member
from ..dataset.order import step_ranges
from ..dataset.origins import Origin, Place
from ..dataset.trace import Piece, Reading, Spot, Trace, TracedSequence
from ..errors import Error
from ..tokenizer import END_OF_TEXT, Tokenizer, load_tokenizer
from ..train.rundir import RunDirectory
from .common import DEVICE, DTYPE, LocalPath, counted, print_json

BEGINNING_TOKENS, BEGINNING_CHARACTERS = 64, 100  # of a document, shown unless all is asked for
READ, NOT_YET, LEFT_OUT, FILLS_NO_STEP = "read", "not yet", "left out", "fills no step"


@dataclass(frozen=True)
class TracedRun:
    """A run's order, and how far it is: `last_step` updates are logged, of which `skip_steps` were none."""

    run: RunDirectory
    trace: Trace
    max_steps: int
    last_step: int
    skip_steps: tuple[range, ...]

    def state(self, step: int | None) -> str:
        """What became of a step's sequences; of those of no step None is given."""
        if step is None:
            return FILLS_NO_STEP
        if any(step in steps for steps in self.skip_steps):
            return LEFT_OUT
        return READ if step <= self.last_step else NOT_YET


@click.command("trace")
@click.argument("run_dir", type=LocalPath())
@click.option("--step", type=click.IntRange(1), help="The step, counted from 1 as in log.txt.")
@click.option("--document", metavar="SOURCE:ROW", help="A document: its source's name or the end of it, and its row.")
@click.option("--data", help="The dataset's directory, if it is not where the run's configuration says.")
@click.option("--text", "whole_text", is_flag=True, help="All text of a step, not its documents' beginnings.")
@click.option(
    "--loss", "with_loss", is_flag=True, help="The step's losses under the checkpoint before it, worst first."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@DEVICE
@DTYPE
def trace_command(
    run_dir: Path,
    step: int | None,
    document: str | None,
    data: str | None,
    whole_text: bool,
    with_loss: bool,
    as_json: bool,
    device: str,
    dtype: str,
) -> None:
    """What a step of a run read, or the steps that read a document; from the order, without the sources.

    ROW counts a source's documents from 0: the rows of parquet, the lines of JSON lines that are not blank.
    """
    if (step is None) == (document is None):
        raise click.UsageError("give either --step or --document")
    if document is not None and (whole_text or with_loss):
        raise click.UsageError("--text and --loss are for --step")
    run = _traced_run(run_dir, data)
    if document is not None:
        source, _, number = document.rpartition(":")
        if not source or not number.isdecimal():
            raise Error(f"--document: expected SOURCE:ROW, such as texts.parquet:17, got {document!r}")
        record = _document(run, run.trace.find(source, int(number)))
        print_json(record) if as_json else _print_document(run, record)
        return
    assert step is not None
    if step > run.max_steps:
        raise Error(f"--step: expected a step of {run_dir}, 1 to {run.max_steps}, got {step}")
    sequences = run.trace.step(step)
    losses, checkpoint, is_main = _losses(run, step, sequences, device, dtype) if with_loss else (None, None, True)
    if not is_main:
        return
    found = _step(run, step, sequences, losses, checkpoint, whole_text)
    print_json(found) if as_json else _print_step(run, found, whole_text)


def _traced_run(folder: Path, data: str | None) -> TracedRun:
    run = RunDirectory(folder, is_main=False)
    if not run.config.exists():
        raise Error(f"{folder}: expected a run directory ({run.config.name}), got none")
    try:
        config = tomllib.loads(run.config.read_text(encoding="utf-8"))
        tables = {name: member(config, name, dict) for name in ("run", "data", "train")}
        seq_len, seed = member(tables["data"], "seq_len", int), tables["run"].get("seed")
        tokens, steps = (member(tables["train"], name, int) for name in ("tokens_per_step", "max_steps"))
        skipped = step_ranges(tables["data"].get("skip_steps", []))
        path = data or member(tables["data"], "path", str)
        if type(seed) is not int or not 0 < seq_len <= tokens:
            raise Error("expected 'seed', and 'tokens_per_step' of 'seq_len' or more")
    except (ValueError, TypeError) as error:  # TOML, UTF-8, or what it says
        raise Error(f"{run.config}: {error}; restore it, it says how the run was begun") from None
    dataset, known = Dataset(path), run.read_facts().get("dataset_id")
    if known not in (None, dataset.id):
        raise Error(f"{path}: expected the run's dataset, {known}, got {dataset.id}; give its directory with --data")
    rows = run.read_metrics()
    trace = Trace(dataset, seq_len=seq_len, sequences_per_step=tokens // seq_len, seed=seed)
    return TracedRun(run, trace, steps, rows[-1]["step"] if rows else 0, skipped)


def _losses(
    run: TracedRun, step: int, sequences: list[TracedSequence], device: str, dtype: str
) -> tuple[np.ndarray, str, bool]:
    """(sequences,) losses under the newest sound checkpoint before a step; its name; whether this is the main rank."""
    from ..distributed import join_world
    from ..evaluate.text import sequence_losses
    from ..train.checkpoint import newest_sound_checkpoint
    from ..train.weights import load_weights

    path = newest_sound_checkpoint(run.run.checkpoints, lambda text: print(text, file=sys.stderr), before=step)
    if path is None:
        raise Error(
            f"{run.run.checkpoints}: expected a checkpoint before step {step}, got none: a run keeps its "
            "newest ones, as many as checkpoint.keep says, and has none before its first"
        )
    with join_world(device) as world:
        model = load_weights(path).to(world.device).eval()
        losses = sequence_losses(model, np.stack([s.tokens for s in sequences]), world, dtype)
        return losses, path.name, world.is_main


def _step(
    run: TracedRun,
    step: int,
    sequences: list[TracedSequence],
    losses: np.ndarray | None,
    checkpoint: str | None,
    whole_text: bool,
) -> dict[str, Any]:
    """A step as a JSON object; its sequences by slot, or where there are losses, the worst first."""
    tokenizer, dataset = load_tokenizer(), run.trace.dataset
    records = []
    for sequence in sequences:
        loss = {} if losses is None else {"loss": float(losses[sequence.slot])}
        documents = [_piece(sequence, piece, tokenizer, whole_text) for piece in sequence.pieces]
        where = {"dataset": str(dataset.path), **_spot(run, sequence.spot)}
        records.append({"slot": sequence.slot, **where, **loss, "documents": documents})
    if losses is not None:
        # What is no number is worst of all.
        records.sort(key=lambda record: -record["loss"] if math.isfinite(record["loss"]) else -math.inf)
        records = [r | {"loss": r["loss"] if math.isfinite(r["loss"]) else None} for r in records]
    facts = {"run": str(run.run.path), "step": step, "epoch": run.trace.epoch_of(step), "state": run.state(step)}
    return {**facts, "dataset_id": dataset.id, "checkpoint": checkpoint, "sequences": records}


def _piece(sequence: TracedSequence, piece: Piece, tokenizer: Tokenizer, whole_text: bool) -> dict[str, Any]:
    tokens = sequence.tokens[piece.start : piece.end]
    begins = bool(tokens[0] == END_OF_TEXT)
    text = tokenizer.decode(tokens[begins:] if whole_text else tokens[begins : begins + BEGINNING_TOKENS])
    text = text if whole_text else text[:BEGINNING_CHARACTERS]
    return {**_origin(piece.origin), "begins": begins, "tokens": len(tokens), "text": text}


def _document(run: TracedRun, place: Place) -> dict[str, Any]:
    """When a document was read, as a JSON object."""
    record = {"run": str(run.run.path), "dataset": str(run.trace.dataset.path), **_origin(place.origin)}
    shard = run.trace.dataset.shards(place.split)[place.shard].name
    record |= {"split": place.split, "shard": shard, "skipped": place.skipped or None}
    if place.skipped:
        return record
    found = run.trace.document(place)
    record |= {"first_token": found.start, "tokens": found.end - found.start}
    if place.split != "train":
        return record
    readings: list[Reading] = []
    for epoch in range(run.trace.epoch_of(run.max_steps) + 1):
        readings += run.trace.readings(found, epoch)
    shown = [reading for reading in readings if (reading.step or 0) <= run.max_steps]
    return record | {
        "in_no_sequence": run.trace.unread_tokens(found),
        "readings": [
            {"epoch": r.epoch, "step": r.step, "slot": r.slot, **_spot(run, r.spot), "state": run.state(r.step)}
            for r in shown
        ],
    }


def _origin(origin: Origin) -> dict[str, Any]:
    """A document's source, and which of its documents it is."""
    span = {"unit": origin.span.unit, "first": origin.span.first, "count": origin.span.count}
    return {"source": origin.span.source, "unit": origin.noun, "number": origin.number, "span": span}


def _spot(run: TracedRun, spot: Spot) -> dict[str, Any]:
    return {"shard": spot.shard, "block": spot.block, "first_token": spot.place * run.trace.seq_len}


def _print_step(run: TracedRun, found: dict[str, Any], whole_text: bool) -> None:
    sequences = found["sequences"]
    print(
        f"{found['run']}, step {found['step']:,}, epoch {found['epoch']}: {counted(len(sequences), 'sequence')} of "
        f"{counted(run.trace.seq_len, 'token')} of {run.trace.dataset.path}{_note(run, found['state'])}"
    )
    if found["checkpoint"]:
        mean = np.mean([math.nan if record["loss"] is None else record["loss"] for record in sequences])
        print(f"mean loss {mean:.4f} under {found['checkpoint']}, worst first")
    for record in sequences:
        loss = "" if "loss" not in record else f", loss {math.nan if record['loss'] is None else record['loss']:.4f}"
        print(f"{_where(run, record)}, slot {record['slot']}{loss}")
        for piece in record["documents"]:
            beginning = ("" if piece["begins"] else "… ") + ("" if whole_text else " ".join(piece["text"].split()))
            print(f"  {_named(piece)}, {counted(piece['tokens'], 'token')}: {beginning}")
            if whole_text:
                print(piece["text"])


def _note(run: TracedRun, state: str) -> str:
    notes = {
        LEFT_OUT: "; data.skip_steps leaves it out",
        NOT_YET: f"; not trained on yet, the run is at step {run.last_step:,}",
    }
    return notes.get(state, "")


def _print_document(run: TracedRun, found: dict[str, Any]) -> None:
    name = _named(found)
    if found["skipped"]:
        print(f"{name}: left out when the dataset was made ({found['skipped']})")
        return
    tokens = f"{counted(found['tokens'], 'token')} from {found['first_token']:,} on in {found['shard']}"
    if found["split"] != "train":
        print(f"{name}: {tokens}, held out for validation, never trained on")
        return
    print(f"{name}: {tokens}")
    if found["in_no_sequence"]:
        print(f"  {found['in_no_sequence']:,} of them are in no sequence, at the end of a block")
    for reading in found["readings"]:
        when = f"epoch {reading['epoch']}" + ("" if reading["step"] is None else f", step {reading['step']:,}")
        slot = "" if reading["slot"] is None else f", slot {reading['slot']}"
        print(f"  {when}: {reading['state']}; {_where(run, reading)}{slot}")
    if not any(reading["state"] == READ for reading in found["readings"]):
        print(f"  not read: the run is at step {run.last_step:,} of {run.max_steps:,}")


def _named(record: dict[str, Any]) -> str:
    number = "of unknown number" if record["number"] is None else f"{record['number']:,}"
    return f"{record['source']} {record['unit']} {number}"


def _where(run: TracedRun, record: dict[str, Any]) -> str:
    first = record["first_token"]
    return f"{record['shard']} block {record['block']}, tokens {first:,} to {first + run.trace.seq_len - 1:,}"
