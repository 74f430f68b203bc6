"""Everything that reads bytes of others, fed with bytes that atheris makes to reach new branches of our code.

A reader may return or raise Error (OSError, ValueError where that is its promise); anything else is a finding. Findings
are kept, one file of each place in the code, under FOLDER/findings/READER, the growing corpus under FOLDER/corpus.
tests/faults/test_fuzz.py reads again what was found once. atheris is not among our dependencies: pip install atheris.
Left out: parquet, for pyarrow 26.0.1 ends the whole process at some footers (std::terminate), and no caller can prevent
it; and text in bzip2 and xz, of which few bytes may stand for many megabytes that are walked, and take their time.

    python tools/fuzz.py FOLDER --seconds 3600
"""

import bz2
import io
import json
import lzma
import os
import shutil
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from types import TracebackType
from typing import Any

import numpy as np
import zstandard

from gpt2wds import Error
from gpt2wds.commands.settings import Config
from gpt2wds.config import dump_config, load_config
from gpt2wds.corpus.plan import Plan
from gpt2wds.corpus.readers import BY_SUFFIX
from gpt2wds.corpus.receipts import Receipt
from gpt2wds.dataset.manifest import Manifest
from gpt2wds.dataset.members import npy_row, npy_tokens, read_members
from gpt2wds.dataset.prompts import checked_example, prompt_texts
from gpt2wds.dataset.shards import BLOCK_ROW, decompress_frame, npy_bytes, read_seek_table, tar_member
from gpt2wds.locations import local_file
from gpt2wds.strict_json import checked, load_json
from gpt2wds.train.checkpoint import State
from gpt2wds.train.rundir import RunDirectory

Reader = Callable[[bytes], None]


def read_frame(data: bytes) -> None:
    """A frame whose index row fits it, and what is in it."""
    row = np.zeros(1, BLOCK_ROW)[0]
    row["length"], row["checksum"] = len(data), int.from_bytes(data[-4:], "little")
    for payload in read_members(decompress_frame(data, row, None)).values():
        npy_tokens(payload)


def read_tar(data: bytes) -> None:
    members = read_members(data)
    assert sum(map(len, members.values())) <= len(data)


def read_npy(data: bytes) -> None:
    row = npy_row(data)
    assert row.nbytes <= len(data)


def read_json(data: bytes) -> None:
    json.dumps(load_json(data), allow_nan=False)


def _with_check(data: bytes) -> str:
    """As one who changes a file on purpose writes it: its check fits."""
    text = data.decode("utf-8", "replace")
    try:
        record = load_json(text)
    except Error:
        return text
    return json.dumps(checked(record)) if isinstance(record, dict) and "check" in record else text


def read_manifest(data: bytes) -> None:
    manifest = Manifest.from_json(_with_check(data))
    again = Manifest.from_json(manifest.to_json())
    assert again.to_json() == manifest.to_json()
    manifest.check_names()


def read_plan(data: bytes) -> None:
    plan = Plan.from_json(_with_check(data))
    assert Plan.from_json(plan.to_json()).to_json() == plan.to_json()


def read_receipt(data: bytes) -> None:
    receipt = Receipt.from_json(_with_check(data))
    assert Receipt.from_json(receipt.to_json()).to_json() == receipt.to_json()


def read_example(data: bytes) -> None:
    example = checked_example(data, "example")
    for mode in ("completion", "lm-eval"):
        prompt_texts(example, mode)


def read_state(data: bytes) -> None:
    State.from_json(data.decode("utf-8", "replace")).to_json()


def read_overrides(data: bytes) -> None:
    """Words of a command line, as load_config takes them."""
    config = load_config(None, data.decode("utf-8", "replace").split("\n"), Config)
    dump_config(config)


