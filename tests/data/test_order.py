"""The order of rows: every row once an epoch over all streams, the same number of batches for each."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tml.data.order import Order, Pool

groups = st.lists(st.integers(1, 20), min_size=1, max_size=30)


def given_rows(order: Order, pool: Pool) -> list[tuple[int, int]]:
    """What a pool gives, as (row group, row in it)."""
    rows = [(piece.group, piece.first + row) for piece in pool.pieces for row in range(piece.rows)]
    assert all(row < order.groups[group] for group, row in rows)
    return [rows[i] for i in pool.order]


@given(groups, st.integers(1, 5), st.integers(1, 40), st.integers(1, 400), st.integers(0, 3))
def test_every_row_comes_once_an_epoch_and_streams_have_as_many_batches(
    rows: list[int], streams: int, batch_size: int, pool_rows: int, epoch: int
) -> None:
    if streams > 1 and (batch_size < 2 or sum(rows) < 2 * streams):
        return
    seen: Counter[tuple[int, int]] = Counter()
    for stream in range(streams):
        order = Order(rows, pool_rows, batch_size, 7, stream, streams)
        given_here = [row for pool in order.pools(epoch) for row in given_rows(order, pool)]
        sizes = order.sizes()
        assert sum(sizes) == len(given_here) == order.rows
        assert len(sizes) == order.batches
        assert max(sizes) <= batch_size
        assert sizes[:-2] == [batch_size] * (len(sizes) - 2)
        assert min(sizes) >= min(batch_size // 2, order.rows // 2)
        seen.update(given_here)
    assert seen == {(group, row): 1 for group, count in enumerate(rows) for row in range(count)}


@given(groups, st.integers(1, 3), st.integers(1, 200))
def test_a_pool_is_what_fits_and_at_most_a_row_group_more(rows: list[int], streams: int, pool_rows: int) -> None:
    order = Order(rows, pool_rows, 2, 0, 0, streams)
    pools = list(order.pools(0))
    assert order.is_one_pool == (sum(rows) <= pool_rows)
    for pool in pools:
        assert len(pool.order) <= max(pool_rows, 3 * max(rows)) + max(rows)
        # One row group alone would not be shuffled with anything.
        assert len(pool.pieces) > 1 or len(pools) == 1 or max(rows) != min(rows)


def test_a_stream_reads_little_but_its_own_share() -> None:
    order = Order([10] * 60, 50, 4, 0, streams=4)
    for stream in range(4):
        pieces = [piece for pool in replace(order, stream=stream).pools(0) for piece in pool.pieces]
        assert len(pieces) <= 60 / 4 + 1


@pytest.mark.parametrize("streams", [2, 3, 5])
def test_batches_of_all_streams_are_the_batches_of_one(streams: int) -> None:
    """In one pool: a training on several ranks sees in each step what one rank with as many rows a step sees."""
    rows = [40, 1, 62, 17]
    alone = Order(rows, 1000, 4 * streams, 5)
    (whole,) = alone.pools(2)
    shares = [next(replace(alone, batch_size=4, stream=s, streams=streams).pools(2)).order for s in range(streams)]
    for number, size in enumerate(alone.sizes()[:-2]):
        together = np.concatenate([share[4 * number : 4 * number + 4] for share in shares])
        start = number * size
        assert sorted(together) == sorted(whole.order[start : start + size])


def test_order_depends_on_seed_and_epoch_and_mixes_row_groups() -> None:
    order = Order([10] * 40, 100, 8, seed=1)

    def rows(order: Order, epoch: int) -> list[tuple[int, int]]:
        return [row for pool in order.pools(epoch) for row in given_rows(order, pool)]

    assert rows(order, 0) == rows(Order([10] * 40, 100, 8, seed=1), 0)
    assert rows(order, 0) != rows(order, 1) != rows(replace(order, seed=2), 1)
    first_batches = rows(order, 0)[:32]
    assert len({group for group, _ in first_batches}) > 5
    assert first_batches != sorted(first_batches)


def test_every_row_is_as_likely_in_every_place() -> None:
    """Where the rows of a row group come in 400 epochs: everywhere, as often as not in the first half."""
    order = Order([5] * 12, 20, 4, seed=0)
    first_half = np.zeros(12)
    for epoch in range(400):
        rows = [row for pool in order.pools(epoch) for row in given_rows(order, pool)]
        for group, _ in rows[:30]:
            first_half[group] += 1
    share = first_half / (400 * 5)
    # Four standard deviations of a share of row groups, which move together within a pool.
    assert np.abs(share - 0.5).max() < 4 * 0.5 / np.sqrt(400)
