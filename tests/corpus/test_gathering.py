"""Datasets that are made on the Hub, over HTTP: how many commits they take, and what a kill costs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from making import shard_files, texts, tree, write_jsonl
from writable_hub import WritableHub

from gpt2wds.corpus import gathering
from gpt2wds.corpus.gathering import Gathering, Uncommitted
from gpt2wds.errors import Error
from gpt2wds.folder import Folder

CUT = {"val_docs": 2, "docs_per_shard": 4}  # 13 shards
# The command, with other numbers: so many shards in a commit, so many seconds until one.
COMMAND = (
    "import sys; from gpt2wds.corpus import gathering; from gpt2wds.commands.shard import main; "
    "gathering.SHARDS_PER_COMMIT, gathering.GATHER_SECONDS = {}, {}; main(sys.argv[1:])"
)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "a.jsonl", texts(50))


@pytest.fixture
def here(corpus: Path, tmp_path: Path) -> dict[str, str]:
    """What is made in a directory of this machine."""
    shard_files(tmp_path / "here", corpus, **CUT)
    return tree(tmp_path / "here")


def start(hub: WritableHub, corpus: Path, shards: int = 50, seconds: float = 300) -> subprocess.Popen:
    options = ["--val-docs", "2", "--docs-per-shard", "4", "--workers", "2", "--out", hub.mine]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(shards, seconds), "files", str(corpus), *options],
        env={**os.environ, **hub.environment},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> None:
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0 and "Traceback" not in said, said


def shards_of(commits: list[list[str]]) -> list[int]:
    """How many shards are in each commit that has any."""
    counts = [sum(name.endswith(".tar.zst") for name in names) for names in commits]
    return [count for count in counts if count]


def test_many_shards_are_in_one_commit(hub: WritableHub, corpus: Path, here: dict[str, str]) -> None:
    there = hub.make()
    assert shard_files(hub.mine, corpus, **CUT).total("train", "documents") == 48
    assert tree(there) == here
    assert shards_of(hub.commits) == [13]
    assert len(hub.commits) == 5  # besides, the plan, two indices and the manifest
    shard_files(hub.mine, corpus, **CUT)  # there is nothing to do
    assert len(hub.commits) == 5


def test_a_run_that_fails_commits_what_was_made(hub: WritableHub, corpus: Path) -> None:
    there = hub.make()
    text = corpus.read_text()
    shard_files(hub.mine, corpus, **CUT)
    for name in ("train-00011", "train-00003"):
        (there / f"{name}.tar.zst").unlink()
        (there / f"receipts/{name}.json").unlink()
    (there / "manifest.json").unlink()
    corpus.write_text(text[:-30] + "X" * 26 + text[-4:])  # the last document is another
    with pytest.raises(Error, match="the file changed since the plan was made"):
        shard_files(hub.mine, corpus, **CUT)
    assert (there / "receipts/train-00003.json").exists() and not (there / "receipts/train-00011.json").exists()


@pytest.mark.slow
def test_a_kill_loses_what_was_not_committed(hub: WritableHub, corpus: Path, here: dict[str, str]) -> None:
    there = hub.make()
    process = start(hub, corpus, shards=3)
    deadline = time.monotonic() + 60
    while len(shards_of(hub.commits)) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    time.sleep(0.3)  # the Hub may be at a commit
    kept = tree(there)
    assert set(shards_of(hub.commits)) == {3} and "manifest.json" not in kept
    # A shard and its receipt are seen together.
    seen = {name.partition(".")[0] for name in kept if name.endswith(".zst")}
    assert seen == {Path(name).stem for name in kept if name.startswith("receipts/")}
    finish(start(hub, corpus))
    assert tree(there) == here and kept.items() <= here.items()
    assert len(hub.puts) == len(set(hub.puts)), "what was uploaded is not uploaded again"
    assert sum(shards_of(hub.commits)) == 13, "and nothing is committed twice"


@pytest.mark.slow
def test_two_at_once_make_one_dataset(hub: WritableHub, corpus: Path, here: dict[str, str]) -> None:
    there = hub.make()
    for process in [start(hub, corpus, shards=2) for _ in range(2)]:
        finish(process)
    assert tree(there) == here
    committed = [name for names in hub.commits for name in names if name.endswith(".tar.zst")]
    assert len(committed) == len(set(committed)) == 13


def test_one_commit_comes_after_some_time_or_when_many_are_there(
    hub: WritableHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.make()
    folder = Folder(hub.mine)
    monkeypatch.setattr(gathering, "SHARDS_PER_COMMIT", 3)
    gathered = Gathering(folder.repository)
    for number in range(8):
        name = f"receipts/{number}.json"
        _, shard = folder.uploaded(f"{number}.tar.zst", lambda file, number=number: file.write(b"%d" % number))
        monkeypatch.setattr(gathering, "GATHER_SECONDS", 0.0 if number == 4 else 300.0)
        gathered.add(Uncommitted(name, shard, folder.repository.addition(name, b"{}")))
    assert shards_of(hub.commits) == [3, 2, 3] and len(hub.puts) == 8
    gathered.commit()
    assert shards_of(hub.commits) == [3, 2, 3]


def test_a_commit_that_fails_is_not_tried_again(
    hub: WritableHub, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the Hub is away, it would take two more minutes until that is said."""
    hub.make()
    monkeypatch.setattr(gathering, "SHARDS_PER_COMMIT", 3)
    hub.refused = {"train-00001.tar.zst"}
    with pytest.raises(Error, match="the commit did not arrive .403 Forbidden"):
        shard_files(hub.mine, corpus, **CUT)
    asked = [request for request in hub.requests if "/commit/" in request]
    assert len(asked) == 2  # the first is the plan's


def test_what_failed_first_is_said_and_not_the_last_commit(hub: WritableHub) -> None:
    hub.make()
    folder = Folder(hub.mine)
    _, shard = folder.uploaded("0.tar.zst", lambda file: file.write(b"0"))
    hub.refused = {"0.tar.zst"}
    with pytest.raises(Error, match="^first$"), gathering.gathering(folder) as take:
        take(Uncommitted("receipts/0.json", shard, folder.repository.addition("receipts/0.json", b"{}")))
        raise Error("first")
    assert sum("/commit/" in request for request in hub.requests) == 1
