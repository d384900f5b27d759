"""The example dataset: a folder of Parquet shards and a `schema.json`, split in time into parts such as `train`.

A shard holds the columns that say which impression an example is (`KEYS`), the vectors `continuous` and `binary`
(fixed-size lists of float32) and `discrete` (of int32), and one float32 column a label, under the task's name: 1, 0, or
NaN where the label does not count. The schema names every element of the vectors.

Reading is by pools: the row groups of an epoch in a random order, a few at a time in memory, their rows shuffled
together. The order depends on seed and epoch alone, so a position is an epoch and a number of batches.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

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

VECTORS = {"continuous": torch.float32, "binary": torch.float32, "discrete": torch.int64}
ROWS_PER_GROUP = 16_384


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
        features: the feature config with every default written out, from which serving computes the same vectors.
        statistics: of each continuous element in training, name of the statistic → values in the order of
            `continuous`: mean, deviation, minimum, maximum, share of zeros, and those of sign(x)·log(1 + |x|).
    """

    continuous: list[str]
    binary: list[str]
    discrete: list[DiscreteColumn]
    tasks: dict[str, dict[str, Any]]
    parts: dict[str, Part]
    log: dict[str, Any]
    embeddings: dict[str, int] = field(default_factory=dict)
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
            tree = read_json(path)
            tree["discrete"] = [DiscreteColumn(**column) for column in tree["discrete"]]
            tree["parts"] = {name: Part(**part) for name, part in tree["parts"].items()}
            return cls(**tree)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{path}: not the schema of an example dataset ({error})") from None

    def part(self, name: str) -> Part:
        """A part by name."""
        if name not in self.parts:
            raise DataError(f"schema.json: no part {name!r}, allowed are {', '.join(self.parts)}")
        return self.parts[name]


def vector_column(values: np.ndarray[Any, Any]) -> pa.FixedSizeListArray:
    """A (rows, width) array as a column of fixed-size lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def vector_values(column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """A column of fixed-size lists as a (rows, width) array."""
    width = column.type.list_size
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, width) for chunk in column.chunks]
    return np.concatenate(chunks) if len(chunks) != 1 else chunks[0]


class ExampleWriter:
    """Writes the shards of one part, one table a shard.

    Args:
        folder: the dataset's folder.
        part: the part's name, which is also the folder of its shards.
    """

    def __init__(self, folder: Path, part: str) -> None:
        self.folder, self.part = folder, part
        self.shards: dict[str, int] = {}
        (folder / part).mkdir(parents=True)

    def write(self, table: pa.Table) -> None:
        """Write a table as the next shard."""
        name = f"{self.part}/part-{len(self.shards):05d}.parquet"
        # Dictionaries and statistics of long vectors cost a third of the time, and no reader has use for them.
        pq.write_table(
            table,
            self.folder / name,
            row_group_size=ROWS_PER_GROUP,
            compression="zstd",
            compression_level=1,
            use_dictionary=list(KEYS),
            write_statistics=list(KEYS),
        )
        self.shards[name] = table.num_rows


def read_part(folder: Path, part: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The row groups of a part, in the order of time; all columns, or some."""
    for name in Schema.read(folder).part(part).shards:
        file = _open(folder / name)
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns)


