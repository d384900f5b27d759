from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tml.core.errors import ConfigError, DataError
from tml.embeddings.local import LocalTables
from tml.embeddings.partition_order import stages
from tml.embeddings.partitioned import PartitionedTables
from tml.embeddings.partitions import Partitions, cut_tables

SIZES = {"user": 23, "post": 50, "tag": 3}
CUT = Partitions({"user": 23, "post": 50}, count=7, resident=3)


@given(st.integers(2, 20), st.integers(2, 6), st.integers(0, 99))
def test_every_pair_of_partitions_is_in_memory_once(count, resident, seed):
    plan = stages(count, resident, np.random.default_rng(seed))
    pairs = [pair for stage in plan for pair in stage.pairs]
    assert sorted(pairs) == [(p, q) for p in range(count) for q in range(count)]
    assert all(set(pair) <= set(stage.resident) for stage in plan for pair in stage.pairs)
    assert all(len(set(b.resident) - set(a.resident)) == 1 for a, b in pairwise(plan))


def test_few_partitions_are_swapped():
    least = (32 * 31 / 2 - 6) / 3  # each swap makes three new pairs, and the first four partitions have six
    assert len(stages(32, 4, np.random.default_rng(0))) < 1.2 * least


def test_what_is_in_memory_fits():
    cut = cut_tables({"user": 1_000_000, "tag": 1_000}, {"user": 132, "tag": 132}, memory=20_000_000)
    assert cut.sizes.keys() == {"user"}
    assert 15_000_000 < (cut.resident + 1) * cut.places("user") * 132 + 132_000 <= 20_000_000
    assert cut_tables({"user": 1_000}, {"user": 132}, memory=132_000) is None
    with pytest.raises(ConfigError, match=r"memory: found 1,000 bytes, .* 100 rows .* allowed is at least 1,160 b"):
        cut_tables({"user": 100, "post": 10_000}, {"user": 132, "post": 1}, memory=1_000)


def test_draws_are_uniform_over_the_rows_in_memory():
    drawn = CUT.draw("user", (100, 300), (0, 2, 5), np.random.default_rng(0))
    allowed = [row for row in range(23) if row % 7 in (0, 2, 5)]
    rows, counts = np.unique(drawn, return_counts=True)
    assert rows.tolist() == allowed
    # Partitions 2 and 5 have no fourth place; their third is drawn in its stead.
    expected = np.where(np.isin(rows, (16, 19)), 2, 1) / 12
    assert abs(counts / 30_000 - expected).max() < 0.01


def _tables(folder, **settings):
    return PartitionedTables(SIZES, 6, torch.Generator().manual_seed(0), folder=folder, partitions=CUT, **settings)


def _adagrad(tables):
    """Row-wise Adagrad by hand: state of a number a row, which goes to disk with the vectors."""
    sums = {}
    for name in CUT.sizes:
        weight = tables.get_parameter(f"{tables.path(name)}.weight")
        sums[name] = torch.full((len(weight),), 0.5)
        tables.keep_state(name, lambda name=name: {"sum": sums[name]})

    def step():
        for name in CUT.sizes:
            weight = tables.get_parameter(f"{tables.path(name)}.weight")
            if weight.grad is not None:
                rows, values = weight.grad._indices()[0], weight.grad._values()
                sums[name][rows] += values.square().mean(dim=1)
                weight.data[rows] -= values / sums[name][rows].sqrt()[:, None]
                weight.grad = None

    return step


def _train(tables, step, order):
    """The rows that a stage has in memory are pulled, by amounts that differ."""
    for number, stage in enumerate(order):
        following = order[number + 1].resident if number + 1 < len(order) else ()
        new = next((p for p in following if p not in stage.resident), None)
        for _ in range(2):
            tables.hold(stage.resident, new)
            for name, size in CUT.sizes.items():
                rows = torch.tensor([row for row in range(size) if row % 7 in stage.resident])
                tables.add_gradients(name, rows, 0.1 * tables.read(name, rows) + number / (rows[:, None] + 1))
            step()


