"""Work of one task on several cores: threads do it ahead, and results come in order, as from Python's `map`.

The libraries that read, tokenize, compress and hash let other threads run meanwhile. Whatever threads do, and when, a
task gets what it would get without them, and raises what it would raise.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import pyarrow as pa

from ..malloc import keep_pages

Item = TypeVar("Item")
Result = TypeVar("Result")
Cores = Callable[[], int]  # how many cores a task may use: asked again and again, because other tasks end

AHEAD = 2  # items for each thread: one that it works on, and one that waits for it
AHEAD_SIZE = 1 << 24  # no item is taken while those ahead have so much together


def one_core() -> int:
    return 1


def keep_memory() -> None:
    """Of a process that does nothing but tasks: what is freed stays with it.

    Threads that give pages back and fetch them anew interrupt each other, and Arrow's own malloc gives them back in
    pieces of 64 KiB.
    """
    keep_pages()
    pa.set_memory_pool(pa.system_memory_pool())


class Overlap:
    """As many threads as `cores` says. Who uses them reads and writes meanwhile, and waits: on so many cores there is
    then always a thread that has work, whatever another one waits for.

    With one core there are no threads, and each thing is done when it is asked for. As a context it leaves none behind.
    """

    def __init__(self, cores: Cores = one_core):
        self._cores = cores
        self._threads: ThreadPoolExecutor | None = None
        self._count = 0  # of threads

    def __enter__(self) -> "Overlap":
        return self

    def __exit__(self, *_: object) -> None:
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    def map(
        self, do: Callable[[Item], Result], items: Iterable[Item], size: Callable[[Item], int] = lambda item: 1
    ) -> Iterator[Result]:
        """do(item) of each item, in order. `items` is gone through in the calling thread, some of them ahead.

        size: of an item, counted against AHEAD_SIZE. What `items` or `do` raise comes after all results before it.
        """
        source, failed = iter(items), list[Exception]()
        ahead = deque[tuple[int, Callable[[], Result]]]()
        is_more, held = True, 0
        while True:
            self._become(self._cores())
            while is_more and (not ahead or (len(ahead) <= AHEAD * self._count and held < AHEAD_SIZE)):
                try:
                    item = next(source)
                except StopIteration:
                    is_more = False
                except Exception as error:
                    is_more, failed = False, [error]
                else:
                    result: Callable[[], Result] = partial(do, item)
                    ahead.append((size(item), self._threads.submit(result).result if self._threads else result))
                    held += ahead[-1][0]
            if not ahead:
                break
            held -= ahead[0][0]
            yield ahead.popleft()[1]()
        if failed:
            raise failed[0]

    def _become(self, cores: int) -> None:
        """Have a thread for each core. Those of before end when they have done what they were given."""
        count = cores if cores > 1 else 0
        if count == self._count:
            return
        if self._threads is not None:
            self._threads.shutdown()
        self._threads, self._count = ThreadPoolExecutor(count) if count else None, count
