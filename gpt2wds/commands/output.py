"""What a command prints: lines, JSON and progress; and streams that are closed, or that nobody reads."""

import io
import json
import logging
import os
import select
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from datetime import timedelta
from typing import Any, TextIO

from ..errors import shown, shown_json

LINE_SECONDS = 10  # between progress lines where there is no terminal


def say(text: object, *, keep: str = "", file: TextIO | None = None) -> None:
    """Print a line that may hold names of others', which must not speak to the terminal; see errors.shown."""
    print(shown(text, keep), file=file, flush=True)


def open_streams() -> None:
    """Have a stream that the caller closed, as `>&-` does, be /dev/null: no file that is opened may take its number."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # so Python has it
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


def is_unread() -> bool:
    """Whether who reads our output, as `head` does, has had enough and closed it."""
    asked = select.poll()
    with suppress(io.UnsupportedOperation):  # it is no file
        asked.register(sys.stdout.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in asked.poll(0))


class _Heedless(io.FileIO):
    """An output that goes on without whoever read it."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return super().write(data)


def go_on_unread(name: str) -> None:
    """From here on what cannot be printed to `name`, "stdout" or "stderr", is left out."""
    stream = getattr(sys, name)
    if type(stream) is io.TextIOWrapper:
        with suppress(OSError):
            stream.flush()
        output = io.BufferedWriter(_Heedless(stream.fileno(), "w", closefd=False))
        setattr(
            sys, name, io.TextIOWrapper(output, stream.encoding, "replace", line_buffering=True, write_through=True)
        )


class ProgressLine:
    """A progress bar on a terminal, a line every few seconds elsewhere; always on standard error.

    Log messages come above the bar until it is closed.
    """

    def __init__(self, label: str, total: float | None, unit: str, done: float = 0):
        self._label, self._total, self._unit = shown(label), total, unit
        # One document, not "1 documents"; of bytes and the like there is no plural.
        self._one = unit.strip().removesuffix("s")
        unit = unit.removesuffix("s") if total == 1 else unit
        self._above = ExitStack()
        self._bar = self._on_terminal(unit, done) if sys.stderr.isatty() else None
        self._before, self._done, self._start, self._said = done, done, time.monotonic(), time.monotonic()

    def _on_terminal(self, unit: str, done: float) -> Any:
        from tqdm import tqdm  # it takes as long as NumPy
        from tqdm.contrib.logging import logging_redirect_tqdm

        self._above.enter_context(logging_redirect_tqdm([logging.getLogger("gpt2wds")]))
        form = "{desc}: {n:,.0f}{unit}, {rate_fmt}{postfix}"
        if self._total is not None:
            form = "{desc}: {bar:10} {n:,.0f} of {total:,.0f}{unit}, {remaining} left, {rate_fmt}{postfix}"
        return tqdm(
            initial=done,
            total=self._total,
            desc=self._label,
            unit=unit,
            unit_scale=True,  # of the rate alone
            bar_format=form,
            leave=False,  # a last line says how it ended
            dynamic_ncols=True,  # longer lines are cut, never folded
            file=sys.stderr,
        )

    def update(self, amount: float, note: str | Callable[[], str] = "") -> None:
        """Count `amount` more; a `note` that costs something to make may be a function, called when it is shown."""
        self._done += amount
        if self._bar is not None:
            self._bar.update(amount)
        if time.monotonic() - self._said < (LINE_SECONDS if self._bar is None else 0.2):
            return
        text = note() if callable(note) else note
        if self._bar is None:
            self._say(text)
        else:
            self._said = time.monotonic()
            self._bar.set_postfix_str(text, refresh=False)

    def close(self, note: str = "") -> None:
        if self._bar is not None:
            self._bar.close()
        self._above.close()
        self._say(note)

    def _say(self, note: str) -> None:
        self._said = time.monotonic()
        of = "" if self._total is None else f" of {self._total:,.0f}"
        unit = self._one if (self._done if self._total is None else self._total) == 1 else self._unit.strip()
        seconds = self._said - self._start
        per_second = (self._done - self._before) / seconds if seconds > 0 else 0.0
        rate = f", {per_second:,.1f}/s" if seconds > 0 else ""
        left = ""
        if self._total is not None and per_second > 0 and self._done < self._total:
            left = f", {duration((self._total - self._done) / per_second)} left"
        say(f"{self._label}: {self._done:,.0f}{of} {unit}{rate}{left}{note and ', ' + note}", file=sys.stderr)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, with days; years where it is centuries, for which timedelta has no room.

    >>> duration(3661), duration(2e5), duration(1e10)
    ('1:01:01', '2 days, 7:33:20', '317 years')
    """
    years = seconds / (365.25 * 24 * 3600)
    return str(timedelta(seconds=round(seconds))) if years < 100 else f"{years:,.0f} years"


def heading(result: Mapping[str, object]) -> str:
    """The model that a result is of, and its step where it has one."""
    return str(result["model"]) + ("" if result["step"] is None else f", step {result['step']:,}")


def print_json(value: Any) -> None:
    """One JSON object, whose texts hold no control character but as an escape: to a parser it is the same."""
    print(shown_json(json.dumps(value, ensure_ascii=False, allow_nan=False)))
