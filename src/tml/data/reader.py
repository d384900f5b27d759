"""Shuffled batches of an example dataset, in bounded memory, from a position that is saved and restored exactly.

Background threads read and check row groups. A pool of them at a time is in memory, whose rows are given in a random
order (`order`), each batch made in the background while the one before is in use. Where all of a part fits a pool it is
read once and kept, and only the order differs by epoch.

Memory is two pools, one in use and the next, about three row groups for each reading thread and three batches, whatever
the size of the dataset. A pool is `pool_bytes` and at most a row group more; row groups of more than half of that make
pools of two. Threads are as many as torch's, 8 at most.

The position is the number of epochs and batches that were given. At an epoch's start it means the same for any number
of ranks, batch size and seed; within an epoch only for the same.
"""

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch.utils.data import IterableDataset, get_worker_info

from tml.core.config import fingerprint
from tml.core.errors import DataError
from tml.data.examples import Schema, to_tensors
from tml.data.order import Order, Piece, Pool
from tml.data.prefetch import groups_ahead, items_ahead
from tml.data.shards import OnError, Shards

POOL_BYTES = 512 * 2**20
MOST_THREADS = 8

Batch = dict[str, torch.Tensor]
Arrays = dict[str, npt.NDArray[Any]]
Position = tuple[int, int]
"""Epochs, and batches of the epoch after them."""


