"""The example dataset: a folder of Parquet shards and a `schema.json`, split in time into parts such as `train`.

A shard holds the columns that say which impression an example is (`KEYS`), the vectors `continuous` and `binary`
(fixed-size lists of float32) and `discrete` (of int32), embeddings (of float32, each under its name), and one float32
column a label, under the task's name: 1, 0, or NaN where the label does not count. `continuous` may hold NaN and
infinities, which the ranker's featurization reads as 0; the other vectors may not. The schema names every element of
the vectors.

Here are the format and its writer; `shards` reads row groups in the order of time, `reader` shuffled batches.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import ConfigDict, TypeAdapter
from torch.utils.dlpack import from_dlpack

from tml.core.errors import DataError, MissingStage
from tml.core.files import read_json, write_json

KEYS = (
    "impression_id",
    "session_id",
    "user_id",
    "post_id",
    "author_id",
    "served_at",
    "created_at",
    "position",
)
"""The columns of a shard that are not inputs or labels."""

SEQUENCE = ("sequence_posts", "sequence_outcomes", "sequence_ages")
"""The columns of what the viewer was shown last, the latest first, each a list of so many posts: the number of each id
(int64, see `id_numbers`; `NO_ID` where there were not so many), a bit for each engagement with it (int32), and seconds
since (float32; -1 where it is not known)."""
VECTORS = {"continuous": torch.float32, "binary": torch.float32, "discrete": torch.int64}
GROUP_BYTES = 16 * 2**20
"""What a row group holds, decoded: little enough for many in memory, whose rows are shuffled together."""


@dataclass(frozen=True)
class DiscreteColumn:
    """A discrete column; value `vocabulary[i]` is stored as i + 1, and 0 is every other value."""

    name: str
    vocabulary: list[str]


@dataclass(frozen=True)
class Part:
    """A span of time of the log as examples.

    Attributes:
        start, end: ISO times, UTC; `end` is exclusive.
        rows: examples.
        shards: file name → rows.
        positives: task → labels of 1.
    """

    start: str
    end: str
    rows: int
    shards: dict[str, int]
    positives: dict[str, int]


@dataclass(frozen=True)
class Schema:
    """What an example dataset holds.

    Attributes:
        continuous, binary: the names of the vectors' elements, in order.
        discrete: the discrete vector's elements, in order.
        embeddings: embedding columns of the shards → width.
        tasks: task → how its label was made.
        parts: the parts by name.
        log: fingerprint, rows, duplicates and span of the log that the examples were made from.
        sequence: of what the viewer was shown last `length` posts, and the `engagements` told of each; empty for none.
        features: the feature config with every default written out, from which serving computes the same vectors.
        statistics: of each continuous element in training, name of the statistic → values in the order of
            `continuous`: mean, deviation, minimum, maximum, share of zeros, and those of sign(x)·log(1 + |x|).
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    continuous: list[str]
    binary: list[str]
    discrete: list[DiscreteColumn]
    tasks: dict[str, dict[str, Any]]
    parts: dict[str, Part]
    log: dict[str, Any]
    embeddings: dict[str, int] = field(default_factory=dict)
    sequence: dict[str, Any] = field(default_factory=dict)
    features: dict[str, Any] = field(default_factory=dict)
    statistics: dict[str, list[float]] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write `schema.json`."""
        write_json(folder / "schema.json", asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read `schema.json` of an example dataset.

        Raises:
            MissingStage: there is none.
            DataError: it is not a schema.
        """
        path = folder / "schema.json"
        if not path.is_file():
            raise MissingStage(f"{path}: no such file, allowed is an example dataset; `tml features` makes one")
        try:
            return TypeAdapter(cls).validate_python(read_json(path))
        except (ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{path}: not the schema of an example dataset ({reason[:200]})") from None

    def part(self, name: str) -> Part:
        """A part by name."""
        if name not in self.parts:
            raise DataError(f"schema.json: no part {name!r}, allowed are {', '.join(self.parts)}")
        return self.parts[name]

    def widths(self) -> dict[str, int]:
        """The vectors that the shards have, and the embeddings → width."""
        own = {"continuous": len(self.continuous), "binary": len(self.binary), "discrete": len(self.discrete)}
        return {name: width for name, width in {**own, **self.embeddings}.items() if width}


def vector_column(values: np.ndarray[Any, Any]) -> pa.FixedSizeListArray:
    """A (rows, width) array as a column of fixed-size lists, whose elements are never null: those are read faster."""
    elements = pa.array(values.reshape(-1))
    kind = pa.list_(pa.field("element", elements.type, nullable=False), values.shape[1])
    return pa.FixedSizeListArray.from_arrays(elements, type=kind)


def vector_values(column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """A column of fixed-size lists as a (rows, width) array."""
    width = column.type.list_size
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False).reshape(len(chunk), width) for chunk in column.chunks]
    if not chunks:
        return np.empty((0, width), column.type.value_type.to_pandas_dtype())
    return np.concatenate(chunks) if len(chunks) != 1 else chunks[0]


