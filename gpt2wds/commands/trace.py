"""gpt2wds-eval trace: what a step of a run read, and when a document was read."""

import math
from pathlib import Path
from typing import Any

import click
import numpy as np

from ..dataset.origins import Origin, Place
from ..dataset.trace import Piece, Reading, Spot, Trace, TracedSequence
from ..errors import Error
from ..tokenizer import END_OF_TEXT, Tokenizer, load_tokenizer
from .common import DEVICE, DTYPE, LocalPath, counted, print_json
from .traced import LEFT_OUT, NOT_YET, READ, TracedRun, traced_run

BEGINNING_TOKENS, BEGINNING_CHARACTERS = 64, 100  # of a document, shown unless all is asked for


@click.command("trace")
@click.argument("run_dir", type=LocalPath())
@click.option("--step", type=click.IntRange(1), help="The step, counted from 1 as in log.txt.")
@click.option("--document", metavar="SOURCE:ROW", help="A document: its source's name or the end of it, and its row.")
@click.option(
    "--data",
    multiple=True,
    help="The dataset's directory, if it is not where the run's configuration says; of several, each in their order.",
)
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
    data: tuple[str, ...],
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
    run = traced_run(run_dir, data)
    if document is not None:
        source, _, number = document.rpartition(":")
        if not source or not number.isdecimal():
            raise Error(f"--document: expected SOURCE:ROW, such as texts.parquet:17, got {document!r}")
        records = [_document(run, trace, place) for trace, place in run.find(source, int(number))]
        if as_json:
            print_json(records[0] if len(records) == 1 else {"run": str(run_dir), "documents": records})
            return
        for record in records:
            _print_document(run, record)
        return
    assert step is not None
    if step > run.max_steps:
        raise Error(f"--step: expected a step of {run_dir}, 1 to {run.max_steps}, got {step}")
    sequences = [sequence for trace in run.traces for sequence in trace.step(step)]  # by slot
    losses, checkpoint, is_main = _losses(run, step, sequences, device, dtype) if with_loss else (None, None, True)
    if not is_main:
        return
    found = _step(run, step, sequences, losses, checkpoint, whole_text)
    print_json(found) if as_json else _print_step(run, found, whole_text)


def _losses(
    run: TracedRun, step: int, sequences: list[TracedSequence], device: str, dtype: str
) -> tuple[np.ndarray, str, bool]:
    """(sequences,) losses under the newest sound checkpoint before a step; its name; whether this is the main rank."""
    from ..distributed import join_world
    from ..evaluate.text import sequence_losses
    from ..train.weights import load_weights
    from .models import weights_before

    path = weights_before(run.run, step)
    with join_world(device) as world:
        model = load_weights(path).to(world.device).eval()
        losses = sequence_losses(model, np.stack([s.tokens for s in sequences]), world, dtype)
        name = path.name if path.parent == run.run.checkpoints else str(path)
        return losses, name, world.is_main


def _step(
    run: TracedRun,
    step: int,
    sequences: list[TracedSequence],
    losses: np.ndarray | None,
    checkpoint: str | None,
    whole_text: bool,
) -> dict[str, Any]:
    """A step as a JSON object; its sequences by slot, or where there are losses, the worst first."""
    tokenizer = load_tokenizer()
    datasets = [trace.dataset for trace in run.traces for _ in range(trace.sequences_per_step)]
    records = []
    for slot, (sequence, dataset) in enumerate(zip(sequences, datasets, strict=True)):
        loss = {} if losses is None else {"loss": float(losses[slot])}
        documents = [_piece(sequence, piece, tokenizer, whole_text) for piece in sequence.pieces]
        where = {"dataset": str(dataset.path), **_spot(run, sequence.spot)}
        records.append({"slot": slot, **where, **loss, "documents": documents})
    if losses is not None:
        # What is no number is worst of all.
        records.sort(key=lambda record: -record["loss"] if math.isfinite(record["loss"]) else -math.inf)
        records = [r | {"loss": r["loss"] if math.isfinite(r["loss"]) else None} for r in records]
    each = [{"dataset": str(t.dataset.path), "dataset_id": t.dataset.id, "epoch": t.epoch_of(step)} for t in run.traces]
    facts: dict[str, Any] = {"run": str(run.run.path), "step": step}
    if len(each) == 1:
        facts |= {"epoch": each[0]["epoch"], "state": run.state(step), "dataset_id": each[0]["dataset_id"]}
    else:
        facts |= {"state": run.state(step), "datasets": each}
    return {**facts, "checkpoint": checkpoint, "sequences": records}


