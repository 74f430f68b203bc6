"""Cutting a corpus into tasks: every document once, sizes as asked for, and a validation split that stays."""

import dataclasses
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import texts, write_jsonl
from reading import WRITE, read_all, read_run, write_gz, write_parquet, write_txt

from gpt2wds.corpus import cutting, sharding
from gpt2wds.corpus.corpora import Files
from gpt2wds.corpus.cutting import Cut, shares
from gpt2wds.corpus.plan import Task
from gpt2wds.corpus.readers import BY_SUFFIX, suffix_of
from gpt2wds.corpus.sources import Corpus, Source
from gpt2wds.dataset.loader import StepBatches
from gpt2wds.errors import Error
from gpt2wds.folder import Folder


@dataclasses.dataclass
class Planned:
    """Sources and tasks, as they would stand in a plan."""

    sources: tuple[Source, ...]
    tasks: list[Task]


def planned(corpus: Corpus, cut: Cut) -> Planned:
    tasks = cutting.tasks(corpus.sources, cut, val_docs=corpus.val_docs, spread=corpus.spread)
    return Planned(corpus.sources, tasks)


def files(paths: list[str], cut: Cut) -> Planned:
    return planned(Files(tuple(paths)).resolve(Folder("no such directory")), cut)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> list[str]:
    """Files of all kinds, in an order in which each kind follows each other one."""
    folder = tmp_path_factory.mktemp("mixed")
    counts = {"a.jsonl": 11, "b.txt": 3, "c.parquet": 10, "d.jsonl": 1, "e.parquet": 2, "f.txt": 4, "g.txt": 2}
    counts |= {"h.jsonl": 6, "i.txt": 0, "j.jsonl.gz": 13, "k.jsonl.zst": 9}
    return [str(WRITE[name.rpartition(".")[2]](folder / name, count)) for name, count in counts.items()]


def documents(corpus: Planned, split: str = "") -> list[list[str]]:
    """The documents of each task of a split, or of both."""
    return [
        [text for span in task.spans for text in read_run(corpus.sources[span.source].open(), span.first, span.count)]
        for task in corpus.tasks
        if task.split.startswith(split)
    ]


def flat(tasks: list[list[str]]) -> list[str]:
    return [text for task in tasks for text in task]


def whole(paths: list[str]) -> list[list[str]]:
    """All documents of each file, read in one go."""
    return [read_all(BY_SUFFIX[suffix_of(path)], Path(path)) for path in paths]


# Every document once


CUTS = st.builds(
    Cut,
    val_docs=st.none() | st.integers(0, 12),
    docs_per_shard=st.none() | st.integers(1, 9),
    bytes_per_shard=st.none() | st.sampled_from([1, 50, 100, 300, 70_000, 150_000]),
)


@settings(deadline=None, max_examples=30)
@given(st.data(), CUTS)
def test_each_document_is_in_exactly_one_task(mixed, data, cut):
    paths = data.draw(st.lists(st.sampled_from(mixed), min_size=1, max_size=5, unique=True))
    corpus = files(paths, cut)
    expected = flat(whole(sorted(paths)))
    assert sorted(flat(documents(corpus))) == sorted(expected)
    assert all(span.count > 0 and span.first >= 0 for task in corpus.tasks for span in task.spans)
    for split in ("val", "train"):
        names = [task.shard for task in corpus.tasks if task.split == split]
        assert names == [f"{split}-{n:05d}" for n in range(len(names))]


@settings(deadline=None, max_examples=30)
@given(st.data(), CUTS, st.integers(12, 45))
def test_limit_docs_is_exact_and_includes_validation(mixed, data, cut, limit):
    paths = data.draw(st.lists(st.sampled_from(mixed), min_size=1, max_size=5, unique=True))
    expected = flat(whole(sorted(paths)))
    found = flat(documents(files(paths, dataclasses.replace(cut, limit_docs=limit))))
    assert len(found) == min(limit, len(expected))
    assert len(set(found)) == len(found) and set(found) <= set(expected)


# Sizes as asked for


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "txt"])
@pytest.mark.parametrize(("val_docs", "per_shard"), [(0, 3), (1, 4), (4, 3), (5, 1), (7, 100)])
def test_val_docs_and_docs_per_shard_are_exact(tmp_path, kind, val_docs, per_shard):
    path = WRITE[kind](tmp_path / f"a.{kind}", 10)
    corpus = files([str(path)], Cut(val_docs=val_docs, docs_per_shard=per_shard))
    (expected,) = whole([str(path)])
    for split, wanted in (("val", expected[:val_docs]), ("train", expected[val_docs:])):
        assert documents(corpus, split) == [wanted[i : i + per_shard] for i in range(0, len(wanted), per_shard)]


