"""What the outside asks of a run: SIGTERM, SIGINT and SIGHUP save and stop, SIGUSR1 saves. Imports nothing slow."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Protocol, TypeVar

Item = TypeVar("Item")


@dataclass
class Signals:
    """The signals that came while they were noted, and what all ranks agreed on."""

    stop: int = 0  # the signal that asked to stop, 0 for none
    save: bool = False
    _old: dict[int, Any] = field(default_factory=dict)

    @contextmanager
    def noting(self, *numbers: int) -> Iterator[None]:
        """Note these signals in place of what they did, until the context ends. What is ignored, by nohup, stays so.

        Where an exception ends it, until the outermost such context ends: when a rank dies, torchrun sends the others
        SIGTERM, which would kill them on the way out, before they said what they saw.
        """
        is_outermost = not self._old
        heard = [n for n in numbers if n not in self._old and signal.getsignal(n) != signal.SIG_IGN]
        for number in heard:
            self._old[number] = signal.signal(number, self._note)
        try:
            yield
        except BaseException:
            heard = list(self._old) if is_outermost else []
            raise
        finally:
            for number in heard:
                signal.signal(number, self._old[number])
                del self._old[number]

    def agree(self, any_rank: Callable[[bool], bool]) -> tuple[bool, bool]:
        """(save, stop), the same on every rank; `any_rank` says whether something is so on any. Forgets the save."""
        stop, save = any_rank(bool(self.stop)), any_rank(self.save or bool(self.stop))
        self.save = False
        if stop and not self.stop:
            self.stop = signal.SIGTERM
        return save, stop

    def _note(self, number: int, _: Any) -> None:
        if number == signal.SIGUSR1:
            self.save = True
        else:
            self.stop = number
            # Who asks twice does not want to wait.
            signal.signal(number, self._old[number])


def end_with_launcher(seconds: float = 1.0, grace: float = 30.0) -> None:
    """Where torchrun started this process: SIGTERM to itself when torchrun is gone, SIGKILL `grace` seconds later.

    That is what torchrun does when it ends in order. Killed, it would leave its ranks training, or waiting for it.
    """
    launcher = os.getppid()
    is_gone = launcher == 1 and not _has_torch(launcher)  # killed before this was asked; in a container it may be 1

    def watch() -> None:
        while os.getppid() == launcher and not is_gone:
            time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace)
        os.kill(os.getpid(), signal.SIGKILL)

    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=watch, daemon=True).start()


def _has_torch(process: int) -> bool:
    """Whether a process has loaded torch, as far as this one may know: of another user's it may not."""
    try:
        return "libtorch" in Path(f"/proc/{process}/maps").read_text(errors="replace")
    except OSError:
        return False


class Ranks(Protocol):
    """What agreeing needs of a World."""

    @property
    def world_size(self) -> int: ...

    def any(self, flag: bool) -> bool: ...

    def least(self, number: int) -> int: ...


class Each(Protocol):
    """How a rank goes through its share of an evaluation, to the end: in between, the ranks ask for signals."""

    def __call__(self, items: Iterable[Item], /) -> Iterator[Item]: ...


class Stopped(Exception):
    """All ranks agreed to stop amid work that is done again when the run goes on."""


class Agreement:
    """Ranks agree on the signals that came: alone in each step, else about every SECONDS, however long steps take.

    torchrun kills what has not ended half a minute after its signal. Which step is next ranks agree on too, because
    their clocks differ; all must ask at the same steps.
    """

    SECONDS, MOST_STEPS = 2.0, 100

    def __init__(self, signals: Signals, ranks: Ranks, clock: Callable[[], float] = time.perf_counter):
        self._signals, self._ranks, self._clock = signals, ranks, clock
        self._last: tuple[int, float] | None = None  # step and time
        self._next = 0

    def at(self, step: int) -> tuple[bool, bool]:
        """(save, stop), the same on every rank; (False, False) where it is not time yet."""
        return self._signals.agree(self._ranks.any) if self._is_time(step) else (False, False)

    def each(self, items: Iterable[Item], answer: Callable[[bool, bool], None]) -> Iterator[Item]:
        """A rank's items, which are its steps; where ranks ask, `answer(save, stop)` comes before the next item.

        A rank without more asks on with the others until none has any, so they may have unequal numbers of items. All
        must go to the end, unless `answer` raises, and exchange nothing else meanwhile.
        """
        rest, end = iter(items), object()
        for step in count():
            item: Any = next(rest, end)
            if self._is_time(step):
                answer(*self._signals.agree(self._ranks.any))
                if not self._ranks.any(item is not end):
                    return
            if item is not end:
                yield item

    def _is_time(self, step: int) -> bool:
        """Whether ranks ask at this step."""
        if self._ranks.world_size > 1:
            if step < self._next:
                return False
            now, wait = self._clock(), 1
            if self._last is not None:
                before, then = self._last
                # At most twice as far as before: a device may be behind with all that was asked of it.
                wait = min(2 * (step - before), int(self.SECONDS * (step - before) / max(now - then, 1e-6)))
            self._last = step, now
            self._next = step + self._ranks.least(min(self.MOST_STEPS, max(1, wait)))
        return True
