"""Paths, URLs and patterns: which files they mean."""

import errno
import os
import shutil
from pathlib import Path

import fsspec
import pytest
from making import shard_small, texts, write_jsonl

from gpt2wds.corpus.paths import expanded
from gpt2wds.errors import Error
from gpt2wds.locations import url_file

NAMES = ["a.txt", "b.txt", "ab.txt", "c[1].txt", "{x,y}.txt", "deep/a.txt", "deep/er/b.txt"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("paths")
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("a.txt", {"a.txt"}),
        ("*.txt", {"a.txt", "b.txt", "ab.txt", "c[1].txt", "{x,y}.txt"}),
        ("?.txt", {"a.txt", "b.txt"}),
        ("[bc].txt", {"b.txt"}),
        ("**/*.txt", set(NAMES)),
        ("d*", None),  # a pattern means files
        ("{a,b}.txt", {"a.txt", "b.txt"}),
        ("{deep/,}a.txt", {"a.txt", "deep/a.txt"}),
        ("{a,deep/*/b}.txt", {"a.txt", "deep/er/b.txt"}),
        ("c[1].txt", {"c[1].txt"}),  # a file of that very name comes first
        ("{x,y}.txt", {"{x,y}.txt"}),
        ("{a.txt", None),
        ("none*.txt", None),
    ],
)
@pytest.mark.parametrize("prefix", ["", "file://"])
def test_what_a_pattern_means(folder: Path, prefix: str, pattern: str, found: set[str] | None) -> None:
    path = f"{prefix}{folder}/{pattern}"
    if found is None:
        with pytest.raises(Error, match=r"files: expected (at least one file|a file), got "):
            expanded(path)
    else:
        assert sorted(expanded(path)) == sorted(str(folder / name) for name in found)


def test_each_alternative_must_mean_something(folder: Path) -> None:
    with pytest.raises(Error, match=r"expected a file, got '.*/z\.txt', which is missing"):
        expanded(f"{folder}/{{a,z}}.txt")


def test_a_directory_means_the_files_below_it_that_can_be_read(folder: Path, tmp_path: Path) -> None:
    (folder / "deep" / ".hidden.txt").touch()
    (folder / "deep" / "notes.md").touch()
    assert sorted(expanded(f"{folder}/deep/")) == [f"{folder}/deep/a.txt", f"{folder}/deep/er/b.txt"]
    with pytest.raises(Error, match=r"expected a directory with \.parquet, .*, which has none"):
        expanded(str(tmp_path))


