"""gpt2wds-shard push as a new user meets it, on a Hub that speaks the real protocol to its own client."""

import json
import shutil
from pathlib import Path

import pytest
from making import flip, shard_small, texts, write_jsonl
from shard_command import fails, run
from stores import ObjectStore
from writable_hub import WritableHub

from gpt2wds.dataset.directory import Dataset

SHARDS = [f"train-{n:05d}.tar.zst" for n in range(3)] + ["val-00000.tar.zst"]
PUBLISHED = {"README.md", "plan.json", "manifest.json", "train.blocks.npy", "val.blocks.npy", *SHARDS}


def test_a_dataset_on_the_hub_is_read_as_the_one_here(plays: Dataset, hub: WritableHub) -> None:
    code, said, errors = run("push", plays.path, hub.mine, "--license", "mit")
    assert code == 0, errors
    assert said.startswith(f"{hub.mine}: 9 files sent, Shakespeare's plays: train 3 shards, ")
    assert len(said.splitlines()) == 1
    assert errors and all(line.startswith("pushing: ") for line in errors.splitlines()), errors  # no bars but ours
    assert hub.files() == PUBLISHED
    # Few commits, and the manifest alone in the last.
    assert [set(names) for names in hub.commits] == [
        {"README.md", "plan.json"},
        {"train.blocks.npy", "val.blocks.npy", *SHARDS},
        {"manifest.json"},
    ]
    assert Dataset(hub.mine).id == plays.id
    assert run("verify", hub.mine)[1].startswith(f"{hub.mine}: all right")
    assert run("verify", hub.mine, "--source", 1, "--seed", 1)[0] == 0
    assert run("cat", hub.mine, "--docs", 1)[1] == run("cat", plays.path, "--docs", 1)[1]
    before = hub.head, list(hub.puts)
    assert run("push", plays.path, hub.mine)[1].startswith(f"{hub.mine}: already there, Shakespeare's plays")
    assert (hub.head, hub.puts) == before


@pytest.mark.slow
def test_a_run_reads_from_the_hub_what_it_reads_here(
    plays: Dataset, whole: Path, hub: WritableHub, tmp_path: Path
) -> None:
    from runs import finish, start  # here: it loads torch

    assert run("push", plays.path, hub.mine)[0] == 0
    finish(start(tmp_path / "run", Dataset(hub.mine), HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "home")))
    assert (tmp_path / "run" / "log.txt").read_text() == (whole / "log.txt").read_text()


@pytest.mark.slow
def test_a_dataset_in_an_object_store_is_read_as_the_one_here(plays: Dataset, store: ObjectStore) -> None:
    url = store.url("pushed")
    assert store.run("gpt2wds-shard", "push", plays.path, url).returncode == 0
    assert set(store.names("pushed")) == PUBLISHED
    assert store.run("gpt2wds-shard", "push", plays.path, url).stdout.startswith(f"{url}: already there")
    audited = store.run("gpt2wds-shard", "verify", url, "--source", 1)
    assert (audited.returncode, audited.stdout.count(": the same tokens")) == (0, 1)
    store.put("pushed/train-00001.tar.zst", store.get("pushed/train-00001.tar.zst")[::-1])
    refused = store.run("gpt2wds-shard", "push", plays.path, url)
    assert refused.returncode == 1 and "train-00001.tar.zst: another file of this name is there" in refused.stderr


def test_a_card_without_a_license_says_so(plays: Dataset, hub: WritableHub, tmp_path: Path) -> None:
    code, said, _ = run("push", plays.path, tmp_path / "out")
    assert (
        code == 0
        and said.splitlines()[1] == f"{tmp_path}/out: its README.md names no license (--license, or edit it there)"
    )
    found = fails("push", plays.path, hub.mine, "--license", "mine")
    assert 'Invalid metadata in README.md. - "license" must be one of the list' in found
    assert hub.puts == []  # said before anything large is sent


def test_a_license_that_comes_too_late_is_said(plays: Dataset, hub: WritableHub, tmp_path: Path) -> None:
    for place in (hub.mine, str(tmp_path / "out")):
        late = f"{place}: --license mit is not written, the README.md that is there stays as it is; edit it there"
        assert run("push", plays.path, place)[0] == 0
        code, said, _ = run("push", plays.path, place, "--license", "mit")
        assert code == 0 and said.splitlines()[1:] == [late]
        # Unasked nothing is said of a card, and what the first command wrote is no matter.
        assert len(run("push", plays.path, place)[1].splitlines()) == 1
    other = tmp_path / "other"
    for _ in range(2):
        assert len(run("push", plays.path, other, "--license", "mit")[1].splitlines()) == 1
    (other / "manifest.json").unlink()
    code, said, _ = run("push", plays.path, other, "--license", "odc-by")
    assert code == 0 and f"{other}: 1 file sent" in said and "--license odc-by is not written" in said
    assert "license: mit" in (other / "README.md").read_text()


