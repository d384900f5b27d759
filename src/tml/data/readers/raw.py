"""A table as its files have it: the rows in their order with the file that each is from, and the kinds of its columns.

Files are read all at once, which is fast. Only if that fails are they read one by one, to find out which cannot be.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import duckdb
from isal import igzip, isal_zlib

from tml.core.errors import DataError
from tml.data.faults import first_line
from tml.data.tables import literal, quote

FILE = "__file"
"""The column of a raw table that says which file a row is from."""
ROW = "__row"
"""The number of a row in `numbered`."""

Kind = Literal["integer", "float", "boolean", "text", "time", "other"]
FAMILIES: Mapping[str, str] = {
    "integer": "numbers",
    "float": "numbers",
    "boolean": "numbers",
    "text": "text",
    "time": "times",
    "other": "nested values",
}
"""Kinds of one family can stand in one column: what is integer in one file may be float in another."""


@dataclass(frozen=True)
class Column:
    """A column of a raw table.

    Attributes:
        own: its name in the files.
        type: its DuckDB type; VARCHAR for the text formats.
        kinds: file → what it has there. A file is left out if it has no value or if only the values tell, as in CSV.
    """

    own: str
    type: str
    kinds: Mapping[Path, Kind]


@dataclass(frozen=True)
class Raw:
    """A raw table of the database.

    Attributes:
        table: its name in the database.
        files: those that could be read, each with the names of its columns; none for JSON, where objects differ.
        columns: by their own names.
    """

    table: str
    files: Mapping[Path, tuple[str, ...]]
    columns: Mapping[str, Column]


def file_list(files: Sequence[Path]) -> str:
    """The files as a SQL list of their names."""
    return "[" + ", ".join(literal(str(file)) for file in files) + "]"


def broken_gzip(file: Path) -> str:
    """What is wrong with a gzip file whose content does not match its checksum, which DuckDB does not look at."""
    try:
        with igzip.open(file) as stream:  # type: ignore[no-untyped-call]
            while stream.read(1 << 22):
                pass
    except (OSError, EOFError, isal_zlib.error) as error:  # type: ignore[misc]  # its stubs take the class for an instance
        return first_line(error)
    return ""


def check_names(name: str, file: Path, names: Sequence[str]) -> None:
    """Refuse columns that SQL cannot tell apart.

    Raises:
        DataError: two names that are equal but for upper and lower case, or the name of the column of files.
    """
    seen: dict[str, str] = {}
    for column in names:
        if column.lower() in (FILE, ROW):
            raise DataError(
                f"{file}: the table {name} has the column {column!r}, which is the name of a column that is added "
                "here, allowed is any other"
            )
        if column.lower() in seen:
            raise DataError(
                f"{file}: the table {name} has the columns {seen[column.lower()]!r} and {column!r}, "
                "allowed are names that differ in more than upper and lower case"
            )
        seen[column.lower()] = column


def load(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    table: str,
    files: Sequence[Path],
    select: Callable[[Sequence[Path]], str],
    salvage: Callable[[Path, str], str | None],
) -> tuple[Path, ...]:
    """Make the table `table` of files.

    Args:
        name: the log's name of the table, for errors.
        select: SQL that reads some of the files, with the column `__file`.
        salvage: is given a file that cannot be read and why; it reports the fault, and returns SQL that reads
            what is left of the file, if anything is.

    Returns:
        The files that were read.

    Raises:
        DataError: a file that cannot be read, if faults stop the reading; or none of them can.
    """
    try:
        connection.execute(f"CREATE OR REPLACE TABLE {quote(table)} AS {select(files)}")
        return tuple(files)
    except duckdb.OutOfMemoryException as error:
        raise DataError(f"{files[0]}: found too little memory to read the table {name} ({first_line(error)})") from None
    except duckdb.Error as error:
        whole, whole_error = list(files), error
    salvaged: dict[Path, str] = {}
    for file in files:
        try:
            connection.execute(f"CREATE OR REPLACE TABLE {quote(table)} AS {select([file])}")
        except duckdb.Error as error:
            whole.remove(file)
            left = salvage(file, first_line(error))
            if left is not None:
                salvaged[file] = left
    if len(whole) == len(files):
        raise DataError(
            f"{files[0].parent}: files of the table {name} that cannot be read together ({first_line(whole_error)}), "
            "allowed are files with the same columns"
        )
    parts = [select(whole)] * bool(whole) + [*salvaged.values()]
    if not parts:
        raise DataError(f"{files[0]}: no file of the table {name} can be read, allowed is one or more")
    connection.execute(f"CREATE OR REPLACE TABLE {quote(table)} AS {' UNION ALL BY NAME '.join(parts)}")
    return tuple(file for file in files if file in whole or file in salvaged)


def rows_by_file(connection: duckdb.DuckDBPyConnection, table: str) -> dict[Path, int]:
    """The number of rows from each file of a raw table."""
    found = connection.execute(f"SELECT {FILE}, count(*) FROM {quote(table)} GROUP BY 1").fetchall()
    return {Path(file): rows for file, rows in found}


def numbered(table: str) -> str:
    """SQL of a raw table with the number `__row` of each row, from 0. A column of the user's may be called rowid."""
    return f"(SELECT row_number() OVER () - 1 AS {ROW}, * FROM {quote(table)})"


def place_in_file(connection: duckdb.DuckDBPyConnection, table: str, number: int) -> tuple[Path, int]:
    """The file that a row of `numbered` is from, and its place among the file's rows, counted from 1."""
    row: Any = connection.execute(
        f"WITH n AS (SELECT {ROW}, {FILE} FROM {numbered(table)}) SELECT {FILE}, {number} - min({ROW}) + 1 FROM n "
        f"WHERE {FILE} = (SELECT {FILE} FROM n WHERE {ROW} = {number}) GROUP BY 1"
    ).fetchone()
    return Path(row[0]), int(row[1])


def discard(connection: duckdb.DuckDBPyConnection, table: str, file: Path) -> int:
    """Take the rows of a file out of a raw table; return how many there were."""
    row = connection.execute(f"DELETE FROM {quote(table)} WHERE {FILE} = {literal(str(file))}").fetchone()
    return int(row[0]) if row else 0


def odd_files(kinds: Mapping[Path, Kind], rows: Mapping[Path, int]) -> dict[Path, str]:
    """The files whose kind of a column is of another family than most rows have, with what is wrong in each."""
    by_family: dict[str, int] = {}
    for file, kind in kinds.items():
        by_family[FAMILIES[kind]] = by_family.get(FAMILIES[kind], 0) + rows.get(file, 0)
    if len(by_family) < 2:
        return {}
    usual = max(by_family, key=lambda family: by_family[family])
    example = next(file for file, kind in kinds.items() if FAMILIES[kind] == usual)
    return {
        file: f"has {FAMILIES[kind]}, but in {example.name} it has {usual}"
        for file, kind in kinds.items()
        if FAMILIES[kind] != usual
    }
