"""The spans of time of a log that become the parts of an example dataset."""

from dataclasses import dataclass
from datetime import datetime

from tml.core.errors import DataError
from tml.data.log import Log
from tml.features.config import SplitConfig, resolve


@dataclass(frozen=True)
class Span:
    """Part of the log: impressions from row `first` to `last`, both included; `end` is exclusive."""

    name: str
    start: datetime
    end: datetime
    first: int
    last: int

    @property
    def rows(self) -> int:
        """How many impressions it has."""
        return self.last - self.first + 1


def spans_of(log: Log, split: SplitConfig) -> list[Span]:
    """Training and validation.

    Raises:
        DataError: a span without impressions, or training that ends after validation begins.
    """

    def at(instant: datetime | float) -> datetime:
        return resolve(instant, log.start, log.end)

    train_start, validation_start = at(split.train_start), at(split.validation_start)
    train_end = at(split.train_end) if split.train_end is not None else validation_start
    # The end is exclusive, and the log's last impression belongs to it where no end is given.
    validation_end = at(split.validation_end) if split.validation_end is not None else datetime.max
    spans = []
    for name, start, end in (("train", train_start, train_end), ("validation", validation_start, validation_end)):
        [found] = log.connection.execute(
            "SELECT min(row), max(row) FROM impressions WHERE served_at >= ? AND served_at < ?", [start, end]
        ).fetchall()
        if found[0] is None:
            raise DataError(
                f"split: found no impression from {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} for {name}, "
                f"the log goes from {log.start:%Y-%m-%d %H:%M} to {log.end:%Y-%m-%d %H:%M}"
            )
        spans.append(Span(name, start, min(end, max(log.end, start)), *found))
    if train_end > validation_start:
        raise DataError(
            f"split: found that training ends {train_end:%Y-%m-%d %H:%M}, allowed is an end not later than the "
            f"start of validation, {validation_start:%Y-%m-%d %H:%M}"
        )
    return spans