class Files:
    """Readers of files: each is given its bytes in a file of memory."""

    def __init__(self, folder: Path):
        self._folder = folder

    def config(self, data: bytes) -> None:
        config = load_config(self._written("config.toml", data), [], Config)
        again = load_config(self._written("again.toml", dump_config(config).encode()), [], Config)
        assert dump_config(again) == dump_config(config)

    def rows(self, data: bytes) -> None:
        self._written("metrics.jsonl", data)
        RunDirectory(self._folder).read_metrics()

    def documents(self, suffix: str) -> Reader:
        def read(data: bytes) -> None:
            location, reader = local_file(self._written(f"texts{suffix}", data)), BY_SUFFIX[suffix]
            source = reader.open(location, reader.measure(location, "text"), "text")
            try:
                run = source.cut(0, 3, 1000)
                if run is not None:
                    list(source.batches(0, run.end))
            finally:
                source.close()

        return read

    def _written(self, name: str, data: bytes) -> Path:
        path = self._folder / name
        path.write_bytes(data)
        return path


def readers(folder: Path) -> dict[str, Reader]:
    """All readers by name; `folder` is for the files that some of them need."""
    files = Files(folder)
    suffixes = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".jsonl.xz", ".jsonl.bz2", ".txt")
    return {
        "members": read_tar,
        "npy": read_npy,
        "frame": read_frame,
        "seek-table": lambda data: void(read_seek_table(io.BytesIO(data))),
        "json": read_json,
        "manifest": read_manifest,
        "plan": read_plan,
        "receipt": read_receipt,
        "example": read_example,
        "state": read_state,
        "overrides": read_overrides,
        "config": files.config,
        "rows": files.rows,
        **{f"documents{suffix}": files.documents(suffix) for suffix in suffixes},
    }


def void(_: object) -> None:
    pass


def problem_of(read: Reader, data: bytes) -> str:
    """The place in the code and the exception that no reader should raise; "" where all is well."""
    try:
        read(data)
    except (Error, OSError):
        return ""
    except Exception as error:
        return f"{_place(error.__traceback__)}: {type(error).__name__}: {str(error)[:100]}"
    return ""


def _place(trace: TracebackType | None) -> str:
    frames = traceback.extract_tb(trace)
    ours = [frame for frame in frames if "gpt2wds" in frame.filename or "fuzz" in frame.filename]
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"


def seeds(folder: Path) -> dict[str, list[bytes]]:
    """Sound files of each kind to begin with; `folder` is for the dataset that they are of."""
    from small import corpus

    from gpt2wds import Cut, MultipleChoice, make_dataset
    from gpt2wds import Files as Texts

    texts = corpus(folder / "texts", 4, 20)
    dataset = folder / "dataset"
    make_dataset(dataset, Texts((str(texts / "a.jsonl"), str(texts / "b.jsonl.gz"))), Cut(val_docs=2), workers=1)
    make_dataset(folder / "examples", MultipleChoice("sample", 2), workers=1)
    shard = (dataset / "val-00000.tar.zst").read_bytes()
    block = np.load(dataset / "val.blocks.npy")[0]
    member = tar_member("a.tokens.npy", npy_bytes(np.arange(9, dtype=np.uint16)))
    example = json.dumps({"ind": 1, "activity_label": "a", "ctx_a": "b", "ctx_b": "c", "ctx": "b c", "label": 1,
                          "endings": ["d", "e", "f", "g"]})  # fmt: skip
    state = State(
        3, {"step": 3, "tokens": 3}, {"version": 1, "dataset_id": "a", "seed": 1, "seq_len": 8, "epoch": 0, "taken": []}
    )
    lines = (texts / "a.jsonl").read_bytes()
    return {
        "members": [member],
        "npy": [(dataset / "val.blocks.npy").read_bytes(), member[512:]],
        "frame": [shard[: int(block["length"])]],
        "seek-table": [shard],
        "json": [example.encode(), b"[1, 2.5e3, null]"],
        "manifest": [(path / "manifest.json").read_bytes() for path in (dataset, folder / "examples")],
        "plan": [(path / "plan.json").read_bytes() for path in (dataset, folder / "examples")],
        "receipt": [path.read_bytes() for path in dataset.glob("receipts/*.json")],
        "example": [example.encode()],
        "state": [state.to_json().encode()],
        "overrides": [b"train.max_steps=100\ndata.seq_len=32\ntrain.tokens_per_step=64"],
        "config": [dump_config(Config()).encode(), b'[data]\nskip_steps = ["84-90"]\n'],
        "rows": [b'{"step": 0, "tokens": 0}\n{"step": 1, "train_loss": null}\n'],
        "documents.jsonl": [lines],
        "documents.jsonl.gz": [(texts / "b.jsonl.gz").read_bytes()],
        "documents.txt": [lines],
        "documents.jsonl.zst": [zstandard.compress(lines)],
        "documents.jsonl.xz": [lzma.compress(lines)],
        "documents.jsonl.bz2": [bz2.compress(lines)],
    }


