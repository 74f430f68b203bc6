"""What the three commands share: options, and how a command ends, well or by an error or a signal."""

import errno
import io
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click

from .. import files
from ..errors import Error, reason
from ..folder import Folder
from . import STOPPED, ends_with, hear_interrupts, leave_import
from .output import go_on_unread, is_unread, open_streams, say

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
            try:
                return super().main(*args, **kwargs)
            except OSError as error:
                _end(f"error: {_os_error(error)}", 1)
        except SystemExit as end:
            ends_with(end.code if isinstance(end.code, int) else int(end.code is not None))
            raise


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
    open_streams()
    logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)  # what was asked again, we say
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
        if isinstance(error, BrokenPipeError) and is_unread():  # it was no other pipe, and no connection
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
