"""Edges by their ids, as people have them: three columns, head, relation and tail.

Parquet names its columns `head`, `relation`, `tail` (or `lhs`, `rel`, `rhs`, or `source`, `type`, `target`), and may
have more, which are left alone. Text is as `text_layout.py` says: with such a heading, or three columns in this order.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from tml.core.errors import DataError
from tml.data.tables import literal
from tml.projects.twhin.text_layout import ENDS, HEADINGS, explained, text_layout

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
                for name, column in zip(ENDS, batch.columns, strict=True):
                    if not (pa.types.is_integer(column.type) or pa.types.is_string(_plain(column.type))):
                        raise DataError(f"{path}: {name} is {column.type}, allowed are integers and strings")
                    if column.null_count:
                        raise DataError(f"{path}: {name} is missing in an edge after row {rows}, allowed are none")
                rows += len(batch)
                yield NamedEdges(*batch.columns)
        except duckdb.Error as error:
            raise DataError(f"{path}: cannot be read as edges ({explained(error)})") from None
    if not rows:
        raise DataError(f"{path}: found no edge, allowed is at least one")


def _sql(connection: duckdb.DuckDBPyConnection, path: Path) -> str:
    kinds = [suffix for suffix in path.suffixes if suffix not in (".gz", ".zst")]
    kind = kinds[-1] if kinds else ""
    if kind in (".tsv", ".txt", ".csv"):
        return text_layout(path, ENDS, (3,)).sql(ENDS)
    if kind != ".parquet":
        raise DataError(f"{path}: found the ending {kind or 'none'}, allowed are .tsv, .txt, .csv and .parquet")
    source = f"read_parquet({literal(str(path))})"
    columns = [column[0] for column in connection.execute(f"FROM {source} LIMIT 0").description or ()]
    for heading in HEADINGS:
        if set(heading) <= set(columns):
            return f"SELECT {', '.join(map(_quoted, heading))} FROM {source}"
    raise DataError(f"{path}: found the columns {', '.join(columns)}, allowed are {', '.join(ENDS)}")


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _quoted(name: str) -> str:
    doubled = name.replace('"', '""')
    return f'"{doubled}"'
