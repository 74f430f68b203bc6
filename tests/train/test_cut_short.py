"""A signal that comes while a run evaluates: it is answered then, and what was cut short is done again."""

import contextlib
import importlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from making import shard_choices
from runs import PROGRAMS, arguments, finish, in_process, program, steps_of, trained, wait_for
from test_distributed import rank_process

from gpt2wds.dataset.directory import Dataset
from gpt2wds.train.checkpoint import list_checkpoints
from gpt2wds.train.rundir import RunDirectory
from gpt2wds.train.signals import Agreement, Signals, Stopped

# What is called once for each batch, or token, of an evaluation.
PLACES = {
    "validation": ("gpt2wds.evaluate.text", "target_log_probabilities"),
    "scoring": ("gpt2wds.evaluate.hellaswag", "target_log_probabilities"),
    "sampling": ("gpt2wds.evaluate.text", "choose_token"),
}
SHORT = ["train.max_steps=5", "eval.every_steps=3"]
EVALUATIONS = (0, 3, 5)
RARELY = "checkpoint.every_steps=1000"


@contextlib.contextmanager
def counting(place: str, on_call: Callable[[int], None] = lambda number: None) -> Iterator[list[int]]:
    """The numbers of the calls at a place, from 1; each is told to `on_call`."""
    module, name = PLACES[place]
    plain, calls = getattr(importlib.import_module(module), name), list[int]()

    def counted(*given: Any) -> Any:
        calls.append(len(calls) + 1)
        on_call(calls[-1])
        return plain(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{module}.{name}", counted)
        yield calls


def without_times(run: Path) -> list[dict[str, Any]]:
    times = ("seconds", "tokens_per_second")
    return [{k: v for k, v in row.items() if k not in times} for row in RunDirectory(run).read_metrics()]


@dataclass
class Reference:
    """A run that nothing interrupted, and how many calls an evaluation of it makes at each place."""

    run: Path
    overrides: list[str]
    calls: dict[str, int]


@pytest.fixture(scope="module")
def reference(plays: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = tmp_path_factory.mktemp("reference")
    choices = shard_choices(folder / "choices", limit=16)
    overrides = [*SHORT, "data.seq_len=128", "train.micro_batch_sequences=1", "eval.val_tokens=512"]
    overrides += [f"eval.hellaswag={choices.path}", 'eval.sample_prompts=["Hi", "Ho"]', "eval.sample_tokens=4"]
    with contextlib.ExitStack() as stack:
        calls = {place: stack.enter_context(counting(place)) for place in PLACES}
        code, said = in_process(folder / "run", plays, *overrides, "checkpoint.every_steps=3")
    assert code == 0, said
    each = {place: len(numbers) // len(EVALUATIONS) for place, numbers in calls.items()}
    assert min(each.values()) >= 4, each
    return Reference(folder / "run", overrides, each)


@pytest.mark.parametrize(
    ("place", "step"),
    [
        ("validation", 0),
        ("scoring", 3),
        ("sampling", 5),
        pytest.param("validation", 3, marks=pytest.mark.slow),
        pytest.param("sampling", 3, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_stop_cuts_an_evaluation_short(
    plays: Dataset, reference: Reference, tmp_path: Path, place: str, step: int
) -> None:
    """After the batch or the token that it is at; gone on with, the run is as if nothing had been."""
    run, overrides = tmp_path / "run", [*reference.overrides, RARELY]
    when = EVALUATIONS.index(step) * reference.calls[place] + 2
    with counting(place, lambda n: signal.raise_signal(signal.SIGTERM) if n == when else None) as calls:
        code, said = in_process(run, plays, *overrides)
    assert (code, len(calls)) == (128 + signal.SIGTERM, when), said
    assert f"step {step}: stopped by SIGTERM" in said
    saved = [path.name for path in list_checkpoints(run / "checkpoints")]
    assert saved == ([f"step-{step:07d}"] if step else [])
    assert said.count("saved") == len(saved)
    assert not (step and step in steps_of(run))  # its row is to be whole
    code, said = in_process(run, plays, *overrides)
    assert code == 0, said
    assert (run / "log.txt").read_bytes() == (reference.run / "log.txt").read_bytes()
    assert without_times(run) == without_times(reference.run)


def test_usr1_amid_an_evaluation_saves_what_was_before_it(plays: Dataset, reference: Reference, tmp_path: Path) -> None:
    run, calls_of_one = tmp_path / "run", reference.calls["validation"]
    with counting(
        "validation", lambda n: signal.raise_signal(signal.SIGUSR1) if n == calls_of_one + 2 else None
    ) as calls:
        code, said = in_process(run, plays, *reference.overrides, RARELY)
    assert code == 0, said
    assert re.findall(r"step (\d+): saved", said.partition("step 3: loss")[0]) == ["3"]
    assert len(calls) == len(EVALUATIONS) * calls_of_one  # it went on where it was
    for name in ("model.safetensors", "optimizer.safetensors"):
        one, other = (path / "checkpoints" / "step-0000003" / name for path in (run, reference.run))
        assert one.read_bytes() == other.read_bytes(), name
    assert without_times(run) == without_times(reference.run)


class Meeting:
    """Ranks that are threads: each asks the same as the others at the same time, or all fail."""

    def __init__(self, world_size: int):
        self.world_size = world_size
        self._given: dict[int, tuple[str, int]] = {}
        self._barrier = threading.Barrier(world_size, timeout=10)

    def _met(self, what: str, number: int) -> list[int]:
        self._given[threading.get_ident()] = what, number
        self._barrier.wait()
        given = list(self._given.values())
        self._barrier.wait()
        assert {name for name, _ in given} == {what}
        return [value for _, value in given]

    def any(self, flag: bool) -> bool:
        return any(self._met("any", flag))

    def least(self, number: int) -> int:
        return min(self._met("least", number))


@pytest.mark.parametrize("stop_at", [None, 3])
def test_ranks_with_unequal_shares_go_through_them_together(stop_at: int | None) -> None:
    """Also with none, and at unequal speeds. A signal to one stops all of them, and at once."""
    shares, seconds = (0, 5, 40), (0.0, 0.03, 0.002)
    meeting = Meeting(len(shares))
    done: list[list[int]] = [[] for _ in shares]
    stopped: list[int] = []

    def go(rank: int) -> None:
        signals = Signals()

        def answer(save: bool, stop: bool) -> None:
            if stop:
                raise Stopped

        agreement = Agreement(signals, meeting)
        agreement.SECONDS = 0.02
        try:
            for item in agreement.each(range(shares[rank]), answer):
                time.sleep(seconds[rank])
                done[rank].append(item)
                signals.stop = signal.SIGTERM if (rank, item) == (1, stop_at) else 0
            meeting.least(1)  # what comes then: all must be there
        except Stopped:
            stopped.append(rank)

    threads = [threading.Thread(target=go, args=(rank,)) for rank in range(len(shares))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    if stop_at is None:
        assert done == [list(range(share)) for share in shares]
        assert stopped == []
    else:
        assert sorted(stopped) == [0, 1, 2]


SLOW = """
import sys, time
import gpt2wds.MODULE as module
from gpt2wds.commands.train import main

def slowly(*given):
    calls.append(given)
    if len(calls) == FIRST:
        print("evaluating slowly", flush=True)
    time.sleep(0.5 * (len(calls) >= FIRST))
    return plain(*given)

calls, plain = [], module.NAME
module.NAME = slowly
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("place", "parallel"), [("validation", "ddp"), ("sampling", "fsdp")])
def test_two_ranks_cut_an_evaluation_short(plays: Dataset, tmp_path: Path, place: str, parallel: str) -> None:
    """By torchrun, which would kill them after 30 seconds of 50, and by one rank that has nothing to do itself."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    overrides = [*SHORT, RARELY, f"train.parallel={parallel}", "train.micro_batch_sequences=2"]
    # An evaluation has 100 tokens, and 101 or 102 batches of a rank.
    overrides += ["eval.sample_prompts=['Hi']", "eval.sample_tokens=100", "eval.val_tokens=13000"]
    module, name = PLACES[place]
    program_text = SLOW.replace("MODULE", module.removeprefix("gpt2wds.")).replace("NAME", name)
    (tmp_path / "slow.py").write_text(program_text.replace("FIRST", "105"))
    launcher = [str(PROGRAMS / "torchrun"), "--standalone", "--nproc-per-node=2", str(tmp_path / "slow.py")]
    process = program([*launcher, *arguments(run, plays, *overrides)])
    wait_for(process, "evaluating slowly")
    begun, asked = time.monotonic(), process.pid
    if place == "sampling":
        asked = rank_process(process.pid, 1)
        os.kill(asked, signal.SIGUSR1)
        wait_for(process, "step 3: saved")
    os.kill(asked, signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert time.monotonic() - begun < 20
    assert "step 3: stopped by SIGTERM" in said
    assert "SIGKILL" not in said
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["step-0000003"]
    trained(run, plays, *overrides, ranks=2)
    trained(whole, plays, *overrides, ranks=2)
    assert (run / "log.txt").read_bytes() == (whole / "log.txt").read_bytes()
    assert without_times(run) == without_times(whole)


LOST = """
from gpt2wds.commands.train import main
from gpt2wds.evaluate import text
from gpt2wds.evaluate.inference import NotFinite

def lost(*given):
    raise NotFinite("model: lost")

text.choose_token = lost
main()
"""


@pytest.mark.slow
def test_two_ranks_go_on_where_a_sample_has_numbers_that_are_none(plays: Dataset, tmp_path: Path) -> None:
    """Only the main rank sees it; the other is asking meanwhile."""
    (tmp_path / "lost.py").write_text(LOST)
    launcher = [str(PROGRAMS / "torchrun"), "--standalone", "--nproc-per-node=2", str(tmp_path / "lost.py")]
    command = arguments(tmp_path / "run", plays, *SHORT, "train.micro_batch_sequences=2", "eval.sample_prompts=['Hi']")
    said = finish(program([*launcher, *command]))
    assert said.count("WARNING: model: lost") == len(EVALUATIONS)
    assert steps_of(tmp_path / "run") == list(range(6))
