"""Parquet: runs joined are the whole file, and what is no document is counted with its reason."""

import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import check_runs, count, opened, read_all, read_run

from gpt2wds.corpus.documents import Skipped
from gpt2wds.corpus.readers import BY_SUFFIX
from gpt2wds.errors import Error
from gpt2wds.locations import local_file

JSONL, PARQUET, TEXT = BY_SUFFIX[".jsonl"], BY_SUFFIX[".parquet"], BY_SUFFIX[".txt"]
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
STEPS = st.lists(st.integers(1, 5), max_size=6)
LIMITS = st.lists(st.integers(1, 90), max_size=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """For files that every example of a property test writes again."""
    return tmp_path_factory.mktemp("readers")


@settings(deadline=None)
@given(st.lists(TEXTS, max_size=30), st.integers(1, 10), STEPS)
def test_parquet_runs_joined_are_the_whole_file(folder, texts, row_group, steps):
    path = folder / "a.parquet"
    table = pa.table({"id": pa.array(range(len(texts)), pa.int64()), "text": pa.array(texts, pa.string())})
    pq.write_table(table, path, row_group_size=row_group)
    assert read_all(PARQUET, path) == [text or Skipped("empty text") for text in texts]
    assert count(PARQUET, path) == len(texts)
    check_runs(PARQUET, path, "text", steps)


def test_parquet_runs_across_row_groups_and_batches(tmp_path):
    path = tmp_path / "a.parquet"
    texts = [str(n) for n in range(5000)]
    for row_group in (700, 2500):  # batches of 1,000 rows
        pq.write_table(pa.table({"text": texts}), path, row_group_size=row_group)
        for first, wanted in ((0, 1), (699, 2), (700, 700), (650, 2000), (2300, 400), (4999, 1), (0, 5000), (4999, 0)):
            assert read_run(opened(PARQUET, path), first, wanted) == texts[first : first + wanted]


def test_parquet_gives_bytes_in_bounded_batches(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"é{n:0100000d}" for n in range(50)]}), path)
    batches = list(opened(PARQUET, path).batches(3, 40))
    assert [text for batch in batches for text in batch] == [f"é{n:0100000d}".encode() for n in range(3, 43)]
    assert max(map(len, batches)) <= 11


def test_parquet_takes_text_of_any_string_type(tmp_path):
    path = tmp_path / "a.parquet"
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        pq.write_table(pa.table({"text": pa.array(["a", "b", None], pa.string()).cast(kind)}), path)
        assert read_all(PARQUET, path) == ["a", "b", Skipped("no text")]


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        (pa.array([None], pa.string()), "no text"),
        (pa.array([""]), "empty text"),
        (pa.array([None]), "no text"),
    ],
)
def test_parquet_rows_without_text_are_counted(tmp_path, column, reason):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": column}), path)
    assert read_all(PARQUET, path) == [Skipped(reason)]


def test_a_parquet_row_that_is_no_utf8_does_not_stop_the_others(tmp_path):
    path = tmp_path / "a.parquet"
    column = pa.array([b"good", b"\xff", b"", None, b"also"]).cast(pa.string(), safe=False)
    for kind in (pa.string(), pa.large_string()):
        pq.write_table(pa.table({"text": column.cast(kind)}), path)
        no_utf8 = Skipped("not UTF-8 (byte 0 of the document)")
        assert read_all(PARQUET, path) == ["good", no_utf8, Skipped("empty text"), Skipped("no text"), "also"]


def test_parquet_bytes_per_run_follow_the_columns_size(tmp_path):
    path = tmp_path / "a.parquet"
    columns = {"text": [f"{n:01000d}" for n in range(100)], "other": ["x" * 5000] * 100}
    pq.write_table(pa.table(columns), path, row_group_size=10)
    source = opened(PARQUET, path)
    assert source.cut(0, None, 1).end == 1
    assert 8 <= source.cut(0, None, 10_000).end <= 12
    run = source.cut(95, None, 1 << 30)
    assert (run.end, run.documents) == (100, 5)
    assert source.cut(100, None, None) is None