def test_datasets_below_a_directory_are_no_texts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Finished ones, and those in the making."""
    (tmp_path / "texts").mkdir()
    write_jsonl(tmp_path / "texts" / "a.jsonl", texts(12))
    shard_small(tmp_path / "texts" / "done", tmp_path / "texts" / "a.jsonl")
    shutil.copytree(tmp_path / "texts" / "done", tmp_path / "texts" / "begun")
    (tmp_path / "texts" / "begun" / "manifest.json").unlink()
    for pattern in ("texts", "texts/", "texts/**/*.json*"):
        assert list(map(os.path.normpath, expanded(f"{tmp_path}/{pattern}"))) == [f"{tmp_path}/texts/a.jsonl"]
    assert f"{tmp_path}/texts/done: left out, for it is a dataset of gpt2wds" in caplog.text


def test_the_home_directory_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert expanded("~/a.txt") == [str(folder / "a.txt")]
    assert sorted(expanded("~/{a,b}.txt")) == [str(folder / "a.txt"), str(folder / "b.txt")]
    assert sorted(expanded("~/deep/*.txt")) == [str(folder / "deep" / "a.txt")]


def test_urls_are_patterns_but_for_what_they_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    for name in ("a.jsonl", "b.jsonl", "deep/c.jsonl", "d.txt"):
        memory.pipe(f"/paths/{name}", b"{}")
    try:
        assert expanded("memory://paths/*.jsonl") == ["memory:///paths/a.jsonl", "memory:///paths/b.jsonl"]
        assert len(expanded("memory://paths/**/*.jsonl")) == 3
        assert len(expanded("memory://paths/[ab].jsonl")) == 2
        assert expanded("memory://paths/{a,d}.jsonl") == ["memory://paths/a.jsonl", "memory://paths/d.jsonl"]
        with pytest.raises(Error, match="which matches none"):
            expanded("memory://paths/*.parquet")
        memory.pipe("/paths/.hidden/e.jsonl", b"{}")
        memory.pipe("/paths/notes.md", b"")
        names = ("a.jsonl", "b.jsonl", "d.txt", "deep/c.jsonl")
        assert sorted(expanded("memory://paths/")) == [f"memory:///paths/{name}" for name in names]
        # Through a cache all of them, or none would be kept.
        assert sorted(expanded("simplecache::memory://paths/")) == [f"simplecache::memory:///paths/{n}" for n in names]
        assert expanded("simplecache::memory://paths/a*") == ["simplecache::memory:///paths/a.jsonl"]
        with pytest.raises(Error, match=r"expected a directory with \.parquet, .*, got 'memory://nowhere/'"):
            expanded("memory://nowhere/")
        with pytest.raises(Error, match="got a directory; give memory://paths/ for all files below it"):
            url_file("memory://paths")
    finally:
        memory.rm("/paths", recursive=True)
    # A query may hold any character, and whether there is such a file nobody has asked.
    for url in ("https://host/a.jsonl?token=*[x]", "s3://bucket/a.parquet", "https://host/a.jsonl?version=2"):
        assert expanded(url) == [url]
    with pytest.raises(Error, match="nosuch://x/.*expected a URL that fsspec can read"):
        expanded("nosuch://x/*.jsonl")


@pytest.mark.parametrize("pattern", ["", "**/*.txt", "*/*.txt", "*/b.txt", "dee[p]/b*.txt"])
def test_what_cannot_be_listed_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    for name in ("deep", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "b.txt").touch()
    listed = os.scandir

    def denied(path: str) -> object:  # to root nothing is
        if str(path).endswith("deep"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return listed(path)

    with (
        monkeypatch.context() as patch,
        pytest.raises(Error, match=r"cannot list '.*deep' \(Permission denied\); make it"),
    ):
        patch.setattr(os, "scandir", denied)
        expanded(str(tmp_path / pattern))


@pytest.mark.parametrize("pattern", ["", "**/*.txt"])
def test_what_is_no_file_is_not_passed_over(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "a.txt").touch()
    asked = str(tmp_path / pattern)
    (tmp_path / "c.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(Error, match=r"got '.*c\.txt', which is a broken link"):
        expanded(asked)
    (tmp_path / "c.txt").unlink()
    os.mkfifo(tmp_path / "p.txt")
    with pytest.raises(Error, match=r"got '.*p\.txt', which is no regular file"):
        expanded(asked)


def test_a_link_to_a_directory_above_is_walked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.txt").touch()
    (tmp_path / "deep" / "up").symlink_to("..")
    names = ["a.txt", "deep/b.txt"]
    assert sorted(expanded(str(tmp_path))) == [str(tmp_path / name) for name in names]
    (tmp_path / "twin").symlink_to("deep")
    for base in (f"{tmp_path}/", f"{tmp_path}/deep/../", ""):
        monkeypatch.chdir(tmp_path)
        assert sorted(expanded(f"{base}**/*.txt")) == [f"{base}{name}" for name in names]


def test_a_link_that_leads_in_a_circle_is_called_that(tmp_path: Path) -> None:
    (tmp_path / "one.txt").symlink_to("two.txt")
    (tmp_path / "two.txt").symlink_to("one.txt")
    for path in ("one.txt", "*.txt", "**/*.txt", ""):
        with pytest.raises(Error, match=r"got '.*(one|two)\.txt', which is a link that leads in a circle"):
            expanded(f"{tmp_path}/{path}")


def test_a_name_that_is_not_utf_8_is_one_line(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).touch()
    with pytest.raises(Error, match=r"expected names in UTF-8, got b'.*caf\\xe9.txt'; rename it"):
        expanded(str(tmp_path))


def test_a_directory_may_be_called_like_a_chain_of_urls(tmp_path: Path) -> None:
    (tmp_path / "x::y").mkdir()
    (tmp_path / "x::y" / "a.txt").touch()
    assert expanded(f"{tmp_path}/x::y") == expanded(f"{tmp_path}/x::y/*.txt") == [f"{tmp_path}/x::y/a.txt"]
