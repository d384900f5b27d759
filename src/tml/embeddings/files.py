"""Embeddings on disk: Parquet with the columns `id` and `vector`, a fixed-size list of float32.

This is where training and use meet: whoever makes vectors writes such a file for each type of node, and whoever uses
them (the ranker's examples, nearest neighbours, another program) reads it, with no code in common. An id is an integer
or a string, whichever the log has. A table may be one file or a folder of them, read in the order of their names.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tml.core.errors import DataError
from tml.core.files import whole_file

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Embeddings:
    """A vector for each id: `ids` (n) of integers or strings, `vectors` (n, width) float32."""

    ids: pa.Array
    vectors: Vectors

    @property
    def width(self) -> int:
        """The dimension of a vector."""
        return int(self.vectors.shape[1])

    def __len__(self) -> int:
        return len(self.ids)

    def lookup(self, ids: pa.Array | Sequence[int | str] | npt.NDArray[Any]) -> Vectors:
        """The vectors of some ids, (ids, width) float32; an id that is not here, or null, gets zeros.

        Example:
            >>> table = Embeddings(pa.array(["a", "b"]), np.ones((2, 3), np.float32))
            >>> table.lookup(["b", "z"]).tolist()
            [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
        """
        return self.at(self.rows(ids))

    def at(self, rows: npt.NDArray[np.int64]) -> Vectors:
        """The vectors of some rows, (rows, width) float32; zeros for -1."""
        found = np.zeros((len(rows), self.width), np.float32)
        found[rows >= 0] = self.vectors[rows[rows >= 0]]
        return found

    def rows(self, ids: pa.Array | Sequence[int | str] | npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """The row of each of some ids, (ids,) int64; -1 for an id that is not here, or null."""
        wanted = ids if isinstance(ids, pa.Array) else pa.array(ids)
        if len(wanted) and pa.types.is_integer(wanted.type) != pa.types.is_integer(self.ids.type):
            raise DataError(f"embeddings: found ids of type {wanted.type}, allowed is the table's type {self.ids.type}")
        return self._rows(_narrowed(wanted, self.ids.type))

    def _rows(self, wanted: pa.Array) -> npt.NDArray[np.int64]:
        if not pa.types.is_integer(self.ids.type):
            row_of = self._row_of
            return np.fromiter((row_of.get(name, -1) for name in wanted.to_pylist()), np.int64, len(wanted))
        ids, rows = self._sorted
        if not len(ids):
            return np.full(len(wanted), -1)
        values = wanted.fill_null(0).to_numpy()
        at = np.minimum(np.searchsorted(ids, values), len(ids) - 1)
        return np.where((ids[at] == values) & np.asarray(wanted.is_valid()), rows[at], -1)

    @cached_property
    def _sorted(self) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """Integer ids in order, and their rows; made once, since ids are looked up a few thousand at a time."""
        ids = self.ids.to_numpy()
        rows = np.argsort(ids)
        return ids[rows], rows

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.ids.to_pylist())}


def write_embeddings(path: Path, ids: pa.Array | Sequence[int | str] | npt.NDArray[Any], vectors: Vectors) -> None:
    """Write one embeddings file, whole or not at all.

    Args:
        path: the Parquet file.
        ids: one id for each vector, all integers or all strings.
        vectors: (ids, width) float32.

    Raises:
        DataError: an id is null or there twice, a value is not finite, or the counts differ.
    """
    if vectors.ndim != 2 or len(ids) != len(vectors):
        raise DataError(
            f"{path}: found {len(ids)} ids and vectors of shape {vectors.shape}, allowed is a row for each id"
        )
    write_blocks(path, ids, [vectors])


def write_blocks(path: Path, ids: pa.Array | Sequence[int | str] | npt.NDArray[Any], blocks: Iterable[Vectors]) -> None:
    """Write one embeddings file whose vectors need not all be in memory, whole or not at all.

    Args:
        path: the Parquet file.
        ids: one id for each vector, all integers or all strings.
        blocks: the vectors in the order of the ids, (some, width) float32 each; at least one.

    Raises:
        DataError: an id is null or there twice, or a value is not finite.
    """
    plain = _plain(ids if isinstance(ids, pa.Array) else pa.array(ids))
    _check_ids(path, plain)
    start = 0
    with whole_file(path) as partial, ExitStack() as stack:
        writer = None
        for block in blocks:
            part = Embeddings(plain.slice(start, len(block)), np.ascontiguousarray(block, np.float32))
            _check_finite(path, part)
            column = pa.FixedSizeListArray.from_arrays(pa.array(part.vectors.reshape(-1)), part.width)
            table = pa.table({"id": part.ids, "vector": column})
            writer = writer or stack.enter_context(pq.ParquetWriter(partial, table.schema))
            writer.write_table(table)
            start += len(block)


def read_embeddings(path: Path, width: int | None = None) -> Embeddings:
    """Read an embeddings file, or a folder of them.

    Args:
        path: a Parquet file, or a folder of `*.parquet`.
        width: the dimension that the vectors must have; None allows any.

    Raises:
        DataError: the file is missing or is no embeddings file, the width is another, an id is null or there twice,
            or a value is not finite.
    """
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise DataError(f"{path}: no such embeddings file, allowed is a Parquet file or a folder of them")
    parts = [_read_file(file) for file in files]
    for file, part in zip(files, parts, strict=True):
        if (part.ids.type, part.width) != (parts[0].ids.type, parts[0].width):
            raise DataError(
                f"{file}: found ids of type {part.ids.type} and width {part.width}, "
                f"allowed are those of {files[0].name}, {parts[0].ids.type} and {parts[0].width}"
            )
    table = Embeddings(pa.concat_arrays([p.ids for p in parts]), np.concatenate([p.vectors for p in parts]))
    _check(path, table, width)
    return table


def _read_file(path: Path) -> Embeddings:
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from None
    if not {"id", "vector"} <= set(table.column_names):
        found = ", ".join(table.column_names)
        raise DataError(f"{path}: found the columns {found}, allowed are `id` and `vector`")
    column = table["vector"].combine_chunks()
    if not pa.types.is_fixed_size_list(column.type) or not pa.types.is_floating(column.type.value_type):
        raise DataError(f"{path}: `vector` is {column.type}, allowed is a fixed-size list of float32")
    if column.null_count or column.flatten().null_count:
        raise DataError(f"{path}: `vector` has nulls, allowed are none")
    flat = np.asarray(column.flatten(), np.float32)
    return Embeddings(_plain(table["id"].combine_chunks()), flat.reshape(len(column), column.type.list_size))


def _narrowed(ids: pa.Array, kind: pa.DataType) -> pa.Array:
    """Ids as another type of integers, or of strings, null where that has no such number."""
    try:
        return ids.cast(kind)
    except pa.ArrowInvalid:
        bounds = np.iinfo(kind.to_pandas_dtype())
        fitting = [one if one is not None and bounds.min <= one <= bounds.max else None for one in ids.to_pylist()]
        return pa.array(fitting, kind)


def _plain(ids: pa.Array) -> pa.Array:
    """Dictionaries and large strings as what they stand for, so that equal ids have equal types."""
    if isinstance(ids, pa.DictionaryArray):
        ids = ids.dictionary_decode()
    return ids.cast(pa.string()) if pa.types.is_large_string(ids.type) else ids


def _check(path: Path, table: Embeddings, width: int | None) -> None:
    _check_ids(path, table.ids)
    if width is not None and table.width != width:
        raise DataError(f"{path}: found vectors of width {table.width}, allowed is {width}")
    _check_finite(path, table)


def _check_ids(path: Path, ids: pa.Array) -> None:
    if not (pa.types.is_integer(ids.type) or pa.types.is_string(ids.type)):
        raise DataError(f"{path}: `id` is {ids.type}, allowed are integers and strings")
    if ids.null_count:
        raise DataError(f"{path}: `id` is null in {ids.null_count} rows, allowed are none")
    if len(pc.unique(ids)) != len(ids):
        counts = pc.value_counts(ids)
        twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
        raise DataError(f"{path}: the id {twice[0].as_py()!r} is there twice, allowed is one vector for each id")


def _check_finite(path: Path, table: Embeddings) -> None:
    if not np.isfinite(table.vectors).all():
        row = int(np.flatnonzero(~np.isfinite(table.vectors).all(axis=1))[0])
        raise DataError(f"{path}: the vector of id {table.ids[row].as_py()!r} has a value that is not finite")
