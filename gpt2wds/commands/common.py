"""What the three commands share: how errors are said and how progress is shown."""

import errno
import io
import json
import logging
import os
import re
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO

import click

from .. import files
from ..errors import Error, reason, shown, shown_json
from ..errors import counted as counted
from ..folder import Folder
from . import STOPPED, hear_interrupts, leave_import

_REMEDIES = {
    errno.ENOSPC: "; make room, then the same command goes on",
    errno.EDQUOT: "; make room in your quota, then the same command goes on",
    errno.EFBIG: "; allow larger files (ulimit -f), then the same command goes on",
    errno.EACCES: "; check its permissions, or choose another place",
    errno.EIO: "; look at the disk, or take another copy",
    errno.ESTALE: "; it is another file now, give the command again",
    errno.EROFS: "; choose a place that can be written to",
    errno.EEXIST: "; choose another place",
    errno.ENOTDIR: "; choose another place",
    errno.EMFILE: "; raise the limit of open files (ulimit -n)",
}
DEVICE = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
DTYPE = click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
LINE_SECONDS = 10  # between progress lines where there is no terminal


class Terminated(BaseException):
    """A signal to end came: its number."""


@contextmanager
def _hearing_ends() -> Iterator[None]:
    """SIGTERM ends what runs as Ctrl-C does, its workers too, and so does a terminal that is closed (SIGHUP)."""

    def terminate(number: int, frame: FrameType | None) -> None:
        leave_import(number, frame)
        raise Terminated(number)

    before: dict[int, Any] = {}
    try:
        for end in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(end) != signal.SIG_IGN:  # as under nohup
                before[end] = signal.signal(end, terminate)
    except ValueError:  # only the main thread has signals
        pass
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Command(click.Command):
    """A click command whose own texts, such as --help, may fail to be printed: one line, exit code 1."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().main(*args, **kwargs)
        except OSError as error:
            _end(f"error: {_os_error(error)}", 1)


class Commands(Command, click.Group):
    """A click group in which an expected failure is one line on standard error and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        # Inside of click's own handling, which would make "Aborted!" of Ctrl-C.
        with one_line_errors(lambda text: self._with_flags(text, ctx)), _hearing_ends():
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
    _open_streams()
    go_on_unread("stderr")  # progress and warnings are no reason to end, nor to call a thing wrong
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character must not end an hour's work
    try:
        yield
        sys.stdout.flush()
    except Error as error:
        _end(f"error: {worded(' '.join(str(error).split()))}", 1)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _is_unread():  # it was no other pipe, and no connection
            _end("", 128 + signal.SIGPIPE)
        _end(f"error: {_os_error(error)}", 1)
    except MemoryError:
        _end("error: out of memory; close other programs, or take a larger machine", 1)
    except KeyboardInterrupt:
        _end(STOPPED, 128 + signal.SIGINT)
    except Terminated as ended:
        _end(STOPPED, 128 + ended.args[0])


def _end(text: str, code: int) -> NoReturn:
    """Say a last line, if anybody reads it, and exit."""
    try:
        sys.stdout.flush()
    except OSError:  # Python would try again, and tell of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if text:
        say(text, file=sys.stderr)
    sys.exit(code)


def _open_streams() -> None:
    """Have a stream that the caller closed, as `>&-` does, be /dev/null: no file that is opened may take its number."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # so Python has it
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


def _is_unread() -> bool:
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


def _os_error(error: OSError) -> str:
    """What the system says, of which file, and what to do."""
    remedy = _REMEDIES.get(error.errno or 0, "")
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    return f"{' → '.join(names)}{': ' if names else ''}{reason(error)}{remedy}"


def say(text: object, *, keep: str = "", file: TextIO | None = None) -> None:
    """Print a line that may hold names of others', which must not speak to the terminal; see errors.shown."""
    print(shown(text, keep), file=file, flush=True)


class LocalPath(click.ParamType):
    """A path of this machine: a URL would become a directory called "s3:"."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        try:
            return files.local_path(value)
        except Error as error:  # click would need three lines
            raise Error(f"{param.opts[0] if param else self.name}: {error}") from None


class Directory(click.ParamType):
    """A directory of this machine, or a URL that fsspec reads, for what stays when the command has ended."""

    name = "directory"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Folder:
        folder = Folder(value)
        if folder.is_in_memory:
            raise Error(
                f"{folder}: expected a place that stays, got this command's own memory, which ends with it; "
                "give s3://…, hf://… or a local directory"
            )
        return folder


@contextmanager
def messages_above() -> Iterator[None]:
    """Log messages come above a progress bar, where there is a terminal for one."""
    if not sys.stderr.isatty():
        yield
        return
    from tqdm.contrib.logging import logging_redirect_tqdm

    with logging_redirect_tqdm([logging.getLogger("gpt2wds")]):
        yield


class ProgressLine:
    """A progress bar on a terminal, a line every few seconds elsewhere; always on standard error."""

    def __init__(self, label: str, total: float | None, unit: str, done: float = 0):
        self._label, self._total, self._unit = shown(label), total, unit
        # One document, not "1 documents"; of bytes and the like there is no plural.
        self._one = unit.strip().removesuffix("s")
        unit = unit.removesuffix("s") if total == 1 else unit
        self._bar = self._on_terminal(unit, done) if sys.stderr.isatty() else None
        self._before, self._done, self._start, self._said = done, done, time.monotonic(), time.monotonic()

    def _on_terminal(self, unit: str, done: float) -> Any:
        from tqdm import tqdm  # it takes as long as NumPy

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
        say(f"{self._label}: {self._done:,.0f}{of} {unit}{rate}{left}{note and ', ' + note}", file=sys.stderr)


def heading(result: Mapping[str, object]) -> str:
    """The model that a result is of, and its step where it has one."""
    return str(result["model"]) + ("" if result["step"] is None else f", step {result['step']:,}")


def print_json(value: Any) -> None:
    """One JSON object, whose texts hold no control character but as an escape: to a parser it is the same."""
    print(shown_json(json.dumps(value, ensure_ascii=False, allow_nan=False)))
