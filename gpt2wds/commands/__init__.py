"""The command lines: they read options and configuration, and call the library with plain arguments.

What is imported next takes seconds. Ctrl-C in that time is a traceback in Python's own hands, so a command, which is
known by its program's name, answers it from here on until it listens itself.
"""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

STOPPED = "stopped; the same command goes on from here"


def _stop(*_: object) -> None:
    os.write(2, f"{STOPPED}\n".encode())
    os._exit(128 + signal.SIGINT)  # an exception would be told by whatever is imported


def hear_interrupts() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt."""
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if Path(sys.argv[0]).name.startswith("gpt2wds-") and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    with suppress(ValueError):  # not in the main thread, which has no signals
        signal.signal(signal.SIGINT, _stop)
