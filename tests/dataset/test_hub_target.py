"""Publishing on the Hub: what is uploaded once, what is refused, and what readers see in between."""

import shutil
from pathlib import Path

import pytest
from making import flip
from writable_hub import WritableHub

from gpt2wds.dataset import hub_target
from gpt2wds.dataset.directory import Dataset
from gpt2wds.dataset.hub_target import HubTarget
from gpt2wds.dataset.publish import send, to_send
from gpt2wds.errors import Error


def push(dataset: Dataset, hub: WritableHub) -> list[int]:
    """The sizes of what was sent."""
    target, sizes = HubTarget(hub.mine), list[int]()
    send(target, to_send(dataset, target, hub.mine), sizes.append)
    return sizes


def test_a_push_that_broke_off_goes_on(plays: Dataset, hub: WritableHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_target, "FILES_PER_COMMIT", 2)
    monkeypatch.setattr(hub_target, "FILES_AT_ONCE", 1)
    hub.refused = {plays.shards("train")[2].sha256}
    with pytest.raises(Error, match=r"train-00002.tar.zst did not arrive \(.*403.*check your credentials"):
        push(plays, hub)
    assert [len(names) for names in hub.commits] == [2, 2, 2]
    hub.refused = {"manifest.json"}
    with pytest.raises(Error, match="the commit did not arrive"):
        push(plays, hub)
    assert hub.files() >= {"train-00002.tar.zst", "val-00000.tar.zst", "plan.json"}
    with pytest.raises(Error, match="expected a finished dataset .*, got one in the making"):
        Dataset(f"{hub.mine}@main")  # nobody takes what is there for the whole
    hub.refused = set()
    assert len(push(plays, hub)) == 1
    assert Dataset(hub.mine).id == plays.id
    assert len(hub.puts) == len(set(hub.puts)) == 6, "each large file was uploaded once"
    assert push(plays, hub) == []


def test_nothing_that_is_there_is_overwritten(plays: Dataset, choices: Dataset, hub: WritableHub) -> None:
    push(plays, hub)
    before = hub.head
    with pytest.raises(Error, match=r"a shard of another dataset is there \(train-00000"):
        push(choices, hub)
    shard = hub.root / hub.name / "train-00001.tar.zst"
    shard.write_bytes(shard.read_bytes()[::-1])
    with pytest.raises(Error, match=r"train-00001.tar.zst: another file of this name is there already"):
        push(plays, hub)
    assert hub.head == before


def test_a_card_that_was_edited_there_stays(plays: Dataset, hub: WritableHub) -> None:
    push(plays, hub)
    card = hub.root / hub.name / "README.md"
    card.write_text("mine")
    assert push(plays, hub) == [] and card.read_text() == "mine"


def test_what_another_writes_in_between_is_not_overwritten(plays: Dataset, hub: WritableHub) -> None:
    target = HubTarget(hub.mine)
    stages = to_send(plays, target, hub.mine)
    hub.head = "0" * 40
    with pytest.raises(Error, match=r"another writer's commit came first; push again"):
        send(target, stages)
    assert hub.commits == []


def test_a_commit_whose_answer_was_lost_is_our_own(plays: Dataset, hub: WritableHub) -> None:
    target = HubTarget(hub.mine)
    stages = to_send(plays, target, hub.mine)
    hub.unsaid = 1
    send(target, stages)
    assert Dataset(hub.mine).id == plays.id and len(hub.commits) == len({tuple(files) for files in hub.commits})


def test_a_manifest_is_not_published_before_all_is_there(plays: Dataset, hub: WritableHub) -> None:
    hub.ignored = "1.tar.zst"
    with pytest.raises(Error, match=r"train-00001.tar.zst: it was sent and is not there; look what removes it"):
        push(plays, hub)
    assert "manifest.json" not in hub.files() and "train-00002.tar.zst" in hub.files()


def test_a_rotten_shard_is_not_published(plays: Dataset, hub: WritableHub, tmp_path: Path) -> None:
    copy = shutil.copytree(plays.path, tmp_path / "copy")
    flip(copy / "val-00000.tar.zst")
    with pytest.raises(Error, match=r"val-00000.tar.zst: expected SHA-256 .*; nothing of it was published; delete the"):
        push(Dataset(copy), hub)
    (copy / "val-00000.tar.zst").unlink()
    with pytest.raises(Error, match=r"val-00000.tar.zst: the file is missing"):
        push(Dataset(copy), hub)
    assert "manifest.json" not in hub.files()


def test_a_dataset_at_a_url_is_published_too(plays: Dataset, hub: WritableHub) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(plays.path, "/from", recursive=True)
    try:
        push(Dataset("memory://from"), hub)
    finally:
        memory.rm("/from", recursive=True)
    assert Dataset(hub.mine).id == plays.id
