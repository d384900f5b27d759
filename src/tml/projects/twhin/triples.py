"""Triples as people keep them: text of three columns, or Parquet, one file or many, read into DuckDB as they stand.

Text is as `text_layout.py` says. Its columns are named by a heading, or else are `head`, `relation`, `tail` in the
order that the caller says, and may be followed by a `weight`, a `time` and a `label` that some files may lack. Parquet
has columns of these names, or `lhs`, `rel` and `rhs` for the first three.
"""

from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from tml.core.errors import ConfigError, DataError
from tml.data.faults import first_line
from tml.data.readers.parquet import BROKEN
from tml.data.tables import literal
from tml.projects.twhin.text_layout import ENDS, explained, text_layout

EXTRAS = ("weight", "time", "label")
PARQUET_NAMES = {"head": "lhs", "relation": "rel", "tail": "rhs"}
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
            raise DataError(f"{file}: not readable as triples ({explained(error)})") from None
        empty = " OR ".join(f"coalesce({name}, '') = ''" for name in ENDS)
        found = connection.execute(f"SELECT count(*) FROM {table} WHERE {empty}").fetchone()
        if found and found[0]:
            raise DataError(f"{file}: found {found[0]} rows with an empty head, relation or tail, allowed are none")
    rows = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    if not rows or not rows[0]:
        raise DataError(f"{files[0]}: found no triple, allowed is one or more")


def _is_table(file: Path) -> bool:
    return any(file.name.lower().endswith(ending + packed) for ending in ENDINGS for packed in COMPRESSIONS)


def _text_select(file: Path, columns: Sequence[str]) -> str:
    return text_layout(file, columns, range(3, len(columns) + 1), EXTRAS).sql(columns)


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
