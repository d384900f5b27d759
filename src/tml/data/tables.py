"""Reading one table of a log into DuckDB under the contract's column names and types.

A table is one Parquet, CSV or JSON lines file, plain, gzip or zstd, or many of them (a folder or a glob). Ids become
BIGINT where every file has integers, VARCHAR elsewhere; times become TIMESTAMP in UTC.
"""

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from tml.core.errors import DataError
from tml.data.config import TableConfig

READERS = {
    ".parquet": "read_parquet({files}, union_by_name=true)",
    ".csv": "read_csv({files}, sample_size=-1, union_by_name=true)",
    ".tsv": "read_csv({files}, sample_size=-1, union_by_name=true, delim='\t')",
    ".jsonl": "read_json({files}, format='newline_delimited', sample_size=-1, union_by_name=true)",
    ".ndjson": "read_json({files}, format='newline_delimited', sample_size=-1, union_by_name=true)",
}
COMPRESSIONS = ("", ".gz", ".zst")

EARLIEST_YEAR, LATEST_YEAR = 1990, 2100
_EARLIEST, _LATEST = 631_152_000, 4_102_444_800  # the same in seconds since 1970
_UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000}
_INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER")


def quote(name: str) -> str:
    """A name as a SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as a SQL string."""
    return "'" + text.replace("'", "''") + "'"


@dataclass(frozen=True)
class Source:
    """The files of one table, opened: `columns` maps the contract's names to (the file's own name, DuckDB type)."""

    name: str
    files: tuple[Path, ...]
    columns: Mapping[str, tuple[str, str]]
    relation: str

    @property
    def label(self) -> str:
        """The file as errors name it."""
        return str(self.files[0]) if len(self.files) == 1 else f"{self.files[0]} and {len(self.files) - 1} more"


def find_files(folder: Path, name: str, config: TableConfig) -> tuple[Path, ...]:
    """The files of a table, sorted; empty where the config names none and there is none by the table's name."""
    endings = [ending + compression for ending in READERS for compression in COMPRESSIONS]
    if config.file is None:
        found = [folder / (name + ending) for ending in endings if (folder / (name + ending)).is_file()]
        if len(found) > 1:
            raise DataError(f"{folder}: found {' and '.join(f.name for f in found)}, allowed is one {name} table")
        inside = folder / name
        return tuple(found) or (_table_files(inside, endings) if inside.is_dir() else ())
    path = folder / config.file
    if path.is_dir():
        files = _table_files(path, endings)
    else:
        files = tuple(sorted(folder.glob(config.file))) if any(c in config.file for c in "*?[") else (path,)
    if not files or not all(file.is_file() for file in files):
        raise DataError(f"{path}: no such file, but the log's config names it for the table {name}")
    return files


def _table_files(folder: Path, endings: Sequence[str]) -> tuple[Path, ...]:
    return tuple(sorted(f for f in folder.iterdir() if f.is_file() and f.name.endswith(tuple(endings))))


