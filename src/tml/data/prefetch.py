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
G = TypeVar("G")
T = TypeVar("T")


def groups_ahead(
    work: Callable[[A], T], groups: Iterable[tuple[G, Iterable[A]]], threads: int, ahead: int
) -> Generator[tuple[G, list[T]], None, None]:
    """`work(item)` for the items of each group, done in threads up to `ahead` groups early.

    A group is asked for when the one `ahead + 1` before it is no longer in use. What `work` raises is raised in the
    place of its group.

    Yields:
        A group's name, and the results of its items in their order.
    """
    executor = ThreadPoolExecutor(threads, thread_name_prefix="tml-ahead")
    started: deque[tuple[G, list[Future[T]]]] = deque()
    ends = itertools.repeat(None, ahead)
    try:
        for group in itertools.chain(groups, ends):
            if group is not None:
                name, items = group
                started.append((name, [executor.submit(work, item) for item in items]))
            if len(started) > ahead or (group is None and started):
                name, futures = started.popleft()
                yield name, [future.result() for future in futures]
    finally:
        executor.shutdown(cancel_futures=True)


def map_ahead(work: Callable[[A], T], items: Iterable[A], threads: int, ahead: int) -> Generator[T, None, None]:
    """`work(item)` for every item, in their order, done in threads up to `ahead` items early.

    Example:
        >>> list(map_ahead(lambda x: x * x, range(4), threads=2, ahead=2))
        [0, 1, 4, 9]
    """
    with closing(groups_ahead(work, ((None, [item]) for item in items), threads, ahead)) as groups:
        for _, (result,) in groups:
            yield result


def items_ahead(items: Generator[T, None, None], ahead: int = 1) -> Generator[T, None, None]:
    """The items of a generator, of which a thread makes up to `ahead` early, 0 none; closes the generator."""
    if ahead == 0:
        yield from items
        return
    end = object()

    def make(_: None) -> T | object:
        return next(items, end)

    # The thread ends before the generator is closed that it may be working on.
    with closing(items), closing(map_ahead(make, itertools.repeat(None), threads=1, ahead=ahead)) as made:
        for item in made:
            if item is end:
                return
            yield item  # type: ignore[misc]
