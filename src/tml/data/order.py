"""The order in which the rows of a part are given: a function of the seed, the epoch and who asks, and nothing else.

Who asks is one of several streams (a rank, or a worker of one). Every row is in the share of one of them and comes once
an epoch; the shares differ by one row at most, and all streams have the same number of batches.

    all rows fit a pool    an epoch is one order of all rows; stream s of n gives rows s, s + n, s + 2n, … of it, so
                           that batches of b rows of n streams together are a batch of n·b rows of one stream
    they do not            an epoch is an order of the row groups, whose rows are cut into n equal lengths; a stream
                           reads the row groups of its length, a pool of them at a time, and gives the pool's rows in a
                           random order

A batch has `batch_size` rows. What is left of an epoch goes into its last two batches, half each, so that no batch is
nearly empty: from 4 rows a batch on, none has fewer than 2.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

SMALLEST_POOL = 2
"""Row groups in a pool at least, where there are so many."""


@dataclass(frozen=True)
class Piece:
    """Rows `first` to `first + rows` of a row group; `group` is its place among all of them."""

    group: int
    first: int
    rows: int


@dataclass(frozen=True)
class Pool:
    """Rows that are in memory at a time.

    Attributes:
        pieces: whose rows they are, one after the other.
        order: which of these rows are given, in their order; int64.
    """

    pieces: list[Piece]
    order: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Order:
    """The order of one stream.

    Attributes:
        groups: rows of each row group, in the order of time.
        pool_rows: rows that fit a pool.
        batch_size, seed: as in `ExampleReader`.
        stream, streams: this stream, from 0, and how many there are.
    """

    groups: Sequence[int]
    pool_rows: int
    batch_size: int
    seed: int
    stream: int = 0
    streams: int = 1

    @cached_property
    def all_rows(self) -> int:
        """The rows of all streams."""
        return sum(self.groups)

    @property
    def rows(self) -> int:
        """The rows of this stream."""
        return len(range(self.stream, self.all_rows, self.streams)) if self.is_one_pool else len(range(*self._share()))

    @property
    def batches(self) -> int:
        """In an epoch, of any of the streams."""
        most = -(-self.all_rows // self.streams)
        return -(-most // self.batch_size)

    @property
    def is_one_pool(self) -> bool:
        """Whether all rows of the part fit a pool."""
        return self.all_rows <= self.pool_rows

    def sizes(self) -> list[int]:
        """The rows of each batch of an epoch of this stream.

        Example:
            >>> Order([103], 200, batch_size=20, seed=0).sizes()
            [20, 20, 20, 20, 12, 11]
        """
        if self.batches == 1:
            return [self.rows]
        left = self.rows - (self.batches - 2) * self.batch_size
        return [self.batch_size] * (self.batches - 2) + [left - left // 2, left // 2]

    def pools(self, epoch: int) -> Iterator[Pool]:
        """An epoch of this stream."""
        if self.is_one_pool:
            pieces = [Piece(group, 0, rows) for group, rows in enumerate(self.groups)]
            order = np.random.default_rng([self.seed, epoch, 0]).permutation(self.all_rows)
            yield Pool(pieces, order[self.stream :: self.streams])
            return
        for number, pieces in enumerate(self._pieces_by_pool(epoch)):
            # From 1, since a seed that ends in zeros is that seed without them: the order of the row groups has it.
            rng = np.random.default_rng([self.seed, epoch, self.stream, number + 1])
            yield Pool(pieces, rng.permutation(sum(piece.rows for piece in pieces)))

    def _share(self) -> tuple[int, int]:
        """From which row to which this stream gives, in an epoch's order of the row groups."""
        return self.all_rows * self.stream // self.streams, self.all_rows * (self.stream + 1) // self.streams

    def _pieces_by_pool(self, epoch: int) -> Iterator[list[Piece]]:
        low, high = self._share()
        pieces, places, start = [], [], 0
        for group in np.random.default_rng([self.seed, epoch]).permutation(len(self.groups)).tolist():
            end = start + self.groups[group]
            first, last = max(start, low), min(end, high)
            if first < last:
                pieces.append(Piece(group, first - start, last - first))
                places.append(first - low)
            start = end
        # As many rows in each pool, as near as row groups allow: no pool is left with little to shuffle.
        pools = max(1, min(-(-self.rows // self.pool_rows), len(pieces) // SMALLEST_POOL))
        numbered = zip((place * pools // self.rows for place in places), pieces, strict=True)
        for _, members in itertools.groupby(numbered, key=lambda pair: pair[0]):
            yield [piece for _, piece in members]
