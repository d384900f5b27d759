"""Making the next items in a thread while the last one is used."""

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")

_LOOK_SECONDS = 0.1
_JOIN_SECONDS = 5.0


class _End:
    """What the thread leaves behind: nothing, or the exception that it ended with."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def prefetch(items: Iterator[T], depth: int) -> Iterator[T]:
    """The same items, of which a thread makes up to `depth` in advance; 0 makes no thread.

    An exception of `items` is raised here, after the items before it. Closing the result, or letting go of it, ends
    the thread.

    Example:
        >>> list(prefetch(iter("abc"), depth=2))
        ['a', 'b', 'c']
    """
    if depth == 0:
        yield from items
        return
    made: queue.Queue[T | _End] = queue.Queue(depth)
    stop = threading.Event()
    thread = threading.Thread(target=_make, args=(items, made, stop), daemon=True, name="prefetch")
    thread.start()
    try:
        while not isinstance(item := made.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stop.set()
        thread.join(_JOIN_SECONDS)  # it may be within a long step, after which it sees that it has to end


def _make(items: Iterator[T], made: "queue.Queue[T | _End]", stop: threading.Event) -> None:
    try:
        for item in items:
            _put(made, item, stop)
            if stop.is_set():
                return
        end = _End(None)
    except BaseException as error:
        end = _End(error)
    _put(made, end, stop)


def _put(made: "queue.Queue[T | _End]", item: T | _End, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            made.put(item, timeout=_LOOK_SECONDS)
            return
        except queue.Full:
            continue
