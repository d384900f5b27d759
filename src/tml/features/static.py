"""Features that are no aggregates: columns of impressions, posts and users, and the moment of the impression.

The moment: the post's age in seconds, the position, the time of day as a point on a circle, whether the viewer follows
the author by then, hour and weekday. A discrete value is stored as its place in a vocabulary that training gives.
"""

from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tml.core.errors import DataError
from tml.data.log import Log
from tml.data.tables import quote
from tml.features.aggregates import BEFORE_THE_LOG
from tml.features.config import FeaturesConfig

MOMENT_CONTINUOUS = ["age_seconds", "position", "hour_sine", "hour_cosine"]
MOMENT_BINARY = ["follows_author"]
MOMENT_DISCRETE = {"hour": [str(h) for h in range(24)], "weekday": [str(d) for d in range(1, 8)]}

DEFAULT_CONTINUOUS = ("posts.length",)
DEFAULT_DISCRETE = ("posts.topic", "posts.language", "posts.media", "users.language")

_ALIASES = {"impressions": "i", "posts": "p", "users": "u"}


@dataclass(frozen=True)
class StaticColumns:
    """The static columns of a config, as `posts.length`, all of them there; `tables` are the log's that they need."""

    continuous: tuple[str, ...]
    binary: tuple[str, ...]
    discrete: tuple[str, ...]
    tables: tuple[str, ...]
    has_follows: bool


def static_columns(log: Log, config: FeaturesConfig) -> StaticColumns:
    """The columns that a config names, or the usual ones that the log has.

    Raises:
        DataError: a column that is not there, or a label of the impressions named as an input.
    """

    def usual(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in names if log.has(*name.split(".", 1)))

    continuous = usual(DEFAULT_CONTINUOUS) if config.continuous is None else config.continuous
    discrete = usual(DEFAULT_DISCRETE) if config.discrete is None else config.discrete
    for kind, names in (("continuous", continuous), ("binary", config.binary), ("discrete", discrete)):
        for name in names:
            _check(log, kind, name)
    tables = tuple(name for name in _ALIASES if log.has(name))
    return StaticColumns(continuous, config.binary, discrete, tables, log.has("follows"))


def _check(log: Log, kind: str, name: str) -> None:
    table, _, column = name.partition(".")
    if table not in _ALIASES or not log.has(table, column):
        found = [f"{t}.{c}" for t in _ALIASES for c in log.tables.get(t, [])]
        raise DataError(f"features.{kind}: unknown column {name!r}, found are {', '.join(found)}")
    if table == "impressions" and column in log.engagement_types():
        raise DataError(f"features.{kind}: found {name!r}, which is a label and known only after the impression")
    if kind != "discrete":
        try:
            log.connection.execute(f"SELECT max(CAST({quote(column)} AS DOUBLE)) FROM {table}")
        except duckdb.Error:
            raise DataError(
                f"features.{kind}: found {name!r}, which is not a number in every row; allowed are numbers"
            ) from None


def create_vocabularies(
    connection: duckdb.DuckDBPyConnection, columns: StaticColumns, first: int, last: int, minimum: int
) -> dict[str, list[str]]:
    """Make a vocabulary table for every discrete column from the impressions of rows `first` to `last`.

    Returns:
        Column → its values, most frequent first; a value's index in the examples is its place here plus 1.
    """
    vocabularies = {}
    for number, name in enumerate(columns.discrete):
        text = f"CAST({_expression(name)} AS VARCHAR)"
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE vocabulary{number} AS "
            f"SELECT word, row_number() OVER (ORDER BY n DESC, word) AS place "
            f"FROM (SELECT {text} AS word, count(*) AS n {_joined(columns)} "
            f"WHERE i.row BETWEEN {first} AND {last} GROUP BY 1) WHERE word IS NOT NULL AND n >= {minimum}"
        )
        words = connection.execute(f"SELECT word FROM vocabulary{number} ORDER BY place").fetchall()
        vocabularies[name] = [word for (word,) in words]
    return vocabularies


def select_static(columns: StaticColumns, first: int, last: int) -> str:
    """SQL that gives, in the order of rows, the vectors `continuous`, `binary` and `discrete` of static columns."""
    continuous = [_number(name) for name in columns.continuous]
    follows = "(f.user_id IS NOT NULL AND f.followed_at < i.served_at)" if columns.has_follows else "false"
    binary = [f"CAST({follows} AS FLOAT)"] + [_number(name) for name in columns.binary]
    discrete = ["CAST(hour(i.served_at) + 1 AS INTEGER)", "CAST(isodow(i.served_at) AS INTEGER)"]
    joins = ""
    for number, name in enumerate(columns.discrete):
        joins += f" LEFT JOIN vocabulary{number} v{number} ON v{number}.word = CAST({_expression(name)} AS VARCHAR)"
        discrete.append(f"CAST(coalesce(v{number}.place, 0) AS INTEGER)")
    if columns.has_follows:
        # A follow without a time has held since before the log.
        joins += (
            f" LEFT JOIN (SELECT user_id, followed_id, min(coalesce(followed_at, {BEFORE_THE_LOG})) AS followed_at "
            "FROM follows GROUP BY ALL) f ON f.user_id = i.user_id AND f.followed_id = p.author_id"
        )
    vectors = {"continuous": continuous or ["CAST(0 AS FLOAT)"], "binary": binary, "discrete": discrete}
    selected = ", ".join(f"array_value({', '.join(values)}) AS {name}" for name, values in vectors.items())
    return f"SELECT {selected} {_joined(columns)}{joins} WHERE i.row BETWEEN {first} AND {last} ORDER BY i.row"


def moment(keys: pa.Table) -> np.ndarray[Any, Any]:
    """The continuous features of the moment, (rows, 4) float32, from the key columns of an example table."""
    served = keys["served_at"]
    age = pc.subtract(served.cast(pa.int64()), keys["created_at"].cast(pa.timestamp("us")).cast(pa.int64()))
    seconds = pc.fill_null(age, 0).to_numpy().astype(np.float64) / 1e6
    day = (served.cast(pa.int64()).to_numpy() % 86_400_000_000) / 86_400_000_000 * 2 * np.pi
    columns = [np.maximum(seconds, 0), keys["position"].to_numpy().astype(np.float64), np.sin(day), np.cos(day)]
    return np.stack(columns, axis=1).astype(np.float32)


def _joined(columns: StaticColumns) -> str:
    users = " LEFT JOIN users u ON u.user_id = i.user_id" if "users" in columns.tables else ""
    return f"FROM impressions i LEFT JOIN posts p ON p.post_id = i.post_id{users}"


def _expression(name: str) -> str:
    table, _, column = name.partition(".")
    return f"{_ALIASES[table]}.{quote(column)}"


def _number(name: str) -> str:
    return f"CAST(coalesce(CAST({_expression(name)} AS DOUBLE), 0) AS FLOAT)"
