"""What goes wrong with time: a longer run, many starts, many readers. tools/load.py does each for long."""

from pathlib import Path

import pytest
from load import Use, growth, long_run, make_small, readers_and_remover, short_starts


@pytest.mark.slow
def test_a_longer_run_holds_no_more_than_a_short_one(tmp_path: Path) -> None:
    looks, problem = long_run(tmp_path, steps=400)
    assert problem == "" and len(looks) > 3


@pytest.mark.slow
def test_eight_readers_of_what_comes_and_goes(tmp_path: Path) -> None:
    outcomes, removed = readers_and_remover(tmp_path, seconds=4, readers=8, seed=1)
    assert removed and outcomes["same"] and set(outcomes) <= {"same", "refused"}, outcomes


@pytest.mark.parametrize(
    ("num_workers", "starts"), [(0, 30), pytest.param(2, 40, marks=pytest.mark.slow)], ids=["alone", "workers"]
)
def test_starts_leave_nothing_behind(tmp_path: Path, num_workers: int, starts: int) -> None:
    _, problem = short_starts(make_small(tmp_path), starts, num_workers)
    assert problem == ""


def test_growth_would_be_seen() -> None:
    steady = [Use(100.0, 5, 2)] * 20
    assert growth(steady) == []
    assert growth([Use(100.0, 5 + n, 2) for n in range(20)]) == ["descriptors: 10.0 → 20.0"]
    assert growth([Use(100.0, 5, 2 + n // 10) for n in range(20)]) == ["threads: 2.0 → 3.0"]
    assert growth([Use(100.0 + 2 * n, 5, 2) for n in range(20)]) == ["mebibytes: 110.0 → 130.0"]