def test_a_readme_that_was_there_is_kept_and_that_is_said(plays: Dataset, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    kept = f"{tmp_path}: the card is not written, the README.md that is there stays as it is; edit it there"
    code, said, _ = run("push", plays.path, tmp_path)
    assert code == 0 and said.splitlines()[1:] == [kept] and (tmp_path / "README.md").read_text() == "mine"


def test_paths_of_this_machine_are_not_published_unasked(
    tmp_path: Path, hub: WritableHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_jsonl(tmp_path / "source.jsonl", texts(12))
    shard_small(tmp_path / "named", source)
    said = fails("push", tmp_path / "named", hub.mine)
    assert f"would tell everybody of {source}; make the dataset with relative paths, or give --local-paths" in said
    assert hub.requests == []
    assert run("push", tmp_path / "named", tmp_path / "told", "--local-paths")[0] == 0
    monkeypatch.chdir(tmp_path)
    shard_small(Path("relative"), Path("source.jsonl"))
    assert str(tmp_path) in Path("relative/plan.json").read_text()
    assert run("push", "relative", "out")[0] == 0
    plan = json.loads(Path("out/plan.json").read_text())
    assert plan["sources"][0]["path"] == "source.jsonl" and "mtime_ns" not in plan["sources"][0]
    for name in ("plan.json", "manifest.json", "README.md"):
        assert str(tmp_path) not in Path("out", name).read_text(), name
    assert run("verify", "out")[0] == 0


def test_what_is_not_a_place_to_push_to_is_one_line(plays: Dataset, hub: WritableHub) -> None:
    for url in ("hf://datasets/mine", "hf://datasets/me/mine/below", "hf://datasets/me/mine@v1", "hf://me/mine"):
        assert f"{url}: expected hf://datasets/OWNER/NAME" in fails("push", plays.path, url)
    assert run("push", plays.path, "somewhere", "--private")[0] == 2
    assert run("push", plays.path, hub.mine, "--private")[0] == 0 and hub.visibility == "private"


def test_who_is_not_logged_in_is_told_how(
    plays: Dataset, hub: WritableHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "expected a login to the Hub, got none; run `hf auth login`" in fails("push", plays.path, hub.mine)
    assert hub.requests == []


def test_without_a_plan_nobody_can_audit(plays: Dataset, tmp_path: Path) -> None:
    copy = shutil.copytree(plays.path, tmp_path / "copy")
    (copy / "plan.json").unlink()
    assert "without its plan.json nobody can make shards of it again" in run("push", copy, tmp_path / "out")[1]
    assert "cannot be audited: it has no plan.json" in fails("verify", tmp_path / "out", "--source", 1)


def test_a_copy_is_finished_and_no_dataset_is_its_own_copy(plays: Dataset, tmp_path: Path) -> None:
    run("push", plays.path, tmp_path / "out")
    assert "got a finished dataset without receipts, as a published copy is" in fails("finish", tmp_path / "out")
    for place in (plays.path, f"{plays.path}/below"):
        assert "expected another place, got the dataset's own directory" in fails("push", plays.path, place)
    assert r"push: expected names in UTF-8, got b'" in fails("push", plays.path, f"{tmp_path}/caf\udce9")
    half = tmp_path / "half"
    half.mkdir()
    shutil.copy(Path(plays.path, "train-00001.tar.zst"), half)
    flip(half / "train-00001.tar.zst")
    assert "train-00001.tar.zst: another file of this name is there" in fails("push", plays.path, half)
    assert not (half / "manifest.json").exists()


@pytest.mark.parametrize("name", ["mit\nfoo: [bar", "", "MIT License", "mit\n"])
def test_a_license_that_is_no_name_is_refused(plays: Dataset, tmp_path: Path, name: str) -> None:
    found = fails("push", plays.path, tmp_path / "out", "--license", name)
    assert found.startswith("error: license: expected a name as the Hub has them, ") and f"got {name!r}" in found
    assert not (tmp_path / "out").exists()
