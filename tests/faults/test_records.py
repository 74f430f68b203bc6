"""Records of strangers whose form is JSON's and whose members are anything; and any flipped bit of a checkpoint."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from damages import Target, make_targets
from fuzz import problem_of, readers, seeds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt2wds.train.checkpoint import newest_sound_checkpoint

RECORDS = ("manifest", "plan", "receipt", "state", "example", "rows")
NUMBERS = st.sampled_from([-1, 0, 1, 2**31, 2**63, 2**64, 10**30, 0.5, -0.0, 1e308])
NAMES = st.sampled_from(["", ".", "../x", "/etc/passwd", "train-00000.tar.zst", "package:x/y", "\ud800", "é"])
PLAIN = st.none() | st.booleans() | NUMBERS | NAMES | st.text("a/. ", max_size=5)
VALUES = PLAIN | st.lists(PLAIN, max_size=3) | st.dictionaries(NAMES, st.lists(PLAIN, max_size=2), max_size=2)
quickly = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[bytes]]:
    return seeds(tmp_path_factory.mktemp("seeds"))


@pytest.fixture(scope="module")
def resumable(tmp_path_factory: pytest.TempPathFactory) -> Target:
    """Two checkpoints; the files are those of the newer that a resume needs."""
    (target,) = (t for t in make_targets(tmp_path_factory.mktemp("targets")) if t.name == "resume")
    return target


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all members of a record, at every depth."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [each for key, member in pairs for each in ((*path, key), *places(member, (*path, key)))]


@pytest.mark.parametrize("name", RECORDS)
@quickly
@given(data=st.data())
def test_a_record_of_which_one_member_is_anything_is_read_or_refused(
    name: str, sound: dict[str, list[bytes]], tmp_path: Path, data: st.DataObject
) -> None:
    line = data.draw(st.sampled_from(sound[name])).splitlines()[0] if name == "rows" else sound[name][0]
    record = copy.deepcopy(json.loads(line))
    *above, key = data.draw(st.sampled_from(places(record)))
    holder = record
    for each in above:
        holder = holder[each]
    if data.draw(st.booleans()):
        holder[key] = data.draw(VALUES)
    elif isinstance(holder, list) and data.draw(st.booleans()):
        holder.append(holder[key])
    else:
        del holder[key]
    text = json.dumps(record).encode() + b"\n"
    assert problem_of(readers(tmp_path)[name], text) == "", text


@quickly
@given(data=st.data())
def test_every_flipped_bit_of_a_checkpoint_is_found(resumable: Target, data: st.DataObject) -> None:
    names = [name for name in resumable.files if not name.endswith(("vocab.json", "merges.txt"))]
    path = resumable.folder / data.draw(st.sampled_from(names))
    good = path.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(good) - 1))
    bad = bytearray(good)
    bad[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bad)
    try:
        warnings: list[str] = []
        newest = newest_sound_checkpoint(resumable.folder, warnings.append)
        assert newest == resumable.folder / "step-0000001" and len(warnings) == 1
    finally:
        path.write_bytes(good)
    assert newest_sound_checkpoint(resumable.folder, pytest.fail) == resumable.folder / "step-0000002"
