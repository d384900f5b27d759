"""The row groups of one part of an example dataset, each read and checked by itself.

What is wrong is named by file and, where it is not the whole file, by row group. With `on_error="skip"` it is left out
and counted instead.

    when the part is opened     a shard that is missing, cut off or of another length than the schema says; a column
                                that is missing or has another type than the schema or the first shard says
    when a row group is read    a shard that is not what it was when the part was opened; bytes that changed (every
                                page has a checksum), nulls in a vector, NaN or infinity in `binary` or an embedding, a
                                label outside 0 to 1 that is not NaN
"""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tml.core.errors import DataError
from tml.data.examples import VECTORS, Schema, vector_values
from tml.data.prefetch import map_ahead

OnError = Literal["stop", "skip"]
"""What to do with damage: raise, or leave it out and count it."""

FOOTER_READERS = 8


@dataclass(frozen=True)
class RowGroup:
    """A row group of a shard."""

    path: Path
    number: int
    rows: int

    @property
    def where(self) -> str:
        """What it is called in a message."""
        return f"{self.path} row group {self.number}"


class Shards:
    """The row groups of a part.

    Args:
        folder: an example dataset.
        part: the part's name.
        columns: what to read; None reads all.
        on_error: what to do with damage.

    Attributes:
        groups: the row groups, in the order of time.
        rows: in them.
        empty: a table of the columns without rows.
        skipped: what was left out, as the sentence that `stop` would have raised → rows.

    Raises:
        MissingStage: there is no dataset.
        DataError: there is no such part, or no shard of it that can be read; with `stop`, whatever is wrong.
    """

    def __init__(
        self, folder: Path, part: str, columns: Sequence[str] | None = None, on_error: OnError = "stop"
    ) -> None:
        self.schema = Schema.read(folder)
        self.path, self.on_error = folder / part, on_error
        self.skipped: dict[str, int] = {}
        self.groups: list[RowGroup] = []
        self._columns = None if columns is None else list(columns)
        self._open(folder, self.schema.part(part).shards)
        self.rows = sum(group.rows for group in self.groups)
        if not self.rows:
            raise self.nothing()

    def read(self, group: RowGroup) -> pa.Table | None:
        """A row group; None where it is damaged and to be skipped. Several threads may read at the same time."""
        try:
            return self._read(group)
        except DataError as error:
            self._skip(error, group.rows)
            return None

    def tables(self, skip_rows: int = 0) -> Iterator[pa.Table]:
        """The row groups in the order of time, the next one read in the background while one is in use.

        Args:
            skip_rows: rows to leave out at the start; of row groups that end before that nothing is read.
        """
        wanted = []
        for group in self.groups:
            if skip_rows < group.rows:
                wanted.append((group, skip_rows))
            skip_rows = max(0, skip_rows - group.rows)
        found = not wanted
        with closing(map_ahead(lambda item: (self.read(item[0]), item[1]), wanted, threads=1, ahead=1)) as tables:
            for table, first in tables:
                if table is not None:
                    found = True
                    yield table.slice(first)
        if not found:
            raise self.nothing()

    def nothing(self) -> DataError:
        """What is wrong where everything was skipped."""
        return DataError(f"{self.path}: found no row that can be read, allowed is at least one")

    def _skip(self, error: DataError, rows: int) -> None:
        if self.on_error == "stop":
            raise error
        self.skipped[str(error)] = rows

    def _open(self, folder: Path, shards: dict[str, int]) -> None:
        paths = [folder / name for name in shards]
        first: tuple[str, pa.Schema] | None = None
        with closing(map_ahead(_footer, paths, FOOTER_READERS, 2 * FOOTER_READERS)) as footers:
            for path, rows, footer in zip(paths, shards.values(), footers, strict=True):
                try:
                    schema, counts = _counted(path, rows, footer)
                    self._check_types(path, schema, first)
                except DataError as error:
                    self._skip(error, rows)
                    continue
                first = first or (path.name, schema)
                self.groups += [RowGroup(path, number, count) for number, count in enumerate(counts) if count]
        self._first = first
        if first:
            empty = first[1].remove_metadata().empty_table()
            self.empty = empty if self._columns is None else empty.select(self._columns)

    def _check_types(self, path: Path | str, found: pa.Schema, first: tuple[str, pa.Schema] | None) -> None:
        """Each column as the schema says, and as in the first shard."""
        widths = self.schema.widths()
        everything = [*widths, *self.schema.tasks, *(first[1].names if first else ())]
        for name in everything if self._columns is None else self._columns:
            if found.get_field_index(name) < 0:
                known = ", ".join(found.names)
                raise DataError(f"{path}: found no column {name}, or several, allowed is one; found are {known}")
            kind = found.field(name).type
            allowed = None
            if name in widths and not _is_vector(kind, name, widths[name]):
                allowed = f"a fixed-size list of {widths[name]} {'int32' if name == 'discrete' else 'float32'}"
            elif name in self.schema.tasks and not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
                allowed = "float32"
            elif first and not _same_type(kind, first[1].field(name).type):
                allowed = f"{first[1].field(name).type} as in {first[0]}"
            if allowed:
                raise DataError(f"{path}: found {name} of type {kind}, allowed is {allowed}")

    def _read(self, group: RowGroup) -> pa.Table:
        where = group.where
        with _readable(where):
            file = pq.ParquetFile(group.path, page_checksum_verification=True)
            found = file.schema_arrow
        self._check_types(where, found, self._first)  # again, since a shard may be written anew while it is read
        with _readable(where):
            table = file.read_row_group(group.number, self._columns, use_threads=False)
        if self._columns is not None:
            table = table.select(self._columns)  # a name with dots selects what lies below it, too
        if table.num_rows != group.rows:
            raise DataError(f"{where}: found {table.num_rows} rows, the footer says {group.rows}")
        self._check_values(where, table)
        return table

    def _check_values(self, where: str, table: pa.Table) -> None:
        for name in self.schema.widths():
            if name not in table.column_names:
                continue
            nulls = table[name].null_count
            if name != "continuous":
                nulls += sum(chunk.flatten().null_count for chunk in table[name].chunks)
            if nulls:
                raise DataError(f"{where}: found {nulls} nulls in {name}, allowed are none")
            if name not in ("continuous", "discrete") and not np.isfinite(vector_values(table[name])).all():
                raise DataError(f"{where}: found NaN or infinity in {name}, allowed are finite numbers")
        for task in self.schema.tasks:
            if task in table.column_names:
                labels = table[task].to_numpy()
                wrong = ~((labels >= 0) & (labels <= 1) | np.isnan(labels))
                if wrong.any():
                    raise DataError(f"{where}: found {labels[wrong][0]} in {task}, allowed are 0 to 1 and NaN")


