"""Every writer, stopped at each of its writes in turn: killed, or its disk is full or read-only from then on.

The n-th write is found by Python's audit hooks: a file opened for writing, a name that is given or taken, a directory
made. Then the process kills itself, or mounts its output, a tmpfs, anew: with no room beyond what is used (and some
pages more, by chance), or read-only. What the kernel says is what the writer sees. The disk is then given room again,
and the same command must bring what it brings when nothing happens, byte for byte. Mounting needs root.

Each trial is a process of its own, forked from this one, which has imported everything.
"""

import ctypes
import errno
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from small import SMALL_RUN, corpus, tree

KILLED, FULL, READ_ONLY = "killed", "full", "read-only"
FAULTS = (KILLED, FULL, READ_ONLY)
ROOM = 256 << 20  # bytes of the disk where nothing happens
MS_RDONLY, MS_REMOUNT, MNT_DETACH = 1, 32, 2
_LIBC = ctypes.CDLL(None, use_errno=True)

Content = dict[str, str]  # name → hash


@dataclass(frozen=True)
class Writer:
    """A command that writes to a directory.

    run: does it, in this process. read: what it leaves that must be the same whatever happened on the way. visible:
    what is wrong with what is there after it was stopped. prepare: what is there before.
    """

    name: str
    run: Callable[[Path], None]
    read: Callable[[Path], Content]
    visible: Callable[[Path, Content], list[str]]
    prepare: Callable[[Path], None] = lambda out: None


@dataclass(frozen=True)
class Stop:
    """One trial: what happened at the `write`-th write, what the command said, and what was wrong, if anything."""

    writer: str
    fault: str
    write: int
    said: str
    problems: tuple[str, ...]


# The disk


def mount(place: Path, flags: int = 0, options: str = "") -> None:
    """Mount a tmpfs, or mount it anew. Raises OSError."""
    arguments = (b"none", bytes(place), b"tmpfs", flags, options.encode())
    if _LIBC.mount(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(place))


@contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """A tmpfs at `place`, gone at the end. Raises PermissionError where mounting is not allowed."""
    place.mkdir()
    mount(place, options=f"size={ROOM}")
    try:
        (place / "something").write_text("a disk of size 0 would be one without limits")
        yield place
    finally:
        _LIBC.umount2(bytes(place), MNT_DETACH)


def can_mount(folder: Path) -> bool:
    try:
        with small_disk(folder / "mounted"):
            return True
    except OSError:
        return False


def strike(fault: str, place: Path, pages: int) -> bool:
    """Let it happen, in the process that writes; False where the kernel wants to be asked again later."""
    if fault == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == FULL:
        found = os.statvfs(place)
        mount(place, MS_REMOUNT, f"size={(found.f_blocks - found.f_bfree + pages) * found.f_frsize}")
        return True
    try:
        mount(place, MS_REMOUNT | MS_RDONLY)
    except OSError as error:
        if error.errno != errno.EBUSY:  # a file is open for writing
            raise
        return False
    return True


# Writes


def is_write(event: str, arguments: tuple[Any, ...], place: str) -> bool:
    """Whether an audit event is of something that changes what is below `place`."""
    if event == "open":
        path, _, flags = arguments
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        return bool(writes) and _is_below(path, place)
    if event in ("os.rename", "os.link", "os.symlink"):
        return any(_is_below(path, place) for path in arguments[:2])
    if event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.utime"):
        return _is_below(arguments[0], place)
    return False


def _is_below(path: Any, place: str) -> bool:
    return isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(place)


def watched(run: Callable[[], None], place: Path, strike_at: Callable[[int], bool]) -> int:
    """Run with all writes below `place` counted: `strike_at` hears of each before it is done, until it says True."""
    calls, state = itertools.count(1), {"count": 0, "done": False, "busy": False}

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if state["busy"] or not is_write(event, arguments, str(place)):
            return
        state["count"] = next(calls)
        if not state["done"]:
            state["busy"] = True
            state["done"] = strike_at(state["count"])
            state["busy"] = False

    sys.addaudithook(hook)  # for ever: the process is a trial's own
    run()
    return state["count"]


# Trials


