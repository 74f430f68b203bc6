"""gpt2wds-train, killed with SIGKILL at one moment after the other, and then left to finish.

    python train_killed.py MOMENTS.json ARGUMENTS…

A moment is [module, name, n]: the process kills itself when the n-th call of that function begins. Each run is a
process of its own, forked from this one, which has imported everything and computed nothing: a fifth of a second
instead of three. Prints one line per moment: whether it was killed.
"""

import importlib
import json
import os
import signal
import sys
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # else each process does, for a second: optimizers need it

from gpt2wds.commands import launch
from gpt2wds.commands.train import main
from gpt2wds.tokenizer import load_tokenizer
from gpt2wds.train.hf_tokenizer import tokenizer_files


def kill_at(module: str, name: str, n: int) -> None:
    """Let the n-th call of a function be the last thing that happens."""
    *path, last = name.split(".")
    owner: Any = importlib.import_module(module)
    for part in path:
        owner = getattr(owner, part)
    function, calls = getattr(owner, last), count(1)

    def until_then(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == n:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    setattr(owner, last, until_then)


def run(moment: list[Any] | None, arguments: list[str]) -> int:
    """Exit status of gpt2wds-train in a process of its own, as os.waitpid gives it."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if moment is not None:
                kill_at(*moment)
            main(arguments, standalone_mode=False)
            status = 0
        except SystemExit as stopped:
            status = int(stopped.code or 0)
        finally:
            sys.stdout.flush()
            os._exit(status)
    return os.waitpid(child, 0)[1]


if __name__ == "__main__":
    torch.set_num_threads(1)
    assert launch.tokenizer_files is tokenizer_files
    tokenizer_files(load_tokenizer(), 32)  # made once, and kept for all
    for moment in [*json.loads(Path(sys.argv[1]).read_text()), None]:
        status = run(moment, sys.argv[2:])
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print("MOMENT", json.dumps(moment), "killed" if killed else f"status {status}", flush=True)
