"""gpt2wds-eval trace: what a step of a run read, and when a document was read."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np

from ..dataset.directory import Dataset
from ..dataset.origins import Origin, Place
from ..dataset.trace import Piece, Reading, Spot, Trace, TracedDocument, TracedSequence
from ..errors import Error, counted
from ..tokenizer import END_OF_TEXT, load_tokenizer
from . import importing
from .common import DEVICE, DTYPE, LocalPath
from .output import print_json, say
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
        places = run.find(source, int(number))
        if as_json:
            records = [_document_record(run, trace, place) for trace, place in places]
            print_json(records[0] if len(records) == 1 else {"run": str(run_dir), "documents": records})
            return
        for trace, place in places:
            _print_document(run, trace, place)
        return
    assert step is not None
    if step > run.max_steps:
        raise Error(f"--step: expected a step of {run_dir}, 1 to {run.max_steps}, got {step}")
    sequences = [sequence for trace in run.traces for sequence in trace.step(step)]  # by slot
    losses, checkpoint, is_main = _losses(run, step, sequences, device, dtype) if with_loss else (None, None, True)
    if not is_main:
        return
    shown = _shown(run, sequences, losses)
    if as_json:
        print_json(_step_record(run, step, shown, checkpoint, whole_text))
    else:
        _print_step(run, step, shown, checkpoint, whole_text)


@dataclass(frozen=True)
class Shown:
    """A sequence in its slot of a step. loss: NaN for what is no number; None where it was not asked for."""

    slot: int
    dataset: Dataset
    sequence: TracedSequence
    loss: float | None


def _losses(
    run: TracedRun, step: int, sequences: list[TracedSequence], device: str, dtype: str
) -> tuple[np.ndarray, str, bool]:
    """(sequences,) losses under the newest sound checkpoint before a step; its name; whether this is the main rank."""
    with importing():
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


def _shown(run: TracedRun, sequences: Sequence[TracedSequence], losses: np.ndarray | None) -> list[Shown]:
    """The sequences of a step by slot, or where there are losses, the worst first."""
    datasets = [trace.dataset for trace in run.traces for _ in range(trace.sequences_per_step)]
    shown = []
    for slot, (sequence, dataset) in enumerate(zip(sequences, datasets, strict=True)):
        loss = None if losses is None else float(losses[slot]) if math.isfinite(losses[slot]) else math.nan
        shown.append(Shown(slot, dataset, sequence, loss))
    # What is no number is worst of all.
    return sorted(shown, key=lambda each: -math.inf if math.isnan(each.loss or 0) else -(each.loss or 0))


def _passage(sequence: TracedSequence, piece: Piece, whole_text: bool) -> tuple[bool, str]:
    """Whether a document begins in a sequence, and what that has of its text, or the beginning of it."""
    tokens = sequence.tokens[piece.start : piece.end]
    begins = bool(tokens[0] == END_OF_TEXT)
    text = load_tokenizer().decode(tokens[begins:] if whole_text else tokens[begins : begins + BEGINNING_TOKENS])
    return begins, text if whole_text else text[:BEGINNING_CHARACTERS]


def _readings(run: TracedRun, trace: Trace, document: TracedDocument) -> list[Reading]:
    """What of the run reads a training document, in slots of the run's steps."""
    epochs, first = range(trace.epoch_of(run.max_steps) + 1), run.first_slot(trace)
    every = (reading for epoch in epochs for reading in trace.readings(document, epoch))
    readings = [reading for reading in every if (reading.step or 0) <= run.max_steps]
    return [r if r.slot is None else replace(r, slot=first + r.slot) for r in readings]


# As JSON objects


def _step_record(
    run: TracedRun, step: int, shown: list[Shown], checkpoint: str | None, whole_text: bool
) -> dict[str, object]:
    each = [{"dataset": str(t.dataset.path), "dataset_id": t.dataset.id, "epoch": t.epoch_of(step)} for t in run.traces]
    facts: dict[str, object] = {"run": str(run.run.path), "step": step}
    if len(each) == 1:
        facts |= {"epoch": each[0]["epoch"], "state": run.state(step), "dataset_id": each[0]["dataset_id"]}
    else:
        facts |= {"state": run.state(step), "datasets": each}
    sequences = [_sequence_record(run, sequence, whole_text) for sequence in shown]
    return {**facts, "checkpoint": checkpoint, "sequences": sequences}


def _sequence_record(run: TracedRun, shown: Shown, whole_text: bool) -> dict[str, object]:
    loss = {} if shown.loss is None else {"loss": None if math.isnan(shown.loss) else shown.loss}
    documents = []
    for piece in shown.sequence.pieces:
        begins, text = _passage(shown.sequence, piece, whole_text)
        held = {"begins": begins, "tokens": piece.end - piece.start, "text": text}
        documents.append({**_origin_record(piece.origin), **held})
    where = {"dataset": str(shown.dataset.path), **_spot_record(run, shown.sequence.spot)}
    return {"slot": shown.slot, **where, **loss, "documents": documents}