def test_text_files_fill_shards_together(tmp_path):
    paths = [str(write_txt(tmp_path / f"{name}.txt", 3)) for name in "abcd"]
    corpus = files(paths, Cut(val_docs=6, docs_per_shard=4))
    assert [len(task) for task in documents(corpus, "val")] == [4, 2]
    assert [len(task) for task in documents(corpus, "train")] == [4, 2]
    limited = files(paths, Cut(val_docs=6, docs_per_shard=4, limit_docs=11))
    assert [len(task) for task in documents(limited, "train")] == [4, 1]


@pytest.mark.parametrize("limit", [1, 60, 61, 200, 1 << 20])
def test_a_shard_of_jsonl_ends_at_the_first_document_after_bytes_per_shard(tmp_path, limit):
    path = write_jsonl(tmp_path / "a.jsonl", texts(40, "a"))
    size = path.stat().st_size
    tasks = files([str(path)], Cut(val_docs=0, bytes_per_shard=limit)).tasks
    lines = {0, *(n + 1 for n, byte in enumerate(path.read_bytes()) if byte == 10)}
    for (span,) in (task.spans for task in tasks):
        first, count = span.first, span.count
        assert {first, first + count} <= lines
        assert first + count == size or count >= limit > max(line for line in lines if line < first + count) - first


def test_text_files_fill_bytes_per_shard_together(tmp_path):
    paths = []
    for n in range(10):
        paths.append(tmp_path / f"{n}.txt")
        paths[-1].write_text("x" * 100)
    tasks = files([str(path) for path in paths], Cut(val_docs=2, bytes_per_shard=250)).tasks
    assert [sum(span.count for span in task.spans) for task in tasks] == [200, 300, 300, 200]


def test_a_shard_of_parquet_follows_bytes_per_shard(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"{n:01000d}" for n in range(100)]}), path)
    tasks = documents(files([str(path)], Cut(val_docs=0, bytes_per_shard=10_000)))
    assert all(8 <= len(task) <= 12 for task in tasks[:-1])


def test_blank_lines_are_no_documents_and_stop_nothing(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"text": "a"}\n\n\n{"text": "b"}\n\n\n')
    for cut in (Cut(1), Cut(1, docs_per_shard=1), Cut(1, 2, 1), Cut(1, 9, 1), Cut(1, bytes_per_shard=1)):
        corpus = files([str(path)], cut)
        assert (flat(documents(corpus, "val")), flat(documents(corpus, "train"))) == (["a"], ["b"])


# The split stays


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "txt"])
def test_validation_never_moves(tmp_path, kind):
    paths = [str(WRITE[kind](tmp_path / f"{name}.{kind}", 12)) for name in "ab"]
    expected = flat(documents(files(paths, Cut(val_docs=5)), "val"))
    assert len(expected) == 5
    for other in (
        Cut(limit_docs=5),
        Cut(limit_docs=11),
        Cut(docs_per_shard=1),
        Cut(docs_per_shard=4, limit_docs=17),
        Cut(bytes_per_shard=100),
    ):
        corpus = files(paths, dataclasses.replace(other, val_docs=5))
        assert flat(documents(corpus, "val")) == expected
        assert not set(expected) & set(flat(documents(corpus, "train")))


# Refused


def refused(*paths: Path, **cut: int) -> str:
    with pytest.raises(ValueError) as caught:
        files([str(path) for path in paths], Cut(**cut))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_limit_below_validation_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", texts(20, "a"))
    assert "expected at least the 6 documents of validation, got 5" in refused(path, val_docs=6, limit_docs=5)


# Filled across sources


@pytest.mark.parametrize("cut", [Cut(), Cut(bytes_per_shard=5_000_000)])
def test_300_small_files_make_one_shard_of_each_split(tmp_path, cut):
    paths = [str(write_jsonl(tmp_path / f"{n:03d}.jsonl", texts(100, str(n)))) for n in range(300)]
    corpus = files(paths, cut)
    assert [task.shard for task in corpus.tasks] == ["val-00000", "train-00000"]
    assert len(flat(documents(corpus, "val"))) == 300  # 1 %, one of each


def test_tokens_at_shards_ends_are_few(tmp_path):
    for n in range(300):
        write_jsonl(
            tmp_path / f"{n:03d}.jsonl", [f"Document {n} {i}. " + "some words of text " * 10 for i in range(100)]
        )
    dataset = sharding.make_dataset(tmp_path / "out", Files((str(tmp_path / "*.jsonl"),)), workers=1)
    assert (len(dataset.shards("train")), len(dataset.shards("val"))) == (1, 1)
    batches = StepBatches(dataset, seq_len=1024, sequences_per_step=8, seed=1)
    assert batches.trailing_tokens < dataset.total("train", "tokens") / 1000


