"""Publishing in a directory, here or at a URL: what comes last, what goes on, what is never overwritten."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from making import flip, tree

from gpt2wds.dataset.directory import Dataset
from gpt2wds.dataset.publish import DirectoryTarget, published_plan, send, telling, to_send
from gpt2wds.errors import Error
from gpt2wds.folder import Folder


@pytest.fixture(params=["path", "URL"])
def there(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    yield Folder({"path": tmp_path / "there", "URL": "memory://there"}[request.param])
    memory = fsspec.filesystem("memory")
    if memory.exists("/there"):
        memory.rm("/there", recursive=True)


def push(dataset: Dataset, there: Folder) -> list[str]:
    target = DirectoryTarget(there)
    stages = to_send(dataset, target, str(there))
    send(target, stages)
    return [piece.name for stage in stages for piece in stage.pieces]


def test_a_push_goes_on_after_damage_and_the_manifest_comes_last(plays: Dataset, there: Folder, tmp_path: Path) -> None:
    copy = shutil.copytree(plays.path, tmp_path / "copy")
    flip(copy / "val-00000.tar.zst")
    with pytest.raises(Error, match=r"val-00000.tar.zst: expected SHA-256 .*; nothing of it was published"):
        push(Dataset(copy), there)
    with pytest.raises(Error, match="got one in the making"):
        Dataset(there)
    assert "train-00002.tar.zst" in there.sizes() and "val-00000.tar.zst" not in there.sizes()
    assert push(plays, there) == ["val-00000.tar.zst", "manifest.json"]
    assert push(plays, there) == []
    assert Dataset(there).id == plays.id
    for name in ("manifest.json", "train-00000.tar.zst", "val.blocks.npy"):
        assert there.read(name) == Path(plays.path, name).read_bytes()


@pytest.mark.parametrize("name", ["plan.json", "train.blocks.npy", "train-00001.tar.zst", "manifest.json"])
def test_what_is_there_with_other_content_is_refused_and_stays(plays: Dataset, tmp_path: Path, name: str) -> None:
    there = tmp_path / "there"
    there.mkdir()
    data = bytearray(Path(plays.path, name).read_bytes())
    data[-20] ^= 1  # of the same size
    (there / name).write_bytes(data)
    before = tree(there)
    with pytest.raises(Error, match=f"{name}: another file of this name is there already, and nothing is ever overwr"):
        push(plays, Folder(there))
    assert tree(there) == before


def test_shards_of_another_dataset_are_refused(plays: Dataset, choices: Dataset, tmp_path: Path) -> None:
    push(plays, Folder(tmp_path / "there"))
    with pytest.raises(Error, match=r"a shard of another dataset is there \(train-00000.tar.zst\)"):
        push(choices, Folder(tmp_path / "there"))


def test_what_would_tell_of_this_machine_is_found(plays: Dataset, tmp_path: Path) -> None:
    assert telling(plays) == []
    for number, (name, is_told) in enumerate(
        {
            "/home/me/a.txt": True,
            "~/a.txt": True,
            "file:///a": True,
            "C:\\a": True,
            "https://me:secret@host/a": True,
            "https://bucket/a?X-Amz-Signature=12": True,
            "s3://bucket/a": False,
            "texts/a.txt": False,
            "hf://datasets/a/b@12/c": False,
        }.items()
    ):
        copy = shutil.copytree(plays.path, tmp_path / str(number))
        dataset = Dataset(copy)
        dataset.manifest.parameters["paths"] = [name]
        assert telling(dataset) == [name] * is_told


def test_a_damaged_plan_is_not_published(plays: Dataset, tmp_path: Path) -> None:
    copy = shutil.copytree(plays.path, tmp_path / "copy")
    plan = (copy / "plan.json").read_text()
    (copy / "plan.json").write_text(plan.replace("plays/", "ploys/", 1))
    with pytest.raises(Error, match=r"plan.json: it is not as it was written"):
        published_plan(Dataset(copy))
