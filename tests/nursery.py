"""Our commands, in processes forked from this one, which has imported everything and computed nothing.

    python nursery.py

Jobs come on standard input, a JSON object a line: `command`, `ranks` (the arguments of each), `environment` (what is
added to it), and `out` and `err`, the files for what each says, with the rank after it: out0, out1. When all ranks
have ended, their exit codes go to standard output, a line. To import torch and all that takes a process six seconds, a
fork a tenth of one. Ranks find each other as torchrun would have them do it.
"""

import atexit
import faulthandler
import json
import os
import signal
import socket
import sys
import time
import traceback
from typing import Any

import fsspec.config
import torch
import torch._dynamo  # else each process does, for a second: optimizers need it

from gpt2wds.commands import eval as eval_command
from gpt2wds.commands import launch, models, train
from gpt2wds.evaluate import hellaswag, questions, text
from gpt2wds.tokenizer import load_tokenizer

COMMANDS = {"train": train.main, "eval": eval_command.main}
IMPORTED = (hellaswag, questions, text, models)  # by the commands, when they need them
SECONDS = 540.0  # that a job may take: less than a test may
GRACE = 60.0  # that the others of a rank that failed have to end


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def begin(job: dict[str, Any], rank: int, port: int) -> int:
    """The process of a rank."""
    child = os.fork()
    if child:
        return child
    code: Any = 1
    try:
        os.environ.update(job["environment"])
        fsspec.config.set_conf_env(fsspec.config.conf)  # which it reads when it is imported
        if (size := len(job["ranks"])) > 1:
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{job[name]}{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
        faulthandler.enable()  # a crash of torch says where
        COMMANDS[job["command"]](job["ranks"][rank], prog_name=f"gpt2wds-{job['command']}")
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(job: dict[str, Any]) -> list[int]:
    """The exit codes of a job's ranks, by rank; of those that do not end in time that of SIGKILL."""
    port = free_port()
    ranks = [begin(job, rank, port) for rank in range(len(job["ranks"]))]
    codes: dict[int, int] = {}
    end = time.monotonic() + SECONDS
    while len(codes) < len(ranks):
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            codes[pid] = os.waitstatus_to_exitcode(status)
            end = min(end, time.monotonic() + GRACE) if codes[pid] else end
        elif time.monotonic() > end:
            for left in set(ranks) - codes.keys():
                os.kill(left, signal.SIGKILL)
        else:
            time.sleep(0.01)
    return [codes[pid] for pid in ranks]


if __name__ == "__main__":
    torch.set_num_threads(1)
    launch.tokenizer_files(load_tokenizer(), 32)  # made once, and kept for all
    for line in sys.stdin:
        print(json.dumps(ended(json.loads(line))), flush=True)