@pytest.mark.slow
def test_20000_files_are_planned(tmp_path):
    for n in range(20_000):
        write_jsonl(tmp_path / f"{n:05d}.jsonl", [f"Document {n} {i} " + "word " * 30 for i in range(5)])
    start = time.perf_counter()
    plan = sharding.make_plan(Folder(tmp_path / "out"), Files((str(tmp_path / "*.jsonl"),)), Cut())
    seconds = time.perf_counter() - start
    print(f"20,000 files planned in {seconds:.1f} s")
    assert len(plan.sources) == 20_000 and [task.shard for task in plan.tasks] == ["val-00000", "train-00000"]
    assert seconds < 60


def test_given_both_ways_to_cut_what_comes_first_counts(tmp_path):
    short, long = [f"s{n}" for n in range(20)], [f"l{n}" + "x" * 500 for n in range(20)]
    path = write_jsonl(tmp_path / "a.jsonl", short + long)
    sizes = [len(task) for task in documents(files([str(path)], Cut(0, docs_per_shard=10, bytes_per_shard=1200)))]
    assert sizes[:2] == [10, 10] and set(sizes[2:]) == {2, 3}, sizes


# Validation


@pytest.mark.parametrize(("counts", "wanted", "given"), [
    ([1000, 100, 7], 11, [10, 1, 0]), ([1, 1, 1], 2, [1, 1, 0]), ([5, 5], 20, [5, 5]), ([0, 3], 2, [0, 2]), ([], 3, []),
])  # fmt: skip
def test_shares(counts, wanted, given):
    assert shares(counts, wanted) == given


@settings(deadline=None, max_examples=30)
@given(st.data(), st.integers(0, 60))
def test_val_docs_is_exactly_what_was_asked_for(mixed, data, wanted):
    """Whatever single files have, and however wrong their numbers were estimated."""
    paths = data.draw(st.lists(st.sampled_from(mixed), min_size=1, max_size=6, unique=True))
    corpus = Files(tuple(paths)).resolve(Folder("no such directory"))
    factors = data.draw(st.lists(st.sampled_from([0.2, 1, 3]), min_size=len(paths), max_size=len(paths)))
    sources = tuple(
        dataclasses.replace(
            source,
            size=dataclasses.replace(source.size, documents=max(1, int(source.size.documents * factor)), is_exact=False)
            if source.reader != ".parquet" and source.size.documents
            else source.size,
        )
        for source, factor in zip(corpus.sources, factors, strict=True)
    )
    tasks = cutting.tasks(sources, Cut(val_docs=wanted), val_docs=None, spread=True)
    expected = flat(whole(sorted(paths)))
    found = flat(documents(Planned(sources, tasks), "val"))
    assert len(found) == min(wanted, len(expected))
    assert sorted(flat(documents(Planned(sources, tasks)))) == sorted(expected)


def held_out(corpus: Planned) -> dict[str, int]:
    """Validation documents of each source."""
    found = dict.fromkeys((Path(source.name).name for source in corpus.sources), 0)
    for task in corpus.tasks:
        for span in task.spans if task.split == "val" else ():
            source = corpus.sources[span.source]
            found[Path(source.name).name] += len(read_run(source.open(), span.first, span.count))
    return found


def test_if_nothing_is_said_each_source_gives_its_share(tmp_path):
    paths = [
        write_parquet(tmp_path / "web.parquet", texts(5000, "web")),
        write_txt(tmp_path / "py.txt", 11),
        write_jsonl(tmp_path / "a.jsonl", texts(300, "a")),
        write_gz(tmp_path / "b.jsonl.gz", texts(120, "b")),
        write_jsonl(tmp_path / "one.jsonl", ["only one"]),
    ]
    corpus = files(list(map(str, paths)), Cut())
    assert held_out(corpus) == {"a.jsonl": 3, "b.jsonl.gz": 1, "one.jsonl": 0, "py.txt": 1, "web.parquet": 50}


def test_one_percent_is_of_what_is_used(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", texts(3000, "a"))
    for limit, expected in ((None, 30), (1000, 10), (50, 1)):
        assert len(flat(documents(files([str(path)], Cut(limit_docs=limit)), "val"))) == expected


def test_of_many_sources_not_each_gives_one(tmp_path):
    paths = [str(write_jsonl(tmp_path / f"{n}.jsonl", texts(2, str(n)))) for n in range(150)]
    assert len(flat(documents(files(paths, Cut()), "val"))) == 3


@pytest.mark.parametrize("name", ["val_docs", "limit_docs", "docs_per_shard", "bytes_per_shard"])
def test_a_cut_that_cannot_be_is_refused_where_it_is_made(name: str) -> None:
    least = 0 if name == "val_docs" else 1
    for value in (least - 1, 1.5, "5", True):
        with pytest.raises(Error, match=f"^{name}: expected a whole number, {least} or more, got {value!r}$"):
            Cut(**{name: value})
    made = getattr(Cut(**{name: np.int64(5)}), name)
    assert made == 5 and type(made) is int, "a plan is JSON"
    assert getattr(Cut(**{name: least}), name) == least