def _document_record(run: TracedRun, trace: Trace, place: Place) -> dict[str, object]:
    """Of a document that no step could read, only what there is."""
    record = {"run": str(run.run.path), "dataset": str(trace.dataset.path), **_origin_record(place.origin)}
    shard = trace.dataset.shards(place.split)[place.shard].name
    record |= {"split": place.split, "shard": shard, "skipped": place.skipped or None}
    if place.skipped:
        return record
    document = trace.document(place)
    record |= {"first_token": document.start, "tokens": document.end - document.start}
    if place.split != "train":
        return record
    readings = [
        {"epoch": r.epoch, "step": r.step, "slot": r.slot, **_spot_record(run, r.spot), "state": run.state(r.step)}
        for r in _readings(run, trace, document)
    ]
    return record | {"in_no_sequence": trace.unread_tokens(document), "readings": readings}


def _origin_record(origin: Origin) -> dict[str, object]:
    """A document's source, and which of its documents it is."""
    span = {"unit": origin.span.unit, "first": origin.span.first, "count": origin.span.count}
    return {"source": origin.span.source, "unit": origin.noun, "number": origin.number, "span": span}


def _spot_record(run: TracedRun, spot: Spot) -> dict[str, object]:
    return {"shard": spot.shard, "block": spot.block, "first_token": spot.place * run.seq_len}


# As text


def _print_step(run: TracedRun, step: int, shown: list[Shown], checkpoint: str | None, whole_text: bool) -> None:
    several, first = len(run.traces) > 1, run.traces[0]
    of = ", ".join(f"{trace.dataset.path} in its epoch {trace.epoch_of(step)}" for trace in run.traces)
    epoch, of = ("", of) if several else (f", epoch {first.epoch_of(step)}", str(first.dataset.path))
    say(
        f"{run.run.path}, step {step:,}{epoch}: {counted(len(shown), 'sequence')} of "
        f"{counted(run.seq_len, 'token')} of {of}{_note(run, run.state(step))}"
    )
    if checkpoint:
        say(f"mean loss {np.mean([each.loss for each in shown]):.4f} under {checkpoint}, worst first")
    for each in shown:
        loss = "" if each.loss is None else f", loss {each.loss:.4f}"
        dataset = f"{each.dataset.path} " if several else ""
        say(f"{dataset}{_where(run, each.sequence.spot)}, slot {each.slot}{loss}")
        for piece in each.sequence.pieces:
            begins, text = _passage(each.sequence, piece, whole_text)
            beginning = ("" if begins else "… ") + ("" if whole_text else " ".join(text.split()))
            say(f"  {_named(piece.origin)}, {counted(piece.end - piece.start, 'token')}: {beginning}")
            if whole_text:
                say(text, keep="\n\t")


def _note(run: TracedRun, state: str) -> str:
    notes = {
        LEFT_OUT: "; data.skip_steps leaves it out",
        NOT_YET: f"; not trained on yet, the run is at step {run.last_step:,}",
    }
    return notes.get(state, "")


def _print_document(run: TracedRun, trace: Trace, place: Place) -> None:
    name = f"{trace.dataset.path}: " * (len(run.traces) > 1) + _named(place.origin)
    if place.skipped:
        say(f"{name}: left out when the dataset was made ({place.skipped})")
        return
    document = trace.document(place)
    tokens = f"{counted(document.end - document.start, 'token')} from {document.start:,} on in {document.shard}"
    if place.split != "train":
        say(f"{name}: {tokens}, held out for validation, never trained on")
        return
    say(f"{name}: {tokens}")
    if unread := trace.unread_tokens(document):
        say(f"  {unread:,} of them fill no sequence, at the end of a block: no step predicts them")
    readings = _readings(run, trace, document)
    for reading in readings:
        when = f"epoch {reading.epoch}" + ("" if reading.step is None else f", step {reading.step:,}")
        slot = "" if reading.slot is None else f", slot {reading.slot}"
        say(f"  {when}: {run.state(reading.step)}; {_where(run, reading.spot)}{slot}")
    if not any(run.state(reading.step) == READ for reading in readings):
        say(f"  not read: the run is at step {run.last_step:,} of {run.max_steps:,}")


def _named(origin: Origin) -> str:
    number = "of unknown number" if origin.number is None else f"{origin.number:,}"
    return f"{origin.span.source} {origin.noun} {number}"


def _where(run: TracedRun, spot: Spot) -> str:
    first = spot.place * run.seq_len
    return f"{spot.shard} block {spot.block}, tokens {first:,} to {first + run.seq_len - 1:,}"
