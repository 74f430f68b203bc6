"""Every kind of file of a dataset and of a checkpoint, damaged at random: nothing wrong is read in silence."""

import random
from collections import Counter
from pathlib import Path

import pytest
from damages import DAMAGES, Target, Torturer, Trial, damaged, make_targets

KINDS = ("dataset", "older dataset", "examples", "resume", "weights")


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> list[Target]:
    return make_targets(tmp_path_factory.mktemp("sound"))


def run(targets: list[Target], folder: Path, seed: int, trials: int) -> list[Trial]:
    torturer = Torturer(targets, folder, seed)
    done = [torturer.trial(number) for number in range(trials)]
    for trial in done:
        assert trial.outcome in ("same", "refused"), trial
    return done


def test_no_damage_is_read_in_silence(targets: list[Target], tmp_path: Path) -> None:
    done = run(targets, tmp_path, seed=1, trials=100)
    assert {trial.damage for trial in done} == set(DAMAGES)
    assert {trial.target for trial in done} == set(KINDS)
    assert Counter(trial.outcome for trial in done)["refused"] > 50


@pytest.mark.slow
def test_no_damage_is_read_in_silence_for_longer(targets: list[Target], tmp_path: Path) -> None:
    run(targets, tmp_path, seed=2, trials=3000)


def test_what_is_silent_would_be_seen(targets: list[Target], tmp_path: Path) -> None:
    """The harness itself: a reader that believes everything is caught, and so is one that crashes."""
    files, folder = ("val-00000.tar.zst",), targets[0].folder
    credulous = Torturer([Target("all", folder, files, lambda path: {"all": contents(path)})], tmp_path / "a", 1)
    outcomes = {credulous.trial(number).outcome for number in range(20)}
    assert outcomes == {"SILENT", "refused"}  # refused: the file was removed
    crashing = Torturer([Target("one", folder, files, lambda path: {"one": contents(path)[1000]})], tmp_path / "b", 1)
    assert "CRASH" in {crashing.trial(number).outcome for number in range(20)}


def contents(path: Path) -> str:
    return (path / "val-00000.tar.zst").read_bytes().hex()


@pytest.mark.parametrize("kind", DAMAGES)
def test_every_damage_changes_something(kind: str) -> None:
    chance, data = random.Random(1), bytes(range(256)) * 40
    assert any(damaged(data, kind, chance, b"other") != data for _ in range(5))
