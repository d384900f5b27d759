"""Point-in-time aggregates: how often, at what rate and how lately a key was engaged with before an impression.

An aggregate is a key (a user, a user and an author, …), an engagement, a statistic and a length of time, and is named
so: `user_author.favorited.rate.3d`. For `decayed` the length is the half-life; `since` always has `all`. An engagement
is an event of its own time, not of its impression's. `tml.features.statistics` defines the values.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tml.data.log import IMPRESSION
from tml.features.config import AggregateConfig, window_length
from tml.features.lines import Array, Found, Instants, Line
from tml.features.statistics import BLOCKS, NEVER, block_start, count, decayed, rate, rate_of_everyone, since

ROWS_AT_A_TIME = 8192
"""What is computed of so many rows stays in the processor's cache."""


@dataclass(frozen=True)
class Group:
    """Columns side by side: one statistic over one length of time, of each of some kinds of events.

    Attributes:
        statistic: `count`, `rate`, `decayed` or `since`.
        length: a window, or a half-life.
        kinds: 0 is an impression, i + 1 the engagement type i.
    """

    statistic: str
    length: str
    kinds: tuple[int, ...]


@dataclass(frozen=True)
class Aggregates:
    """The aggregates of one config.

    Attributes:
        keys: key → its groups, in the order of the columns.
        types: the engagement types.
        smoothing: impressions' worth of everyone's rate in a rate.
    """

    keys: Mapping[tuple[str, ...], tuple[Group, ...]]
    types: tuple[str, ...]
    smoothing: float

    @classmethod
    def of(cls, blocks: Sequence[AggregateConfig], smoothing: float) -> "Aggregates":
        """The aggregates of blocks in which nothing is left at null; what two of them name is there once."""
        types = tuple(dict.fromkeys(t for block in blocks for t in block.engagements or () if t != IMPRESSION))
        columns: dict[tuple[str, ...], dict[tuple[str, str, int], None]] = {}
        for block in blocks:
            engaged = tuple(types.index(t) + 1 for t in block.engagements or () if t != IMPRESSION)
            for key in block.keys or ():
                for statistic, length in _lengths(block):
                    kinds = engaged if statistic == "rate" else (0, *engaged)
                    columns.setdefault(key, {}).update({(statistic, length, kind): None for kind in kinds})
        return cls({key: _grouped(list(found)) for key, found in columns.items()}, types, smoothing)

    @property
    def columns(self) -> list[str]:
        """Every column that a key is made of, once."""
        return list(dict.fromkeys(column for key in self.keys for column in key))

    @property
    def names(self) -> list[str]:
        """The names of all aggregates, in order."""
        kinds = (IMPRESSION, *self.types)
        return [
            f"{key_name(key)}.{kinds[kind]}.{group.statistic}.{group.length}"
            for key, groups in self.keys.items()
            for group in groups
            for kind in group.kinds
        ]

    def half_lives(self, key: tuple[str, ...]) -> list[int]:
        """The half-lives of a key's decayed counts, in microseconds."""
        groups = self.keys.get(key, ())
        return list(dict.fromkeys(microseconds(g.length) for g in groups if g.statistic == "decayed"))

    def has_since(self, key: tuple[str, ...]) -> bool:
        """Whether a key has times since the last event."""
        return any(group.statistic == "since" for group in self.keys.get(key, ()))

    def compute(
        self,
        lines: Mapping[tuple[str, ...], Line],
        packs: Mapping[tuple[str, ...], Array],
        instants: Instants,
        now: Array,
        out: Array,
    ) -> None:
        """Write every aggregate of some rows.

        Args:
            lines: key → its time lines, those of everyone under the empty key.
            packs: key → each row's value as one number, -1 where it is not known.
            instants: of the log.
            now: (rows), the time of each in microseconds.
            out: (rows, aggregates) float32.
        """
        moments = _Moments(instants, now)
        everyone = _rates_of_everyone(lines[()], moments.before(0))
        first = 0
        for key, groups in self.keys.items():
            width = sum(len(group.kinds) for group in groups)
            # Rows that are side by side on a time line share what is read of it.
            order = np.argsort(packs[key], kind="stable")
            for start in range(0, len(order), ROWS_AT_A_TIME):
                chosen = order[start : start + ROWS_AT_A_TIME]
                rows = _Rows(lines[key], packs[key], moments, everyone, self.smoothing, chosen)
                out[chosen, first : first + width] = rows.values(groups, width)
            first += width


def _rates_of_everyone(line: Line, instant: Array) -> Array:
    """The rate of each engagement type in the whole log before each instant, (rows, types)."""
    everyone = Found(np.zeros(len(instant), np.int64), np.ones(len(instant), bool))
    totals = line.before(everyone, instant).astype(np.float64)
    rates: Array = rate_of_everyone(totals[:, 1:], totals[:, :1])
    return rates


