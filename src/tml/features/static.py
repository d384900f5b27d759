"""Features that are no aggregates: columns of impressions, posts and users, and the moment of the impression.

The moment: the post's age in seconds, the position, the time of day and of the week as points on circles, hour and
weekday. An age is the seconds from a column's time to the impression, 0 where it is not known or later. A discrete
value is stored as its place in a vocabulary that training gives, from 1; 0 is unknown.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from tml.core.errors import DataError
from tml.data.log import Log
from tml.data.tables import quote
from tml.features.config import FeaturesConfig

IMPRESSED = "impressed_at"
"""The column of impressions with the time at which a served post was seen."""

_DAY = 86_400_000_000
_NOW = "epoch_us(i.served_at)"


def _age(time: str) -> str:
    return f"greatest(coalesce(({_NOW} - epoch_us({time})) / 1e6, 0), 0)"


def _on_circle(function: str, microseconds: int) -> str:
    return f"{function}({_NOW} % {microseconds} / {microseconds}.0 * 2 * pi())"


MOMENT_CONTINUOUS = {
    "age_seconds": _age("p.created_at"),
    "position": "coalesce(i.position, 0)",
    "hour_sine": _on_circle("sin", _DAY),
    "hour_cosine": _on_circle("cos", _DAY),
    "week_sine": _on_circle("sin", 7 * _DAY),
    "week_cosine": _on_circle("cos", 7 * _DAY),
}
"""Name → SQL over an impression `i` and its post `p`."""
MOMENT_DISCRETE = {"hour": "hour(i.served_at) + 1", "weekday": "isodow(i.served_at)"}
MOMENT_VOCABULARIES = {"hour": [str(h) for h in range(24)], "weekday": [str(d) for d in range(1, 8)]}

DEFAULT_CONTINUOUS = ("posts.length",)
DEFAULT_DISCRETE = ("posts.topic", "posts.language", "posts.media", "users.language")

_ALIASES = {"impressions": "i", "posts": "p", "users": "u"}


@dataclass(frozen=True)
class StaticColumns:
    """The static columns of a config, as `posts.length`, all of them there."""

    continuous: tuple[str, ...]
    binary: tuple[str, ...]
    discrete: tuple[str, ...]
    ages: tuple[str, ...]

    def of_impressions(self) -> list[str]:
        """The columns of impressions among them, once each."""
        named = (*self.continuous, *self.binary, *self.discrete, *self.ages)
        return list(dict.fromkeys(n.partition(".")[2] for n in named if n.startswith("impressions.")))


def static_columns(log: Log, config: FeaturesConfig) -> StaticColumns:
    """The columns that a config names, or the usual ones that the log has.

    Raises:
        DataError: a column that is not there or not of its kind, or a label of the impressions named as an input.
    """

    def usual(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in names if log.has(*name.split(".", 1)))

    continuous = usual(DEFAULT_CONTINUOUS) if config.continuous is None else config.continuous
    discrete = usual(DEFAULT_DISCRETE) if config.discrete is None else config.discrete
    columns = StaticColumns(continuous, config.binary, discrete, config.ages)
    for kind in ("continuous", "binary", "discrete", "ages"):
        for name in getattr(columns, kind):
            _check(log, kind, name)
    return columns


def _check(log: Log, kind: str, name: str) -> None:
    table, _, column = name.partition(".")
    if table not in _ALIASES or not log.has(table, column):
        found = [f"{t}.{c}" for t in _ALIASES for c in log.tables.get(t, [])]
        raise DataError(f"features.{kind}: unknown column {name!r}, found are {', '.join(found)}")
    if table == "impressions" and column in (*log.labels, *log.engagement_types(), IMPRESSED):
        raise DataError(f"features.{kind}: found {name!r}, which is known only after the impression was served")
    wanted = {"discrete": None, "ages": ("TIMESTAMP", "a time", "times")}
    target, is_not, allowed = wanted.get(kind, ("DOUBLE", "a number", "numbers")) or (None, "", "")
    if target:
        try:
            log.connection.execute(f"SELECT max(CAST({quote(column)} AS {target})) FROM {table}").fetchall()
        except duckdb.Error:
            raise DataError(
                f"features.{kind}: found {name!r}, which is not {is_not} in every row; allowed are {allowed}"
            ) from None


def vocabulary_table(place: int) -> str:
    """The table with the vocabulary of the discrete column at a place: `word` and its `place` from 1."""
    return f"vocabulary{place}"


def create_vocabularies(log: Log, columns: StaticColumns, first: int, last: int, minimum: int) -> dict[str, list[str]]:
    """The vocabulary of every discrete column from the impressions of rows `first` to `last`.

    Returns:
        Column → its values, most frequent first; a value's index in the examples is its place here plus 1.
    """
    vocabularies = {}
    for name in columns.discrete:
        table, _, column = name.partition(".")
        text = f"CAST({_ALIASES[table]}.{quote(column)} AS VARCHAR)"
        join = {"posts": " JOIN posts p USING (post_id)", "users": " JOIN users u USING (user_id)"}.get(table, "")
        words = log.connection.execute(
            f"SELECT word FROM (SELECT {text} AS word, count(*) AS n FROM impressions i{join} "
            f"WHERE i.row BETWEEN {first} AND {last} GROUP BY 1) WHERE word IS NOT NULL AND n >= {minimum} "
            "ORDER BY n DESC, word"
        ).fetchall()
        vocabularies[name] = [word for (word,) in words]
    return vocabularies


def load_vocabularies(
    connection: duckdb.DuckDBPyConnection, columns: StaticColumns, vocabularies: Mapping[str, list[str]]
) -> None:
    """Make the vocabulary table of every discrete column."""
    for place, name in enumerate(columns.discrete):
        words = vocabularies[name]
        table = pa.table(
            {"word": pa.array(words, pa.string()), "place": pa.array(range(1, len(words) + 1), pa.int32())}
        )
        connection.register("loaded_vocabulary", table)
        connection.execute(f"CREATE OR REPLACE TEMP TABLE {vocabulary_table(place)} AS FROM loaded_vocabulary")
        connection.unregister("loaded_vocabulary")


@dataclass(frozen=True)
class StaticSelection:
    """SQL of the static features: name → expression over an impression `i` and the sides `p` and `u`, and joins."""

    continuous: dict[str, str]
    binary: dict[str, str]
    discrete: dict[str, str]
    joins: str


def select_static(columns: StaticColumns) -> StaticSelection:
    """The moment and the static columns; the sides hold those of posts and users, ready."""

    def side(name: str, own: str, missing: str) -> str:
        table, _, column = name.partition(".")
        return own.format(f"i.{quote(column)}") if table == "impressions" else f"coalesce({_side(name)}, {missing})"

    continuous = dict(MOMENT_CONTINUOUS)
    for name in columns.ages:
        table, _, column = name.partition(".")
        time = f"CAST(i.{quote(column)} AS TIMESTAMP)" if table == "impressions" else _side(name, ".age")
        continuous[f"{name}.age"] = _age(time)
    continuous |= {name: side(name, number("{}"), "0") for name in columns.continuous}
    binary = {name: side(name, number("{}"), "0") for name in columns.binary}
    discrete, joins = dict(MOMENT_DISCRETE), ""
    for place, name in enumerate(columns.discrete):
        table, _, column = name.partition(".")
        if table == "impressions":
            joins += (
                f" LEFT JOIN {vocabulary_table(place)} v{place} ON v{place}.word = CAST(i.{quote(column)} AS VARCHAR)"
            )
        discrete[name] = (
            f"coalesce(v{place}.place, 0)" if table == "impressions" else f"coalesce({_side(name, '.place')}, 0)"
        )
    return StaticSelection(continuous, binary, discrete, joins)


def number(expression: str) -> str:
    """SQL of a column as a number, 0 where it has none."""
    return f"coalesce(CAST({expression} AS DOUBLE), 0)"


def _side(name: str, suffix: str = "") -> str:
    return f"{_ALIASES[name.partition('.')[0]]}.{quote(name + suffix)}"
