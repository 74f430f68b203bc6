"""Multiple-choice examples as a source: a document each, counted, and none that is damaged or changed."""

import json
import shutil

import pytest
from making import CHOICES
from reading import check_runs, count, opened, read_all, read_run

from gpt2wds.corpus.examples import Examples
from gpt2wds.errors import Error
from gpt2wds.locations import local_file


def test_runs_joined_are_the_whole_file():
    assert count(Examples(), CHOICES) == len(CHOICES.read_text().splitlines()) == 36
    assert [example["ctx"] for example in read_all(Examples(), CHOICES)] == [
        json.loads(line)["ctx"] for line in CHOICES.open(encoding="utf-8")
    ]
    check_runs(Examples(), CHOICES, "text", [1, 5, 36])


def test_a_run_ends_with_the_file():
    source = opened(Examples(), CHOICES)
    assert [source.cut(first, 5, None) and source.cut(first, 5, None).end for first in (0, 33, 36)] == [5, 36, None]
    assert source.cut(30, None, None).documents == 6


def test_a_line_that_is_no_example_is_an_error_when_planning_and_when_reading(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(CHOICES.read_text().splitlines(True)[:3]) + '{"ind": 1}\n')
    with pytest.raises(Error, match=r"a\.jsonl line 4: expected 'activity_label'"):
        Examples().measure(local_file(path), "text")
    shutil.copy(CHOICES, path)
    source = opened(Examples(), path)
    path.write_text("no example\n")
    with pytest.raises(Error, match=r"a\.jsonl line 1: expected a JSON object"):
        read_run(source)
