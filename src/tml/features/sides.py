"""What there is to know of a post and of a viewer, one row each: static values, places in vocabularies, key codes.

    post_side(post_id, author_id, created_at, …)    user_side(user_id, …)

A key column's code numbers its distinct values from 0; a key's *pack* is its columns' codes as digits of one number.
Both tables hold every id that occurs anywhere in the log, so that what is only ever engaged with has a code, too. The
values of a key column of impressions are the impression's own; a table of each has their codes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import duckdb

from tml.core.errors import DataError
from tml.data.log import Log
from tml.data.tables import quote
from tml.features.static import IMPRESSED, StaticColumns, number, vocabulary_table

_IDS = {"posts": "post_id", "users": "user_id"}
_KEPT = {"posts": ("author_id", "created_at"), "users": ()}
SIDES = {"posts": "post_side", "users": "user_side"}
ALIASES = {"posts": "p", "users": "u", "impressions": "i"}
"""The names of the sides, and of impressions, where a query joins them or joins them to events."""


def key_column(log: Log, name: str) -> tuple[str, str]:
    """The table and the column that a key's column name means.

    Raises:
        DataError: there is no such column, or it is a label of the impressions.
    """
    if name == "user_id":
        return "users", name
    table, dot, column = name.partition(".")
    if not (dot and table in ALIASES and log.has(table, column)):
        table, column = next(((table, name) for table in ALIASES if log.has(table, name)), ("", ""))
    if not table:
        found = ["user_id", *(c for table in ALIASES for c in log.tables.get(table, []) if c not in log.labels)]
        raise DataError(
            f"features.keys: unknown column {name!r}, found are {', '.join(dict.fromkeys(found))}, "
            "also as posts.COLUMN, users.COLUMN or impressions.COLUMN"
        )
    if table == "impressions" and column in (*log.labels, *log.engagement_types(), IMPRESSED):
        raise DataError(f"features.keys: found {name!r}, which is known only after the impression was served")
    return table, column


@dataclass(frozen=True)
class KeyCodes:
    """The codes of the columns that keys are made of.

    Attributes:
        tables: key column → the table that it is from.
        sizes: key column → how many values it has.
        joins: SQL that joins the codes of the columns of an impression `i`.
    """

    tables: Mapping[str, str]
    sizes: Mapping[str, int]
    joins: str

    def code(self, column: str) -> str:
        """SQL of a key column's code, where the sides and `joins` are joined."""
        place = list(self.tables).index(column)
        alias = f"c{place}" if self.tables[column] == "impressions" else ALIASES[self.tables[column]]
        return f"{alias}.{quote(code_name(column))}"

    def pack(self, key: Sequence[str], alias: str | None = None) -> str:
        """SQL of a key's value as one number, null where a column is.

        Args:
            key: the columns.
            alias: what the table with the codes is called; by default the sides are joined under their own names.
        """
        packed = "CAST(0 AS BIGINT)"
        for column in key:
            code = f"{alias}.{quote(code_name(column))}" if alias else self.code(column)
            packed = f"({packed} * {self.sizes[column]} + {code})"
        return packed


def code_name(column: str) -> str:
    """How a side calls the code of a key column."""
    return f"code {column}"


def create_sides(log: Log, key_columns: Sequence[str], static: StaticColumns) -> KeyCodes:
    """Make both sides; the vocabularies of `static` must be there."""
    for table, query in select_sides(log, key_columns, static, _code).items():
        log.connection.execute(f"CREATE OR REPLACE TEMP TABLE {SIDES[table]} AS {query}")
    tables, sizes, joins = {}, {}, ""
    for place, name in enumerate(key_columns):
        tables[name], column = key_column(log, name)
        side = SIDES.get(tables[name], f"impression_codes{place}")
        if tables[name] == "impressions":
            value, code = quote(column), quote(code_name(name))
            distinct = f"SELECT DISTINCT {value} AS value FROM impressions"
            query = f"SELECT value, {_code('value')} AS {code} FROM ({distinct})"
            log.connection.execute(f"CREATE OR REPLACE TEMP TABLE {side} AS {query}")
            joins += f" LEFT JOIN {side} c{place} ON c{place}.value = i.{value}"
        sizes[name] = _size(log.connection, side, name)
    return KeyCodes(tables, sizes, joins)


