"""Memory that is freed and asked for again: the same pages, without the system."""

import platform
import subprocess
import sys

import pytest

FREED_AND_ASKED_FOR = """
import resource, sys
import numpy as np
from gpt2wds.malloc import keep_pages

def use():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for megabytes in (100, 5, 60) * 5:  # more than malloc ever keeps by itself, and less
        np.ones(megabytes << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "keep":
    keep_pages()
use()
print(use())
"""


def page_faults(how: str) -> int:
    command = [sys.executable, "-c", FREED_AND_ASKED_FOR, how]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries stay as they are")
def test_memory_asked_for_again_is_not_new_pages() -> None:
    assert page_faults("keep") < page_faults("leave") / 100