def to_tensors(table: pa.Table, tasks: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The inputs and labels of a table, on the CPU."""
    batch = {
        name: torch.tensor(vector_values(table[name]), dtype=kind)
        for name, kind in VECTORS.items()
        if name in table.column_names
    }
    for task in tasks:
        batch[task] = torch.tensor(table[task].to_numpy(), dtype=torch.float32)
    return batch


class ExampleReader:
    """Shuffled batches of a part, epoch after epoch without end, from a position that can be saved and restored.

    Args:
        folder: an example dataset.
        part: the part to read.
        batch_size: rows a batch; the rows of an epoch that do not fill the last one are left out of that epoch.
        seed: decides the order, together with the epoch.
        pool_groups: row groups in memory at a time, whose rows are shuffled together.
        prepare: makes the batch of a pool's table, by default `to_tensors`.
    """

    def __init__(
        self,
        folder: Path,
        part: str,
        batch_size: int,
        seed: int,
        pool_groups: int = 64,
        prepare: Callable[[pa.Table], dict[str, torch.Tensor]] | None = None,
    ) -> None:
        self.schema = Schema.read(folder)
        self.rows = self.schema.part(part).rows
        if not 1 <= batch_size <= self.rows:
            raise DataError(f"batch_size: found {batch_size}, allowed is 1 to the {self.rows} rows of {folder / part}")
        self.folder, self.part, self.batch_size, self.seed = folder, part, batch_size, seed
        self.pool_groups = pool_groups
        self.prepare = prepare or (lambda table: to_tensors(table, self.schema.tasks))
        self.groups = self._row_groups()
        self.position = 0
        self._whole: dict[str, torch.Tensor] | None = None

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return self.rows // self.batch_size

    def state_dict(self) -> dict[str, int]:
        """The position: batches given so far."""
        return {"position": self.position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue after the batch at which the state was taken."""
        self.position = int(state["position"])

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        while True:
            epoch, start = divmod(self.position, self.batches_per_epoch)
            for batch in self._epoch(epoch, start):
                self.position += 1
                yield batch

    def _epoch(self, epoch: int, start: int) -> Iterator[dict[str, torch.Tensor]]:
        """The batches of one epoch from number `start`; pools before it are skipped without being read."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.groups))
        size, skip, left_over = self.batch_size, start * self.batch_size, None
        for number, first in enumerate(range(0, len(order), self.pool_groups)):
            chosen = order[first : first + self.pool_groups]
            rows = sum(self.groups[i][2] for i in chosen)
            if skip >= rows:
                skip -= rows
                continue
            pool = self._pool([self.groups[i] for i in chosen])
            shuffled = np.random.default_rng([self.seed, epoch, number]).permutation(rows)[skip:]
            skip = 0
            index = torch.from_numpy(shuffled)
            at = 0
            if left_over is not None:
                at = min(size - len(next(iter(left_over.values()))), len(index))
                head = _take(pool, index[:at])
                left_over = {name: torch.cat([left_over[name], head[name]]) for name in head}
                if len(next(iter(left_over.values()))) < size:
                    continue
                yield left_over
                left_over = None
            while at + size <= len(index):
                yield _take(pool, index[at : at + size])
                at += size
            if at < len(index):
                left_over = _take(pool, index[at:])

    def _pool(self, groups: list[tuple[Path, int, int]]) -> dict[str, torch.Tensor]:
        if len(self.groups) > self.pool_groups:
            return self._read(groups)
        # All of the part fits one pool: it is read once, in file order, and only the shuffling differs by epoch.
        if self._whole is None:
            self._whole = self._read(self.groups)
        return self._whole

    def _read(self, groups: list[tuple[Path, int, int]]) -> dict[str, torch.Tensor]:
        tables = [_open(path).read_row_group(group) for path, group, _ in groups]
        return self.prepare(pa.concat_tables(tables))

    def _row_groups(self) -> list[tuple[Path, int, int]]:
        """Every row group as (file, number, rows), in the order of time."""
        found = []
        for name, rows in self.schema.part(self.part).shards.items():
            file = _open(self.folder / name)
            if file.metadata.num_rows != rows:
                raise DataError(f"{self.folder / name}: found {file.metadata.num_rows} rows, the schema says {rows}")
            counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            found += [(self.folder / name, i, count) for i, count in enumerate(counts)]
        return found


def _take(pool: Mapping[str, torch.Tensor], index: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: values.index_select(0, index) for name, values in pool.items()}


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such shard, but the schema names it") from None
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error})") from None