class _Moments:
    """The times at which totals are looked up, as instants: found once for all keys."""

    def __init__(self, instants: Instants, now: Array) -> None:
        self.instants, self.now = instants, now
        self._found: dict[tuple[str, int], Array] = {}

    def of(self, times: Array) -> Array:
        return self.instants.before(times)

    def before(self, length: int) -> Array:
        """The instants `length` microseconds before now."""
        return self._once(("window", length), lambda: self.now - length)

    def block(self, half_life: int, back: int) -> Array:
        """The instants at which a block of the decayed count starts."""
        return self._once((f"block {back}", half_life), lambda: block_start(self.now, half_life, back))

    def _once(self, name: tuple[str, int], times: Callable[[], Array]) -> Array:
        if name not in self._found:
            self._found[name] = self.of(times())
        return self._found[name]


class _Rows:
    """Some rows on the time lines of one key.

    Args:
        line: of the key.
        packs: the key's value of every row.
        moments: of every row.
        everyone: the rate of everyone before every row.
        smoothing: of the rates.
        chosen: which rows these are.
    """

    def __init__(
        self, line: Line, packs: Array, moments: _Moments, everyone: Array, smoothing: float, chosen: Array
    ) -> None:
        self.line, self.moments, self.chosen, self.smoothing = line, moments, chosen, smoothing
        self.everyone = everyone[chosen]
        self.found = line.find(packs[chosen])
        self.now = self._totals(moments.before(0))
        self._start: Array | None = None
        self._windows: dict[str, Array] = {}

    def values(self, groups: Sequence[Group], width: int) -> Array:
        """The values of groups side by side, (rows, width) float32."""
        out = np.empty((len(self.chosen), width), np.float32)
        column = 0
        for group in groups:
            self._write(group, out[:, column : column + len(group.kinds)])
            column += len(group.kinds)
        return out

    def _totals(self, instant: Array) -> Array:
        return self.line.before(self.found, instant[self.chosen])

    def start(self) -> Array:
        """The totals before anything happened."""
        if self._start is None:
            self._start = self.line.start(self.found)
        return self._start

    def window(self, window: str) -> Array:
        """What happened in a window: (rows, kinds)."""
        if window not in self._windows:
            then = self.start() if window == "all" else self._totals(self.moments.before(microseconds(window)))
            self._windows[window] = count(self.now, then)
        return self._windows[window]

    def _write(self, group: Group, out: Array) -> None:
        kinds = list(group.kinds)
        if group.statistic == "count":
            out[:] = self.window(group.length)[:, _columns(kinds)]
        elif group.statistic == "rate":
            happened = self.window(group.length)
            everyone = self.everyone[:, _columns([kind - 1 for kind in kinds])]
            out[:] = rate(happened[:, _columns(kinds)], happened[:, :1], everyone, self.smoothing)
        elif group.statistic == "since":
            self._write_since(kinds, out)
        else:
            self._write_decayed(microseconds(group.length), kinds, out)

    def _write_since(self, kinds: list[int], out: Array) -> None:
        now = self.moments.now[self.chosen]
        for column, kind in enumerate(kinds):
            last, there = self.line.last(self.now, self.start(), kind)
            out[:, column] = np.where(there, since(now, last), NEVER)

    def _write_decayed(self, half_life: int, kinds: list[int], out: Array) -> None:
        now = self.moments.now[self.chosen]
        ends = [self.now] + [self._totals(self.moments.block(half_life, back)) for back in range(BLOCKS)]
        for column, kind in enumerate(kinds):
            totals = [self.line.weights(end, half_life, kind) for end in ends]
            sums = [later - earlier for later, earlier in itertools.pairwise(totals)]
            out[:, column] = decayed(sums, now, half_life)


def _columns(numbers: list[int]) -> slice | list[int]:
    """Numbers as a slice where they follow each other: a view is quicker than a copy."""
    follow = numbers == list(range(numbers[0], numbers[-1] + 1))
    return slice(numbers[0], numbers[-1] + 1) if follow else numbers


def _lengths(block: AggregateConfig) -> list[tuple[str, str]]:
    """The pairs of statistic and length of a block: window by window, then what has none."""
    given = block.statistics or ()
    windowed = [s for s in ("count", "rate") if s in given]
    pairs = [(str(s), window) for window in block.windows or () for s in windowed]
    pairs += [("decayed", half_life) for half_life in block.half_lives or () if "decayed" in given]
    return pairs + [("since", "all")] * ("since" in given)


def _grouped(columns: list[tuple[str, str, int]]) -> tuple[Group, ...]:
    kinds: dict[tuple[str, str], list[int]] = {}
    for statistic, length, kind in columns:
        kinds.setdefault((statistic, length), []).append(kind)
    return tuple(Group(statistic, length, tuple(found)) for (statistic, length), found in kinds.items())


def microseconds(length: str) -> int:
    """A window or a half-life in microseconds."""
    window = window_length(length)
    assert window is not None
    return int(window.total_seconds()) * 1_000_000


def key_name(key: Sequence[str]) -> str:
    """A key as names write it: `user_author` for user_id and author_id."""
    return "_".join(column.removesuffix("_id").replace(".", "_") for column in key)
