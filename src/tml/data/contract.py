"""The contract of a log, applied to its raw tables: every id, time, label and type is read, or its row is at fault.

What comes out are DuckDB tables under the contract's names and types, exact duplicates of rows dropped.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb

from tml.core.errors import DataError
from tml.data.config import ImpressionsConfig, LogConfig, TableConfig
from tml.data.faults import Faults, shown
from tml.data.readers.raw import FAMILIES, FILE, ROW, numbered
from tml.data.source import Source, without_odd
from tml.data.tables import quote
from tml.data.values import Reading, id_kinds, plain_columns, read_id, read_label, read_time, read_type, time_kinds

REQUIRED: Mapping[str, tuple[str, ...]] = {
    "impressions": ("user_id", "post_id", "served_at"),
    "engagements": ("user_id", "post_id", "type", "engaged_at"),
    "posts": ("post_id", "author_id"),
    "users": ("user_id",),
    "follows": ("user_id", "followed_id"),
    "history": ("user_id", "post_id", "type"),
}
IDS: Mapping[str, str] = {
    "user_id": "user",
    "author_id": "user",
    "followed_id": "user",
    "post_id": "post",
    "impression_id": "impression",
    "session_id": "session",
}
"""Id column → what it is an id of: all columns of one thing have one type in the whole log."""
TIMES: Mapping[str, tuple[str, ...]] = {
    "impressions": ("served_at", "impressed_at"),
    "engagements": ("engaged_at",),
    "posts": ("created_at",),
    "follows": ("followed_at",),
}
_MAY_BE_NULL = ("author_id", "created_at", "followed_at", "impressed_at")
_ID_TABLES: Mapping[str, tuple[str, ...]] = {
    "impressions": ("user_id", "post_id", "impression_id", "session_id"),
    "engagements": ("user_id", "post_id"),
    "posts": ("post_id", "author_id"),
    "users": ("user_id",),
    "follows": ("user_id", "followed_id"),
    "history": ("user_id", "post_id"),
}
KEYS: Mapping[str, str] = {"posts": "post_id", "users": "user_id"}
"""Tables with one row for each id."""


def table_configs(config: LogConfig) -> dict[str, TableConfig]:
    """The tables that a log may have, by name, in the order in which they are read."""
    tables: dict[str, TableConfig] = {"impressions": config.impressions}
    if not config.impressions.labels:
        tables["engagements"] = config.engagements
    tables |= {"posts": config.posts, "users": config.users, "follows": config.follows}
    return tables | ({"history": config.history} if config.history else {})


@dataclass(frozen=True)
class Read:
    """A raw table and how each column of it is read."""

    source: Source
    readings: Mapping[str, Reading]

    def value(self, column: str) -> str:
        """SQL of a column's value in the raw table."""
        return self.readings[column].value


def read_columns(
    connection: duckdb.DuckDBPyConnection, sources: Mapping[str, Source], config: LogConfig, faults: Faults
) -> dict[str, Read]:
    """Find out how the columns of all tables are read.

    Raises:
        DataError: a column of a type or a unit that cannot be; a file whose type is another than the others', if
            faults stop the reading.
    """
    configs, integer = table_configs(config), dict.fromkeys(IDS.values(), True)
    kept: dict[str, Source] = {}
    integer_columns: dict[tuple[str, str], bool] = {}
    for name, source in sources.items():
        for column in _ID_TABLES[name]:
            if column in source.columns:
                kinds = id_kinds(connection, source, source.columns[column])
                source = without_odd(connection, source, source.columns[column].own, kinds, faults)
                whole = all(kinds[file] == "integer" for file in source.files if file in kinds)
                integer_columns[name, column] = whole
                integer[IDS[column]] &= whole
        kept[name] = source
    reads = {}
    for name, source in kept.items():
        readings = {
            column: read_id(
                source.columns[column],
                integer_columns[name, column],
                as_text=not integer[IDS[column]],
                required=column not in _MAY_BE_NULL,
            )
            for column in _ID_TABLES[name]
            if column in source.columns
        }
        source, times = _times(connection, source, configs[name], faults)
        readings |= times
        if "type" in REQUIRED[name]:
            readings["type"] = read_type(source.columns["type"])
        readings |= _labels(source, configs[name])
        others = {column: raw for column, raw in source.columns.items() if column not in readings}
        readings |= {column: Reading(value) for column, value in plain_columns(connection, source, others).items()}
        reads[name] = Read(source, {column: readings[column] for column in source.columns})
    return reads


def _times(
    connection: duckdb.DuckDBPyConnection, source: Source, config: TableConfig, faults: Faults
) -> tuple[Source, dict[str, Reading]]:
    readings = {}
    for name in TIMES.get(source.name, ()):
        if name not in source.columns:
            continue
        column = source.columns[name]
        kinds = time_kinds(connection, source, column)
        source = without_odd(connection, source, column.own, kinds, faults)
        numbers = any(FAMILIES[kinds[file]] == "numbers" for file in source.files if file in kinds)
        column = replace(column, kinds=kinds)
        readings[name] = read_time(connection, source, column, config.time_unit, numbers, name not in _MAY_BE_NULL)
    return source, readings


