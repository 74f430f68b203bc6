"""Writers stopped at one of their writes: killed, the disk full, the disk read-only; the same command mends it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from small import tree
from writers import FAULTS, FULL, Stop, Stopper, Writer, can_mount, only_whole, sharding_writers, small_disk

TORTURE = Path(__file__).parents[2] / "tools" / "torture.py"


@pytest.fixture(scope="module")
def stopper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stopper, dict[str, Writer]]]:
    folder = tmp_path_factory.mktemp("writers")
    if not can_mount(folder):
        pytest.skip("needs to mount a small disk, as root can")
    with small_disk(folder / "disk") as disk:
        yield Stopper(disk, folder), {writer.name: writer for writer in sharding_writers(folder)}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["shard hellaswag", "export llmc"])
def test_a_writer_that_is_stopped_harms_nothing(
    stopper: tuple[Stopper, dict[str, Writer]], name: str, fault: str
) -> None:
    """At its first writes, in the middle and at its last ones; tools/torture.py tries all."""
    trials, writers = stopper
    writes = trials.writes(writers[name])
    for write in (2, writes // 2, writes - 1):
        done = trials.stop(writers[name], fault, write)
        assert done.problems == (), done


def test_a_writer_that_leaves_halves_is_seen(stopper: tuple[Stopper, dict[str, Writer]]) -> None:
    """The harness itself: no temporary name, no line, and what is there already is taken for whole."""

    def careless(out: Path) -> None:
        out.mkdir(exist_ok=True)
        if not (out / "file").exists():
            with (out / "file").open("wb", buffering=0) as file:
                file.write(bytes(100))
                with (out / "other").open("wb", buffering=0) as other:
                    other.write(bytes(100))
                file.write(bytes(100))

    trials, _ = stopper
    done: Stop = trials.stop(Writer("careless", careless, tree, only_whole), FULL, write=3)
    assert "half of file is visible" in done.problems and "file differs" in done.problems
    assert any(problem.startswith("expected one line") for problem in done.problems)


@pytest.mark.slow
@pytest.mark.parametrize("attack", ["writers", "ranks", "servers"])
def test_attacks_for_a_while_find_nothing(attack: str, tmp_path: Path) -> None:
    """Some seconds of what tools/torture.py does for hours: training and reports too, three ranks, bad servers."""
    command = [sys.executable, str(TORTURE), "--seed", "3", "--hours", "0.003", "--only", attack]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TMPDIR": str(tmp_path)})
    assert done.returncode == 0, done.stdout + done.stderr
