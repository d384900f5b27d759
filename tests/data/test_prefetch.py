"""Background work: in order, only so far ahead, errors in their place, and no thread that outlives its use."""

import subprocess
import sys
import threading
import time
from collections.abc import Generator

import pytest

from tml.data.prefetch import items_ahead, map_ahead


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("tml-ahead")]


def test_results_come_in_order_and_only_so_many_are_made_early() -> None:
    made: list[int] = []

    def work(item: int) -> int:
        time.sleep(0.001 * (item % 3))
        made.append(item)
        return item

    for number, result in enumerate(map_ahead(work, range(40), threads=3, ahead=4)):
        assert result == number
        assert max(made) <= number + 4
    assert sorted(made) == list(range(40))
    assert not threads()


def test_an_error_comes_in_its_place() -> None:
    results = map_ahead(lambda item: 6 // item, [3, 2, 0, 1], threads=2, ahead=3)
    assert [next(results), next(results)] == [2, 3]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert not threads()


def numbers(closed: list[bool]) -> Generator[int, None, None]:
    try:
        yield from range(1000)
    finally:
        closed.append(True)


def test_the_next_item_is_made_while_one_is_in_use() -> None:
    started = threading.Event()

    def items() -> Generator[int, None, None]:
        yield 0
        started.set()
        yield 1

    ahead = items_ahead(items())
    assert next(ahead) == 0
    assert started.wait(10)
    assert list(ahead) == [1]


@pytest.mark.parametrize("ahead", [0, 1, 20])
def test_however_far_ahead_items_and_errors_are_the_same(ahead: int) -> None:
    def items() -> Generator[int, None, None]:
        yield from range(10)
        raise ValueError("the eleventh")

    found = []
    with pytest.raises(ValueError, match="the eleventh"):
        found.extend(items_ahead(items(), ahead))
    assert not threads()
    left = items_ahead(numbers([]), ahead)
    assert [next(left), next(left)] == [0, 1]
    left.close()
    assert not threads()


def test_an_iterator_that_is_left_closes_its_source_and_ends_its_thread() -> None:
    closed: list[bool] = []
    for number in items_ahead(numbers(closed)):
        if number == 5:
            break
    assert closed
    assert not threads()


def test_the_program_ends_with_an_iterator_left_open() -> None:
    program = (
        "import itertools; from tml.data.prefetch import items_ahead, map_ahead\n"
        "def source(): yield from map_ahead(lambda x: x, itertools.count(), threads=2, ahead=8)\n"
        "items = items_ahead(source()); print(next(items), next(items))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 1\n", "")
