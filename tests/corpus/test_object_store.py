"""Datasets that are made in an object store and read from it: moto's S3 server, over HTTP."""

import itertools
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from runs import CONFIG, forked
from stores import Fault, FaultyProxy, ObjectStore

from gpt2wds.dataset.directory import Dataset
from gpt2wds.dataset.loader import StepBatches
from gpt2wds.errors import Error
from gpt2wds.evaluate.questions import load_questions

pytest.importorskip("moto", reason="needs an S3 server: moto[server]")
pytest.importorskip("s3fs", reason="needs the extra 's3'")

SHAPE = {"seq_len": 64, "sequences_per_step": 8, "seed": 1}
Tree = dict[str, bytes]

pytestmark = pytest.mark.slow  # a real server, and processes that start anew for each command


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of JSON lines: 12 training shards and one of validation."""
    chance = random.Random(5)
    words = ["".join(chance.choices("etaoinshrdlu", k=chance.randint(2, 9))) for _ in range(2000)]
    path = tmp_path_factory.mktemp("corpus") / "a.jsonl"
    texts = [" ".join(chance.choices(words, k=120)) for _ in range(1300)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def arguments(corpus: Path, out: object, workers: int = 2) -> list[object]:
    return ["files", corpus, "--val-docs", 100, "--docs-per-shard", 100, "--workers", workers, "--out", out]


@pytest.fixture(scope="module")
def whole(store: ObjectStore, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset made in a local directory."""
    out = tmp_path_factory.mktemp("whole") / "out"
    done = store.run("gpt2wds-shard", *arguments(corpus, out))
    assert done.returncode == 0, done.stderr
    return out


def tree(folder: Path) -> Tree:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def remote(store: ObjectStore, corpus: Path) -> str:
    """The dataset made in the store. Read it, do not change it."""
    done = store.run("gpt2wds-shard", *arguments(corpus, store.url("remote")))
    assert done.returncode == 0, done.stderr
    assert "train 12 shards" in done.stdout and "Traceback" not in done.stderr
    return store.url("remote")


def test_what_is_made_in_a_store_is_what_is_made_here(store: ObjectStore, whole: Path, remote: str) -> None:
    assert store.tree("remote") == tree(whole)