def _piece(sequence: TracedSequence, piece: Piece, tokenizer: Tokenizer, whole_text: bool) -> dict[str, Any]:
    tokens = sequence.tokens[piece.start : piece.end]
    begins = bool(tokens[0] == END_OF_TEXT)
    text = tokenizer.decode(tokens[begins:] if whole_text else tokens[begins : begins + BEGINNING_TOKENS])
    text = text if whole_text else text[:BEGINNING_CHARACTERS]
    return {**_origin(piece.origin), "begins": begins, "tokens": len(tokens), "text": text}


def _document(run: TracedRun, trace: Trace, place: Place) -> dict[str, Any]:
    """When a document of a dataset was read, as a JSON object."""
    record = {"run": str(run.run.path), "dataset": str(trace.dataset.path), **_origin(place.origin)}
    shard = trace.dataset.shards(place.split)[place.shard].name
    record |= {"split": place.split, "shard": shard, "skipped": place.skipped or None}
    if place.skipped:
        return record
    found = trace.document(place)
    record |= {"first_token": found.start, "tokens": found.end - found.start}
    if place.split != "train":
        return record
    readings, first = list[Reading](), run.first_slot(trace)
    for epoch in range(trace.epoch_of(run.max_steps) + 1):
        readings += trace.readings(found, epoch)
    shown = [reading for reading in readings if (reading.step or 0) <= run.max_steps]
    return record | {
        "in_no_sequence": trace.unread_tokens(found),
        "readings": [
            {"epoch": r.epoch, "step": r.step, "slot": None if r.slot is None else first + r.slot}
            | {**_spot(run, r.spot), "state": run.state(r.step)}
            for r in shown
        ],
    }


def _origin(origin: Origin) -> dict[str, Any]:
    """A document's source, and which of its documents it is."""
    span = {"unit": origin.span.unit, "first": origin.span.first, "count": origin.span.count}
    return {"source": origin.span.source, "unit": origin.noun, "number": origin.number, "span": span}


def _spot(run: TracedRun, spot: Spot) -> dict[str, Any]:
    return {"shard": spot.shard, "block": spot.block, "first_token": spot.place * run.seq_len}


def _print_step(run: TracedRun, found: dict[str, Any], whole_text: bool) -> None:
    sequences = found["sequences"]
    each = found.get("datasets", [])
    of = ", ".join(f"{one['dataset']} in its epoch {one['epoch']}" for one in each) or run.traces[0].dataset.path
    epoch = "" if each else f", epoch {found['epoch']}"
    print(
        f"{found['run']}, step {found['step']:,}{epoch}: {counted(len(sequences), 'sequence')} of "
        f"{counted(run.seq_len, 'token')} of {of}{_note(run, found['state'])}"
    )
    if found["checkpoint"]:
        mean = np.mean([math.nan if record["loss"] is None else record["loss"] for record in sequences])
        print(f"mean loss {mean:.4f} under {found['checkpoint']}, worst first")
    for record in sequences:
        loss = "" if "loss" not in record else f", loss {math.nan if record['loss'] is None else record['loss']:.4f}"
        dataset = f"{record['dataset']} " if each else ""
        print(f"{dataset}{_where(run, record)}, slot {record['slot']}{loss}")
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
    name = _named(found) if len(run.traces) == 1 else f"{found['dataset']}: {_named(found)}"
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
    return f"{record['shard']} block {record['block']}, tokens {first:,} to {first + run.seq_len - 1:,}"