def test_partitions_on_disk_learn_as_a_table_in_memory(tmp_path):
    order = stages(7, 3, np.random.default_rng(1))
    tables = _tables(tmp_path)
    step = _adagrad(tables)
    first = {name: tables.read(name, slice(None)).clone() for name in SIZES}
    _train(tables, step, order)
    for name, size in CUT.sizes.items():
        vectors, sums = first[name], torch.full((size,), 0.5)
        for number, stage in enumerate(order):
            rows = torch.tensor([row for row in range(size) if row % 7 in stage.resident])
            for _ in range(2):
                gradient = 0.1 * vectors[rows] + number / (rows[:, None] + 1)
                sums[rows] += gradient.square().mean(dim=1)
                vectors[rows] -= gradient / sums[rows].sqrt()[:, None]
        torch.testing.assert_close(tables.read(name, slice(None)), vectors)
        mixed = torch.tensor([3, 3, 22, 0, 17, 8])
        torch.testing.assert_close(tables.read(name, mixed), vectors[mixed])
    assert torch.equal(tables.read("tag", slice(None)), first["tag"])


def test_first_vectors_are_of_the_same_kind_as_in_memory(tmp_path):
    tables = PartitionedTables(
        {"user": 2_000},
        16,
        torch.Generator().manual_seed(0),
        2.0,
        folder=tmp_path,
        partitions=Partitions({"user": 2_000}, 8),
    )
    vectors = tables.read("user", slice(None))
    local = LocalTables({"user": 2_000}, 16, torch.Generator().manual_seed(0), 2.0).vectors("user")
    assert vectors.std().item() == pytest.approx(local.std().item(), rel=0.02)
    assert len(vectors.unique(dim=0)) == 2_000


def test_a_state_brings_back_the_vectors_and_the_optimizers_state(tmp_path):
    order = stages(7, 3, np.random.default_rng(1))
    tables = _tables(tmp_path)
    step = _adagrad(tables)
    _train(tables, step, order[:4])
    state = tables.state_dict()
    assert sum(value.numel() for value in state.values()) == 3 * 6 + 7  # the table that is not cut, and versions
    _train(tables, step, order[4:])
    trained = {name: tables.read(name, slice(None)) for name in SIZES}
    _train(tables, step, order[:2])  # what came after the state, and was lost
    tables.flush()

    other = _tables(tmp_path)
    step = _adagrad(other)
    other.load_state_dict(state)
    _train(other, step, order[4:])
    for name in SIZES:
        assert torch.equal(other.read(name, slice(None)), trained[name])


def test_old_versions_of_partitions_are_removed(tmp_path):
    order = stages(7, 3, np.random.default_rng(1))
    tables = _tables(tmp_path)
    step = _adagrad(tables)
    for _ in range(4):
        _train(tables, step, order)
        tables.state_dict()
    assert len(list(tmp_path.iterdir())) <= 2 * 7


def test_a_partition_that_is_gone_is_named(tmp_path):
    tables = _tables(tmp_path)
    _adagrad(tables)
    tables.hold([0, 1])
    state = tables.state_dict()
    (tmp_path / "partition-00004.1").unlink()
    other = _tables(tmp_path)
    other.load_state_dict(state)
    with pytest.raises(DataError, match=r"partition-00004\.1: no such partition, needed by the checkpoint; remove"):
        other.read("user", slice(None))


@pytest.mark.parametrize("resident", [[], [1, 2, 3]])
def test_vectors_written_to_any_row_are_read_back(tmp_path, resident):
    tables = _tables(tmp_path, types={"user": "bf16"})
    _adagrad(tables)
    tables.hold(resident, 0)
    rows = torch.tensor([20, 1, 2, 9, 22])
    vectors = torch.randn(5, 6).bfloat16().float()
    before = tables.read("user", slice(None))
    tables.write("user", rows, vectors)
    tables.write("tag", slice(0, 2), vectors[:2])
    before[rows] = vectors
    assert torch.equal(tables.read("user", slice(None)), before)
    assert torch.equal(tables.read("tag", slice(0, 2)), vectors[:2])


def test_gradients_of_several_calls_are_added_up(tmp_path):
    tables = _tables(tmp_path)
    _adagrad(tables)
    tables.hold([0, 1, 2])
    tables.add_gradients("user", torch.tensor([0, 1, 2]), torch.ones(3, 6))
    tables.add_gradients("user", torch.tensor([2, 7]), torch.ones(2, 6))
    tables.add_gradients("user", torch.tensor([1, 2]), torch.ones(2, 6))
    weight = tables.get_parameter(f"{tables.path('user')}.weight")
    by_row = weight.grad.to_dense().sum(dim=1) / 6
    assert sorted(by_row[by_row > 0].tolist()) == [1, 1, 2, 3]
