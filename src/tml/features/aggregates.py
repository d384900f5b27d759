"""Point-in-time aggregates: how often, and at what rate, a key was engaged with before an impression.

For a key (a user, a user and an author, …) every event in the log falls on a point of the key's own time line. Running
totals along it, computed once, answer every window: what happened in [t - w, t) is the total before t less the total
before t - w, and each of the two is one ASOF join. An engagement is an event of its own time, not of its impression's.

    count  events in the window, strictly before served_at
    rate   (engagements in the window + s · p) / (impressions in the window + s), p = everyone's rate so far
"""

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb

from tml.data.log import IMPRESSION
from tml.data.tables import literal, quote
from tml.features.config import window_length

BEFORE_THE_LOG = "TIMESTAMP '1970-01-01'"
"""When the history is taken to have happened: before every impression, and outside every window but `all`."""


@dataclass(frozen=True)
class Aggregates:
    """The aggregates of one config.

    Attributes:
        keys: the columns of each key.
        types: the engagement types.
        windows: as `1d`, or `all`.
        smoothing: impressions' worth of everyone's rate in a rate.
    """

    keys: tuple[tuple[str, ...], ...]
    types: tuple[str, ...]
    windows: tuple[str, ...]
    smoothing: float

    def names(self, key: tuple[str, ...]) -> list[str]:
        """The names of a key's features in order, as `user_author.favorited.rate.1d`."""
        return [
            f"{key_name(key)}.{kind}.{what}.{window}" for window in self.windows for kind, what in self._statistics()
        ]

    def _statistics(self) -> list[tuple[str, str]]:
        counts = [(kind, "count") for kind in (IMPRESSION, *self.types)]
        return counts + [(kind, "rate") for kind in self.types]

    def create(self, connection: duckdb.DuckDBPyConnection, has_history: bool) -> None:
        """Make the running totals of every key, and everyone's, out of the tables of an open log and `served`.

        `served` has a row an impression with `row`, `served_at` and every column that a key names; everyone's rate so
        far of each engagement type is added to it.
        """
        columns = sorted({column for key in self.keys for column in key} | {"user_id", "post_id"})
        kinds = ", ".join(literal(kind) for kind in self.types)
        # What an engagement's other columns are is read from its post and user, as for impressions.
        parts = [
            f"SELECT served_at AS happened_at, {literal(IMPRESSION)} AS type, user_id, post_id FROM impressions",
            f"SELECT engaged_at, type, user_id, post_id FROM engagements WHERE type IN ({kinds})",
        ]
        if has_history:
            kept = f"{literal(IMPRESSION)}, {kinds}"
            parts.append(f"SELECT {BEFORE_THE_LOG}, type, user_id, post_id FROM history WHERE type IN ({kept})")
        connection.execute(
            f"CREATE OR REPLACE TEMP VIEW events AS SELECT happened_at, type, {', '.join(map(quote, columns))} "
            f"FROM ({' UNION ALL '.join(parts)}) "
            "LEFT JOIN post_columns USING (post_id) LEFT JOIN user_columns USING (user_id)"
        )
        for key in ((), *self.keys):
            self._create_totals(connection, key)
        # One engagement in fifty impressions is what is assumed of everyone before anything was seen.
        everyone = "".join(
            f", (coalesce(e.n{i}, 0) + 1e0) / (coalesce(e.n0, 0) + 50e0) AS everyone{i}"
            for i in range(1, len(self.types) + 1)
        )
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE served AS SELECT s.*{everyone} FROM served s "
            f"ASOF LEFT JOIN {_totals(())} e ON s.served_at > e.happened_at ORDER BY s.row"
        )

    def _create_totals(self, connection: duckdb.DuckDBPyConnection, key: tuple[str, ...]) -> None:
        kinds = (IMPRESSION, *self.types)
        columns = "".join(f"{quote(c)}, " for c in key)
        known = " AND ".join(f"{quote(c)} IS NOT NULL" for c in key) or "true"
        counted = ", ".join(f"count(*) FILTER (type = {literal(kind)}) AS n{i}" for i, kind in enumerate(kinds))
        summed = ", ".join(f"CAST(sum(n{i}) OVER line AS BIGINT) AS n{i}" for i in range(len(kinds)))
        partition = f"PARTITION BY {columns.rstrip(', ')} " if key else ""
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE {_totals(key)} AS SELECT {columns}happened_at, {summed} "
            f"FROM (SELECT {columns}happened_at, {counted} FROM events WHERE {known} GROUP BY ALL) "
            f"WINDOW line AS ({partition}ORDER BY happened_at ROWS UNBOUNDED PRECEDING)"
        )

    def select(self, key: tuple[str, ...], first: int, last: int) -> str:
        """SQL that gives, in the order of `row`, one FLOAT array a row of `served` from `first` to `last`."""
        totals = _totals(key)
        matches = "".join(f"s.{quote(c)} = {{0}}.{quote(c)} AND " for c in key)
        joins = [f"ASOF LEFT JOIN {totals} now ON {matches.format('now')}s.served_at > now.happened_at"]
        for i, window in enumerate(self.windows):
            length = window_length(window)
            if length is not None:
                earlier = f"s.served_at - INTERVAL '{int(length.total_seconds())} seconds'"
                joins.append(f"ASOF LEFT JOIN {totals} w{i} ON {matches.format(f'w{i}')}{earlier} > w{i}.happened_at")
        values = [value for i, window in enumerate(self.windows) for value in self._values(i, window)]
        return (
            f"SELECT array_value({', '.join(values)}) AS features "
            f"FROM (SELECT * FROM served WHERE row BETWEEN {first} AND {last}) s {' '.join(joins)} ORDER BY s.row"
        )

    def _values(self, index: int, window: str) -> list[str]:
        def count(i: int) -> str:
            total = f"coalesce(now.n{i}, 0)"
            return total if window == "all" else f"({total} - coalesce(w{index}.n{i}, 0))"

        def rate(i: int) -> str:
            smoothing = f"CAST({self.smoothing!r} AS DOUBLE)"
            return f"({count(i)} + {smoothing} * everyone{i}) / ({count(0)} + {smoothing})"

        engagements = range(1, len(self.types) + 1)
        values = [count(i) for i in (0, *engagements)] + [rate(i) for i in engagements]
        return [f"CAST({value} AS FLOAT)" for value in values]


def _totals(key: tuple[str, ...]) -> str:
    return quote(f"totals_{key_name(key)}")


def key_name(key: Sequence[str]) -> str:
    """A key as names write it: `user_author` for user_id and author_id."""
    return "_".join(column.removesuffix("_id") for column in key) or "everyone"
