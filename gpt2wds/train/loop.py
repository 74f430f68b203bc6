"""The training loop: from a rank's batches to a run directory.

Reads from top to bottom: `Trainer.train` steps, saves, evaluates and logs; the rest are its named parts.
A row "step s" tells of update s: its loss (before the update), and what was measured after it.
"""

import errno
import math
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count

import torch

from ..dataset.loader import StepBatches
from ..errors import Error, reason
from ..model import GPT2
from ..rows import Beginning, Metrics, Row
from .checkpoint import State, list_checkpoints, save_checkpoint
from .faults import naming_faults
from .recipe import Checkpoint
from .rundir import RunDirectory
from .signals import Agreement, Each, Signals, Stopped
from .update import Pending, Update

_REMEDIES = {  # where a checkpoint cannot be written, and room would not help
    errno.EROFS: "choose a place that can be written to",
    errno.EACCES: "make it a place that can be written to",
    errno.EFBIG: "allow larger files (ulimit -f)",
}
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LARGEST_WEIGHT = 1e18  # float32 ends at the square of what is larger
SYNC_STEPS = 10  # losses are fetched from the device once in so many steps

Evaluate = Callable[[GPT2, Each], Metrics]  # a model → metrics such as {"val_loss": 5.1}


@dataclass
class Trainer:
    """One rank's training: what it works on, and the loop.

    checkpoint: when they are written; beside_weights: files that go into each, name → content. progress hears of steps
    done and of their numbers. peak_tokens_per_second: the hardware's published peak, where known.
    """

    update: Update
    batches: StepBatches
    evaluate: Evaluate
    run: RunDirectory
    signals: Signals
    checkpoint: Checkpoint
    eval_every_steps: int
    log_every_steps: int = 1
    beside_weights: Mapping[str, bytes] = field(default_factory=dict)
    progress: Callable[[int, str], None] = lambda steps, note: None
    peak_tokens_per_second: float | None = None

    def __post_init__(self) -> None:
        self._world = self.update.world
        self._pending: list[Pending] = []
        self._is_unsaved = False
        self._is_wanted = False  # a checkpoint, by a signal
        self._saved = 0  # the step of the last checkpoint, or that training began from
        self._clock = 0.0
        self._origin: Beginning | None = None

    def train(self, state: State) -> int:
        """Train from `state` to `max_steps`; returns the signal that stopped it, or 0.

        The checkpoint of a step is written before its evaluation, or amid it where a signal comes, and its row after:
        a run that ended in between does the evaluation again, and no step is logged twice.
        """
        first, row = state.step, state.row
        self._saved = first
        self.update.skipped = row.get("skipped", 0)
        self._origin = state.origin
        self.run.rewind(first - 1)
        sequences = iter(self.batches)
        self._clock = time.perf_counter()
        agreement = Agreement(self.signals, self._world)
        # Closed at the end, so that worker processes go at once.
        with closing(sequences), self.signals.noting(*STOPS), naming_faults(self.update.micro_batch):
            for step in count(first):
                last = step >= self.update.train.max_steps
                evaluate = step % self.eval_every_steps == 0 or last
                asked, stop = agreement.at(step)
                self._is_wanted |= asked  # before the first step, it is done after it
                save = step > self._saved and (step % self.checkpoint.every_steps == 0 or last or self._is_wanted)

                if self._pending and (evaluate or save or step % SYNC_STEPS == 0):
                    *earlier, row = self._fetch()
                    self._log(*earlier)
                    if not (evaluate or save):
                        self._log(row)
                if save:
                    self._save(step, row, self.update.shared.whole_model())
                metrics: Metrics = {}
                if evaluate and not stop:
                    metrics, stop = self._measure(step, row)
                if stop:
                    name = signal.Signals(self.signals.stop).name
                    self.run.say(f"step {step}: stopped by {name}; the same command goes on")
                    return self.signals.stop
                if evaluate:
                    row = {**row, **metrics}
                    self.run.say(f"step {step}: {_describe(row) or 'nothing to measure'}")
                if evaluate or save or step == first > 0:
                    self._log(row)
                    self._clock = time.perf_counter()
                if last:
                    self._refuse_unsaved(step)
                    return 0
                self._pending.append(self.update(step + 1, next(sequences)))
        raise AssertionError("the loop returns")

    def _fetch(self) -> list[Row]:
        """Rows of the steps since the last fetch; the one place where the host waits for the device."""
        pending, self._pending = self._pending, []
        losses = self._world.sum(torch.stack([p.loss for p in pending])).tolist()
        norms = torch.stack([p.norm for p in pending]).tolist()
        seconds = (time.perf_counter() - self._clock) / max(1, sum(not p.is_left_out for p in pending))
        rate = self.batches.sequences_per_step * self.batches.seq_len / seconds
        rows: list[Row] = []
        for p, loss, norm in zip(pending, losses, norms, strict=True):
            if self.update.train.on_nan == "stop":
                self._refuse_not_finite(p.row["step"], loss, norm)
            row = p.row
            if not p.is_left_out:
                row |= {"train_loss": loss, "grad_norm": norm, "seconds": seconds, "tokens_per_second": rate}
                if self.peak_tokens_per_second:
                    row["mfu"] = rate / self.peak_tokens_per_second
            rows.append(row)
        self.progress(len(rows), _describe(rows[-1]))
        self._clock = time.perf_counter()
        return rows

    def _measure(self, step: int, row: Row) -> tuple[Metrics, bool]:
        """What the evaluation after a step measures, or {}, and whether a signal to stop cut it short.

        A signal is answered amid it, because it may take minutes: the checkpoint is that from before the evaluation.
        """
        model = self.update.shared.whole_model()

        def answer(save: bool, stop: bool) -> None:
            self._is_wanted |= save
            if self._is_wanted and step > self._saved:
                self._save(step, row, model)
            if stop:
                raise Stopped

        try:
            return self.evaluate(model, lambda items: Agreement(self.signals, self._world).each(items, answer)), False
        except Stopped:
            return {}, True

    def _save(self, step: int, row: Row, model: GPT2) -> None:
        self._saved, self._is_wanted = step, False
        tensors = self.update.optimizer_tensors()
        self._refuse_lost_weights(step, model, tensors)
        if self._world.is_main:
            self.run.check()
            state = State(step, row, self.batches.state_dict(), self._origin)
            try:
                path = save_checkpoint(
                    self.run.checkpoints,
                    state,
                    model,
                    tensors,
                    keep=self.checkpoint.keep,
                    beside=self.beside_weights,
                    warn=self.run.say,
                )
            except OSError as error:
                self.run.check()  # a directory that is gone is not what room would mend
                problem = f"step {step}: {self.run.checkpoints}: the checkpoint could not be written ({reason(error)})"
                if self.checkpoint.on_error == "stop":
                    remedy = _REMEDIES.get(error.errno or 0, "make room")
                    raise Error(f"{problem}; {remedy}, then the same command goes on from the one before") from None
                self.run.say(f"WARNING: {problem}; going on, the one before is kept")
                self._is_unsaved = True
            else:
                self._is_unsaved = False
                self.run.say(f"step {step}: saved {path}")
        self._world.barrier()

    def _refuse_not_finite(self, step: int, loss: float, norm: float) -> None:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            # Fetched before a checkpoint is written, so none has seen this step.
            raise Error(
                f"step {step}: expected a finite loss and gradient, got {loss} and {norm}; {self._way_back()}; or skip "
                "such steps in this one with train.on_nan=skip"
            )

    def _way_back(self) -> str:
        """What to do about numbers that are not finite; this run's rate and precision are settled."""
        found = list_checkpoints(self.run.checkpoints)
        where, how = ("nothing was saved yet", "begin again in another run.dir with")
        if found:
            where = "nothing was saved since the last checkpoint"
            how = f"go on in another run.dir with run.fork_from={found[-1]} and"
        return f'{where}: {how} a lower train.learning_rate, or with train.dtype = "float32"'

    def _refuse_lost_weights(self, step: int, model: GPT2, moments: Mapping[str, torch.Tensor]) -> None:
        """Losses are checked before their update; what that update made of the weights is seen only here."""
        weights = dict(model.named_parameters())
        ranges = [torch.stack(torch.aminmax(t.detach())).float().cpu() for t in (*weights.values(), *moments.values())]
        problem = ""
        for name, (low, high) in zip((*weights, *moments), torch.stack(ranges).tolist(), strict=True):
            largest = LARGEST_WEIGHT if name in weights else math.inf
            if not -largest < low <= high < largest:
                problem = problem or f"{name} goes from {low:g} to {high:g}"
        if problems := list(filter(None, self._world.gather(problem))):
            raise Error(
                f"step {step}: expected weights and moments that are finite, below {LARGEST_WEIGHT:g}, but "
                f"{problems[0]}; {self._way_back()}"
            )

    def _refuse_unsaved(self, step: int) -> None:
        if self._is_unsaved:
            raise Error(
                f"step {step}: {self.run.checkpoints}: trained to the end, but the last checkpoint could not be "
                "written; make room, then the same command goes on from the one before"
            )

    def _log(self, *rows: Row) -> None:
        for row in rows:
            step = row["step"]  # and nothing else decides, so that a run that was stopped has the same rows
            is_last = step >= self.update.train.max_steps
            if step % self.log_every_steps == 0 or step % self.eval_every_steps == 0 or is_last:
                self.run.append(row)


def _describe(row: Row) -> str:
    forms = {
        "train_loss": "loss {:.4f}",
        "val_loss": "validation loss {:.4f}",
        "hella_acc": "accuracy {:.4f}",
        "grad_norm": "norm {:.2f}",
        "learning_rate": "rate {:.2e}",
        "seconds": "{:.3g} s",
        "tokens_per_second": "{:,.0f} tokens/s",
        "mfu": "MFU {:.1%}",
    }
    return ", ".join(form.format(row.get(name)) for name, form in forms.items() if row.get(name) is not None)
