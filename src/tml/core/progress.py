"""Progress of long work: a bar with rate and time left on a terminal, a plain line now and then elsewhere.

Both go to standard error, so that standard output holds only results.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

T = TypeVar("T")

PLAIN_INTERVAL_SECONDS = 10.0


class Bar(Protocol):
    """What long work tells of itself."""

    def advance(self, amount: float = 1, note: str = "") -> None:
        """`amount` more units are done; `note` (such as `loss 0.123`) is shown beside the bar."""


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {self.unit}/s" if speed else "", style="cyan")


class _NoBar:
    def advance(self, amount: float = 1, note: str = "") -> None:
        pass


class _RichBar:
    def __init__(self, bars: Progress, label: str, total: float | None) -> None:
        self.bars = bars
        self.task = bars.add_task(label, total=total, note="")

    def advance(self, amount: float = 1, note: str = "") -> None:
        if note:
            self.bars.update(self.task, advance=amount, note=note)
        else:
            self.bars.advance(self.task, amount)


class _PlainBar:
    def __init__(self, label: str, total: float | None, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = 0.0
        self.note = ""
        self.start = self.last = time.monotonic()

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.done += amount
        self.note = note or self.note
        if time.monotonic() - self.last >= PLAIN_INTERVAL_SECONDS:
            self.last = time.monotonic()
            print(self.line(), file=sys.stderr, flush=True)

    def line(self) -> str:
        seconds = max(time.monotonic() - self.start, 1e-9)
        rate = self.done / seconds
        of = f" of {self.total:,.0f}" if self.total is not None else ""
        parts = [f"{self.label}: {self.done:,.0f}{of} {self.unit}", f"{rate:,.0f} {self.unit}/s"]
        if self.total is not None and 0 < self.done < self.total:
            parts.append(f"{(self.total - self.done) / rate:,.0f} s left")
        return ", ".join(parts + [self.note] * bool(self.note))

    def finish(self) -> None:
        print(f"{self.line()}, {time.monotonic() - self.start:.1f} s", file=sys.stderr, flush=True)


@contextmanager
def progress(label: str, total: float | None = None, unit: str = "steps", shown: bool = True) -> Iterator[Bar]:
    """Show the progress of one piece of work while the block runs.

    Args:
        label: what is being done, as `train ranker`.
        total: the number of units in all; None where it is not known, which shows no time left.
        unit: what is counted, in the plural.
        shown: whether anything is; of several processes that do the same one is enough.

    Example:
        >>> with progress("count", total=3, unit="items") as bar:
        ...     for _ in range(3):
        ...         bar.advance()
    """
    console = Console(stderr=True)
    if not shown:
        yield _NoBar()
        return
    if not console.is_terminal:
        plain = _PlainBar(label, total, unit)
        yield plain
        plain.finish()
        return
    columns = (
        TextColumn("{task.description:<18}"),
        BarColumn(bar_width=32),
        TextColumn("{task.percentage:>3.0f}%") if total is not None else TextColumn("{task.completed:,.0f}"),
        _Rate(unit),
        TimeRemainingColumn(compact=True),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bars:
        yield _RichBar(bars, label, total)


def track(items: Iterable[T], label: str, total: float | None = None, unit: str = "steps") -> Iterator[T]:
    """Yield from `items`, showing one unit of progress an item."""
    with progress(label, total, unit) as bar:
        for item in items:
            yield item
            bar.advance()
