"""Triples as people keep them: text of three columns, or Parquet, one file or many, read into DuckDB as they stand.

Text has no header line and no quotes: fields are separated by tabs, or where the first line has none by spaces or
commas; it may be gzip or zstd. The columns are `head`, `relation`, `tail` in the order that the caller says, and may be
followed by a `weight`, a `time` and a `label` that some files may lack. Parquet has columns of these names, or `lhs`,
`rel` and `rhs` for the first three.
"""

import gzip
from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from tml.core.errors import ConfigError, DataError
from tml.data.faults import first_line
from tml.data.readers.parquet import BROKEN
from tml.data.tables import literal

ENDS = ("head", "relation", "tail")
EXTRAS = ("weight", "time", "label")
PARQUET_NAMES = {"head": "lhs", "relation": "rel", "tail": "rhs"}
SEPARATORS = {"\t": "tabs", " ": "spaces", ",": "commas"}
ENDINGS = (".tsv", ".txt", ".csv", ".parquet")
COMPRESSIONS = ("", ".gz", ".zst")


def require_columns(columns: Sequence[str]) -> None:
    """Refuse an order of columns that is none.

    Raises:
        ConfigError: an unknown name, one that is there twice, or one of the three ends missing.
    """
    allowed = f"allowed are {', '.join(ENDS)} in any order and, behind them, {', '.join(EXTRAS)}"
    found = ",".join(columns)
    if set(columns[:3]) != set(ENDS) or len(set(columns)) < len(columns) or set(columns[3:]) - set(EXTRAS):
        raise ConfigError(f"columns: found {found}, {allowed}")


def triple_files(source: Path) -> tuple[Path, ...]:
    """The files of a path: itself, those in a folder, or those that a pattern with * or ? finds; sorted.

    Raises:
        DataError: there is none.
    """
    if source.is_dir():
        files = sorted(f for f in source.iterdir() if f.is_file() and _is_table(f))
    elif any(character in source.name for character in "*?["):
        files = sorted(f for f in source.parent.glob(source.name) if f.is_file())
    else:
        files = [source] if source.is_file() else []
    if not files:
        raise DataError(f"{source}: no such file of triples, allowed are text and Parquet files and folders of them")
    return tuple(files)


def read_triples(
    connection: duckdb.DuckDBPyConnection, files: Sequence[Path], columns: Sequence[str], table: str
) -> None:
    """Read triples into a new table with the text columns head, relation, tail, weight, time and label.

    Args:
        connection: gets the table.
        files: text and Parquet files.
        columns: the columns of text files in their order; those behind the third may be missing in a file.
        table: the name of the table.

    Raises:
        DataError: a file cannot be read, has other columns, an empty field, or no row.
    """
    every = ", ".join(f"{name} VARCHAR" for name in (*ENDS, *EXTRAS))
    connection.execute(f"CREATE OR REPLACE TABLE {table} ({every})")
    for file in files:
        try:
            select = _parquet_select(file) if file.name.endswith(".parquet") else _text_select(file, columns)
            connection.execute(f"INSERT INTO {table} BY NAME {select}")
        except duckdb.Error as error:
            raise DataError(f"{file}: not readable as triples ({first_line(error)})") from None
        empty = " OR ".join(f"{name} IS NULL" for name in ENDS)
        found = connection.execute(f"SELECT count(*) FROM {table} WHERE {empty}").fetchone()
        if found and found[0]:
            raise DataError(f"{file}: found {found[0]} rows with an empty head, relation or tail, allowed are none")
    rows = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    if not rows or not rows[0]:
        raise DataError(f"{files[0]}: found no triple, allowed is one or more")


def _is_table(file: Path) -> bool:
    return any(file.name.lower().endswith(ending + packed) for ending in ENDINGS for packed in COMPRESSIONS)


def _text_select(file: Path, columns: Sequence[str]) -> str:
    separator, count = _layout(file, columns)
    typed = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in columns[:count])
    return (
        f"SELECT * FROM read_csv({literal(str(file))}, header=false, auto_detect=false, delim={literal(separator)}, "
        f"quote='', escape='', columns={{{typed}}}{_compression(file)})"
    )


def _layout(file: Path, columns: Sequence[str]) -> tuple[str, int]:
    """The separator of a text file and its number of columns, by its first line."""
    line = _first_line(file)
    for separator in SEPARATORS:
        count = line.count(separator) + 1
        if 3 <= count <= len(columns):
            return separator, count
    shown = line if len(line) <= 60 else f"{line[:57]}..."
    allowed = " and ".join({str(number): None for number in (3, len(columns))})
    raise DataError(
        f"{file}: the first line is {shown!r}, allowed are {allowed} columns ({', '.join(columns)}) separated by "
        f"{', '.join(SEPARATORS.values())}"
    )


def _first_line(file: Path) -> str:
    try:
        if file.name.endswith(".zst"):
            with pa.input_stream(file, compression="zstd") as stream:
                head = stream.read(1 << 16)
        else:
            with gzip.open(file) if file.name.endswith(".gz") else file.open("rb") as opened:
                head = opened.readline(1 << 16)
        return str(head.split(b"\n")[0].decode()).rstrip("\r")
    except (OSError, EOFError, UnicodeDecodeError, pa.ArrowException) as error:
        raise DataError(f"{file}: not readable as text ({first_line(error)})") from None


def _compression(file: Path) -> str:
    kind = "gzip" if file.name.endswith(".gz") else "zstd" if file.name.endswith(".zst") else "none"
    return f", compression='{kind}'"


def _parquet_select(file: Path) -> str:
    try:
        names = pq.read_schema(file).names
    except BROKEN as error:
        raise DataError(f"{file}: not a readable Parquet file ({first_line(error)})") from None
    chosen = {name: own for name in ENDS for own in (name, PARQUET_NAMES[name]) if own in names}
    for name in ENDS:
        if name not in chosen:
            raise DataError(
                f"{file}: found the columns {', '.join(names)}, allowed are {', '.join(PARQUET_NAMES.values())} "
                f"and, if there are any, {', '.join(EXTRAS)}"
            )
    chosen |= {name: name for name in EXTRAS if name in names}
    casts = ", ".join(f'CAST("{own}" AS VARCHAR) AS {name}' for name, own in chosen.items())
    return f"SELECT {casts} FROM read_parquet({literal(str(file))})"
