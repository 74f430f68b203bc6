"""The command lines: they read options and configuration, and call the library with plain arguments.

What is imported next takes seconds. Ctrl-C in that time is a traceback in Python's own hands, so a command, which is
known by its program's name, answers it from here on until it listens itself.
"""

import atexit
import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

_PROGRAM = Path(sys.argv[0]).name
# What only reads begins anew. With `python -m`, the program is not named yet.
_IS_EVAL = not {"gpt2wds-eval", "gpt2wds.commands.eval"}.isdisjoint({_PROGRAM, *sys.orig_argv})
STOPPED = "stopped"
if not _IS_EVAL and sys.argv[1:2] not in (["verify"], ["cat"], ["info"]):
    STOPPED += "; the same command goes on from here"


def leave_import(number: int, frame: FrameType | None) -> None:
    """End at once where `frame`, which the signal interrupted, is within an import.

    importlib's callbacks swallow an exception that a signal raises in them, and so does some of what is imported.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _stop(number)
        frame = frame.f_back


def _stop(number: int, *_: object) -> None:
    os.write(2, f"{STOPPED}\n".encode())
    os._exit(128 + number)  # an exception would be told by whatever is imported


def _interrupt(number: int, frame: FrameType | None) -> None:
    leave_import(number, frame)
    raise KeyboardInterrupt


def hear_interrupts() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt, but for imports: commands have some that come later."""
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, _interrupt)


@contextmanager
def importing() -> Iterator[None]:
    """What is imported in here stays: looking for garbage among it, again and again, takes a tenth of torch's time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


_ended_with: list[int] = []  # the exit code, once a command has said its last line


def ends_with(code: int) -> None:
    """The command is over but for what runs at exit."""
    _ended_with.append(code)


def _end_at_once() -> None:
    """Leave without freeing each object before, which takes Python a second where torch is imported; as mypy does."""
    if _ended_with:
        with suppress(OSError, ValueError):  # Python would try again, and tell of it
            for stream in filter(None, (sys.stdout, sys.stderr)):  # one that was closed before we began is None
                stream.flush()
            os._exit(_ended_with[-1])


if _PROGRAM == "gpt2wds-shard":
    # Else NumPy, when it is imported, starts a thread for each core, which spins for a tenth of a second: they are for
    # products of matrices, and sharding has none.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # one line of ours says it all
if _PROGRAM.startswith("gpt2wds-"):
    atexit.register(_end_at_once)  # before all else, so it is called last: threads have ended by then
if _PROGRAM.startswith("gpt2wds-") and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    with suppress(ValueError):  # not in the main thread, which has no signals
        signal.signal(signal.SIGINT, _stop)
