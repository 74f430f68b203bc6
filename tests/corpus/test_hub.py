"""The Hub as a source of HellaSwag and of models, spoken to over real HTTP on the loopback address."""

import csv
import gzip
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from loopback_hub import COMMIT, LoopbackHub
from making import texts_of

from gpt2wds.dataset.directory import Dataset
from gpt2wds.model import GPT2, GPT2Config
from gpt2wds.train.checkpoint import State, save_checkpoint

SAMPLE = Path(__file__).parents[2] / "gpt2wds" / "data" / "multiple_choice_sample.jsonl"


# gpt2wds-shard that does not wait before it asks again, where a test is of what is asked and not of when. Its workers
# would wait: it must be the only one.
IMPATIENT = """
from gpt2wds import patience
from gpt2wds.commands.shard import main
patience.WAITS = tuple(0.01 for _ in patience.WAITS)
main()
"""


def command(name: str, *arguments: str, endpoint: str, home: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment["HF_HUB_DOWNLOAD_TIMEOUT"] = "2"  # seconds without a byte: a body that stalls for 4 is given up
    program = [sys.executable, "-c", IMPATIENT] if name == "impatient" else [Path(sys.executable).with_name(name)]
    return subprocess.run([*program, *arguments], env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def hub(tmp_path: Path):
    data, model = tmp_path / "dataset", tmp_path / "model"
    (data / "data").mkdir(parents=True)
    # On the Hub labels are strings.
    rows = [{**json.loads(line), "label": str(json.loads(line)["label"])} for line in SAMPLE.open(encoding="utf-8")]
    pq.write_table(pa.Table.from_pylist(rows), data / "data" / "validation-00000-of-00001.parquet")
    pq.write_table(pa.table({"other": [1]}), data / "data" / "train-00000-of-00001.parquet")
    tiny = GPT2(GPT2Config(n_layer=1, n_head=1, n_embd=8, n_positions=256))
    save_checkpoint(model, State(1), tiny, {}, keep=1).rename(tmp_path / "weights")
    with LoopbackHub({"datasets/Rowan/hellaswag": data, "owner/tiny": tmp_path / "weights"}) as running:
        yield running


def test_hellaswag_comes_from_the_hub_at_a_pinned_commit(hub: LoopbackHub, tmp_path: Path):
    out = tmp_path / "out"
    done = command("gpt2wds-shard", "hellaswag", "--out", str(out), endpoint=hub.url, home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    dataset = Dataset(out)
    assert dataset.manifest.corpus.revision == COMMIT
    found = [{k: v for k, v in e.items() if k != "prompts"} for e in dataset.examples("val")]
    wanted = [json.loads(line) for line in SAMPLE.open(encoding="utf-8")]
    assert found == [{k: example[k] for k in found[0]} for example in wanted]
    assert dataset.corpus != "HellaSwag"  # 36 examples are not the set
    assert not any("train" in request for request in hub.requests)


def test_a_model_is_found_by_its_hub_name(hub: LoopbackHub, tmp_path: Path):
    home = tmp_path / "home"
    done = command("gpt2wds-eval", "sample", "owner/tiny", "--tokens", "3", endpoint=hub.url, home=home)
    assert done.returncode == 0, (done.stderr, hub.requests)
    assert done.stdout.startswith("Hello, I'm a language model,")


@pytest.mark.parametrize(
    "arguments",
    [
        ["gpt2wds-shard", "hellaswag", "--out", "OUT"],
        pytest.param(["gpt2wds-eval", "sample", "no/such"], marks=pytest.mark.slow),
    ],
)
def test_what_the_hub_does_not_have_is_one_line(arguments: list[str], tmp_path: Path):
    with LoopbackHub({}) as empty:
        filled = [str(tmp_path / "out") if a == "OUT" else a for a in arguments]
        done = command(*filled, endpoint=empty.url, home=tmp_path / "home")
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in done.stderr


ROWS, GROUP = 6_000, 1_000


def text_of(row: int) -> str:
    return f"Document {row} tells of " + " ".join(f"word{(row * 7919 + i * 31) % 5003}" for i in range(60)) + "."


@pytest.fixture(scope="module")
def fineweb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three parquet files in FineWeb-Edu's schema, row groups of 1,000 rows, and a card that names configurations."""
    folder = tmp_path_factory.mktemp("fineweb")
    sample = folder / "sample" / "10BT"
    sample.mkdir(parents=True)
    for number in range(3):
        rows = range(number * ROWS // 3, (number + 1) * ROWS // 3)
        table = pa.table(
            {
                "text": [text_of(row) for row in rows],
                "id": [f"<urn:uuid:{row:032x}>" for row in rows],
                "dump": ["CC-MAIN-2024-10"] * len(rows),
                "url": [f"https://example.org/{row}" for row in rows],
                "file_path": [f"s3://commoncrawl/{row}.warc.gz" for row in rows],
                "language": ["en"] * len(rows),
                "language_score": [0.97] * len(rows),
                "token_count": [200] * len(rows),
                "score": [3.1] * len(rows),
                "int_score": [3] * len(rows),
            }
        )
        pq.write_table(table, sample / f"{number:03d}_00000.parquet", row_group_size=GROUP)
    other = folder / "data" / "CC-MAIN-2013-20"
    other.mkdir(parents=True)
    pq.write_table(table.slice(0, 10), other / "train-00000.parquet")
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/*/*\n"
    card += "- config_name: sample-10BT\n  data_files:\n  - split: train\n    path: sample/10BT/*\n---\n# FineWeb-Edu\n"
    (folder / "README.md").write_text(card)
    return folder


def shard_fineweb(
    hub: LoopbackHub, tmp_path: Path, out: str = "out", *more: str, workers: int = 2
) -> subprocess.CompletedProcess:
    cut = ["--val-docs", "500", "--docs-per-shard", "1500", "--workers", str(workers)]
    arguments = [*cut, "--out", str(tmp_path / out), *more]
    return command("gpt2wds-shard", "fineweb", *arguments, endpoint=hub.url, home=tmp_path / "home")


def test_fineweb_streams_every_document_once_in_few_requests(fineweb: Path, tmp_path: Path):
    with LoopbackHub({"datasets/HuggingFaceFW/fineweb-edu": fineweb}) as hub:
        done = shard_fineweb(hub, tmp_path)
        assert done.returncode == 0, (done.stderr, hub.requests)
        asked = list(hub.ranges)
        again = shard_fineweb(hub, tmp_path)
        assert "already there" in again.stdout and hub.ranges == asked, "a finished run asks for nothing"
    assert texts_of(tmp_path / "out") == [text_of(row) for row in range(ROWS)]
    dataset = Dataset(tmp_path / "out")
    assert dataset.manifest.corpus.revision == COMMIT
    shards = [*dataset.shards("val"), *dataset.shards("train")]
    assert [[span.count for span in s.spans] for s in shards] == [[500], [1500], [1500], [500, 1000], [1000]]
    # Five tasks in three files: each its rows and at most one footer, in each process that needs it.
    sizes = {str(p.relative_to(fineweb)): p.stat().st_size for p in fineweb.rglob("*.parquet")}
    assert len(asked) <= 7 * 2 + 3 + 3, asked
    assert sum(count for _, _, count in asked) < 3 * sum(sizes.values())


@pytest.mark.slow
def test_a_resumed_run_reads_no_finished_range_again(fineweb: Path, tmp_path: Path):
    with LoopbackHub({"datasets/HuggingFaceFW/fineweb-edu": fineweb}) as hub:
        hub.faults = [""] * 10 + ["whole"] * 20  # what is not read by then is refused
        assert shard_fineweb(hub, tmp_path, workers=1).returncode == 1
        out = tmp_path / "out"
        receipts = [json.loads(path.read_text())["shard"] for path in sorted(out.glob("receipts/*.json"))]
        assert 1 <= len(receipts) < 5
        first = list(hub.ranges)
        hub.faults, hub.ranges = [], []
        assert shard_fineweb(hub, tmp_path, workers=1).returncode == 0
        second = list(hub.ranges)
    assert texts_of(out) == [text_of(row) for row in range(ROWS)]
    # Rows of finished tasks lie in row groups; none that holds only such rows is asked for again.
    finished = set()
    for shard in receipts:
        for span in shard["spans"]:
            name = span["source"].rpartition("@" + COMMIT + "/")[2]
            metadata = pq.read_metadata(fineweb / name)
            for group in range(metadata.num_row_groups):
                chunk = metadata.row_group(group).column(0)
                if span["first_row"] <= group * GROUP and (group + 1) * GROUP <= span["first_row"] + span["count"]:
                    start = chunk.dictionary_page_offset or chunk.data_page_offset
                    finished.add((name, start, start + chunk.total_compressed_size))
    assert finished
    for name, start, end in finished:
        assert any(n == name and a <= start and end <= a + count for n, a, count in first)
        assert not any(n == name and a < end and start < a + count for n, a, count in second), (name, start, end)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "shards"), [("jsonl", 6), ("jsonl.gz", 6), ("csv", 6)])
def test_jsonl_on_the_hub_is_read_by_range_and_other_formats_by_datasets(tmp_path: Path, kind: str, shards: int):
    folder, out = tmp_path / "dataset", tmp_path / "out"
    folder.mkdir()
    rows = [text_of(row) for row in range(600)]
    for name, part in ((f"a.{kind}", rows[:300]), (f"b.{kind}", rows[300:])):
        lines = "".join(json.dumps({"text": text, "n": n}) + "\n" for n, text in enumerate(part))
        if kind == "csv":
            with (folder / name).open("w", newline="") as file:
                csv.writer(file).writerows([["n", "text"], *enumerate(part)])
        else:
            (folder / name).write_bytes(gzip.compress(lines.encode()) if kind == "jsonl.gz" else lines.encode())
    cut = ["--val-docs", "10", "--docs-per-shard", "100", "--workers", "2"]
    with LoopbackHub({"datasets/owner/name": folder}) as hub:
        home = tmp_path / "home"
        done = command("gpt2wds-shard", "hf", "owner/name", *cut, "--out", str(out), endpoint=hub.url, home=home)
        assert done.returncode == 0, done.stderr
        wrong = ["--text-column", "body", "--out", str(tmp_path / "wrong")]
        failed = command("gpt2wds-shard", "hf", "owner/name", *wrong, endpoint=hub.url, home=home)
        assert failed.returncode == 1 and "expected a column 'body', got" in failed.stderr
        assert len(failed.stderr.splitlines()) == 1, failed.stderr
    assert texts_of(out) == rows
    dataset = Dataset(out)
    assert dataset.manifest.corpus.revision == COMMIT
    assert [s.documents for s in dataset.shards("val")] == [10]
    assert len(dataset.shards("train")) == shards
    spans = [span for s in dataset.shards("train") for span in s.spans]
    found = [(s.first, s.count) for s in spans]
    rows_of_a = [(10, 100), (110, 100), (210, 90)]
    assert kind != "csv" or found == [*rows_of_a, (0, 10), (10, 100), (110, 100), (210, 90)]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path):
    """A file in row groups like FineWeb-Edu's, and one four times its size."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    words, chance = [f"word{n}" for n in range(5000)], random.Random(5)
    table = pa.table({"text": [" ".join(chance.choices(words, k=400)) for _ in range(1000)]})
    peaks = []
    with LoopbackHub({"datasets/owner/large": folder}) as hub:
        for groups in (20, 80):
            with pq.ParquetWriter(folder / "a.parquet", table.schema, compression="none") as writer:
                for _ in range(groups):
                    writer.write_table(table)
            out = tmp_path / str(groups)
            program = Path(sys.executable).with_name("gpt2wds-shard")
            arguments = ["hf", "owner/large", "--val-docs", "10", "--workers", "1", "--out", str(out)]
            script = (
                "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL);"
                "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
            )
            environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
            done = subprocess.run(
                [sys.executable, "-c", script, program, *arguments], env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            peaks.append(int(done.stdout) * 1024)
    assert (folder / "a.parquet").stat().st_size > 200_000_000
    assert peaks[1] < 500_000_000 and peaks[1] - peaks[0] < 60_000_000, peaks


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["429", "503", "reset", "short", "stall"])
def test_a_passing_fault_of_the_network_changes_nothing(fineweb: Path, tmp_path: Path, fault: str):
    with LoopbackHub({"datasets/HuggingFaceFW/fineweb-edu": fineweb}) as hub:
        hub.faults = ["", fault, "", "", fault]
        done = shard_fineweb(hub, tmp_path)
        assert done.returncode == 0, (done.stderr, hub.requests)
    assert texts_of(tmp_path / "out") == [text_of(row) for row in range(ROWS)]


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "said"), [("whole", "ignores byte ranges"), ("changed", "changed under its commit")])
def test_a_server_that_cannot_be_trusted_is_refused_and_the_run_goes_on_later(
    fineweb: Path, tmp_path: Path, fault: str, said: str
):
    with LoopbackHub({"datasets/HuggingFaceFW/fineweb-edu": fineweb}) as hub:
        hub.faults = [""] * 5 + [fault] * 20
        failed = shard_fineweb(hub, tmp_path)
        assert failed.returncode == 1 and said in failed.stderr and "Traceback" not in failed.stderr
        assert not (tmp_path / "out" / "manifest.json").exists()
        hub.faults = []
        assert shard_fineweb(hub, tmp_path).returncode == 0
    assert texts_of(tmp_path / "out") == [text_of(row) for row in range(ROWS)]


@pytest.mark.slow
def test_bad_requests_of_the_hub_are_one_line(fineweb: Path, tmp_path: Path):
    with LoopbackHub({"datasets/HuggingFaceFW/fineweb-edu": fineweb}) as hub:
        for more, said in (
            (["--config", "nonsense"], "nonsense"),
            (["--split", "test"], "expected a split 'test'"),
            (["--text-column", "body"], "expected a column 'body'"),
        ):
            done = shard_fineweb(hub, tmp_path, f"out-{more[1]}", *more)
            errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
            assert done.returncode == 1 and len(errors) == 1 and said in errors[0], done.stderr


@pytest.mark.slow
def test_400_files_behind_50_ms_are_planned_with_at_most_two_requests_each(tmp_path: Path):
    folder, out = tmp_path / "dataset", tmp_path / "out"
    folder.mkdir()
    for number in range(400):
        table = pa.table({"text": [f"Document {number} {i}" for i in range(20)]})
        pq.write_table(table, folder / f"{number:03d}.parquet")
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from gpt2wds.corpus.corpora import HubDataset\n"
        "from gpt2wds.corpus.sharding import make_plan\n"
        "from gpt2wds.folder import Folder\n"
        "from gpt2wds.corpus.cutting import Cut\n"
        "start = time.perf_counter()\n"
        "plan = make_plan(Folder(sys.argv[1]), HubDataset('owner/many'), Cut())\n"
        "print(len(plan.sources), sum(s.size.documents for s in plan.sources), time.perf_counter() - start)\n"
    )
    with LoopbackHub({"datasets/owner/many": folder}) as hub:
        hub.delay = 0.05
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
        command = [sys.executable, "-c", script, str(out)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        sources, documents, seconds = done.stdout.split()
        print(f"400 files planned in {float(seconds):.1f} s, {len(hub.ranges)} ranges, {len(hub.requests)} requests")
        per_file = Counter(name for name, _, _ in hub.ranges)
        assert (int(sources), int(documents)) == (400, 8000)
        # Validation, the first 80 documents, is read from the first four files.
        assert len(per_file) == 400 and max(n for name, n in per_file.items() if name > "004") == 1
        assert sum(per_file.values()) <= 2 * 400
        assert len(hub.requests) < 900
        assert float(seconds) < 30


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.slow
def test_a_local_directory_does_not_stand_for_the_hubs_dataset(tmp_path: Path, kind: str):
    """Nor is a file read twice that its card names twice."""
    folder, here = tmp_path / "hub", tmp_path / "here"
    places = [
        (folder, "from the Hub"),
        *((here / below, "from here") for below in ("owner/csv", "hf:/datasets/owner/csv")),
    ]
    for place, text in places:
        place.mkdir(parents=True)
        rows = [f"{text} {n}" for n in range(10)]
        lines = [json.dumps({"text": row}) for row in rows] if kind == "jsonl" else ["text", *rows]
        (place / f"a.{kind}").write_text("".join(f"{line}\n" for line in lines))
        card = f"configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: [a.{kind}, a.{kind}]\n"
        (place / "README.md").write_text(f"---\n{card}---\n")
    with LoopbackHub({"datasets/owner/csv": folder}) as hub:
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
        program = [
            Path(sys.executable).with_name("gpt2wds-shard"),
            "hf",
            "owner/csv",
            "--val-docs",
            "1",
            "--out",
            "out",
        ]
        done = subprocess.run(program, env=environment, cwd=here, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    assert texts_of(here / "out") == [f"from the Hub {n}" for n in range(10)]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["empty", "elsewhere", "short"])
def test_datasets_too_reads_ranges_that_are_checked(tmp_path: Path, fault: str):
    folder = tmp_path / "dataset"
    folder.mkdir()
    rows = [text_of(row) for row in range(50)]
    with (folder / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["n", "text"], *enumerate(rows)])
    with LoopbackHub({"datasets/owner/name": folder}) as hub:

        def shard(out: str) -> subprocess.CompletedProcess:
            arguments = ["hf", "owner/name", "--val-docs", "5", "--workers", "1", "--out", str(tmp_path / out)]
            return command("impatient", *arguments, endpoint=hub.url, home=tmp_path / "home")

        hub.faults = [fault, "", fault, fault, ""]
        done = shard("out")
        assert done.returncode == 0 and hub.faults == [], done.stderr
        assert texts_of(tmp_path / "out") == rows
        hub.faults = [fault] * 100
        done = shard("wrong")
        assert done.returncode == 1 and "the same command goes on" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr and not (tmp_path / "wrong" / "manifest.json").exists()


PLAN = """
import sys
from gpt2wds import patience
from gpt2wds.corpus.hub import resolve
from gpt2wds.errors import Error
patience.WAITS = (0.01, 0.01, 0.01)
for repo in sys.argv[1:]:
    try:
        print(len(resolve(f"owner/{repo}", None, "test" if repo == "split" else "train", None)[1]))
    except Error as error:
        print(error)
"""


@pytest.mark.slow
def test_what_goes_wrong_when_the_hub_is_planned_from_is_one_line_or_asked_again(tmp_path: Path):
    wanted = {
        "split": "dataset owner/split: expected a split 'test', it has train",
        "card": "dataset owner/card: expected YAML at the head of its README.md, got none (while parsing",
        "reset": "1",
        "429": "1",
        "503": "1",
        "403": "login",
        "401": "login",
        "loop": "dataset owner/loop: expected it on the Hub, got Exceeded maximum allowed redirects",
        "hour": "dataset owner/hour: expected a server that answers within 120 s, this one says to come back",
        "away": "dataset owner/away: no answer of http://127.0.0.1:",
    }
    (tmp_path / "data").mkdir()
    (tmp_path / "card").mkdir()
    for name in ("data", "card"):
        (tmp_path / name / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "card" / "README.md").write_text("---\nconfigs: [a: : b\n - {\n---\n")
    with LoopbackHub({f"datasets/owner/{name}": tmp_path / "data" for name in wanted}) as hub:
        hub.repositories["datasets/owner/card"] = tmp_path / "card"
        hub.api_faults = {f"owner/{name}": [name] * 2 for name in ("reset", "429", "503")}
        hub.api_faults |= {f"owner/{name}": [name] * 50 for name in ("403", "401", "loop", "hour")}
        hub.api_faults["owner/away"] = ["503"] * 50
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
        command = [sys.executable, "-c", PLAN, *wanted]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    lines = done.stdout.splitlines()
    assert len(lines) == len(wanted), done.stderr
    for line, said in zip(lines, wanted.values(), strict=True):
        assert said in line, line