class Stopper:
    """Trials of writers on one disk. `log` is a file outside of the disk, for what is said."""

    def __init__(self, disk: Path, folder: Path):
        self._disk, self._log = disk, folder / "said"
        self._whole: dict[str, Content] = {}
        self._writes: dict[str, int] = {}

    def writes(self, writer: Writer) -> int:
        """How many writes it has where nothing happens."""
        if writer.name not in self._writes:
            out = self._fresh(writer)
            status = self._forked(lambda: watched(lambda: writer.run(out), self._disk, self._note))
            if status != 0:
                raise AssertionError(f"{writer.name}: {self._log.read_text()}")
            self._writes[writer.name] = int(self._log.with_name("writes").read_text())
            self._whole[writer.name] = writer.read(out)
        return self._writes[writer.name]

    def stop(self, writer: Writer, fault: str, write: int, pages: int = 0) -> Stop:
        """Stop a writer, look at what is visible, give the disk back, and give the same command again."""
        self.writes(writer)
        whole, out = self._whole[writer.name], self._fresh(writer)

        def strike_at(count: int) -> bool:
            return count >= write and strike(fault, self._disk, pages)

        status = self._forked(lambda: watched(lambda: writer.run(out), self._disk, strike_at))
        said = self._log.read_text()
        problems = [] if fault == KILLED else _wrong_words(status, said, self._disk)
        if fault == KILLED and status != -signal.SIGKILL:
            problems.append(f"it was not killed: {status}")
        problems += writer.visible(out, whole)
        mount(self._disk, MS_REMOUNT, f"size={ROOM}")
        status = self._forked(lambda: writer.run(out))
        if status != 0:
            problems.append(f"given again: exit code {status}: {self._log.read_text()}")
        found = writer.read(out)
        names = sorted({*found, *whole})
        problems += [f"{name} differs" for name in names if found.get(name) != whole.get(name)]
        return Stop(writer.name, fault, write, said, tuple(problems))

    def _fresh(self, writer: Writer) -> Path:
        out = self._disk / "out"
        mount(self._disk, MS_REMOUNT, f"size={ROOM}")
        shutil.rmtree(out, ignore_errors=True)
        writer.prepare(out)
        return out

    def _note(self, count: int) -> bool:
        self._log.with_name("writes").write_text(str(count))
        return False

    def _forked(self, run: Callable[[], Any]) -> int:
        """Exit code of a process of its own, a signal's number below 0; what it says goes to the log."""
        child = os.fork()
        if child == 0:
            status = 1
            try:
                said = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(said, 1)
                os.dup2(said, 2)
                sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
                run()
                status = 0
            except SystemExit as stopped:
                status = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                for stream in (sys.stdout, sys.stderr):
                    with suppress(OSError):
                        stream.flush()
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _wrong_words(status: int, said: str, disk: Path) -> list[str]:
    """What is wrong with how a command ended whose disk failed: success, or one line with path and remedy."""
    if status == 0:
        return []
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    if "Traceback" in said or status != 1 or len(errors) != 1:
        return [f"expected one line, got exit code {status}: {said[-2000:]}"]
    found = []
    if str(disk) not in errors[0]:
        found.append(f"no path in {errors[0]!r}")
    if not re.search(r"[;,] (make room|choose|check)", errors[0]):
        found.append(f"no remedy in {errors[0]!r}")
    return found


# The writers


def only_whole(out: Path, whole: Content) -> list[str]:
    """Files under their own names are as they will be, or absent; a temporary one is seen by nobody."""
    found = tree(out)
    return [
        f"half of {name} is visible"
        for name, digest in found.items()
        if not name.endswith(".tmp") and whole.get(name.removesuffix(".done")) != digest
    ]


def _no_harm(out: Path, whole: Content) -> list[str]:
    return []


def _click(command: Any, *arguments: object) -> None:
    command(list(map(str, arguments)), standalone_mode=False)


