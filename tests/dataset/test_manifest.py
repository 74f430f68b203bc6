"""What a dataset says of itself, there and back, and what of it is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gpt2wds.dataset.directory import Dataset
from gpt2wds.dataset.manifest import LaterFormat, Manifest, ShardEntry, SourceSpan
from gpt2wds.errors import Error

ENTRY = ShardEntry(
    file="train-00003.tar.zst",
    bytes=10,
    sha256="a" * 64,
    tokens_sha256="b" * 64,
    tokens=100,
    documents=7,
    blocks=1,
    text_bytes=400,
    skipped={"empty": [0, 4], "no text": [5]},
    spans=(SourceSpan("a", 5, 3, "row", 2), SourceSpan("b", 0, 3, "row", 1), SourceSpan("a", 9, 4, "row", 4)),
)


def test_a_manifest_comes_back_as_it_was_written(plays: Dataset) -> None:
    text = Path(plays.path, "manifest.json").read_text(encoding="utf-8")
    assert Manifest.from_json(text).to_json() == text
    assert Manifest.from_json(text) == plays.manifest


def test_what_is_not_known_is_kept() -> None:
    record = ENTRY.record() | {"new": [1, {"a": 2}]}
    assert ShardEntry.from_record(json.loads(json.dumps(record))).record() == record


def test_documents_are_counted_by_source() -> None:
    assert ENTRY.documents_by_source() == {"a": 6, "b": 1}
    assert sum(ENTRY.documents_by_source().values()) == ENTRY.documents
    before = (SourceSpan("c", 0, 999, "byte"), SourceSpan("d", 0, 5, "byte", 3))  # from before spans said so
    assert replace(ENTRY, spans=before).documents_by_source() == {"c": None, "d": 3}
    assert replace(ENTRY, spans=before[:1]).documents_by_source() == {"c": 7}
    assert replace(ENTRY, spans=()).documents_by_source() == {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokens": -1}, "'tokens': expected a count, got -1"),
        ({"tokens": 10**30}, "'tokens': expected a count"),
        ({"tokens": True}, "'tokens': expected a count, got True"),
        ({"file": "../train-00003.tar.zst"}, "'file': expected a name"),
        ({"file": ".hidden"}, "'file': expected a name"),
        ({"spans": [{"source": "a", "first_row": 0}]}, "'count': expected a count, got nothing"),
        ({"spans": ["a"]}, "'source': expected text, got nothing"),
        ({"skipped": {"empty": 7}}, "'empty': expected a list, got 7"),
        ({"skipped": {"empty": ["7"]}}, "'skipped': expected ordinals"),
    ],
)
def test_a_shard_entry_that_cannot_be_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(Error, match="^" + said):
        ShardEntry.from_record(ENTRY.record() | change)


def test_a_later_format_is_no_damage(plays: Dataset) -> None:
    with pytest.raises(LaterFormat, match="expected format 1.0, got 2.1; update gpt2wds"):
        Manifest.from_json(replace(plays.manifest, format_version="2.1").to_json())
