"""The clients of an object store against each other: s3fs, which gpt2wds uses, and obstore, alone and as fsspec's.

The same objects are written and read by range through each, round after round, by a process of its own that has asked
the store before: the S3 server of bench_remote.py, behind its proxy, which delays and counts. Ranges are read as for
training, 64 at once. Printed are medians of the rounds: MB/s, processor time of the client, requests, by how much its
memory grew at most; whether it creates exclusively; and how each compares with the first. Needs moto, the extra s3, and
obstore (pip install obstore).

    python tools/bench_store.py
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click

BUCKET = "bench"
AT_ONCE = 64
Put = Callable[[str, str], object]  # a local file, a name: creates it, and raises where it is there
Read = Callable[[str, int, int], object]  # a name, the first byte and the end


def s3fs_client() -> tuple[Put, Read]:
    from gpt2wds.stores import filesystem

    system, root = filesystem(f"s3://{BUCKET}")

    def put(path: str, name: str) -> None:
        system.put_file(path, f"{root}/{name}", mode="create")

    return put, lambda name, start, end: system.cat_file(f"{root}/{name}", start=start, end=end)


def obstore_client() -> tuple[Put, Read]:
    import obstore

    store = obstore.store.S3Store(BUCKET, client_options={"allow_http": True}, **_obstore_keys())

    def put(path: str, name: str) -> None:
        obstore.put(store, name, Path(path), mode="create")  # never in parts: obstore creates only whole objects

    return put, lambda name, start, end: obstore.get_range(store, name, start=start, end=end)


def obstore_fsspec_client() -> tuple[Put, Read]:
    from obstore.fsspec import FsspecStore

    system: Any = FsspecStore("s3", client_options={"allow_http": True}, **_obstore_keys())

    def put(path: str, name: str) -> None:
        system.put_file(path, f"{BUCKET}/{name}", mode="create")

    return put, lambda name, start, end: system.cat_file(f"{BUCKET}/{name}", start=start, end=end)


CLIENTS = {"s3fs": s3fs_client, "obstore": obstore_client, "obstore.fsspec": obstore_fsspec_client}


def _obstore_keys() -> dict[str, str]:
    return {
        "endpoint": os.environ["AWS_ENDPOINT_URL"],
        "access_key_id": os.environ["AWS_ACCESS_KEY_ID"],
        "secret_access_key": os.environ["AWS_SECRET_ACCESS_KEY"],
        "region": os.environ["AWS_DEFAULT_REGION"],
    }


def measure(client: str, task: str, path: str, prefix: str, objects: int, ranges: int, size: int) -> None:
    """In a process of its own: one task of one client. Says when it is ready, and when it is done what it took; last
    whether an object that is there can be created again."""
    put, read = CLIENTS[client]()
    put(path if task == "read" else "/dev/null", f"{prefix}/{task}")
    _say("ready")
    before, begin, used = _peak_megabytes(), time.perf_counter(), time.process_time()
    if task == "write":
        for number in range(objects):
            put(path, f"{prefix}/{number}")
    else:
        step = (Path(path).stat().st_size - size) // ranges
        with ThreadPoolExecutor(AT_ONCE) as threads:
            for data in threads.map(lambda n: read(f"{prefix}/{task}", n * step, n * step + size), range(ranges)):
                assert len(memoryview(data)) == size  # type: ignore[arg-type]
    wall, used = time.perf_counter() - begin, time.process_time() - used
    _say({"seconds": wall, "processor": used, "megabytes": _peak_megabytes() - before})
    try:
        put(path, f"{prefix}/{task if task == 'read' else 0}")
        _say(False)
    except Exception:  # of whatever library
        _say(True)


def _say(what: object) -> None:
    print(json.dumps(what), flush=True)
    sys.stdin.readline()


def _peak_megabytes() -> float:
    """Of this program: what getrusage says counts its parent before it began, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def one(counts: Callable[[], tuple[int, int]], client: str, task: str, *arguments: object) -> dict[str, float]:
    """What one client's task took."""
    command = [sys.executable, __file__, "--only", client, task, *map(str, arguments)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        said: list[Any] = []
        for _ in range(3):
            said.append(json.loads(process.stdout.readline()))
            count, _ = counts()
            if len(said) == 2:
                said[1]["requests"] = count
            process.stdin.write("\n")
            process.stdin.flush()
    return {**said[1], "exclusive": said[2]}


def table(task: str, found: dict[str, list[dict[str, float]]], megabytes: float) -> None:
    print(f"\n{task} | MB/s | processor s | requests | MB of memory | rate, processor: of the first | exclusive")
    first: dict[str, float] = {}
    for client, rounds in found.items():
        m = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
        first = first or m
        ratios = f"{first['seconds'] / m['seconds']:.2f}, {m['processor'] / first['processor']:.2f}"
        print(
            f"{client} | {megabytes / m['seconds']:.1f} | {m['processor']:.2f} | {m['requests']:,.0f} | "
            f"{m['megabytes']:.0f} | {ratios} | {'yes' if m['exclusive'] else 'NO'}"
        )


@click.command()
@click.option("--delay", default=50.0, help="Milliseconds before each request.")
@click.option("--rounds", default=5)
@click.option("--objects", default=2, help="To write.")
@click.option("--megabytes", default=120, help="Of an object: a shard.")
@click.option("--ranges", default=512, help="To read.")
@click.option("--kilobytes", default=80, help="Of a range: a block.")
@click.option("--only", nargs=7, hidden=True, type=str)
def main(
    delay: float, rounds: int, objects: int, megabytes: int, ranges: int, kilobytes: int, only: tuple[str, ...]
) -> None:
    if only:
        measure(*only[:4], *map(int, only[4:]))  # type: ignore[arg-type]
        return
    import boto3
    from bench_remote import server  # here: the clients that are measured need no torch

    with server(delay) as counts, tempfile.TemporaryDirectory() as folder:
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        # The proxy keeps objects of which it was asked for ranges: those are small.
        paths = {"write": Path(folder, "shard"), "read": Path(folder, "blocks")}
        for task, size in (("write", megabytes), ("read", 4)):
            paths[task].write_bytes(os.urandom(size * 1_000_000))
        found: dict[str, dict[str, list[dict[str, float]]]] = {
            task: {client: [] for client in CLIENTS} for task in ("write", "read")
        }
        for number in range(rounds):
            order = list(CLIENTS)[number % 3 :] + list(CLIENTS)[: number % 3]
            for task in found:
                for client in order:
                    place = f"{client}/{number}"  # each has objects of its own
                    took = one(counts, client, task, paths[task], place, objects, ranges, kilobytes * 1000)
                    click.echo(f"{task} {client}: {took}", err=True)
                    found[task][client].append(took)
            for entry in boto3.client("s3").list_objects_v2(Bucket=BUCKET).get("Contents", []):
                boto3.client("s3").delete_object(Bucket=BUCKET, Key=entry["Key"])  # the server keeps them in memory
    table("write", found["write"], objects * megabytes)
    table("read", found["read"], ranges * kilobytes / 1000)


if __name__ == "__main__":
    main()
