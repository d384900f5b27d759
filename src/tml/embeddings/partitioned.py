"""Embedding tables larger than memory: rows in partitions on disk, of which a few are in memory at a time.

Row r of a table that is cut is in partition r mod P, at place r div P, so that rows of like age or degree are spread.
A partition has its rows of all tables that are cut, and their optimizer's state; tables that fit stay in memory whole.
Memory has slots for the partitions that are trained now and one more: while a model trains, a thread writes the
partition that has left and reads the one that comes next. To the model and the optimizer the slots are a table like any
other, so a step costs what it costs in memory.

Ordinary reads and writes are used, not maps into memory, and what was written is on the disk before the next thing is
done; so memory holds the slots and nothing else. The module's state names versions of files (`partition_files.py`), so
a training that is killed at any moment goes on from its checkpoint with the same bits; on disk there can be three times
the tables' size.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tml.embeddings.engine import TableEngine
from tml.embeddings.local import TYPES, DataType, LocalTables, give_gradient
from tml.embeddings.partition_files import PartitionFiles, read_rows, read_tensors
from tml.embeddings.partitions import Partitions


class PartitionedTables(TableEngine):
    """Named embedding tables of one dimension, partly on disk.

    Training says which partitions it needs (`begin` or `hold`); gradients are taken for their rows alone. `read` and
    `write` reach all rows.

    Args:
        sizes, dim, generator, scale, types, frozen: as of `LocalTables`.
        folder: where the partitions are kept.
        partitions: how tables are cut.
    """

    versions: Tensor

    def __init__(
        self,
        sizes: Mapping[str, int],
        dim: int,
        generator: torch.Generator,
        scale: float = 1.0,
        types: Mapping[str, DataType] | None = None,
        frozen: Collection[str] = (),
        *,
        folder: Path,
        partitions: Partitions,
    ) -> None:
        super().__init__(sizes, dim)
        self.scale = scale
        self.partitions, self.files = partitions, PartitionFiles(folder)
        self._seed = generator.initial_seed()
        whole = {name: rows for name, rows in sizes.items() if name not in partitions.sizes}
        self.whole = LocalTables(whole, dim, generator, scale, types, frozen)
        self.slots = nn.ModuleList()
        self._number = {name: number for number, name in enumerate(partitions.sizes)}
        for name in partitions.sizes:
            rows = (partitions.resident + 1) * partitions.places(name)
            empty = torch.empty(rows, dim, dtype=TYPES[(types or {}).get(name, "fp32")], device=generator.device)
            self.slots.append(_Slots(rows, dim, sparse=True, _weight=empty, _freeze=name in frozen))
        self.register_buffer("versions", torch.zeros(partitions.count, dtype=torch.int64))
        self._states: dict[str, Callable[[], Mapping[str, Tensor]]] = {}
        self._starts: dict[str, dict[str, Tensor]] = {}
        self._forget()
        self._begun = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tml-partitions")
        self._task: Future[None] | None = None

    def _forget(self) -> None:
        """Nothing that is in the slots counts."""
        self._slot: dict[int, int] = {}
        self._slot_of = torch.full((self.partitions.count,), -1, device=self.device)
        self._free = list(range(self.partitions.resident + 1))
        self._coming: tuple[int, int] | None = None
        self._changed: set[int] = set()

    def path(self, name: str) -> str:
        """The path of a table's module below this one."""
        return f"slots.{self._number[name]}" if name in self._number else f"whole.{self.whole.path(name)}"

    def learns(self, name: str) -> bool:
        """Whether a table takes gradients."""
        return self._weight(name).requires_grad if name in self._number else self.whole.learns(name)

    def keep_state(self, name: str, state: Callable[[], Mapping[str, Tensor]]) -> None:
        """Keep an optimizer's state of a table that is cut beside its vectors.

        Args:
            name: the table.
            state: gives the tensors of the state as they are at the time; those that have a row for each row of the
                slots are kept, and their first row, now, is where every row starts.
        """
        self._states[name] = state
        rows = len(self._weight(name))
        self._starts[name] = {k: v[0].clone() for k, v in state().items() if v.ndim and len(v) == rows}

    def begin(self, batch: Mapping[str, Any]) -> None:
        """Have in memory what a batch needs: `resident` and `next`, arguments of `hold`."""
        self.hold(batch["resident"], batch["next"])

    def hold(self, wanted: Sequence[int], following: int | None = None) -> None:
        """Have these partitions in memory, and no others, and begin to read the one that comes next.

        Args:
            wanted: as many as are resident, at most.
            following: the partition to be read in the meantime.
        """
        following = None if following in wanted else following
        if self._slot.keys() == set(wanted) and (self._coming[0] if self._coming else None) == following:
            return
        self._start()
        self._wait()
        if self._coming:
            partition, slot = self._coming
            self._coming = None
            if partition in wanted:
                self._slot[partition] = slot
            else:
                self._free.append(slot)
        leaving = [partition for partition in self._slot if partition not in wanted]
        for partition in wanted:
            if partition not in self._slot:
                if not self._free:
                    self._write_out(gone := leaving.pop(), self._slot[gone])()
                    self._free.append(self._slot.pop(gone))
                self._read_in(partition, slot := self._free.pop())
                self._slot[partition] = slot
        work = []
        for partition in leaving:
            slot = self._slot.pop(partition)
            work.append(self._write_out(partition, slot))
            self._free.append(slot)
        if following is not None:
            self._coming = (following, self._free.pop())
            work.append(lambda: self._read_in(*self._coming))  # type: ignore[misc]
        self._slot_of = torch.full((self.partitions.count,), -1)
        for partition, slot in self._slot.items():
            self._slot_of[partition] = slot
        self._slot_of = self._slot_of.to(self.device)
        self._task = self._thread.submit(_all, work)

    def flush(self) -> None:
        """Write the partitions in memory that have changed; the files then have all that was learnt."""
        self._start()
        self._wait()
        for partition, slot in self._slot.items():
            self._write_out(partition, slot)()

    def read(self, name: str, rows: Tensor | slice) -> Tensor:
        """Vectors of rows, (n,) int64 or a slice, as (n, dimension), from memory or disk, without a gradient."""
        if name not in self._number:
            return self.whole.read(name, rows)
        if isinstance(rows, slice):
            rows = torch.arange(*rows.indices(self.sizes[name]), device=self.device)
        slot = self._slot_of[rows % self.partitions.count]
        place = rows // self.partitions.count
        weight = self._weight(name).detach()
        if (slot >= 0).all():
            vectors = weight.index_select(0, slot * self.partitions.places(name) + place)
        else:
            vectors = self._gather(name, rows.cpu(), weight.new_empty(len(rows), self.dim, device="cpu")).to(weight)
        return vectors.to(torch.promote_types(vectors.dtype, torch.float32))

    @torch.no_grad()
    def write(self, name: str, rows: Tensor | slice, vectors: Tensor) -> None:
        """Put vectors (n, dimension) in the place of those of rows, each one there once."""
        if name not in self._number:
            self.whole.write(name, rows, vectors)
            return
        if isinstance(rows, slice):
            rows = torch.arange(*rows.indices(self.sizes[name]), device=self.device)
        held = sorted(self._slot)
        for partition in torch.unique(rows % self.partitions.count).tolist():
            if partition not in self._slot:
                self.hold([partition])
            here = rows % self.partitions.count == partition
            at = self._slot[partition] * self.partitions.places(name) + rows[here] // self.partitions.count
            self._weight(name)[at] = vectors[here].to(self._weight(name))
            self._changed.add(partition)
        self.hold(held)

    def add_gradients(self, name: str, rows: Tensor, gradients: Tensor) -> None:
        """Keep the gradients of rows in memory, each one there once, for the optimizer's next step."""
        if name not in self._number:
            self.whole.add_gradients(name, rows, gradients)
            return
        slot = self._slot_of[rows % self.partitions.count]
        at = slot * self.partitions.places(name) + rows // self.partitions.count
        self._changed.update(self._slot)
        give_gradient(self._weight(name), at, gradients)

    def _weight(self, name: str) -> Tensor:
        weight = self.slots[self._number[name]].weight
        assert isinstance(weight, Tensor)
        return weight

    def _start(self) -> None:
        """Once, before anything is read or written: make the first partitions, and remove what nobody speaks of."""
        if self._begun:
            return
        self._begun = True
        self.files.sweep(self.versions.tolist())
        for partition in range(self.partitions.count):
            if not self.versions[partition]:
                self._draw(partition, 0)
                self._changed.add(partition)
                self._write_out(partition, 0)()

    @torch.no_grad()
    def _draw(self, partition: int, slot: int) -> None:
        seed = np.random.SeedSequence([self._seed, partition]).generate_state(1, np.uint64)[0]
        generator = torch.Generator(self.device).manual_seed(int(seed) >> 1)
        for name, of_slot in self._pieces(slot):
            for key, piece in of_slot.items():
                if key:
                    piece.copy_(self._starts[name][key].expand_as(piece))
                elif piece.dtype == torch.float32:
                    piece.normal_(0.0, self.scale / self.dim**0.5, generator=generator)
                else:
                    wide = torch.empty(piece.shape, device=piece.device)
                    piece.copy_(wide.normal_(0.0, self.scale / self.dim**0.5, generator=generator))

    def _pieces(self, slot: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """By table that is cut the rows of a slot: vectors under the empty name, then the optimizer's state."""
        for name in self._number:
            places = self.partitions.places(name)
            rows = slice(slot * places, (slot + 1) * places)
            state = self._states[name]() if name in self._states else {}
            kept = {key: state[key][rows] for key in sorted(self._starts.get(name, ()))}
            yield name, {"": self._weight(name).detach()[rows], **kept}

    def _write_out(self, partition: int, slot: int) -> Callable[[], None]:
        """What is to be done so that a slot's partition is on disk, here or in the thread."""
        if partition not in self._changed:
            return lambda: None
        self._changed.remove(partition)
        before = int(self.versions[partition])
        self.versions[partition] = before + 1
        pieces = [piece for _, of_slot in self._pieces(slot) for piece in of_slot.values()]
        return partial(self.files.write, partition, before + 1, pieces)

    def _read_in(self, partition: int, slot: int) -> None:
        pieces = [piece for _, of_slot in self._pieces(slot) for piece in of_slot.values()]
        read_tensors(self._path(partition), pieces)

    def _gather(self, name: str, rows: Tensor, into: Tensor) -> Tensor:
        """Fill in vectors of rows, partition by partition."""
        self._start()
        self._wait()
        places = self.partitions.places(name)
        order = torch.argsort(rows % self.partitions.count * places + rows // self.partitions.count)
        owner = rows[order] % self.partitions.count
        for partition in torch.unique(owner).tolist():
            here = order[owner == partition]
            place = rows[here] // self.partitions.count
            if partition in self._slot:
                at = (self._slot[partition] * places + place).to(self.device)
                into[here] = self._weight(name).detach()[at].cpu()
            else:
                into[here] = self._from_file(partition, name, place, into)
        return into

    def _from_file(self, partition: int, name: str, place: Tensor, like: Tensor) -> Tensor:
        """Vectors at ascending places of a partition on disk."""
        start = 0
        for other, of_slot in self._pieces(0):
            if other == name:
                break
            start += sum(piece.nbytes for piece in of_slot.values())
        found = like.new_empty(len(place), self.dim)
        read_rows(self._path(partition), start, place, found)
        return found

    def _path(self, partition: int) -> Path:
        return self.files.path(partition, int(self.versions[partition]))

    def _wait(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.result()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if self._begun:
            self.flush()
            self.files.save(self.versions.tolist())
            self.files.sweep(self.versions.tolist())
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # What the state has is what it was, whatever is trained later.
        destination[f"{prefix}versions"] = self.versions.clone()

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._wait()
        super()._load_from_state_dict(*arguments)
        self._forget()
        self.files.save(self.versions.tolist())

    def __del__(self) -> None:
        with suppress(Exception):
            self._thread.shutdown()


class _Slots(nn.Embedding):
    """A table whose content is no part of the model's state: the partitions' files have it."""

    def _save_to_state_dict(self, *_: Any) -> None:
        pass

    def _load_from_state_dict(self, *_: Any) -> None:
        pass


def _all(work: Sequence[Callable[[], None]]) -> None:
    for one in work:
        one()
