"""What the three commands share: how errors are said and how progress is shown."""

import errno
import io
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from .. import files
from ..errors import Error, reason
from ..errors import counted as counted
from ..folder import Folder
from . import STOPPED, hear_interrupts

_REMEDIES = {
    errno.ENOSPC: "; make room, then the same command goes on",
    errno.EDQUOT: "; make room in your quota, then the same command goes on",
    errno.EFBIG: "; allow larger files (ulimit -f), then the same command goes on",
    errno.EACCES: "; check its permissions, or choose another place",
    errno.EROFS: "; choose a place that can be written to",
    errno.EMFILE: "; raise the limit of open files (ulimit -n)",
}
DEVICE = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
DTYPE = click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
LINE_SECONDS = 10  # between progress lines where there is no terminal


class Terminated(BaseException):
    """SIGTERM came."""


@contextmanager
def _hearing_sigterm() -> Iterator[None]:
    """SIGTERM ends what runs as Ctrl-C does, its workers too."""

    def terminate(*_: object) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # only the main thread has signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Commands(click.Group):
    """A click group in which an expected failure is one line on standard error and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        # Inside of click's own handling, which would make "Aborted!" of Ctrl-C.
        with one_line_errors(lambda text: self._with_flags(text, ctx)), _hearing_sigterm():
            return super().invoke(ctx)

    def _with_flags(self, text: str, ctx: click.Context) -> str:
        """A message of the library with the command's flags in place of the arguments' names: text_column, …"""
        command = self.get_command(ctx, ctx.invoked_subcommand or "")
        options = [option for option in command.params if isinstance(option, click.Option)] if command else []
        for option in options:
            if option.name and "_" in option.name:  # a plain word may be meant as one
                text = re.sub(rf"\b{option.name}\b", option.opts[0], text)
        return text


@contextmanager
def one_line_errors(worded: Callable[[str], str] = str) -> Iterator[None]:
    """Error (the user's input) and OSError (disk, network) become one line, exit code 1; the rest is our mistake."""
    hear_interrupts()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character must not end an hour's work
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # Who reads, as `head` does, has enough. Python would say so once more when it closes the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except Error as error:
        print(f"error: {worded(' '.join(str(error).split()))}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"error: {_os_error(error)}", file=sys.stderr)
        sys.exit(1)
    except MemoryError:
        print("error: out of memory; close other programs, or take a larger machine", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Terminated:
        print(STOPPED, file=sys.stderr)
        sys.exit(128 + signal.SIGTERM)


def _os_error(error: OSError) -> str:
    """What the system says, of which file, and what to do."""
    remedy = _REMEDIES.get(error.errno or 0, "")
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    return f"{' → '.join(names)}{': ' if names else ''}{reason(error)}{remedy}"


class LocalPath(click.ParamType):
    """A path of this machine: a URL would become a directory called "s3:"."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        try:
            return files.local_path(value)
        except Error as error:  # click would need three lines
            raise Error(f"{param.opts[0] if param else self.name}: {error}") from None


class Directory(click.ParamType):
    """A directory of this machine, or a URL that fsspec reads."""

    name = "directory"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Folder:
        return Folder(value)


class ProgressLine:
    """A progress bar on a terminal, a line every few seconds elsewhere; always on standard error."""

    def __init__(self, label: str, total: float | None, unit: str, done: float = 0):
        self._label, self._total, self._unit = label, total, unit
        # One document, not "1 documents"; of bytes and the like there is no plural.
        self._one = unit.strip().removesuffix("s")
        unit = unit.removesuffix("s") if total == 1 else unit
        form = "{desc}: {n:,.0f}{unit}, {rate_fmt}{postfix}"
        if total is not None:
            form = "{desc}: {bar:10} {n:,.0f} of {total:,.0f}{unit}, {remaining} left, {rate_fmt}{postfix}"
        self._bar = tqdm(
            initial=done,
            total=total,
            desc=label,
            unit=unit,
            unit_scale=True,  # of the rate alone
            bar_format=form,
            leave=False,  # a last line says how it ended
            dynamic_ncols=True,  # longer lines are cut, never folded
            file=sys.stderr,
            disable=None,
        )
        self._before, self._done, self._start, self._said = done, done, time.monotonic(), time.monotonic()

    def update(self, amount: float, note: str | Callable[[], str] = "") -> None:
        """Count `amount` more; a `note` that costs something to make may be a function, called when it is shown."""
        self._done += amount
        self._bar.update(amount)
        if time.monotonic() - self._said < (LINE_SECONDS if self._bar.disable else 0.2):
            return
        text = note() if callable(note) else note
        if self._bar.disable:
            self._say(text)
        else:
            self._said = time.monotonic()
            self._bar.set_postfix_str(text, refresh=False)

    def close(self, note: str = "") -> None:
        self._bar.close()
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
            left = f", {timedelta(seconds=round((self._total - self._done) / per_second))} left"
        print(
            f"{self._label}: {self._done:,.0f}{of} {unit}{rate}{left}{note and ', ' + note}",
            file=sys.stderr,
            flush=True,
        )


def heading(result: Mapping[str, object]) -> str:
    """The model that a result is of, and its step where it has one."""
    return str(result["model"]) + ("" if result["step"] is None else f", step {result['step']:,}")


def print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, allow_nan=False))