def _labels(source: Source, config: TableConfig) -> Iterator[tuple[str, Reading]]:
    for label in config.labels if isinstance(config, ImpressionsConfig) else ():
        if label not in source.columns:
            raise DataError(
                f"{source.label}: unknown column {label!r} (log.impressions.labels), "
                f"found are {', '.join(source.columns)}"
            )
        if label in (*IDS, *TIMES["impressions"]):
            raise DataError(
                f"{source.label}: log.impressions.labels: found {label}, which is no label but an id or time"
            )
        yield label, read_label(source.columns[label])


def drop_faulty_rows(connection: duckdb.DuckDBPyConnection, read: Read, faults: Faults) -> None:
    """Take the rows out of a raw table that have a value which cannot be used.

    Raises:
        DataError: there is one, and faults stop the reading.
    """
    source, readings = read.source, read.readings
    useless = " OR ".join(reading.useless for reading in readings.values() if reading.useless)
    if not one(connection, f"SELECT count(*) FROM {quote(source.table)} WHERE {useless}")[0]:
        return
    looked_for = [(column, fault) for column, reading in readings.items() for fault in reading.faults]
    conditions = [f"{readings[column].useless} AND {fault.condition}" for column, fault in looked_for]
    cases = " ".join(f"WHEN {condition} THEN {number}" for number, condition in enumerate(conditions))
    found = connection.execute(
        f"SELECT {FILE}, number, count(*), min({ROW}) FROM (SELECT {FILE}, {ROW}, CASE {cases} END AS number "
        f"FROM {numbered(source.table)} WHERE {useless}) GROUP BY ALL ORDER BY 4"
    ).fetchall()
    for _, which, count, row in found:
        column, fault = looked_for[which]
        own = source.columns[column].own
        file, place = source.place(connection, row)
        # Not every time that a file can hold is one that Python can.
        selected = (
            f"CAST({quote(own)} AS VARCHAR)" if source.columns[column].type.startswith(("TIME", "DATE")) else quote(own)
        )
        value = one(connection, f"SELECT {selected} FROM {numbered(source.table)} WHERE {ROW} = {row}")[0]
        what = "no value" if value is None or value == "" else f"{shown(value)}, {fault.reason}"
        sentence = f"column {own}: found {what}, {fault.allowed}"
        faults.rows(source.name, file, place, sentence, f"{own}: {fault.reason}", count)
    connection.execute(f"DELETE FROM {quote(source.table)} WHERE {useless}")


def create_table(connection: duckdb.DuckDBPyConnection, read: Read, faults: Faults) -> None:
    """Make a table of the log, other than the impressions, out of its raw one.

    Raises:
        DataError: posts without a row; two different rows of one post or user, if faults stop the reading.
    """
    source, name = read.source, read.source.name
    selected = ", ".join(f"{reading.value} AS {quote(column)}" for column, reading in read.readings.items())
    # Without times, equal rows of a history are things that happened more than once.
    distinct = "" if name == "history" else "DISTINCT "
    added = "".join(
        f", CAST(NULL AS TIMESTAMP) AS {column}"
        for column in ("created_at", "followed_at")
        if column in TIMES.get(name, ()) and column not in read.readings
    )
    connection.execute(
        f"CREATE OR REPLACE TABLE {name} AS SELECT {distinct}{selected}{added} FROM {quote(source.table)}"
    )
    if name in KEYS:
        _one_row_each(connection, read, KEYS[name], faults)
    if name == "posts":
        refuse_empty(connection, source, faults)


def refuse_empty(connection: duckdb.DuckDBPyConnection, source: Source, faults: Faults) -> None:
    """Refuse a table without a row.

    Raises:
        DataError: it has none.
    """
    if one(connection, f"SELECT count(*) FROM {source.name}")[0] == 0:
        skipped = sum(found.rows or 0 for found in faults.skipped if found.table == source.name)
        after = f" after {skipped:,} rows were skipped" if skipped else ""
        raise DataError(f"{source.label}: the table {source.name} is empty{after}, allowed is one row or more")


def _one_row_each(connection: duckdb.DuckDBPyConnection, read: Read, key: str, faults: Faults) -> None:
    """Refuse a second row of a key, or keep the first in the order of all columns."""
    name = read.source.name
    twice = connection.execute(
        f"SELECT {key}, sum(count(*) - 1) OVER () FROM {name} GROUP BY 1 HAVING count(*) > 1 ORDER BY 1 LIMIT 1"
    ).fetchone()
    if twice is None:
        return
    found = f"found two different rows of {key} {shown(twice[0])}, allowed is one"
    faults.rows(
        name, *last_place(connection, read, key, twice[0]), found, f"{key}: another row of the same", int(twice[1])
    )
    columns = [quote(row[0]) for row in connection.execute(f"DESCRIBE {name}").fetchall()]
    connection.execute(
        f"CREATE OR REPLACE TABLE {name} AS SELECT * FROM {name} "
        f"QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY {', '.join(columns)}) = 1"
    )


def last_place(connection: duckdb.DuckDBPyConnection, read: Read, column: str, value: Any) -> tuple[Path, str]:
    """The file and the place in it of the last row that has a value, as errors name them."""
    row = connection.execute(
        f"SELECT max({ROW}) FROM {numbered(read.source.table)} WHERE {read.value(column)} = ?", [value]
    ).fetchone()
    assert row is not None
    return read.source.place(connection, row[0])


def one(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[object, ...]:
    """The one row of a query."""
    row = connection.execute(query).fetchone()
    assert row is not None
    return row
