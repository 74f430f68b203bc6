"""Everything that reads bytes of others, fed with damaged ones, and with what once broke it (hostile/)."""

import random
from pathlib import Path

import pytest
from damages import DAMAGES, damaged
from fuzz import problem_of, readers, seeds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

HOSTILE = Path(__file__).parent / "hostile"
NAMES = sorted(readers(Path()))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[bytes]]:
    return seeds(tmp_path_factory.mktemp("seeds"))


@pytest.mark.parametrize("name", NAMES)
def test_sound_and_damaged_bytes_are_read_or_refused(name: str, sound: dict[str, list[bytes]], tmp_path: Path) -> None:
    read, chance = readers(tmp_path)[name], random.Random(1)
    for data in sound[name]:
        for _ in range(20):
            bad = damaged(data, chance.choice(DAMAGES), chance, b"other") or b""
            assert problem_of(read, bad) == "", bad


@pytest.mark.parametrize("path", sorted(HOSTILE.glob("*/*")), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_once_broke_a_reader_is_refused(path: Path, tmp_path: Path) -> None:
    assert problem_of(readers(tmp_path)[path.parent.name], path.read_bytes()) == ""


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=2000))
def test_any_bytes_are_read_or_refused(name: str, tmp_path: Path, data: bytes) -> None:
    assert problem_of(readers(tmp_path)[name], data) == ""


def test_a_reader_that_breaks_is_found() -> None:
    assert problem_of(lambda data: data[100], b"short").endswith("IndexError: index out of range")