def sharding_writers(folder: Path) -> list[Writer]:
    """Those of gpt2wds-shard; `folder` is for what they read."""
    from gpt2wds.commands.shard import main as shard
    from gpt2wds.tokenizer import load_tokenizer

    texts = corpus(folder / "writers-corpus", 30, 100)
    paths = [texts / "a.jsonl", texts / "b.jsonl.gz"]
    cut = ["--val-docs", 10, "--docs-per-shard", 20, "--workers", 1]
    dataset = folder / "exported"

    def export(form: str) -> Callable[[Path], None]:
        def run(out: Path) -> None:
            _click(shard, "export", dataset, "--out", out, "--format", form)

        return run

    warm = load_tokenizer()  # once for all
    assert len(warm.encode("ready"))
    _in_child(lambda: _click(shard, "files", *paths, *cut, "--out", dataset))
    return [
        Writer("shard files", lambda out: _click(shard, "files", *paths, *cut, "--out", out), tree, only_whole),
        Writer(
            "shard hellaswag",
            lambda out: _click(shard, "hellaswag", "--source", "sample", "--limit-docs", 4, "--out", out),
            tree,
            only_whole,
        ),
        Writer("export llmc", export("llmc"), tree, only_whole),
        Writer("export nanogpt", export("nanogpt"), tree, only_whole),
    ]


def _in_child(run: Callable[[], None]) -> None:
    """In a process of its own, quietly: the parent keeps its streams and its state."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        status = 1
        try:
            run()
            status = 0
        finally:
            os._exit(status)
    if os.waitpid(child, 0)[1]:
        raise AssertionError("it failed where nothing happens")


def training_writers(folder: Path) -> list[Writer]:
    """Those of gpt2wds-train and of the report, which take torch. The dataset is the one of `sharding_writers`."""
    import torch
    import torch._dynamo  # else each process does, for a second: optimizers need it

    from gpt2wds.commands.eval import main as evaluate
    from gpt2wds.commands.train import main as train
    from gpt2wds.tokenizer import load_tokenizer
    from gpt2wds.train.hf_tokenizer import tokenizer_files

    torch.set_num_threads(1)
    tokenizer_files(load_tokenizer(), 32)  # made once, and kept for all
    config, finished = folder / "small.toml", folder / "finished"
    config.write_text(SMALL_RUN)

    def run(out: Path) -> None:
        _click(train, config, f"run.dir={out}", f"data.path={folder / 'exported'}")

    def old_report(out: Path) -> None:
        out.mkdir()
        (out / "report.html").write_text("old")

    _in_child(lambda: run(finished))
    return [
        Writer("train", run, read_run, sound_run),
        Writer(
            "report",
            lambda out: _click(evaluate, "report", finished, "--out", out / "report.html"),
            tree,
            lambda out, whole: [
                f"half of {name} is visible"
                for name, digest in tree(out).items()
                if digest not in (whole.get(name), hashlib.sha256(b"old").hexdigest()) and not name.endswith(".tmp")
            ],
            old_report,
        ),
    ]


def read_run(out: Path) -> Content:
    """What does not hang on clocks: rows, weights, optimizer, configuration, and the names of all files.

    A checkpoint more than is kept is not counted: who is killed before removing it leaves that to the next one.
    """
    kept = sorted(out.glob("checkpoints/step-*"))[-2:]
    paths = [*out.glob("*"), *out.glob("checkpoints/.*"), *(path for each in kept for path in each.rglob("*"))]
    found = {f"name {path.relative_to(out)}": "" for path in paths}
    for path in (out / "log.txt", out / "config.toml", *(path for path in paths if path.suffix == ".safetensors")):
        found[str(path.relative_to(out))] = hashlib.sha256(path.read_bytes()).hexdigest()
    lines = (out / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    names = ("step", "tokens", "train_loss", "val_loss", "samples")
    found["metrics.jsonl"] = str([{name: row.get(name) for name in names} for row in rows])
    return found


def sound_run(out: Path, whole: Content) -> list[str]:
    """Checkpoints under their own names are whole; so are all lines of log.txt but perhaps its last."""
    from gpt2wds import Error
    from gpt2wds.train.checkpoint import list_checkpoints, refuse_damaged

    found = []
    for path in list_checkpoints(out / "checkpoints"):
        try:
            refuse_damaged(path)
        except Error as error:
            found.append(str(error))
    return found


def pages_left(chance: random.Random) -> int:
    """Of a disk that gets full: mostly none, so that the very write fails; else it fails in the middle of one."""
    return chance.choice([0, 0, 0, 1, 2, 5, 50, 400])
