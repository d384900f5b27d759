"""What ids, times and labels are in a raw table, as SQL: how each is read, and what makes a value of it useless.

ids     whole numbers that fit 64 signed bits become BIGINT, floats without a fraction included; text stays text. A
        CSV column is one of integers if none of its values is anything but a number.
times   ISO text, timestamps, or numbers with a unit become TIMESTAMP in UTC, from 1990 to 2100.
labels  0, 1, true and false become 0 and 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import duckdb

from tml.core.errors import DataError
from tml.data.readers.raw import FILE, Column, Kind
from tml.data.source import Source
from tml.data.tables import quote

EARLIEST_YEAR, LATEST_YEAR = 1990, 2100
_EARLIEST, _LATEST = 631_152_000, 4_102_444_800  # the same in seconds since 1970
_UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000}

_SMALL_INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER")
_LARGE_INTEGERS = ("UBIGINT", "HUGEINT", "UHUGEINT")
_EXACT_FLOATS = 2**53
"""Whole numbers above this are not all floats: two ids could have become one."""


@dataclass(frozen=True)
class Fault:
    """What makes a value useless.

    Attributes:
        condition: SQL that is true for such a value.
        reason: what it is, as `not a time`.
        allowed: what a value may be, as `allowed are times`.
    """

    condition: str
    reason: str
    allowed: str


@dataclass(frozen=True)
class Reading:
    """How a column is read.

    Attributes:
        value: SQL of its value.
        useless: SQL that is true for a value that cannot be used, quick to compute; empty where every value can.
        faults: what may be the matter with such a value, in the order in which it is looked for.
    """

    value: str
    useless: str = ""
    faults: tuple[Fault, ...] = ()


def is_number(column: Column) -> bool:
    """Whether a raw column has a number type."""
    return column.type in (*_SMALL_INTEGERS, *_LARGE_INTEGERS, "DOUBLE", "FLOAT") or column.type.startswith("DECIMAL")


def _absent(column: Column) -> str:
    """SQL that is true where there is no value: null, and in text an empty one."""
    x = quote(column.own)
    empty = {"VARCHAR": "''", "BLOB": "''::BLOB"}.get(column.type)
    return f"({x} IS NULL OR {x} = {empty})" if empty else f"{x} IS NULL"


def id_kinds(connection: duckdb.DuckDBPyConnection, source: Source, column: Column) -> Mapping[Path, Kind]:
    """File → whether an id column has integers or text there.

    Raises:
        DataError: a type that is no id.
    """
    if not source.is_csv:
        wrong = {kind for kind in column.kinds.values() if kind in ("boolean", "time", "other")}
        if wrong:
            raise DataError(
                f"{source.label}: column {column.own}: found ids of type {column.type}, allowed are integers and text"
            )
        return {file: "text" if kind == "text" else "integer" for file, kind in column.kinds.items()}
    x = quote(column.own)
    # A number as a program writes it: 7, but not 007, which is another id than 7.
    plain = f"CAST(TRY_CAST({x} AS BIGINT) AS VARCHAR) = {x} OR regexp_full_match({x}, '-?[1-9][0-9]{{18,}}')"
    number = f"coalesce({plain}, false) OR {_is_float_text(x)}"
    found = connection.execute(
        f"SELECT {FILE}, bool_and({number}) FROM {quote(source.table)} WHERE {x} IS NOT NULL GROUP BY 1"
    ).fetchall()
    return {Path(file): "integer" if integer else "text" for file, integer in found}


def _is_float_text(x: str) -> str:
    """A float as programs write it, `nan` and `inf` too."""
    return f"regexp_full_match({x}, '(?i)-?([0-9]+\\.[0-9]*(e[+-]?[0-9]+)?|nan|inf|infinity)')"


def read_id(column: Column, integer: bool, as_text: bool, required: bool) -> Reading:
    """How an id column is read.

    Args:
        integer: whether the column has integers, as `id_kinds` found.
        as_text: whether they are to be text all the same, since ids of the same kind are text elsewhere.
        required: whether there must be one in every row.
    """
    x, absent = quote(column.own), _absent(column)
    missing = Fault(absent, "no id", "allowed is an id in every row")
    if not integer:
        return Reading(f"nullif(CAST({x} AS VARCHAR), '')", absent * required, (missing,) * required)
    value, faults = f"CAST({x} AS BIGINT)", (missing,) * required
    if column.type not in _SMALL_INTEGERS:
        number = f"TRY_CAST({x} AS DOUBLE)"
        exact = f"isfinite({number}) AND {number} = trunc({number}) AND abs({number}) <= {_EXACT_FLOATS}"
        from_float = f"CASE WHEN {exact} THEN CAST({number} AS BIGINT) END"
        if column.type == "VARCHAR":
            value = f"CASE WHEN contains({x}, '.') THEN {from_float} ELSE TRY_CAST({x} AS BIGINT) END"
        elif column.type.startswith("DECIMAL"):  # exact, so that no id has become another one
            value = f"CASE WHEN {x} = trunc({x}) THEN TRY_CAST({x} AS BIGINT) END"
        else:
            value = f"TRY_CAST({x} AS BIGINT)" if column.type in _LARGE_INTEGERS else from_float
        limits = "allowed are integers of 64 signed bits (floats up to 2^53), or text"
        whole = f"isfinite({number}) AND {number} = trunc({number})"
        faults += (
            Fault(whole, "too large", limits),
            Fault(f"isfinite({number})", "not a whole number", "allowed are integers and text"),
            Fault("true", "not a finite number", "allowed are integers and text"),
        )
    useless = f"({value}) IS NULL" if required else f"(({value}) IS NULL AND NOT {absent})"
    return Reading(f"CAST({value} AS VARCHAR)" if as_text else value, useless, faults)


def read_label(column: Column) -> Reading:
    """How an inline label is read: as TINYINT 0 or 1."""
    text = f"lower(CAST({quote(column.own)} AS VARCHAR))"
    ones, zeros = "(1(\\.0+)?|true)", "(0(\\.0+)?|false)"
    matches = f"WHEN regexp_full_match({text}, '{ones}') THEN 1 WHEN regexp_full_match({text}, '{zeros}') THEN 0"
    value = f"CAST(CASE {matches} END AS TINYINT)"
    return Reading(value, f"({value}) IS NULL", (Fault("true", "no label", "allowed are 0, 1, true and false"),))


def read_type(column: Column) -> Reading:
    """How the type of an engagement is read: as text."""
    value = f"nullif(CAST({quote(column.own)} AS VARCHAR), '')"
    return Reading(value, f"{value} IS NULL", (Fault("true", "no type", "allowed is a type in every row"),))


def time_kinds(connection: duckdb.DuckDBPyConnection, source: Source, column: Column) -> Mapping[Path, Kind]:
    """File → whether a time column has numbers, timestamps or text there; of text, what most of its values are.

    Raises:
        DataError: a type that is no time.
    """
    is_time = column.type == "DATE" or column.type.startswith("TIMESTAMP")
    if not (is_time or column.type == "VARCHAR" or is_number(column)) or {"boolean", "other"} & {
        *column.kinds.values()
    }:
        raise DataError(
            f"{source.label}: column {column.own}: found times of type {column.type}, allowed are ISO text, "
            "timestamps, or numbers with a unit"
        )
    if column.type != "VARCHAR":
        return column.kinds
    x = quote(column.own)
    found = connection.execute(
        f"SELECT {FILE}, 2 * count(TRY_CAST({x} AS DOUBLE)) > count(*) FROM {quote(source.table)} "
        f"WHERE NOT {_absent(column)} GROUP BY 1"
    ).fetchall()
    return {Path(file): "integer" if numbers else "text" for file, numbers in found}


def read_time(
    connection: duckdb.DuckDBPyConnection,
    source: Source,
    column: Column,
    unit: str | None,
    numbers: bool,
    required: bool,
) -> Reading:
    """How a time column is read: as TIMESTAMP in UTC.

    Args:
        unit: that of numbers.
        numbers: whether it has numbers.
        required: whether there must be one in every row.

    Raises:
        DataError: numbers without a unit, or with one that makes most of them times outside 1990 to 2100.
    """
    x, absent = quote(column.own), _absent(column)
    allowed = "allowed are times: ISO text, timestamps, or numbers with a unit"
    years = f"{EARLIEST_YEAR} to {LATEST_YEAR}"
    faults = [Fault(absent, "no time", allowed)] * required
    if not column.kinds:
        value = "CAST(NULL AS TIMESTAMP)"
    elif numbers:
        value, number = _number_as_time(connection, source, column, unit)
        faults += [
            Fault(f"{number} IS NULL", "not a time", allowed),
            Fault(f"NOT isfinite({number})", "not a finite number", allowed),
        ]
    elif column.type == "VARCHAR":
        value = f"CAST(TRY_CAST({x} AS TIMESTAMPTZ) AT TIME ZONE 'UTC' AS TIMESTAMP)"
        faults.append(Fault(f"({value}) IS NULL", "not a time", allowed))
    else:
        # The session's zone is UTC, so that times without one are left as they are.
        value = f"CAST(CAST({x} AS TIMESTAMPTZ) AT TIME ZONE 'UTC' AS TIMESTAMP)"
    faults.append(Fault("true", f"outside {years}", f"allowed are the years {years}"))
    span = f"BETWEEN TIMESTAMP '{EARLIEST_YEAR}-01-01' AND TIMESTAMP '{LATEST_YEAR}-01-01'"
    outside = f"NOT coalesce(({value}) {span}, false)"
    return Reading(value, outside if required else f"({outside} AND NOT {absent})", tuple(faults))


def _number_as_time(
    connection: duckdb.DuckDBPyConnection, source: Source, column: Column, unit: str | None
) -> tuple[str, str]:
    """SQL of the time and of the number that it comes from."""
    x = quote(column.own)
    number = f"TRY_CAST({x} AS DOUBLE)"
    fits = ", ".join(f"count(*) FILTER ({number} BETWEEN {_EARLIEST * f} AND {_LATEST * f})" for f in _UNITS.values())
    row = connection.execute(
        f"SELECT count({number}), min({number}), max({number}), {fits} FROM {quote(source.table)} "
        f"WHERE isfinite({number})"
    ).fetchone()
    assert row is not None
    count, low, high = row[:3]
    fitting = dict(zip(_UNITS, row[3:], strict=True))
    likely = max(fitting, key=lambda one: fitting[one])
    advice = f"; they look like {likely}" if 2 * fitting[likely] > count else ""
    where = f"{source.label}: column {column.own}"
    if unit is None:
        raise DataError(
            f"{where}: found numbers without a unit, allowed is log.{source.name}.time_unit s, ms or us{advice}"
        )
    if 2 * fitting[unit] < count:
        raise DataError(
            f"{where}: found {low:.0f} to {high:.0f} with time_unit {unit}, which is outside the years "
            f"{EARLIEST_YEAR} to {LATEST_YEAR}{advice}"
        )
    micros = _UNITS["us"] // _UNITS[unit]
    in_range = f"{number} BETWEEN {_EARLIEST * _UNITS[unit]} AND {_LATEST * _UNITS[unit]}"
    # Microseconds until 2100 are below 2^53, so that a double of them is exact; a double of seconds is not.
    exact = f"CAST({number} * {micros} AS BIGINT)"
    if column.type == "VARCHAR":
        fraction = f"coalesce(CAST(TRY_CAST({x} AS DECIMAL(24, 6)) * {micros} AS BIGINT), {exact})"
        exact = f"CASE WHEN contains({x}, '.') THEN {fraction} ELSE TRY_CAST({x} AS BIGINT) * {micros} END"
    elif column.type not in ("DOUBLE", "FLOAT"):
        exact = f"CAST({x} * {micros} AS BIGINT)"
    return f"CASE WHEN {in_range} THEN make_timestamp({exact}) END", number


def plain_columns(
    connection: duckdb.DuckDBPyConnection, source: Source, columns: Mapping[str, Column]
) -> dict[str, str]:
    """SQL of the columns that the contract has no rule for: as they are, and text as what all of its values are.

    In the text formats that is a whole number, a number, true and false, or text.
    """
    untyped = {name: c for name, c in columns.items() if c.type == "VARCHAR" and _may_be_typed(source, c)}
    types: dict[str, str] = {}
    for candidate in ("BIGINT", "DOUBLE", "BOOLEAN"):
        open_names = [name for name in untyped if name not in types]
        if not open_names:
            break
        fits = ", ".join(_all_are(quote(untyped[name].own), candidate) for name in open_names)
        row = connection.execute(f"SELECT {fits} FROM {quote(source.table)}").fetchone()
        types |= {name: candidate for name, fit in zip(open_names, row or (), strict=True) if fit}
    return {
        name: f"CAST({quote(column.own)} AS {types[name]})" if name in types else quote(column.own)
        for name, column in columns.items()
    }


def _may_be_typed(source: Source, column: Column) -> bool:
    return source.is_csv or (bool(column.kinds) and not {"text", "other"} & {*column.kinds.values()})


def _all_are(x: str, kind: str) -> str:
    """SQL that is true if a text column has values and all of them are of a type."""
    fits = {
        "BIGINT": f"TRY_CAST({x} AS BIGINT) IS NOT NULL AND regexp_full_match({x}, '[+-]?[0-9]+')",
        "DOUBLE": f"TRY_CAST({x} AS DOUBLE) IS NOT NULL",
        "BOOLEAN": f"lower({x}) IN ('true', 'false')",
    }[kind]
    return f"coalesce(bool_and({fits}) FILTER ({x} IS NOT NULL), false)"
