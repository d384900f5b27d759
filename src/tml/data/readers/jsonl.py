"""JSON lines: one object a line; a column is a key of any of them, and each value says itself what kind it is."""

import json
from collections.abc import Sequence
from pathlib import Path

import duckdb

from tml.core.errors import DataError
from tml.data.faults import Faults
from tml.data.readers.raw import (
    FILE,
    Column,
    Kind,
    Raw,
    check_names,
    file_list,
    load,
    place_in_file,
)
from tml.data.tables import literal, quote

MOST_KEYS = 2000
"""Keys that the objects of one table may have between them: more are data where names should be."""

_TEXT, _INTEGER, _FLOAT, _BOOLEAN, _NESTED = 1, 2, 4, 8, 16


def read_jsonl(
    connection: duckdb.DuckDBPyConnection, name: str, table: str, files: Sequence[Path], faults: Faults
) -> Raw:
    """Read the JSON lines files of a table into the raw table `table`, every value as its text.

    Raises:
        DataError: a file or a line that cannot be read, if faults stop the reading; or nothing is left.
    """
    lines = f"{table}_lines"

    def salvage(file: Path, why: str) -> None:
        faults.file(name, file, f"not a readable JSON lines file ({why})")

    read = load(connection, name, lines, files, _select, salvage)
    _report_lines(connection, name, lines, faults)
    keys = _keys(connection, name, lines, read)
    kinds = _kinds(connection, lines, keys)
    texts = ", ".join(f"(object.{quote(key)} ->> '$') AS {quote(key)}" for key in keys)
    connection.execute(
        f"CREATE OR REPLACE TABLE {quote(table)} AS SELECT {texts}, {FILE} FROM ({_objects(lines, keys)})"
    )
    connection.execute(f"DROP TABLE {quote(lines)}")
    return Raw(table, dict.fromkeys(read, ()), {key: Column(key, "VARCHAR", kinds[key]) for key in keys})


def _select(files: Sequence[Path]) -> str:
    options = f"format='newline_delimited', ignore_errors=true, filename={literal(FILE)}, hive_partitioning=false"
    return f"SELECT json, {FILE} FROM read_json_objects({file_list(files)}, {options})"


def _report_lines(connection: duckdb.DuckDBPyConnection, name: str, lines: str, faults: Faults) -> None:
    bad = "json IS NULL OR json_type(json) <> 'OBJECT'"
    found = connection.execute(
        f"SELECT min(rowid), count(*), arg_min(json IS NULL, rowid) FROM {quote(lines)} WHERE {bad} "
        f"GROUP BY {FILE} ORDER BY 1"
    ).fetchall()
    for rowid, count, broken in found:
        file, place = place_in_file(connection, lines, rowid)
        what = "text that is no JSON" if broken else "JSON that is no object"
        faults.rows(name, file, f"record {place}", f"found {what}, allowed is one object a line", what, count)
    if found:
        connection.execute(f"DELETE FROM {quote(lines)} WHERE {bad}")


def _keys(connection: duckdb.DuckDBPyConnection, name: str, lines: str, files: Sequence[Path]) -> list[str]:
    """The keys of all objects: first those of the first object in their order, then the others by name."""
    first = connection.execute(f"SELECT json_keys(json) FROM {quote(lines)} ORDER BY rowid LIMIT 1").fetchone()
    found = connection.execute(
        f"SELECT DISTINCT unnest(json_keys(json)) AS key FROM {quote(lines)} ORDER BY key LIMIT {MOST_KEYS + 1}"
    ).fetchall()
    if len(found) > MOST_KEYS:
        raise DataError(f"{files[0]}: found more than {MOST_KEYS:,} keys, allowed are objects with the same few")
    keys = [key for key in dict.fromkeys([*(first[0] if first else ()), *(key for (key,) in found)]) if key]
    if not keys:
        raise DataError(f"{files[0]}: the table {name} is empty, allowed is one object or more")
    check_names(name, files[0], keys)
    return keys


def _objects(lines: str, keys: Sequence[str]) -> str:
    structure = literal(json.dumps(dict.fromkeys(keys, "JSON")))
    return f"SELECT {FILE}, json_transform(json, {structure}) AS object FROM {quote(lines)}"


def _kinds(connection: duckdb.DuckDBPyConnection, lines: str, keys: Sequence[str]) -> dict[str, dict[Path, Kind]]:
    """What kind of values each key has in each file."""
    bits = ", ".join(
        f"bit_or(CASE json_type(object.{quote(key)}) WHEN 'VARCHAR' THEN {_TEXT} WHEN 'UBIGINT' THEN {_INTEGER} "
        f"WHEN 'BIGINT' THEN {_INTEGER} WHEN 'DOUBLE' THEN {_FLOAT} WHEN 'BOOLEAN' THEN {_BOOLEAN} "
        f"WHEN 'OBJECT' THEN {_NESTED} WHEN 'ARRAY' THEN {_NESTED} ELSE 0 END)"
        for key in keys
    )
    found = connection.execute(f"SELECT {FILE}, {bits} FROM ({_objects(lines, keys)}) GROUP BY 1").fetchall()
    kinds: dict[str, dict[Path, Kind]] = {key: {} for key in keys}
    for file, *masks in found:
        for key, mask in zip(keys, masks, strict=True):
            if mask:
                kinds[key][Path(file)] = _kind(mask)
    return kinds


def _kind(mask: int) -> Kind:
    """The kind of values of several kinds: numbers of one kind or the other are numbers, all else is text."""
    if mask == _INTEGER:
        return "integer"
    if mask in (_FLOAT, _FLOAT | _INTEGER):
        return "float"
    if mask == _BOOLEAN:
        return "boolean"
    return "other" if mask == _NESTED else "text"