def open_source(connection: duckdb.DuckDBPyConnection, folder: Path, name: str, config: TableConfig) -> Source | None:
    """Find a table's files and read their columns; None where there is no such table.

    Raises:
        DataError: a file that is missing, unreadable or of a kind not known; a column of the config that is not there.
    """
    files = find_files(folder, name, config)
    if not files:
        return None
    kinds = {_ending(file) for file in files}
    if len(kinds) > 1 or None in kinds:
        raise DataError(
            f"{files[0]}: found ending {files[0].suffix!r}, allowed are {', '.join(READERS)}, plain, .gz or .zst"
        )
    listed = "[" + ", ".join(literal(str(file)) for file in files) + "]"
    relation = READERS[str(kinds.pop())].format(files=listed)
    try:
        described = connection.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()
    except duckdb.Error as error:
        raise DataError(f"{files[0]}: not a readable {name} table ({_first_line(error)})") from None
    own = {str(row[0]): str(row[1]) for row in described}
    for contract_name, own_name in config.columns.items():
        if own_name not in own:
            close = difflib.get_close_matches(own_name, own, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise DataError(
                f"{files[0]}: unknown column {own_name!r} (log.{name}.columns.{contract_name}), "
                f"found are {', '.join(own)}{hint}"
            )
    renamed = {own_name: contract_name for contract_name, own_name in config.columns.items()}
    columns = {renamed.get(own_name, own_name): (own_name, kind) for own_name, kind in own.items()}
    return Source(name, files, columns, relation)


def require(source: Source, names: Sequence[str]) -> None:
    """Refuse a table that lacks one of the contract's columns."""
    for name in names:
        if name not in source.columns:
            raise DataError(
                f"{source.label}: the table {source.name} needs a column {name}, "
                f"found are {', '.join(source.columns)}; name it with log.{source.name}.columns.{name}"
            )


def content_hash(files: Sequence[Path]) -> str:
    """A digest of the files' names and bytes."""
    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def is_integer(kind: str) -> bool:
    """Whether a DuckDB type is an integer that fits 64 signed bits."""
    return kind in _INTEGERS


def id_expression(source: Source, column: str, integer: bool) -> str:
    """SQL that reads an id column as BIGINT or VARCHAR."""
    own, _ = source.columns[column]
    return f"CAST({quote(own)} AS {'BIGINT' if integer else 'VARCHAR'})"


def time_expression(connection: duckdb.DuckDBPyConnection, source: Source, column: str, config: TableConfig) -> str:
    """SQL that reads a time column as TIMESTAMP in UTC, after a look at its range.

    Raises:
        DataError: not a time; integers without a unit; times outside 1990 to 2100, which a wrong unit gives.
    """
    own, kind = source.columns[column]
    where = f"{source.label}: column {own}"
    if kind in ("TIMESTAMP WITH TIME ZONE", "TIMESTAMP", "TIMESTAMP_NS", "TIMESTAMP_MS", "TIMESTAMP_S", "DATE"):
        zoned = f"({quote(own)} AT TIME ZONE 'UTC')" if kind == "TIMESTAMP WITH TIME ZONE" else quote(own)
        expression = f"CAST({zoned} AS TIMESTAMP)"
    elif kind == "VARCHAR":
        bad = connection.execute(
            f"SELECT any_value({quote(own)}) FROM {source.relation} "
            f"WHERE {quote(own)} IS NOT NULL AND TRY_CAST({quote(own)} AS TIMESTAMPTZ) IS NULL"
        ).fetchone()
        if bad and bad[0] is not None:
            raise DataError(
                f"{where}: found {bad[0]!r}, allowed are times: ISO text, timestamps, or integers with a unit"
            )
        return f"CAST((CAST({quote(own)} AS TIMESTAMPTZ) AT TIME ZONE 'UTC') AS TIMESTAMP)"
    elif is_integer(kind) or kind in ("DOUBLE", "FLOAT"):
        return _number_as_time(connection, source, column, config)
    else:
        raise DataError(f"{where}: found type {kind}, allowed are times: ISO text, timestamps, or integers with a unit")
    low, high = _range(connection, source, f"epoch({expression})")
    if low is not None and high is not None and not _EARLIEST <= low <= high <= _LATEST:
        raise DataError(f"{where}: found a time outside the years {EARLIEST_YEAR} to {LATEST_YEAR}")
    return expression


def _number_as_time(connection: duckdb.DuckDBPyConnection, source: Source, column: str, config: TableConfig) -> str:
    own, _ = source.columns[column]
    low, high = _range(connection, source, quote(own))
    fitting = [u for u, f in _UNITS.items() if low is not None and _EARLIEST * f <= low and high <= _LATEST * f]  # type: ignore[operator]
    advice = f"; they look like {fitting[0]}" if fitting else ""
    where = f"{source.label}: column {own}"
    if config.time_unit is None:
        raise DataError(
            f"{where}: found numbers without a unit, allowed is log.{source.name}.time_unit s, ms or us{advice}"
        )
    if low is not None and config.time_unit not in fitting:
        raise DataError(
            f"{where}: found {low:.0f} to {high:.0f} with time_unit {config.time_unit}, which is outside the years "
            f"{EARLIEST_YEAR} to {LATEST_YEAR}{advice}"
        )
    micros = _UNITS["us"] // _UNITS[config.time_unit]
    return f"make_timestamp(CAST({quote(own)} * {micros} AS BIGINT))"


def _range(connection: duckdb.DuckDBPyConnection, source: Source, expression: str) -> tuple[float | None, float | None]:
    try:
        row = connection.execute(f"SELECT min({expression}), max({expression}) FROM {source.relation}").fetchone()
    except duckdb.Error as error:
        raise DataError(f"{source.label}: not a readable {source.name} table ({_first_line(error)})") from None
    return (row[0], row[1]) if row else (None, None)


def _ending(file: Path) -> str | None:
    for ending in READERS:
        if any(file.name.endswith(ending + compression) for compression in COMPRESSIONS):
            return ending
    return None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200]
