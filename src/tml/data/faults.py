"""What is wrong in the files of a log: the first of it stops the reading, or it is skipped and counted.

`on_error: stop` makes one sentence of the first fault, with file, place, column, what was found and what is allowed.
`on_error: skip` leaves the row out, or the file or row group where no row of it can be told, and counts it by reason.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tml.core.errors import DataError
from tml.data.config import OnError

LONGEST_SHOWN = 60
"""Characters of a user's value that an error shows."""


@dataclass(frozen=True)
class Skipped:
    """What was left out of a log.

    Attributes:
        table: the table it is missing from.
        file: where it is.
        reason: why, as `served_at: not a time`.
        rows: how many rows; None where they cannot be counted, in a file that cannot be read.
    """

    table: str
    file: Path
    reason: str
    rows: int | None


class Faults:
    """Collects what is wrong while a log is read, or stops at the first of it."""

    def __init__(self, on_error: OnError) -> None:
        self.on_error = on_error
        self.skipped: list[Skipped] = []

    @property
    def stops(self) -> bool:
        """Whether the first fault ends the reading."""
        return self.on_error == "stop"

    def file(self, table: str, file: Path, reason: str, rows: int | None = None, allowed: str = "") -> None:
        """A file, or a row group that `reason` names, cannot be used.

        Raises:
            DataError: if faults stop the reading.
        """
        if self.stops:
            said = f", {allowed}" if allowed else ""
            raise DataError(f"{file}: {reason}{said}; `log.on_error: skip` leaves it out")
        self.skipped.append(Skipped(table, file, reason, rows))

    def rows(self, table: str, file: Path, place: str, found: str, reason: str, count: int) -> None:
        """Rows of a file cannot be used.

        Args:
            place: where the first of them is, as `row 17`; empty where that is nowhere in particular.
            found: what is wrong with it, as `column t: found 'soon', allowed are times`.
            reason: what is wrong with all of them, without their values.
            count: how many there are.

        Raises:
            DataError: if faults stop the reading.
        """
        if self.stops:
            such = "1 such row" if count == 1 else f"{count:,} such rows"
            raise DataError(
                f"{file}{', ' * bool(place)}{place}: {found} ({such}; `log.on_error: skip` leaves them out)"
            )
        self.skipped.append(Skipped(table, file, reason, count))


def skipped_line(skipped: tuple[Skipped, ...]) -> str:
    """What was skipped, in one line; empty where nothing was."""
    if not skipped:
        return ""
    rows = sum(one.rows or 0 for one in skipped)
    unread = sum(one.rows is None for one in skipped)
    amounts = [f"{rows:,} row{'s' * (rows != 1)}"] * bool(rows) + [f"{unread} file{'s' * (unread != 1)}"] * bool(unread)
    parts = [f"{one.file.name}{f' {one.rows:,}' if one.rows else ''} ({one.reason})" for one in skipped[:3]]
    more = [f"and {len(skipped) - 3} more"] * (len(skipped) > 3)
    return f"skipped {' and '.join(amounts)} of the log: {', '.join(parts + more)}"


def shown(value: Any) -> str:
    """A user's value as an error shows it, in one line and not longer than can be read."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."


def first_line(error: BaseException | str) -> str:
    """The first line of what another library says, without its kind of error in front and without a full stop."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split("Error: ", 1)[-1].rstrip(".")[:200]
