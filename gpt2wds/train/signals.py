"""What the outside asks of a run: SIGTERM and SIGINT save and stop, SIGUSR1 saves. Imports nothing slow."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Signals:
    """The signals that came while they were noted, and what all ranks agreed on."""

    stop: int = 0  # the signal that asked to stop, 0 for none
    save: bool = False
    _old: dict[int, Any] = field(default_factory=dict)

    @contextmanager
    def noting(self, *numbers: int) -> Iterator[None]:
        """Note these signals in place of what they did, until the context ends."""
        for number in numbers:
            self._old[number] = signal.signal(number, self._note)
        try:
            yield
        finally:
            for number in numbers:
                signal.signal(number, self._old[number])

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
