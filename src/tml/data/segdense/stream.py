"""The records of many files as one stream without end, a share of it for every rank, from an exact position.

Seed and epoch decide the order of the files. Of F files and R ranks, each rank reads floor(F / R) files of its own;
what is left over is read by all, each taking every R-th record. So an epoch has every record once, and no rank has
more to read than R - 1 files beyond its share.

Records are shuffled in blocks: a block is filled from the stream, permuted and given out, and it ends with the epoch.
A position is where the block at hand begins and how much of it has been given.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tml.core.errors import DataError
from tml.data.tfrecord import OnError, Skipped, read_records


class Record(NamedTuple):
    """A record and where it stands."""

    path: Path
    number: int
    data: bytes

    @property
    def where(self) -> str:
        """What it is called in a message."""
        return f"{self.path}: record {self.number}"


@dataclass(frozen=True)
class Position:
    """A place in the stream.

    Attributes:
        epoch: counted from 0.
        file: in the order of the epoch and rank.
        record: the number in that file at which the block begins.
        given: records of the block that have been given.
        skipped: what was passed over before the block.
    """

    epoch: int = 0
    file: int = 0
    record: int = 0
    given: int = 0
    skipped: Skipped = field(default_factory=Skipped)


class Share(NamedTuple):
    """A file, of which every `step`-th record is read, from number `first` on."""

    path: Path
    first: int
    step: int


@dataclass(frozen=True)
class RecordStream:
    """A rank's records.

    Attributes:
        files: all files, in the same order on every rank.
        seed: decides the order, together with the epoch.
        rank, world_size: whose share of how many.
        block: records in memory at a time.
        is_shuffled: whether the records of a block are permuted.
        epochs: how often all is read; None has no end.
        on_error: whether damage is passed over.
    """

    files: tuple[Path, ...]
    seed: int
    rank: int
    world_size: int
    block: int
    is_shuffled: bool
    epochs: int | None
    on_error: OnError

    def shares(self, epoch: int) -> list[Share]:
        """What this rank reads in an epoch."""
        order = [self.files[i] for i in np.random.default_rng([self.seed, epoch]).permutation(len(self.files))]
        whole = len(order) - len(order) % self.world_size
        own = [Share(path, 0, 1) for path in order[:whole][self.rank :: self.world_size]]
        return own + [Share(path, self.rank, self.world_size) for path in order[whole:]]

    def permuted(self, block: list[Record], begin: Position) -> list[Record]:
        """The records of a block in the order in which they are given."""
        if not self.is_shuffled:
            return block
        generator = np.random.default_rng([self.seed, begin.epoch, begin.file, begin.record])
        return [block[i] for i in generator.permutation(len(block))]


class RecordCursor:
    """Takes records of a stream from a position on.

    Attributes:
        position: behind what was taken last.
        skipped: what was passed over up to now, within the block at hand, too.
    """

    def __init__(self, stream: RecordStream, position: Position) -> None:
        self.stream, self.position = stream, position
        self.skipped = replace(position.skipped)
        self._blocks = self._read(position)
        self._block: list[Record] = []

    def take(self, count: int) -> list[Record]:
        """The next records; fewer than `count` only at the end of the last epoch.

        Raises:
            DataError: a file is damaged, or an epoch has no record.
        """
        taken: list[Record] = []
        while len(taken) < count:
            given = self.position.given
            part = self._block[given : given + count - len(taken)]
            if part:
                taken += part
                self.position = replace(self.position, given=given + len(part))
                continue
            self._block = []  # let go of it before the next one fills
            found = next(self._blocks, None)
            if found is None:
                break
            self.position, self._block = found
        return taken

    def _read(self, start: Position) -> Iterator[tuple[Position, list[Record]]]:
        """Every block from a position on, permuted, and where it begins."""
        stream = self.stream
        while stream.epochs is None or start.epoch < stream.epochs:
            is_empty = start.file == start.record == 0
            for begin, block in self._read_epoch(start):
                yield begin, block
                is_empty = False
            if is_empty:
                raise DataError(self._no_record())
            start = Position(start.epoch + 1)

    def _read_epoch(self, start: Position) -> Iterator[tuple[Position, list[Record]]]:
        stream = self.stream
        skipped = self.skipped if stream.on_error == "skip" else None
        begin, block = start, list[Record]()
        for file, share in list(enumerate(stream.shares(start.epoch)))[start.file :]:
            first = start.record if file == start.file else 0
            for number, data in read_records(share.path, first, skipped):
                if (number - share.first) % share.step:
                    continue
                if not block:
                    begin = Position(start.epoch, file, number, start.given, replace(self.skipped))
                    start = replace(start, given=0)
                block.append(Record(share.path, number, data))
                if len(block) == stream.block:
                    yield begin, stream.permuted(block, begin)
                    block = []
        if block:
            yield begin, stream.permuted(block, begin)

    def _no_record(self) -> str:
        files, rank, of = self.stream.files, self.stream.rank, self.stream.world_size
        found = f"no record for rank {rank} of {of}" if of > 1 else "no record"
        damage = f"; {self.skipped.first}" if self.skipped.first else ""
        return f"inputs: found {found} in {len(files)} files, the first of which is {files[0]}{damage}"