def select_sides(
    log: Log, key_columns: Sequence[str], static: StaticColumns, code: Callable[[str], str]
) -> dict[str, str]:
    """SQL of both sides: table → query.

    Args:
        log: the open log.
        key_columns: the columns that keys are made of.
        static: the static columns; the query reads the tables of their vocabularies.
        code: SQL of a key column's value → SQL of its code.
    """
    tables = {name: key_column(log, name)[0] for name in key_columns}
    queries = {}
    for table, identifier in _IDS.items():
        codes = [
            f"{code(_key_value(log, name, identifier))} AS {quote(code_name(name))}"
            for name in key_columns
            if tables[name] == table
        ]
        selected = [identifier, *(f"t.{column}" for column in _KEPT[table]), *codes, *_static(table, static)]
        joins = f" LEFT JOIN {table} t USING ({identifier})" if log.has(table) else ""
        for place, name in enumerate(static.discrete):
            if name.startswith(f"{table}."):
                joins += (
                    f" LEFT JOIN {vocabulary_table(place)} v{place} ON v{place}.word = CAST({_own(name)} AS VARCHAR)"
                )
        queries[table] = f"SELECT {', '.join(selected)} FROM ({_every_id(log, identifier, table)}){joins}"
    return queries


def _key_value(log: Log, name: str, identifier: str) -> str:
    column = key_column(log, name)[1]
    # The id is there for rows that the table lacks, too.
    return identifier if column == identifier else f"t.{quote(column)}"


def _code(value: str) -> str:
    return f"CAST(CASE WHEN {value} IS NOT NULL THEN dense_rank() OVER (ORDER BY {value}) - 1 END AS BIGINT)"


def _static(table: str, static: StaticColumns) -> list[str]:
    """A table's static features, each under its own name."""

    def of_table(names: Sequence[str]) -> list[str]:
        return [name for name in dict.fromkeys(names) if name.startswith(f"{table}.")]

    places = {name: place for place, name in enumerate(static.discrete)}
    selected = [f"v{places[name]}.place AS {quote(f'{name}.place')}" for name in of_table(static.discrete)]
    selected += [f"CAST({_own(name)} AS TIMESTAMP) AS {quote(f'{name}.age')}" for name in of_table(static.ages)]
    numbers = of_table((*static.continuous, *static.binary))
    return selected + [f"{number(_own(name))} AS {quote(name)}" for name in numbers]


def _own(name: str) -> str:
    """A static column in its own table `t`."""
    return f"t.{quote(name.partition('.')[2])}"


def check_pack(codes: KeyCodes, keys: Sequence[Sequence[str]]) -> None:
    """Refuse a key of more combinations than a whole number of 63 bits can tell apart."""
    for key in keys:
        combinations = math.prod(codes.sizes[column] for column in key)
        if combinations >= 2**63:
            raise DataError(
                f"features.keys: found [{', '.join(key)}] with {combinations:.1e} possible combinations, "
                f"allowed are fewer than {2**63:.1e}"
            )


def _every_id(log: Log, identifier: str, table: str) -> str:
    sources = [t for t in (table, "impressions", "engagements", "history") if log.has(t)]
    return " UNION ".join(f"SELECT {identifier} FROM {source}" for source in sources)


def _size(connection: duckdb.DuckDBPyConnection, side: str, name: str) -> int:
    [(size,)] = connection.execute(f"SELECT coalesce(max({quote(code_name(name))}) + 1, 1) FROM {side}").fetchall()
    return int(size)