def read_part(
    folder: Path, part: str, columns: Sequence[str] | None = None, skip_rows: int = 0, on_error: OnError = "stop"
) -> Iterator[pa.Table]:
    """The row groups of a part in the order of time, all columns or some; see `Shards` and `Shards.tables`."""
    yield from Shards(folder, part, columns, on_error).tables(skip_rows)


@contextmanager
def _readable(where: Path | str) -> Iterator[None]:
    """A sentence for whatever a parser raises on bytes that are not, or no longer, Parquet."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{where}: no such shard, but the schema names it") from None
    except Exception as error:
        raise DataError(f"{where}: not readable as Parquet ({' '.join(str(error).split())[:200]})") from None


def _footer(path: Path) -> tuple[pa.Schema, list[int]] | DataError:
    """The columns and the rows of each row group, or what is wrong."""
    try:
        with _readable(path):
            file = pq.ParquetFile(path)
            return file.schema_arrow, [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    except DataError as error:
        return error


def _counted(path: Path, rows: int, footer: tuple[pa.Schema, list[int]] | DataError) -> tuple[pa.Schema, list[int]]:
    if isinstance(footer, DataError):
        raise footer
    schema, counts = footer
    if sum(counts) != rows or min(counts, default=0) < 0:
        raise DataError(f"{path}: found {sum(counts)} rows, the schema says {rows}")
    return schema, counts


def _is_vector(kind: pa.DataType, name: str, width: int) -> bool:
    if not pa.types.is_fixed_size_list(kind) or kind.list_size != width:
        return False
    whole = VECTORS.get(name, VECTORS["continuous"]).is_floating_point
    return bool((pa.types.is_floating if whole else pa.types.is_integer)(kind.value_type))


def _same_type(one: pa.DataType, other: pa.DataType) -> bool:
    """Whether values have the same type; whether they may be null does not matter."""
    if pa.types.is_fixed_size_list(one) and pa.types.is_fixed_size_list(other):
        return bool(one.list_size == other.list_size and one.value_type == other.value_type)
    return bool(one == other)
