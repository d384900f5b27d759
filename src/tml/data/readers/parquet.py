"""Parquet: types and row counts are known before a row is read; what is broken can be told by row group."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from tml.core.errors import DataError
from tml.data.faults import Faults, first_line
from tml.data.readers.raw import FILE, Column, Kind, Raw, check_names, file_list, load, odd_files
from tml.data.tables import literal, quote

BROKEN = (pa.ArrowException, OSError, ValueError, RuntimeError, MemoryError)
"""What pyarrow may raise about a file that is no whole Parquet file."""


def read_parquet(
    connection: duckdb.DuckDBPyConnection, name: str, table: str, files: Sequence[Path], faults: Faults
) -> Raw:
    """Read the Parquet files of a table into the raw table `table`.

    Raises:
        DataError: a file, a row group or a column that cannot be used, if faults stop the reading; or nothing is left.
    """
    kinds: dict[Path, dict[str, Kind]] = {}
    names: dict[Path, tuple[str, ...]] = {}
    rows: dict[Path, int] = {}
    for file in files:
        try:
            with pq.ParquetFile(file) as opened:
                schema = opened.schema_arrow
                rows[file] = opened.metadata.num_rows
                kinds[file] = {field.name: kind for field in schema if (kind := _kind(field.type))}
                names[file] = tuple(schema.names)
        except BROKEN as error:
            rows.pop(file, None)
            faults.file(name, file, f"not a readable Parquet file ({first_line(error)})")
            continue
        check_names(name, file, names[file])
    readable = [file for file in files if file in rows]
    for column in dict.fromkeys(column for file in readable for column in kinds[file]):
        of_column = {file: kinds[file][column] for file in readable if column in kinds[file]}
        for file, reason in odd_files(of_column, rows).items():
            faults.file(name, file, f"column {column} {reason}", rows[file], "allowed is one type in all files")
            readable.remove(file)

    if not readable:
        raise DataError(f"{files[0]}: no file of the table {name} can be read, allowed is one or more")

    def salvage(file: Path, _: str) -> str | None:
        return _whole_row_groups(connection, name, f"{table}_{files.index(file)}", file, faults)

    read = load(connection, name, table, readable, _select, salvage)
    described = connection.execute(f"DESCRIBE {quote(table)}").fetchall()
    columns = {
        str(row[0]): Column(str(row[0]), str(row[1]), {f: kinds[f][row[0]] for f in read if row[0] in kinds[f]})
        for row in described
        if row[0] != FILE
    }
    return Raw(table, {file: names[file] for file in read}, columns)


def _select(files: Sequence[Path]) -> str:
    options = f"union_by_name=true, hive_partitioning=false, filename={literal(FILE)}"
    return f"SELECT * FROM read_parquet({file_list(files)}, {options})"


def _whole_row_groups(
    connection: duckdb.DuckDBPyConnection, name: str, table: str, file: Path, faults: Faults
) -> str | None:
    """Make a table of the row groups of a file that can be read, and report the others."""
    made = False
    with pq.ParquetFile(file) as opened:
        for number in range(opened.num_row_groups):
            into = f"INSERT INTO {quote(table)} BY NAME" if made else f"CREATE OR REPLACE TABLE {quote(table)} AS"
            try:
                group = opened.read_row_group(number)
                group.validate(full=True)
                connection.register("row_group", group)
                connection.execute(f"{into} SELECT *, {literal(str(file))} AS {FILE} FROM row_group")
                connection.unregister("row_group")
                made = True
            except (*BROKEN, duckdb.Error) as error:
                rows = opened.metadata.row_group(number).num_rows
                faults.file(name, file, f"row group {number} is not readable ({first_line(error)})", rows)
    return f"SELECT * FROM {quote(table)}" if made else None


def row_group_of(file: Path, row: int) -> int:
    """The row group that a row is in, counted from 0; rows are counted from 1."""
    with pq.ParquetFile(file) as opened:
        sizes = [opened.metadata.row_group(number).num_rows for number in range(opened.num_row_groups)]
    return next(number for number, end in enumerate(accumulate(sizes)) if row <= end)


_KINDS: tuple[tuple[Callable[[Any], bool], Kind], ...] = (
    (pa.types.is_boolean, "boolean"),
    (pa.types.is_integer, "integer"),
    (pa.types.is_floating, "float"),
    (pa.types.is_decimal, "float"),
    (pa.types.is_timestamp, "time"),
    (pa.types.is_date, "time"),
    (pa.types.is_string, "text"),
    (pa.types.is_large_string, "text"),
    (pa.types.is_string_view, "text"),
    (pa.types.is_binary, "text"),
    (pa.types.is_large_binary, "text"),
    (pa.types.is_binary_view, "text"),
    (pa.types.is_fixed_size_binary, "text"),
    (lambda of: isinstance(of, pa.UuidType), "text"),
)


def _kind(of: Any) -> Kind | None:
    """The kind of an Arrow type; None for one without values."""
    if pa.types.is_null(of):
        return None
    if pa.types.is_dictionary(of):
        return _kind(of.value_type)
    return next((kind for test, kind in _KINDS if test(of)), "other")
