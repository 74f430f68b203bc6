"""Reading ahead of need: many at once, a bounded number held, in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Event, Thread
from typing import TypeVar

from ..patience import UNWANTED

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(
    items: Iterable[Item], read: Callable[[Item], Result], *, at_once: int, held: int
) -> Iterator[tuple[Item, Result]]:
    """Each item and what `read` returns for it, in order; raises what it raises.

    at_once: reads at a time. held: items that are asked for before they are needed, read or not. The threads are not
    waited for: closed, or with the program, reading ends, and nobody asks again for what did not arrive.
    """
    todo, closed, threads = SimpleQueue[tuple[Item, Future[Result]] | None](), Event(), list[Thread]()
    asked = deque[tuple[Item, Future[Result]]]()

    def work() -> None:
        UNWANTED.set(closed)
        while job := todo.get():
            item, answer = job
            if closed.is_set():
                return
            try:
                answer.set_result(read(item))
            except BaseException as error:
                answer.set_exception(error)
            del job, answer  # or this thread would hold it until the next

    try:
        for item in items:
            asked.append((item, Future()))
            todo.put(asked[-1])
            if len(threads) < at_once:
                threads.append(Thread(target=work, name="gpt2wds-ahead", daemon=True))
                threads[-1].start()
            if len(asked) == held:
                first, answer = asked.popleft()
                yield first, answer.result()
        while asked:
            first, answer = asked.popleft()
            yield first, answer.result()
    finally:
        closed.set()
        for _ in threads:
            todo.put(None)
