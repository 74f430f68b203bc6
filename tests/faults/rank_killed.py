"""gpt2wds-train as one of torchrun's ranks, of which one is killed at a known moment, and the others are slow to leave.

    torchrun … --no-python python rank_killed.py MODULE NAME N ARGUMENTS…

Rank 1 kills itself when the N-th call of that function begins. torchrun's SIGTERM then finds the others on their way
out, as it does on a machine with too much to do.
"""

import os
import sys
import time
from typing import Any

from torch import distributed as dist
from train_killed import kill_at

from gpt2wds.commands.train import main

if __name__ == "__main__":
    module, name, number, *arguments = sys.argv[1:]
    if os.environ["RANK"] == "1":
        kill_at(module, name, int(number))
    destroy = dist.destroy_process_group

    def slowly(*args: Any) -> None:
        time.sleep(2)  # torchrun looks ten times a second
        destroy(*args)

    dist.destroy_process_group = slowly
    main(arguments)
