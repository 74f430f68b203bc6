"""Work that threads do ahead: its results, its errors, its bounds, and that no thread stays."""

import random
import subprocess
import sys
import threading
import time

import pytest

from gpt2wds.corpus.overlap import AHEAD, AHEAD_SIZE, Overlap


@pytest.fixture(autouse=True)
def no_thread_stays():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def slowly(item):
    time.sleep(random.Random(item).uniform(0, 0.004))
    return item * item, threading.get_ident()


@pytest.mark.parametrize("cores", [1, 2, 4])
def test_results_come_in_order_by_as_many_threads_as_cores(cores):
    with Overlap(lambda: cores) as overlap:
        results, workers = zip(*overlap.map(slowly, range(100)), strict=True)
    assert list(results) == [n * n for n in range(100)]
    assert len(set(workers)) == cores and (threading.get_ident() in workers) == (cores == 1)


def test_threads_come_and_go_with_the_cores():
    cores, seen = [1], []
    with Overlap(lambda: cores[0]) as overlap:
        for number, (_, worker) in enumerate(overlap.map(slowly, range(120))):
            seen.append(worker)
            cores[0] = 3 if 40 <= number < 80 else 1
    here = {threading.get_ident()}
    assert set(seen[:40]) == here and len(set(seen[45:80])) == 3 and set(seen[-30:]) == here


def test_one_map_may_feed_another():
    with Overlap(lambda: 3) as overlap:
        squares = (result for result, _ in overlap.map(slowly, range(50)))
        assert list(overlap.map(lambda n: n + 1, squares)) == [n * n + 1 for n in range(50)]


@pytest.mark.parametrize("cores", [1, 2, 4])
@pytest.mark.parametrize("place", ["do", "items"])
def test_an_error_comes_after_all_results_before_it_and_no_more_do(cores, place):
    def fails_at(n, where):
        if n == 20 and place == where:
            raise KeyError("ours")
        return n

    got = []
    with pytest.raises(KeyError, match="ours"), Overlap(lambda: cores) as overlap:
        for n in overlap.map(lambda n: slowly(fails_at(n, "do"))[0], (fails_at(n, "items") for n in range(99))):
            got.append(n)
    assert got == [n * n for n in range(20)]


@pytest.mark.parametrize(
    ("cores", "size", "most"), [(1, 1, 1), (3, 1, 3 * AHEAD + 1), (3, AHEAD_SIZE, 1), (9, AHEAD_SIZE // 2, 2)]
)
def test_only_so_much_is_taken_ahead(cores, size, most):
    taken, ahead = 0, set()

    def items():
        nonlocal taken
        for number in range(1, 60):
            taken = number
            yield number

    with Overlap(lambda: cores) as overlap:
        for number, _ in enumerate(overlap.map(slowly, items(), lambda _: size)):
            ahead |= {taken - number} if number < 40 else set()
    assert ahead == {most}, "no more, and after a while no fewer"


def test_what_no_thread_has_begun_is_dropped_when_the_caller_stops():
    begun, stopping = [threading.Event() for _ in range(4)], threading.Event()

    def do(item):
        begun[item].set()
        if item:
            stopping.wait(20)
            time.sleep(0.5)

    with pytest.raises(KeyboardInterrupt), Overlap(lambda: 2) as overlap:
        for _ in overlap.map(do, range(4)):
            assert begun[1].wait(20) and begun[2].wait(20), "both threads have work"
            stopping.set()
            raise KeyboardInterrupt
    assert not begun[3].is_set(), "nobody needs it"


def test_a_callers_process_keeps_its_own_ways_with_memory(tmp_path):
    # Of the process that calls the library, which does other things too; a command is nothing else.
    script = (
        "import sys, pyarrow as pa; from gpt2wds import Cut, Plays, make_dataset\n"
        "before = pa.default_memory_pool().backend_name\n"
        "make_dataset(sys.argv[1], Plays(), Cut(limit_docs=4, val_docs=1), workers=2)\n"
        "assert pa.default_memory_pool().backend_name == before != 'system'\n"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "out"], check=True, capture_output=True)