class Findings:
    """What was found: the first bytes for each place in the code."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._seen: set[tuple[str, str]] = set()
        self.reads: Counter[str] = Counter()

    def keep(self, name: str, data: bytes, problem: str) -> None:
        self.reads[name] += 1
        key = (name, problem.partition(": ")[0])
        if not problem or key in self._seen:
            return
        self._seen.add(key)
        kept = self._folder / name
        kept.mkdir(parents=True, exist_ok=True)
        (kept / f"{len(self._seen):03d}").write_bytes(data)
        print(f"FOUND {name}: {problem} ({kept}/{len(self._seen):03d})", flush=True)


def main() -> None:
    try:
        import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError:
        sys.exit("error: atheris is not installed; pip install atheris")
    if len(sys.argv) != 4 or sys.argv[2] != "--seconds":
        sys.exit(__doc__)
    folder = Path(sys.argv[1]).absolute()
    memory = Path(mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    names = list(all_readers := readers(memory))
    corpus, findings = folder / "corpus", Findings(folder / "findings")
    if not corpus.exists():
        corpus.mkdir(parents=True)
        for name, many in seeds(memory).items():
            for number, data in enumerate(many):  # the last byte says which reader
                (corpus / f"seed-{name}-{number}").write_bytes(data + bytes([names.index(name)]))

    def one_input(data: bytes) -> None:
        if data:
            name = names[data[-1] % len(names)]
            findings.keep(name, data[:-1], problem_of(all_readers[name], data[:-1]))
            if sum(findings.reads.values()) % 100_000 == 0:
                print(f"{sum(findings.reads.values()):,} inputs: {dict(findings.reads)}", flush=True)

    import gpt2wds

    package = Path(gpt2wds.__file__).parent
    for module in [m for n, m in sys.modules.items() if n.startswith("gpt2wds.")]:
        for value in list(vars(module).values()):
            _instrument(atheris, module, value, package)
    options = [f"-max_total_time={sys.argv[3]}", "-max_len=8192", "-timeout=60", "-rss_limit_mb=4096", "-len_control=0"]
    try:
        atheris.Setup([sys.argv[0], *options, str(corpus)], one_input)
        atheris.Fuzz()
    finally:
        shutil.rmtree(memory, ignore_errors=True)


def _instrument(atheris: Any, module: Any, value: Any, package: Path) -> None:
    """Let atheris count the branches of a function, or of a class' functions, that is the module's own."""
    owners = [(module, value)] if callable(value) else []
    if isinstance(value, type):
        owners = [(value, each) for each in vars(value).values()]
    for owner, each in owners:
        function = getattr(each, "__func__", each)
        code = getattr(function, "__code__", None)
        if (
            code is not None
            and getattr(owner, "__module__", owner.__name__ if owner is module else "").startswith("gpt2wds")
            and Path(code.co_filename).is_relative_to(package)
        ):
            atheris.instrument_func(function)


if __name__ == "__main__":
    main()
