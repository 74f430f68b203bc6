"""A connection to Ray: quiet, without usage statistics or a dashboard, and refused in one line where there is none."""

import contextlib
import importlib.util
import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any, TextIO

from ..errors import Error, reason

CONNECT_IN = 10.0  # seconds
OBJECT_STORE = 100 << 20  # bytes, of a Ray of our own: nothing large goes through it


@contextlib.contextmanager
def connected(address: str | None, cores: int | None) -> Iterator[None]:
    """Connected to Ray, without its usage statistics, dashboard and messages. Raises Error when it cannot be."""
    if importlib.util.find_spec("ray") is None:
        raise Error("executor ray: expected the package ray, which is not installed; pip install 'gpt2wds[ray]'")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_DEDUP_LOGS"] = "0"  # else ray.shutdown() prints what its threads held back
    import ray

    if ray.is_initialized():
        with contextlib.redirect_stdout(_WithoutRay()):
            yield
        return
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    own: dict[str, Any] = {}
    if address == "local":
        own = {"num_cpus": cores or os.cpu_count(), "include_dashboard": False, "object_store_memory": OBJECT_STORE}
    else:
        _expect_listener(address)
    with contextlib.redirect_stdout(_WithoutRay()):
        try:
            ray.init(address, log_to_driver=False, configure_logging=False, **own)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise Error(f"Ray at {address}: cannot connect ({reason(error).partition('. ')[0]})") from None
        try:
            yield
        finally:
            ray.shutdown()


def _expect_listener(address: str) -> None:
    """Ray itself would try for minutes, and say so on the terminal."""
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if not colon or not host or "/" in host or not port.isdecimal():
        raise Error(
            f"Ray: expected the address auto or HOST:PORT of the cluster's head, got {address!r}; "
            "the command itself runs on a node of the cluster (ray exec, ray job submit)"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_IN).close()
    except (OSError, OverflowError) as error:
        raise Error(f"Ray at {address}: cannot connect ({reason(error)}); is the cluster's head running?") from None


class _WithoutRay:
    """sys.stdout, but for what Ray's own threads print there: reports of lost workers and nodes, which we tell."""

    def __init__(self) -> None:
        self._stdout: TextIO = sys.stdout

    def write(self, text: str) -> int:
        if threading.current_thread().name.startswith("ray_"):
            return len(text)
        return self._stdout.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stdout, name)