def test_every_command_reads_it(store: ObjectStore, corpus: Path, whole: Path, remote: str, tmp_path: Path) -> None:
    def said(*arguments: object) -> str:
        done = store.run("gpt2wds-shard", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    for command in (["info", "--json"], ["cat", "--docs", "3"]):
        assert said(command[0], remote, *command[1:]) == said(command[0], whole, *command[1:])
    assert "all right" in said("verify", remote)
    assert said("verify", remote, "--source", 2, "--trust").count(": the same tokens\n") == 2
    said("push", remote, store.url("copy"), "--local-paths")
    assert said("info", store.url("copy")) == said("info", whole)
    assert "already there" in said(*arguments(corpus, remote))
    assert said("finish", remote).startswith(f"{remote}: already there, files: train 12 shards")
    said("export", remote, "--format", "nanogpt", "--out", tmp_path / "a")
    said("export", whole, "--format", "nanogpt", "--out", tmp_path / "b")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_other_options_are_refused_there_as_here(store: ObjectStore, corpus: Path, remote: str) -> None:
    done = store.run("gpt2wds-shard", *arguments(corpus, remote), "--limit-docs", 50)
    assert done.returncode == 1 and "this command has 50" in done.stderr and len(done.stderr.splitlines()) == 1


def test_nothing_is_left_in_temporary_folders(store: ObjectStore, corpus: Path, tmp_path: Path) -> None:
    done = store.run("gpt2wds-shard", *arguments(corpus, store.url("neat")), TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert [path for path in tmp_path.rglob("*") if "data-gym-cache" not in path.parts] == []


def test_kills_change_nothing(store: ObjectStore, corpus: Path, whole: Path) -> None:
    chance, stages = random.Random(7), []
    for attempt in itertools.count():
        name = f"killed-{attempt}"
        url, ended = store.url(name), False
        while len(stages) < 10 and not ended:
            begin, after = len(store.names(f"{name}/receipts")), chance.choice([0, 1, 2, 4])
            process = store.start("gpt2wds-shard", *arguments(corpus, url))
            moment = time.monotonic() + chance.uniform(0, 6.0 if after == 0 else 0.3)
            while process.poll() is None and (
                time.monotonic() < moment or len(store.names(f"{name}/receipts")) < begin + after
            ):
                time.sleep(0.01)
            ended = process.poll() is not None
            if not ended:
                os.killpg(process.pid, signal.SIGKILL)
                stages.append(len(store.names(f"{name}/receipts")))
            _, said = process.communicate()
            assert process.returncode in (0, -signal.SIGKILL), said
            # Whatever is visible is whole.
            for there in store.names(name):
                assert there in ("plan.json", "manifest.json") or store.get(f"{name}/{there}") == tree(whole)[there]
        done = store.run("gpt2wds-shard", *arguments(corpus, url))
        assert done.returncode == 0, done.stderr
        assert store.tree(name) == tree(whole)
        if len(stages) == 10:
            break
    assert len(set(stages)) > 3, stages  # the moments were of different stages


def test_two_at_once_make_one_dataset(store: ObjectStore, corpus: Path, whole: Path) -> None:
    both = [store.start("gpt2wds-shard", *arguments(corpus, store.url("both"))) for _ in range(2)]
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert store.tree("both") == tree(whole)


class InPairs:
    """Holds each file that is written until another writer sends it, too: both have looked, and found none."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self._lock = threading.Condition()

    def __call__(self, method: str, path: str) -> None:
        if method != "PUT":
            return
        with self._lock:
            self.written.append(path)
            self._lock.notify_all()
            number = self.written.count(path)
            self._lock.wait_for(lambda: self.written.count(path) >= number + number % 2, timeout=5)


def test_where_nothing_is_exclusive_two_that_write_each_file_at_once_write_the_same(
    store: ObjectStore, corpus: Path, whole: Path
) -> None:
    with FaultyProxy(store, pairs := InPairs(), is_exclusive=False) as proxy:
        line = arguments(corpus, store.url("shared"), workers=1)
        both = [store.start("gpt2wds-shard", *line, AWS_ENDPOINT_URL=proxy.url) for _ in range(2)]
        said = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert all(text.count("this store does not create files exclusively") == 1 for text in said), said
    twice = [name for name in tree(whole) if pairs.written.count(f"/corpus/shared/{name}") >= 2]
    assert len([name for name in twice if name.startswith("train-")]) == 12 and "plan.json" in twice, pairs.written
    assert store.tree("shared") == tree(whole)


def test_a_missing_and_a_damaged_shard_are_made_again(store: ObjectStore, corpus: Path, whole: Path) -> None:
    for name, data in tree(whole).items():
        store.put(f"damaged/{name}", data)
    url = store.url("damaged")
    store.client.delete_object(Bucket="corpus", Key="damaged/train-00003.tar.zst")
    store.put("damaged/train-00005.tar.zst", b"half")
    found = store.run("gpt2wds-shard", "verify", url)
    assert found.returncode == 1 and "train-00003.tar.zst: the file is missing" in found.stdout
    assert "train-00005.tar.zst: expected" in found.stdout
    assert store.run("gpt2wds-shard", *arguments(corpus, url)).returncode == 0
    assert store.tree("damaged") == tree(whole)


def test_ray_writes_what_processes_here_write(store: ObjectStore, corpus: Path, whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra 'ray'")
    cache = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    environment = {"HOME": str(tmp_path), "XDG_CACHE_HOME": cache}  # Ray keeps a token of its own there
    done = store.run("gpt2wds-shard", *arguments(corpus, store.url("ray")), "--executor", "ray", **environment)
    assert done.returncode == 0, done.stderr
    assert all(line.startswith("sharding files: ") for line in done.stderr.splitlines()), done.stderr
    assert store.tree("ray") == tree(whole)


def trained(
    store: ObjectStore, run: Path, data: object, *more: str, ranks: int = 1, **environment: str
) -> tuple[int, str]:
    config = run.with_suffix(".toml")
    config.write_text(CONFIG)
    settings = [f"run.dir={run}", f"data.path={data}", "train.max_steps=2", "eval.every_steps=1", *more]
    codes, _, said = forked("train", *[[config, *settings]] * ranks, **store.environment, **environment)
    assert len(set(codes)) == 1
    return codes[0], said


@pytest.fixture(scope="module")
def near(store: ObjectStore, whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], str]:
    """log.txt of so many ranks that train from the local copy."""

    @cache
    def log(ranks: int) -> str:
        run = tmp_path_factory.mktemp("near") / "run"
        code, said = trained(store, run, whole, ranks=ranks)
        assert code == 0, said
        return (run / "log.txt").read_text()

    return log


@pytest.mark.parametrize(("prefix", "ranks", "workers"), [("", 1, 0), ("", 1, 2), ("", 2, 1), ("simplecache::", 2, 1)])
def test_training_from_a_store_is_training_from_here(
    store: ObjectStore, near: Callable[[int], str], remote: str, tmp_path: Path, prefix: str, ranks: int, workers: int
) -> None:
    environment = {"FSSPEC_SIMPLECACHE_CACHE_STORAGE": str(tmp_path / "cache")}
    settings = f"data.num_workers={workers}"
    code, said = trained(store, tmp_path / "run", f"{prefix}{remote}", settings, ranks=ranks, **environment)
    assert code == 0, said
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log == near(ranks) and len(log.splitlines()) > 2
    assert (tmp_path / "cache").exists() == bool(prefix)


def test_examples_from_a_store_are_those_from_here(store: ObjectStore, choices: Dataset) -> None:
    for name, data in tree(Path(choices.path)).items():
        store.put(f"choices/{name}", data)
    with store.found():
        far = load_questions(Dataset(store.url("choices")), "lm-eval", 1024)
    here = load_questions(choices, "lm-eval", 1024)
    assert far.labels.tolist() == here.labels.tolist()
    assert all((a.tokens == b.tokens).all() for a, b in zip(far.rows, here.rows, strict=True))


def test_a_shard_that_vanishes_in_mid_run_is_one_line(store: ObjectStore, whole: Path, tmp_path: Path) -> None:
    for name, data in tree(whole).items():
        if not name.startswith("train-000"):
            store.put(f"vanishing/{name}", data)
    for workers in (0, 2):
        code, said = trained(store, tmp_path / f"run{workers}", store.url("vanishing"), f"data.num_workers={workers}")
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        assert code == 1 and len(errors) == 1 and "the file is missing; run its gpt2wds-shard command" in errors[0]
        assert "Traceback" not in said


class Faults:
    """A fault in the first so many requests whose path has a text in it; None: in all."""

    def __init__(self, count: int | None, fault: Fault, about: str = ""):
        self.left, self._fault, self._about = count, fault, about

    def __call__(self, method: str, path: str) -> Fault | None:
        if self._about not in path or self.left == 0:
            return None
        if self.left is not None:
            self.left -= 1
        return self._fault


def test_a_store_that_is_away_for_a_while_is_asked_again(store: ObjectStore, corpus: Path, whole: Path) -> None:
    faults = Faults(4, Fault(503, "ServiceUnavailable"), "train-00002.tar.zst")
    with FaultyProxy(store, faults) as proxy:
        arguments_ = arguments(corpus, store.url("busy"))
        done = store.run("gpt2wds-shard", *arguments_, AWS_ENDPOINT_URL=proxy.url)
    assert done.returncode == 0, done.stderr
    assert faults.left == 0 and "asking again in" in done.stderr
    assert store.tree("busy") == tree(whole)


def test_broken_connections_change_nothing(store: ObjectStore, corpus: Path, whole: Path) -> None:
    chance = random.Random(3)
    with FaultyProxy(store, lambda *_: Fault() if chance.random() < 0.1 else None) as proxy:
        arguments_ = arguments(corpus, store.url("broken"))
        done = store.run("gpt2wds-shard", *arguments_, AWS_ENDPOINT_URL=proxy.url)
    assert done.returncode == 0, done.stderr
    assert store.tree("broken") == tree(whole)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(403, "AccessDenied"), "check your credentials and what they may do"),
        (Fault(400, "ExpiredToken"), "check your credentials and what they may do"),
    ],
)
def test_what_a_store_refuses_is_one_line(store: ObjectStore, corpus: Path, fault: Fault, said: str) -> None:
    with FaultyProxy(store, Faults(None, fault)) as proxy:
        for command in (arguments(corpus, store.url("refused")), ["info", store.url("refused")]):
            done = store.run("gpt2wds-shard", *command, AWS_ENDPOINT_URL=proxy.url)
            assert done.returncode == 1 and said in done.stderr, done.stderr
            assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: s3://corpus/refused/")


def test_a_bucket_that_is_missing_is_one_line(store: ObjectStore, corpus: Path) -> None:
    done = store.run("gpt2wds-shard", *arguments(corpus, "s3://nobodys/data"))
    assert done.returncode == 1 and "bucket" in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


READING = [
    (Fault(401, "Unauthorized"), False, "check your credentials and what they may do"),
    (Fault(403, "AccessDenied"), False, "check your credentials and what they may do"),
    (Fault(400, "ExpiredToken"), False, "check your credentials and what they may do"),
    (Fault(404, "NoSuchKey"), False, "the file is missing; run its gpt2wds-shard command again"),
    (Fault(429, "TooManyRequests"), True, "did not arrive"),
    (Fault(500, "InternalError"), True, "did not arrive"),
    (Fault(503, "SlowDown"), True, "did not arrive"),
    (Fault(), True, "did not arrive"),
    (Fault(cuts=True), True, "did not arrive"),
]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("fault", "passes", "said"), READING, ids=lambda value: getattr(value, "code", None))
def test_faults_while_training_reads(
    store: ObjectStore,
    remote: str,
    fault: Fault,
    passes: bool,
    said: str,
    workers: int,
) -> None:
    """In mid-run, for the first so many shards' requests, or for all: the same tokens, or one line."""
    for count in (3, None) if passes else (None,):
        faults = Faults(0, fault, ".tar.zst")
        with FaultyProxy(store, faults) as proxy, store.found(proxy.url):
            dataset = Dataset(remote)
            wanted = list(itertools.islice(StepBatches(dataset, **SHAPE), 3))
            faults.left = count
            batches = StepBatches(dataset, **SHAPE, num_workers=workers)
            if count:
                found = list(itertools.islice(batches, 3))
                assert all((a == b).all() for a, b in zip(found, wanted, strict=True))
            else:
                with pytest.raises(Error) as raised:
                    next(iter(batches))
                assert said in str(raised.value) and "\n" not in str(raised.value)