class ExampleReader(IterableDataset[Batch]):
    """Batches of a part, epoch after epoch.

    In `DataLoader(reader, batch_size=None, num_workers=…)` each worker gives its share of the rank's rows, in memory of
    its own. The workers start at the reader's position, which must be an epoch's start, and do not move it.

    Args:
        folder: an example dataset.
        part: the part to read.
        batch_size: rows a batch; the last two of an epoch share what is left, see `order`.
        seed: decides the order, together with the epoch.
        pool_bytes: of rows in memory at a time that are shuffled together.
        prepare: makes the tensors of a table, on the CPU, whose first dimension is its rows; by default `to_tensors`.
            Threads call it at the same time, with any number of rows, none included.
        columns: which `prepare` needs; None is all of them, or what `to_tensors` needs.
        rank, world_size: which share of the rows to give, and of how many.
        epochs: end after so many; None never ends.
        on_error: what to do with damage. A batch is smaller by its rows that are skipped.

    Raises:
        MissingStage: there is no dataset.
        DataError: an argument is out of range, or what `shards` finds, here or while reading.

    Example::

        reader = ExampleReader(Path("run/examples"), "train", batch_size=1024, seed=0, epochs=2)
        for batch in reader:
            batch["continuous"]  # (1024, columns) float32
        reader.state_dict()  # {"epoch": 2, "batch": 0, …}
    """

    def __init__(
        self,
        folder: Path,
        part: str,
        batch_size: int,
        seed: int,
        pool_bytes: int = POOL_BYTES,
        prepare: Callable[[pa.Table], Batch] | None = None,
        columns: Sequence[str] | None = None,
        rank: int = 0,
        world_size: int = 1,
        epochs: int | None = None,
        on_error: OnError = "stop",
    ) -> None:
        self.schema = Schema.read(folder)
        if prepare is None and columns is None:
            columns = [*self.schema.widths(), *self.schema.tasks]
        self.shards = Shards(folder, part, columns, on_error)
        if not 0 <= rank < world_size:
            raise DataError(f"rank: found {rank} of {world_size}, allowed is 0 to one less than world_size")
        most, least = self.shards.rows // world_size, 1 if world_size == 1 else 2
        if not least <= batch_size <= most:
            of_a_rank = "" if world_size == 1 else f" that each of {world_size} ranks gets"
            rows = f"the {most} rows of {folder / part}{of_a_rank}"
            raise DataError(f"batch_size: found {batch_size}, allowed is {least} to {rows}")
        self.folder, self.part, self.batch_size, self.seed = folder, part, batch_size, seed
        self.rank, self.world_size, self.epochs, self.prepare = rank, world_size, epochs, prepare
        self._template = self._arrays(self.shards.empty)
        if not self._template:
            raise DataError(f"{folder}: found nothing to make a batch of, allowed is a vector or a label at least")
        row_bytes = sum(array.itemsize * int(np.prod(array.shape[1:])) for array in self._template.values())
        pool_rows = max(1, pool_bytes // max(1, row_bytes))
        self._order = Order([group.rows for group in self.shards.groups], pool_rows, batch_size, seed)
        self._kept: _Memory | None = None
        self._position: Position = (0, 0)

    @property
    def rows(self) -> int:
        """The rows of an epoch, those of all ranks."""
        return self.shards.rows

    @property
    def batches_per_epoch(self) -> int:
        """The batches of an epoch, the same for every rank."""
        return replace(self._order, streams=self.world_size).batches

    @property
    def empty_batch(self) -> Batch:
        """A batch without rows, which shows what tensors a batch has."""
        return {name: torch.from_numpy(array) for name, array in self._template.items()}

    @property
    def skipped(self) -> dict[str, int]:
        """What `on_error="skip"` has left out so far, as a sentence → rows."""
        return self.shards.skipped

    def state_dict(self) -> dict[str, Any]:
        """The position after the batch that was given last, and what it holds for."""
        order = {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "world_size": self.world_size,
            "rows": self.rows,
            "row_groups": len(self.shards.groups),
            "row_group_sizes": fingerprint([group.rows for group in self.shards.groups]),
            "pool_rows": self._order.pool_rows,
        }
        return {"epoch": self._position[0], "batch": self._position[1], "order": order}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the batch at which the state was taken; an iterator that there is does not follow.

        Raises:
            DataError: the state is of another kind of reader, or of the middle of an epoch in another order.
        """
        order = self.state_dict()["order"]
        if not {"epoch", "batch", "order"} <= state.keys() or not order.keys() <= state["order"].keys():
            raise DataError(f"the position is of another kind of reader, found {', '.join(state) or 'nothing'} in it")
        if state["batch"]:
            for name, value in order.items():
                if state["order"][name] != value:
                    raise DataError(
                        f"the position is batch {state['batch']} of an epoch with {name} {state['order'][name]}, found "
                        f"{name} {value}, allowed is the same; only an epoch's start is a position for any {name}"
                    )
        self._position = int(state["epoch"]), int(state["batch"])

    def __iter__(self) -> Generator[Batch, None, None]:
        with closing(items_ahead(self._batches(self._order_of_this_stream(), self._position))) as batches:
            for position, batch in batches:
                self._position = position
                yield batch

    def _order_of_this_stream(self) -> Order:
        worker = get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        streams = self.world_size * workers
        if workers > 1 and self._position[1]:
            raise DataError(f"num_workers: found {workers} within an epoch, allowed is 0 or 1, or an epoch's start")
        if self.rows < streams * min(2, self.batch_size) or (streams > 1 and self.batch_size < 2):
            raise DataError(f"num_workers: found {workers}, too many for {self.rows} rows in batches of 2 or more")
        return replace(self._order, stream=self.rank * workers + number, streams=streams)

    def _batches(self, order: Order, start: Position) -> Generator[tuple[Position, Batch], None, None]:
        """Each batch with the position after it."""
        sizes = self._sizes(order, start)
        position, wanted = next(sizes, (start, 0))
        whole, parts, empty = wanted, list[Arrays](), 0
        with closing(self._pools(order, start)) as pools:
            for memory, index in pools:
                while len(index):
                    parts.append(memory.rows(index[:wanted]))
                    index, wanted = index[wanted:], wanted - len(index[:wanted])
                    if not wanted:
                        batch = _joined(parts)
                        if self._is_enough(batch, whole):
                            yield position, batch
                            parts, empty = [], 0
                        else:
                            empty += 1
                            if empty == order.batches:  # a whole epoch; without end there might be no end
                                raise self.shards.nothing()
                        position, wanted = next(sizes, (position, 0))
                        whole = wanted

    def _sizes(self, order: Order, start: Position) -> Iterator[tuple[Position, int]]:
        sizes = order.sizes()
        for epoch in self._epochs(start):
            for number in range(start[1] if epoch == start[0] else 0, len(sizes)):
                after = (epoch, number + 1) if number + 1 < len(sizes) else (epoch + 1, 0)
                yield after, sizes[number]

    def _epochs(self, start: Position) -> Iterator[int]:
        return itertools.count(start[0]) if self.epochs is None else iter(range(start[0], self.epochs))

    def _plan(self, order: Order, start: Position) -> Iterator[Pool]:
        """The pools from a position on; those before it are never read."""
        skip = sum(order.sizes()[: start[1]])
        for epoch in self._epochs(start):
            for pool in order.pools(epoch):
                if skip < len(pool.order):
                    yield Pool(pool.pieces, pool.order[skip:])
                skip = max(0, skip - len(pool.order))

    def _pools(self, order: Order, start: Position) -> Generator[tuple["_Memory", npt.NDArray[np.int64]], None, None]:
        """Each pool's rows in memory, and which of them to give, while threads read the next pool."""
        threads = min(MOST_THREADS, torch.get_num_threads())
        plan = self._plan(order, start)
        if order.is_one_pool:
            for pool in plan:
                if self._kept is None:
                    (((_, memory), _),) = groups_ahead(
                        self._load, _places([pool], [_Memory(self._template)]), threads, 1
                    )
                    self._kept = memory
                yield self._kept, pool.order
            return
        memories = itertools.cycle([_Memory(self._template), _Memory(self._template)])
        with closing(groups_ahead(self._load, _places(plan, memories), threads, 1)) as loaded:
            for (pool, memory), _ in loaded:
                yield memory, pool.order

    def _load(self, place: "_Place") -> None:
        """Read a piece to its place in memory."""
        memory, first, piece = place
        group = self.shards.groups[piece.group]
        table = self.shards.read(group)
        try:
            arrays = None if table is None else self._arrays(table.slice(piece.first, piece.rows))
        except DataError as error:
            raise DataError(f"{group.where}: {error}") from None
        except Exception as error:
            error.add_note(f"in {group.where}")
            raise
        memory.put(slice(first, first + piece.rows), arrays)

    def _arrays(self, table: pa.Table) -> Arrays:
        tensors = to_tensors(table, self.schema) if self.prepare is None else self.prepare(table)
        for name, values in tensors.items():
            if len(values) != len(table):
                raise DataError(f"prepare: found {len(values)} rows of {name}, allowed are the table's {len(table)}")
        return {name: values.numpy() for name, values in tensors.items()}

    def _is_enough(self, batch: Batch, whole: int) -> bool:
        """Whether enough is left after skipping for batch norm, two rows; else they go into the next batch."""
        rows = len(next(iter(batch.values())))
        if rows < min(2, whole) and self.world_size > 1:
            raise DataError(
                f"{self.folder / self.part}: found {rows} rows that can be read for a batch of {whole} of rank "
                f"{self.rank}, allowed are 2 or more, since all ranks must have as many batches"
            )
        return rows >= min(2, whole)


class _Memory:
    """The rows of a pool, in arrays that are used again for other pools."""

    def __init__(self, template: Arrays) -> None:
        self.template = {name: array[:0] for name, array in template.items()}
        self.arrays: Arrays = {}
        self.skipped = np.zeros(0, np.bool_)

    def reserve(self, rows: int) -> None:
        """Make room for so many rows, in place of those that are here."""
        if rows > len(self.skipped):
            self.arrays.clear()  # before there are larger ones
            self.arrays = {name: np.empty((rows, *a.shape[1:]), a.dtype) for name, a in self.template.items()}
            self.skipped = np.empty(rows, np.bool_)

    def put(self, place: slice, rows: Arrays | None) -> None:
        """Fill a place; None are rows that were skipped. Several threads may do so at the same time."""
        self.skipped[place] = rows is None
        for name, values in (rows or {}).items():
            self.arrays[name][place] = values

    def rows(self, index: npt.NDArray[np.int64]) -> Arrays:
        """A copy of some rows, without those that were skipped."""
        kept = index[~self.skipped[index]]
        return {name: array[kept] for name, array in self.arrays.items()}


_Place = tuple[_Memory, int, Piece]
"""From which row of a memory on a piece is put."""


def _places(pools: Iterable[Pool], memories: Iterable[_Memory]) -> Iterator[tuple[tuple[Pool, _Memory], list[_Place]]]:
    """Where the pieces of each pool are put, one after the other, when a memory is free for them."""
    for pool, memory in zip(pools, memories, strict=False):
        ends = list(itertools.accumulate(piece.rows for piece in pool.pieces))
        memory.reserve(ends[-1])
        yield (pool, memory), [(memory, end - p.rows, p) for end, p in zip(ends, pool.pieces, strict=True)]


def _joined(parts: Sequence[Arrays]) -> Batch:
    if len(parts) == 1:
        return {name: torch.from_numpy(array) for name, array in parts[0].items()}
    return {name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in parts[0]}