def test_a_parquet_file_is_checked(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": ["a"], "id": [1]}), path)
    PARQUET.measure(local_file(path), "body")
    with pytest.raises(ValueError, match="expected a column 'text', got body, id; choose one with text_column"):
        PARQUET.measure(local_file(path), "text")
    for content in (b"", b"PAR1", b"no parquet file, but more than twelve bytes"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.parquet: expected a parquet file"):
            PARQUET.measure(local_file(path), "text")


@pytest.mark.parametrize("column", [pa.array([7]), pa.array([["a"]]), pa.array([{"a": "b"}]), pa.array([True])])
def test_a_column_that_is_no_text_is_refused_when_planning(tmp_path, column):
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(Error, match=r"a\.parquet: expected text in column 'text', it has .*; choose another"):
        PARQUET.measure(local_file(tmp_path / "a.parquet"), "text")


def test_bytes_are_read_as_utf8(tmp_path):
    path = tmp_path / "a.parquet"
    for kind in (pa.binary(), pa.large_binary()):
        pq.write_table(pa.table({"text": pa.array(["é".encode(), b"\xff", b"", None], kind)}), path)
        no_utf8 = Skipped("not UTF-8 (byte 0 of the document)")
        assert read_all(PARQUET, path) == ["é", no_utf8, Skipped("empty text"), Skipped("no text")]


class Ranges:
    """A file that is not here: what is asked for by range, noted."""

    def __init__(self, path: Path):
        self.data, self.size, self.asked = path.read_bytes(), path.stat().st_size, []

    def __str__(self) -> str:
        return "far.parquet"

    def read_range(self, start: int, end: int) -> bytes:
        self.asked.append((start, end))
        return self.data[start:end]


def far_read(path: Path) -> tuple[list, list, list]:
    """Documents, the ranges of planning and those of reading."""
    location = Ranges(path)
    size = PARQUET.measure(location, "text")
    planned, location.asked = location.asked, []
    return read_run(PARQUET.open(location, size, "text")), planned, location.asked


def test_a_struct_before_the_text_does_not_fetch_other_columns(tmp_path):
    noise = [{"a": random.Random(n).randbytes(3000), "b": {"c": random.Random(-n).randbytes(3000)}} for n in range(600)]
    texts = [f"text {n}" for n in range(600)]
    table = pa.table({"before": noise, "text": texts, "after": [random.Random(n).randbytes(3000) for n in range(600)]})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=200)
    documents, planned, asked = far_read(path)
    assert documents == texts and len(planned) == 1
    data = [end - start for start, end in asked if end != path.stat().st_size]
    assert sum(data) < 3 * 20_000  # three chunks of text; the file has 5 MB
    assert len(data) == 3  # and what lies between is too much to read along


def test_row_groups_are_joined_where_little_lies_between(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [f"text {n} " * 50 for n in range(900)], "id": list(range(900))})
    pq.write_table(table, path, row_group_size=100)
    documents, _, asked = far_read(path)
    assert documents == table["text"].to_pylist()
    assert len(asked) == 2  # the footer and one range of all nine chunks


def test_a_long_footer_takes_two_requests(tmp_path):
    path = tmp_path / "a.parquet"
    columns = {f"column {n}": [n] * 400 for n in range(60)}
    pq.write_table(pa.table({**columns, "text": [str(n) for n in range(400)]}), path, row_group_size=10)
    length = int.from_bytes(path.read_bytes()[-8:-4], "little")
    assert length > 1 << 16
    documents, planned, _ = far_read(path)
    assert len(planned) == 2 and sum(end - start for start, end in planned) == length + 8
    assert documents == [str(n) for n in range(400)]


def test_a_footer_that_counts_other_rows_than_its_row_groups_hold_is_refused(tmp_path):
    """Its number of rows, 700, as Thrift writes it: a varint of 1400."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a"] * 300}), path, row_group_size=300)
    data = path.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    place = data.index(bytes([0xD8, 0x04]), footer)  # 300, zigzag
    path.write_bytes(data[:place] + bytes([0xF8, 0x0A]) + data[place + 2 :])
    with pytest.raises(Error, match=r"a\.parquet: its footer counts 700 rows, its row groups hold 300"):
        PARQUET.measure(local_file(path), "text")


def test_a_page_with_a_wrong_checksum_names_file_and_row_groups(tmp_path):
    path = tmp_path / "a.parquet"
    texts = [f"text number {n}" for n in range(300)]
    options = {"row_group_size": 100, "write_page_checksum": True, "compression": "none", "use_dictionary": False}
    pq.write_table(pa.table({"text": texts}), path, **options)
    data = bytearray(path.read_bytes())
    data[data.index(b"text number 150")] ^= 1
    path.write_bytes(data)
    with pytest.raises(Error, match=r"a\.parquet: row groups 0 to 2 cannot be read \(.*\); the file is damaged"):
        read_all(PARQUET, path)


def test_documents_are_read_without_pyarrow_compute(tmp_path):
    """Its import takes longer than to read 10 MB."""
    pq.write_table(pa.table({"text": ["one", "two"], "data": [b"one", b"two"]}), tmp_path / "a.parquet")
    program = (
        "import sys; from pathlib import Path; from gpt2wds.corpus.documents import Size;"
        "from gpt2wds.corpus.readers import BY_SUFFIX; from gpt2wds.locations import local_file;"
        "read = lambda column: BY_SUFFIX['.parquet'].open(local_file(Path(sys.argv[1])), Size(2, 6), column);"
        "assert [[*read(c).batches(0, 2)] for c in ('text', 'data')] == [[[b'one', b'two']]] * 2;"
        "sys.exit('pyarrow.compute' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.parquet")], check=True)
