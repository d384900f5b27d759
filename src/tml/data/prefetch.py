"""Work that background threads do ahead of who needs it.

Threads are enough: reading Parquet and copying memory leave Python's lock alone. What they have done comes in the order
of the items, so threads decide nothing of what is given. An iterator that is closed, or dropped, ends its threads; so
does the end of the program.
"""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

A = TypeVar("A")
T = TypeVar("T")


def map_ahead(work: Callable[[A], T], items: Iterable[A], threads: int, ahead: int) -> Generator[T, None, None]:
    """`work(item)` for every item, in their order, done in threads up to `ahead` items early.

    The results that are there at one time are `ahead`, and the one in use. What `work` raises is raised in its place.

    Example:
        >>> list(map_ahead(lambda x: x * x, range(4), threads=2, ahead=2))
        [0, 1, 4, 9]
    """
    executor = ThreadPoolExecutor(threads, thread_name_prefix="tml-ahead")
    started: deque[Future[T]] = deque()
    try:
        for item in items:
            started.append(executor.submit(work, item))
            if len(started) > ahead:
                yield started.popleft().result()
        while started:
            yield started.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)


def one_ahead(items: Generator[T, None, None]) -> Generator[T, None, None]:
    """The items of a generator, each made in a thread while the one before is in use; closes the generator."""
    end = object()

    def make(_: None) -> T | object:
        return next(items, end)

    # The thread ends before the generator is closed that it may be working on.
    with closing(items), closing(map_ahead(make, itertools.repeat(None), threads=1, ahead=1)) as made:
        for item in made:
            if item is end:
                return
            yield item  # type: ignore[misc]