class ExampleWriter:
    """Writes the shards of one part, one table a shard.

    LZ4 without dictionaries and statistics of the vectors is what was read fastest of the usual ways; Zstandard's files
    are a fifth smaller and took a third longer. Every page has a checksum, so that damage never passes for data.

    Args:
        folder: the dataset's folder.
        part: the part's name, which is also the folder of its shards.
        group_bytes: what a row group holds, decoded.
    """

    def __init__(self, folder: Path, part: str, group_bytes: int = GROUP_BYTES) -> None:
        self.folder, self.part, self.group_bytes = folder, part, group_bytes
        self.shards: dict[str, int] = {}
        (folder / part).mkdir(parents=True)

    def write(self, table: pa.Table) -> None:
        """Write a table as the next shard."""
        name = f"{self.part}/part-{len(self.shards):05d}.parquet"
        table = _without_nulls(table)
        others = [field.name for field in table.schema if not _is_vector(field.type) and not _is_label(field.type)]
        pq.write_table(
            table,
            self.folder / name,
            row_group_size=max(1, self.group_bytes * table.num_rows // max(table.nbytes, 1)),
            compression="lz4",
            use_dictionary=others,
            write_statistics=others,
            write_page_checksum=True,
        )
        self.shards[name] = table.num_rows


def _is_vector(kind: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_list(kind))


def _is_label(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind))


def _without_nulls(table: pa.Table) -> pa.Table:
    """The table with vectors that say that they have no nulls, where they have none."""
    columns, fields = [], []
    for field_, column in zip(table.schema, table.columns, strict=True):
        if _is_vector(field_.type) and not column.null_count and not any(c.flatten().null_count for c in column.chunks):
            column = vector_column(vector_values(column))
            field_ = pa.field(field_.name, column.type, nullable=False)
        columns.append(column)
        fields.append(field_)
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def to_tensors(table: pa.Table, schema: Schema) -> dict[str, torch.Tensor]:
    """The inputs and labels of a table, on the CPU; not to be written to, since they share memory with the table.

    Returns:
        The vectors and embeddings, (rows, width) each, and the labels, (rows,) float32; null is NaN.
    """
    widths = schema.widths()
    batch = {name: _tensor(table[name], VECTORS.get(name, torch.float32)).view(-1, widths[name]) for name in widths}
    return batch | {task: _tensor(table[task], torch.float32) for task in schema.tasks}


def _tensor(column: pa.ChunkedArray, kind: torch.dtype) -> torch.Tensor:
    """The values of a column one after the other, without a copy where that can be."""
    arrays = [chunk.flatten() if _is_vector(column.type) else chunk for chunk in column.chunks]
    arrow = {torch.float32: pa.float32(), torch.int64: pa.int64()}[kind]
    if len(arrays) == 1 and arrays[0].type == arrow and len(arrays[0]) and not arrays[0].null_count:
        return from_dlpack(arrays[0])
    # By NumPy, which unlike torch wakes no other threads for this.
    target = torch.empty(sum(map(len, arrays)), dtype=kind)
    at = 0
    for array in arrays:
        target.numpy()[at : at + len(array)] = array.to_numpy(zero_copy_only=False)
        at += len(array)
    return target
