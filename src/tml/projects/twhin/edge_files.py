"""Edges by their ids, as people have them: three columns, head, relation and tail.

Parquet and CSV name their columns `head`, `relation`, `tail` (or `lhs`, `rel`, `rhs`, or `source`, `type`, `target`),
and may have more, which are left alone. Text of three columns without such a heading, and always `.tsv` and `.txt`
with tabs, is read by position, as knowledge graphs are published. A text file may be compressed (`.gz`, `.zst`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from tml.core.errors import DataError

HEADINGS = (("head", "relation", "tail"), ("lhs", "rel", "rhs"), ("source", "type", "target"))
BLOCK = 65_536
"""Edges that are read at a time."""


@dataclass(frozen=True)
class NamedEdges:
    """Some edges: ids of heads, names of relations, ids of tails, all strings or as the file has them."""

    head: pa.Array
    relation: pa.Array
    tail: pa.Array

    def __len__(self) -> int:
        return len(self.head)


def read_edges(path: Path) -> Iterator[NamedEdges]:
    """Read the edges of a file block by block.

    Raises:
        DataError: there is no such file, it cannot be read or is of another kind, lacks a column, or has no edge; or an
            edge lacks something.
    """
    if not path.is_file():
        raise DataError(
            f"{path}: no such file of edges, allowed are .tsv, .txt, .csv (plain or .gz, .zst) and .parquet"
        )
    with duckdb.connect() as connection:
        try:
            relation = connection.sql(_sql(connection, path))
            reader = relation.to_arrow_reader(BLOCK)
            rows = 0
            for batch in reader:
                for name, column in zip(("head", "relation", "tail"), batch.columns, strict=True):
                    if column.null_count:
                        raise DataError(f"{path}: {name} is missing in an edge after row {rows}, allowed are none")
                rows += len(batch)
                yield NamedEdges(*batch.columns)
        except duckdb.Error as error:
            raise DataError(f"{path}: cannot be read as edges ({str(error).splitlines()[0]})") from None
    if not rows:
        raise DataError(f"{path}: found no edge, allowed is at least one")


def _sql(connection: duckdb.DuckDBPyConnection, path: Path) -> str:
    name = str(path).replace("'", "''")
    kinds = [suffix for suffix in path.suffixes if suffix not in (".gz", ".zst")]
    kind = kinds[-1] if kinds else ""
    if kind == ".parquet":
        source, named = f"read_parquet('{name}')", True
    elif kind in (".tsv", ".txt", ".csv"):
        separator = "," if kind == ".csv" else "\\t"
        options = f"delim = E'{separator}', header = false, all_varchar = true, nullstr = ''"
        source, named = f"read_csv('{name}', {options})", False
    else:
        raise DataError(f"{path}: found the ending {kind or 'none'}, allowed are .tsv, .txt, .csv and .parquet")
    connection.execute(f"FROM {source} LIMIT 1")
    columns = [column[0] for column in connection.description or ()]
    row = [str(value) for row in connection.fetchall() for value in row]
    first = columns if named else row
    for heading in HEADINGS:
        if set(heading) <= set(first):
            chosen = [columns[first.index(name)] for name in heading]
            skip = "" if named else " OFFSET 1"
            return f"SELECT {', '.join(map(_quoted, chosen))} FROM {source}{skip}"
    if named or len(columns) != 3:
        found = ", ".join(first) if named else f"{len(columns)} columns"
        raise DataError(
            f"{path}: found {found or 'nothing'}, allowed are three columns or the headings head, relation, tail"
        )
    return f"FROM {source}"


def _quoted(name: str) -> str:
    doubled = name.replace('"', '""')
    return f'"{doubled}"'
