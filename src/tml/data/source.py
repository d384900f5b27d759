"""One table of a log, read: its raw rows in the database, and its columns under the contract's names."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb

from tml.core.errors import DataError
from tml.data.config import TableConfig
from tml.data.faults import Faults
from tml.data.readers.csv import read_csv
from tml.data.readers.jsonl import read_jsonl
from tml.data.readers.parquet import read_parquet, row_group_of
from tml.data.readers.raw import (
    Column,
    Kind,
    Raw,
    broken_gzip,
    discard,
    odd_files,
    place_in_file,
    rows_by_file,
)
from tml.data.tables import ENDINGS, ending_of, find_files, missing_files

_READERS = {".parquet": read_parquet, ".csv": read_csv, ".tsv": read_csv}
_READERS |= dict.fromkeys((".jsonl", ".ndjson", ".json"), read_jsonl)


@dataclass(frozen=True)
class Source:
    """A table of a log as it was read.

    Attributes:
        name: the table's name in the contract.
        files: the files that are in it.
        table: the raw table in the database: columns by their own names, and `__file`.
        columns: the contract's name of a column → the raw column. Columns that the contract does not know keep their
            own names.
    """

    name: str
    files: tuple[Path, ...]
    table: str
    columns: Mapping[str, Column]

    @property
    def label(self) -> str:
        """The file as errors name it."""
        return str(self.files[0]) if len(self.files) == 1 else f"{self.files[0]} and {len(self.files) - 1} more"

    @property
    def is_csv(self) -> bool:
        """Whether its format has no types, so that only all values of a column tell its type."""
        return ending_of(self.files[0]) in (".csv", ".tsv")

    def place(self, connection: duckdb.DuckDBPyConnection, number: int) -> tuple[Path, str]:
        """The file of a numbered row of the raw table, and the place in it, as errors name it."""
        file, row = place_in_file(connection, self.table, number)
        if ending_of(file) == ".parquet":
            return file, f"row {row} (row group {row_group_of(file, row)})"
        return file, f"row {row}" if self.is_csv else f"record {row}"


def open_source(
    connection: duckdb.DuckDBPyConnection,
    folder: Path,
    name: str,
    config: TableConfig,
    required: Sequence[str],
    faults: Faults,
) -> Source | None:
    """Read a table into the database; None where there is no such table.

    Raises:
        DataError: a file that is missing, unreadable or of an unknown kind; a column that is not there.
    """
    files = find_files(folder, name, config)
    if not files:
        return None
    endings = {ending_of(file) for file in files}
    if len(endings) > 1 or None in endings:
        odd = next((file for file in files if ending_of(file) != ending_of(files[0])), files[0])
        raise DataError(
            f"{odd}: found the ending {''.join(odd.suffixes)!r}, allowed for the table {name} is one of "
            f"{', '.join(ENDINGS)}, the same for all files"
        )
    for file in missing_files(files):
        faults.file(name, file, "no such file, but the names of the others say that it must be there")
    for file in files:
        if file.name.lower().endswith(".gz") and file.is_file() and (why := broken_gzip(file)):
            faults.file(name, file, f"not a readable gzip file ({why})")
            files = tuple(other for other in files if other != file)
    if not files:
        raise DataError(f"{folder}: no file of the table {name} can be read, allowed is one or more")
    raw = _READERS[str(endings.pop())](connection, name, f"raw_{name}", files, faults)
    columns = _named(name, raw, config)
    source = Source(name, tuple(raw.files), raw.table, columns)
    for column in required:
        if column not in columns:
            raise DataError(
                f"{source.label}: the table {name} needs a column {column}, found are {', '.join(columns)}; "
                f"name it with log.{name}.columns.{column}"
            )
        lacking = {file: "" for file, names in raw.files.items() if names and columns[column].own not in names}
        source = without(connection, source, lacking, f"lacks the column {columns[column].own}", faults)
    for raw_column in raw.columns.values():
        source = without_odd(connection, source, raw_column.own, raw_column.kinds, faults)
    return source


def without_odd(
    connection: duckdb.DuckDBPyConnection, source: Source, own: str, kinds: Mapping[Path, Kind], faults: Faults
) -> Source:
    """Leave out the files that have a kind of values in a column that goes with none of most other rows.

    Raises:
        DataError: there is such a file and faults stop the reading, or no file is left.
    """
    left = {file: kinds[file] for file in source.files if file in kinds}
    if len({*left.values()}) < 2:
        return source
    odd = odd_files(left, rows_by_file(connection, source.table))
    return without(connection, source, odd, f"column {own}", faults)


def without(
    connection: duckdb.DuckDBPyConnection, source: Source, files: Mapping[Path, str], reason: str, faults: Faults
) -> Source:
    """Leave out files, each with what more there is to say of it.

    Raises:
        DataError: faults stop the reading, or no file is left.
    """
    for file, more in files.items():
        rows = 0 if faults.stops else discard(connection, source.table, file)
        faults.file(source.name, file, f"{reason} {more}".strip(), rows, "allowed is the same in all files")
    left = tuple(file for file in source.files if file not in files)
    if not left:
        raise DataError(f"{source.label}: no file of the table {source.name} can be used, allowed is one or more")
    return replace(source, files=left)


def _named(name: str, raw: Raw, config: TableConfig) -> dict[str, Column]:
    for contract_name, own in config.columns.items():
        if own not in raw.columns:
            close = difflib.get_close_matches(own, raw.columns, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise DataError(
                f"{next(iter(raw.files))}: unknown column {own!r} (log.{name}.columns.{contract_name}), "
                f"found are {', '.join(raw.columns)}{hint}"
            )
    taken = {contract_name.lower() for contract_name in config.columns}
    given: dict[str, list[str]] = {}
    for contract_name, own in config.columns.items():
        given.setdefault(own, []).append(contract_name)
    columns: dict[str, Column] = {}
    for own, column in raw.columns.items():
        # A column whose name the config gives to another one steps aside.
        names = given.get(own, [] if own.lower() in taken else [own])
        columns |= dict.fromkeys(names, column)
    if name == "impressions" and (clash := next((c for c in columns if c.lower() == "row"), None)):
        raise DataError(
            f"{next(iter(raw.files))}: found a column {clash}, which is the log's own name for a row's number; "
            f"give it another with log.impressions.columns, as {{row_number: {columns[clash].own}}}"
        )
    return columns
