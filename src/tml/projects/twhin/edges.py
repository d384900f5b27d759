"""Edges as Parquet, read one row group at a time, and what may be wrong with them.

    lhs, rel, rhs   integers: rows of the head's vocabulary, of the relations, of the tail's vocabulary
    weight          optional, a finite number of at least 0: how much an edge counts
    time            optional, a timestamp or an integer: when the edge came to be
    label           optional, 0 or 1: whether it is an edge; where it is not, a pair to be told from edges

Timestamps are read as microseconds since 1970 in UTC, integers as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tml.core.errors import DataError
from tml.data.faults import first_line
from tml.data.readers.parquet import BROKEN

Rows = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float32]
Labels = npt.NDArray[np.bool_]

REQUIRED = ("lhs", "rel", "rhs")
OPTIONAL = ("weight", "time", "label")


@dataclass(frozen=True)
class Edges:
    """Columns of some edges, each (edges,): int64, and float32 weights, int64 times, bool labels or None."""

    lhs: Rows
    rel: Rows
    rhs: Rows
    weight: Weights | None = None
    time: Rows | None = None
    label: Labels | None = None

    def __len__(self) -> int:
        return len(self.lhs)

    @staticmethod
    def concatenate(parts: Sequence["Edges"]) -> "Edges":
        """The edges of several parts that have the same columns, in their order."""
        columns: dict[str, Any] = {}
        for field in fields(Edges):
            values = [getattr(part, field.name) for part in parts]
            if parts and values[0] is not None:
                columns[field.name] = np.concatenate(values)
            elif field.name in REQUIRED:
                columns[field.name] = np.zeros(0, np.int64)
        return Edges(**columns)


@dataclass(frozen=True)
class RowGroup:
    """A part of an edge file: its number in the file, and how many edges it has."""

    path: Path
    index: int
    rows: int


class EdgeReader:
    """Reads checked edges from Parquet files with the same columns.

    Args:
        files: at least one.
        heads: the number of nodes that each relation's head may be, (relations,) int64.
        tails: the same of its tail.

    Raises:
        DataError: a file is no whole Parquet file, lacks a column, has columns that others have not, or a column of a
            type that it may not have.
    """

    def __init__(self, files: Sequence[Path], heads: Rows, tails: Rows) -> None:
        self.heads, self.tails = heads, tails
        self._found: tuple[Path, list[str]] | None = None
        self._files = tuple(files)

    @cached_property
    def row_groups(self) -> tuple[RowGroup, ...]:
        """All parts, in the order of the files."""
        return tuple(group for path in self._files for group in self._groups_of(path))

    def read(self, group: RowGroup) -> Edges:
        """Read a part, and check every row of it."""
        path, columns = group.path, self._columns
        try:
            with pq.ParquetFile(path) as file:
                table = file.read_row_group(group.index, columns=columns)
        except BROKEN as error:
            raise DataError(f"{path}: row group {group.index} is not readable ({first_line(error)})") from None
        for name in columns:
            if table[name].null_count:
                raise DataError(f"{path}: `{name}` has nulls in row group {group.index}, allowed are none")
        edges = Edges(**{name: _values(path, name, table[name]) for name in columns})
        self._check(group, edges)
        return edges

    @property
    def _columns(self) -> list[str]:
        _ = self.row_groups
        assert self._found is not None  # there is at least one file
        return self._found[1]

    def _groups_of(self, path: Path) -> list[RowGroup]:
        try:
            with pq.ParquetFile(path) as file:
                schema, metadata = file.schema_arrow, file.metadata
                rows = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        except BROKEN as error:
            raise DataError(f"{path}: not a readable Parquet file ({first_line(error)})") from None
        _check_schema(path, schema)
        columns = [name for name in (*REQUIRED, *OPTIONAL) if name in schema.names]
        if self._found is None:
            self._found = (path, columns)
        if columns != self._found[1]:
            raise DataError(
                f"{path}: found the columns {', '.join(columns)}, allowed are those of {self._found[0].name}, "
                f"{', '.join(self._found[1])}"
            )
        return [RowGroup(path, index, count) for index, count in enumerate(rows) if count]

    def _check(self, group: RowGroup, edges: Edges) -> None:
        _require_range(group, "rel", edges.rel, np.int64(len(self.heads)))
        _require_range(group, "lhs", edges.lhs, self.heads[edges.rel])
        _require_range(group, "rhs", edges.rhs, self.tails[edges.rel])
        if edges.weight is not None:
            wrong = ~(np.isfinite(edges.weight) & (edges.weight >= 0))
            if wrong.any():
                at = int(wrong.argmax())
                raise DataError(
                    f"{group.path}: found weight {edges.weight[at]} in row {at} of row group {group.index}, "
                    "allowed are finite numbers of at least 0"
                )


def _require_range(group: RowGroup, column: str, rows: Rows, size: Rows | np.int64) -> None:
    outside = (rows < 0) | (rows >= size)
    if outside.any():
        at = int(outside.argmax())
        last = int(np.broadcast_to(size, rows.shape)[at]) - 1
        raise DataError(
            f"{group.path}: found {column} {rows[at]} in row {at} of row group {group.index}, allowed are 0 to {last}"
        )


def _check_schema(path: Path, schema: pa.Schema) -> None:
    missing = [name for name in REQUIRED if name not in schema.names]
    if missing:
        raise DataError(
            f"{path}: found the columns {', '.join(schema.names)}, but not `{missing[0]}`, "
            f"allowed are {', '.join(REQUIRED)} and, if there are any, {', '.join(OPTIONAL)}"
        )
    twice = [name for name in (*REQUIRED, *OPTIONAL) if schema.names.count(name) > 1]
    if twice:
        raise DataError(f"{path}: found the column {twice[0]!r} twice, allowed is each name once")
    for name in (*REQUIRED, *OPTIONAL):
        if name in schema.names and not _is_allowed(name, schema.field(name).type):
            allowed = {"weight": "numbers", "time": "timestamps and integers", "label": "booleans, 0 and 1"}
            kind = schema.field(name).type
            raise DataError(f"{path}: `{name}` is {kind}, allowed are {allowed.get(name, 'integers')}")


def _is_allowed(name: str, kind: pa.DataType) -> bool:
    integer = bool(pa.types.is_integer(kind))
    if name == "weight":
        return integer or bool(pa.types.is_floating(kind))
    if name == "time":
        return integer or bool(pa.types.is_timestamp(kind))
    return integer or (name == "label" and bool(pa.types.is_boolean(kind)))


def _values(path: Path, name: str, column: pa.ChunkedArray) -> npt.NDArray[Any]:
    if name == "weight":
        with np.errstate(over="ignore"):  # what is too large is infinite, and refused as such
            return np.asarray(column, np.float32)
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("us", column.type.tz), safe=False).cast(pa.int64())
    if name != "label":
        return np.asarray(column, np.int64)
    if pa.types.is_boolean(column.type):
        return np.asarray(column, np.bool_)
    odd = column.filter(pc.invert(pc.is_in(column, pa.array([0, 1], column.type))))
    if len(odd):
        raise DataError(f"{path}: found the label {odd[0].as_py()}, allowed are 0 and 1")
    return np.equal(np.asarray(column, np.int64), 1)
