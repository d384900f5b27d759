"""CSV: a header line, then rows; everything is text, and what type a column has is decided by all of its values.

The separator is the comma, tab, semicolon or bar that the header line has most of; quotes are RFC 4180's.
"""

import csv
import gzip
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from tml.core.errors import DataError
from tml.data.faults import Faults, first_line
from tml.data.readers.raw import FILE, Column, Raw, check_names, file_list, load, rows_by_file
from tml.data.tables import literal

DELIMITERS = (",", "\t", ";", "|")
LONGEST_HEADER = 1 << 20
"""Bytes of the longest header line."""
UNREADABLE = (OSError, EOFError, zlib.error, pa.ArrowException, ValueError, csv.Error)
"""What `read_header` may raise about a file that is no CSV."""


@dataclass(frozen=True)
class Header:
    """The first line of a CSV file: what separates fields, and the names of the columns."""

    delimiter: str
    names: tuple[str, ...]


def read_csv(
    connection: duckdb.DuckDBPyConnection, name: str, table: str, files: Sequence[Path], faults: Faults
) -> Raw:
    """Read the CSV files of a table into the raw table `table`, every value as text, an empty one as null.

    Raises:
        DataError: a file or a line that cannot be read, if faults stop the reading; or nothing is left.
    """
    headers: dict[Path, Header] = {}
    for file in files:
        try:
            header = read_header(file)
        except UNREADABLE as error:
            faults.file(name, file, f"not a readable CSV file ({first_line(error)})")
            continue
        if header is not None:
            check_names(name, file, header.names)
            headers[file] = header
    if not headers:
        if any(skipped.file in files for skipped in faults.skipped):
            raise DataError(f"{files[0]}: no file of the table {name} can be read, allowed is one or more")
        raise DataError(f"{files[0]}: the table {name} is empty, allowed are a header line and rows")

    def select(some: Sequence[Path]) -> str:
        groups: dict[Header, list[Path]] = {}
        for file in some:
            groups.setdefault(headers[file], []).append(file)
        return " UNION ALL BY NAME ".join(_select(header, alike) for header, alike in groups.items())

    def salvage(file: Path, why: str) -> None:
        if _has_several_line_ends(file):
            why = "lines end in CR LF and in LF, allowed is one of them"
        faults.file(name, file, f"not a readable CSV file ({why})")

    _drop_rejects(connection)
    read = load(connection, name, table, list(headers), select, salvage)
    _report_rejects(connection, name, table, read, faults)
    names = {file: headers[file].names for file in read}
    columns = dict.fromkeys(column for of_file in names.values() for column in of_file)
    return Raw(table, names, {column: Column(column, "VARCHAR", {}) for column in columns})


def read_header(file: Path) -> Header | None:
    """The header of a file; None for a file without a byte.

    Raises:
        OSError, EOFError, zlib.error, pyarrow.ArrowException, ValueError, csv.Error: it cannot be read (`UNREADABLE`).
    """
    line = _first_line(file)
    if not line:
        return None
    # Lines may end in CR alone, as old spreadsheets write them.
    text = line.partition(b"\r")[0].decode("utf-8-sig").rstrip("\n")
    if "\0" in text:
        raise ValueError("the header line has a zero byte, as UTF-16 has")
    delimiter = max(DELIMITERS, key=lambda one: _outside_quotes(text).count(one))
    names = next(csv.reader([text], delimiter=delimiter, strict=True), [])
    if not any(names):
        raise ValueError("the first line is empty, where the names of the columns must be")
    # What pandas writes as an index has no name.
    return Header(delimiter, tuple(column.strip() or f"column{number}" for number, column in enumerate(names)))


def _outside_quotes(text: str) -> str:
    return "".join(text.split('"')[::2])


def _first_line(file: Path) -> bytes:
    with _content(file) as stream:
        start: bytes = stream.read(LONGEST_HEADER)
    line = start.partition(b"\n")[0].partition(b"\r")[0]
    if len(line) == LONGEST_HEADER:
        raise ValueError(f"the first line is longer than {LONGEST_HEADER:,} bytes")
    # A line without a byte is a line still, which a file without one has not.
    return line or start[:1]


@contextmanager
def _content(file: Path) -> Iterator[Any]:
    """A stream of a file's bytes, decompressed."""
    name = file.name.lower()
    if name.endswith(".gz"):
        with gzip.open(file) as stream:
            yield stream
    elif name.endswith(".zst"):
        with pa.input_stream(str(file), compression="zstd") as stream:
            yield stream
    else:
        with file.open("rb") as stream:
            yield stream


def _line_ends(file: Path) -> tuple[int, int]:
    """How many lines of a file end in LF, and how many of them in CR LF."""
    lines = pairs = 0
    last = b""
    with _content(file) as stream:
        while block := stream.read(1 << 22):
            lines += block.count(b"\n")
            pairs += block.count(b"\r\n") + (last == b"\r" and block.startswith(b"\n"))
            last = block[-1:]
    return lines, pairs


def _has_several_line_ends(file: Path) -> bool:
    try:
        lines, pairs = _line_ends(file)
    except UNREADABLE:
        return False
    return 0 < pairs < lines


def _select(header: Header, files: Sequence[Path]) -> str:
    columns = ", ".join(f"{literal(column)}: 'VARCHAR'" for column in header.names)
    options = (
        f"auto_detect=false, header=true, delim={literal(header.delimiter)}, quote='\"', escape='\"', "
        f"columns={{{columns}}}, filename={literal(FILE)}, hive_partitioning=false, "
        "store_rejects=true, rejects_limit=0"
    )
    return f"SELECT * FROM read_csv({file_list(files)}, {options})"


def _drop_rejects(connection: duckdb.DuckDBPyConnection) -> None:
    """DuckDB's own tables of the lines that it left out."""
    connection.execute("DROP TABLE IF EXISTS reject_errors; DROP TABLE IF EXISTS reject_scans")


def _report_rejects(
    connection: duckdb.DuckDBPyConnection, name: str, table: str, files: Sequence[Path], faults: Faults
) -> None:
    # A line with two faults counts once, as its first.
    found = connection.execute(
        "WITH lines AS (SELECT file_path, line, arg_min(CAST(error_type AS VARCHAR), coalesce(column_idx, 0)) AS kind, "
        "arg_min(error_message, coalesce(column_idx, 0)) AS message "
        "FROM reject_errors JOIN reject_scans USING (scan_id, file_id) "
        f"WHERE file_path IN {file_list(files)} GROUP BY ALL) "
        "SELECT file_path, kind, count(*), min(line), arg_min(message, line) FROM lines GROUP BY ALL ORDER BY 1, 4"
    ).fetchall()
    _drop_rejects(connection)
    rejected: dict[str, int] = {}
    for path, _, count, *_ in found:
        rejected[path] = rejected.get(path, 0) + count
    for path, kind, count, line, message in found:
        reason = kind.lower()
        if "unterminated quote" in message:
            # Such a quote takes the lines after it with it.
            lines, reason = _line_ends(Path(path))[0], "a quote that does not end, and the lines after it"
            read = rows_by_file(connection, table).get(Path(path), 0)
            count = max(count, lines - 1 - read - (rejected[path] - count))
        faults.rows(name, Path(path), f"line {line}", f"not a row ({first_line(message)})", reason, count)
