"""Reading ahead: in order, bounded, and at an end when nobody wants it any more."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from gpt2wds import patience
from gpt2wds.dataset.ahead import read_ahead

PROGRAM = """
import itertools, sys, time
from gpt2wds import patience
from gpt2wds.dataset.ahead import read_ahead

patience.WAITS = (60, 60)

def read(item):
    if item == 0:
        return 0
    if sys.argv[1] == "hangs":
        time.sleep(60)
    patience.patiently(lambda: (_ for _ in ()).throw(ConnectionResetError()), "it", None)

held = read_ahead(itertools.count(), read, at_once=4, held=8)
print(next(held), flush=True)
"""


def eventually(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not what() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert what()


def readers() -> int:
    return sum(thread.name == "gpt2wds-ahead" for thread in threading.enumerate())


def test_results_come_in_order_and_threads_end() -> None:
    def read(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        return -item

    assert list(read_ahead(range(50), read, at_once=7, held=9)) == [(n, -n) for n in range(50)]
    assert list(read_ahead(range(2), read, at_once=7, held=9)) == [(0, 0), (1, -1)]
    eventually(lambda: readers() == 0)


def test_an_error_comes_in_its_place() -> None:
    results = read_ahead(range(5), lambda n: 6 // (2 - n), at_once=2, held=4)
    assert [next(results), next(results)] == [(0, 3), (1, 6)]
    with pytest.raises(ZeroDivisionError):
        next(results)
    eventually(lambda: readers() == 0)


def test_what_is_closed_reads_no_more_and_asks_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "WAITS", (60, 60))
    asked: list[int] = []

    def read(item: int) -> int:
        def question() -> int:
            asked.append(item)
            if item:
                raise ConnectionResetError
            return 0

        return patience.patiently(question, "it", None)

    results = read_ahead(range(100), read, at_once=3, held=20)
    assert next(results) == (0, 0)
    eventually(lambda: sorted(asked) == [0, 1, 2, 3])
    results.close()  # type: ignore[attr-defined]
    eventually(lambda: readers() == 0)
    assert sorted(asked) == [0, 1, 2, 3]


@pytest.mark.parametrize("server", ["away", "hangs"])
def test_a_program_ends_though_it_holds_a_reader(server: str) -> None:
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", PROGRAM, server], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "(0, 0)\n"), done.stderr
    assert time.monotonic() - started < 15  # of them most for imports
