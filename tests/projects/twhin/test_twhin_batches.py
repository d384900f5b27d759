import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tml.projects.twhin.batches import EdgeBatches
from tml.projects.twhin.config import TwhinConfig
from tml.projects.twhin.edges import Edges
from tml.projects.twhin.graph import GraphFolder
from tml.projects.twhin.model import sum_of_rows
from tml.projects.twhin.negatives import Arranger

CONFIG = TwhinConfig(batch_size=16, chunk_size=5, in_batch_negatives=3, global_negatives=2)


def _edges(batch):
    """The edges of a batch read from its chunks, without the filling."""
    real = batch["weight"] == 1
    relation = batch["relation"].expand_as(batch["head"])
    return sorted(zip(batch["head"][real].tolist(), relation[real].tolist(), batch["tail"][real].tolist(), strict=True))


def _epoch(stream):
    return [next(stream) for _ in range(stream.batches_per_epoch)]


def test_every_edge_comes_exactly_once_an_epoch_in_another_order(graph):
    stream = EdgeBatches(graph, CONFIG, seed=1)
    orders = []
    for _ in range(2):
        batches = _epoch(stream)
        assert [len(batch["edges"]) for batch in batches].count(16) == 10  # 103 and 70 edges, by node types
        orders.append(torch.cat([batch["edges"] for batch in batches]))
        assert sorted(orders[-1].tolist()) == list(range(len(graph)))
        read = sorted(edge for batch in batches for edge in _edges(batch))
        assert read == sorted(zip(graph.lhs.tolist(), graph.rel.tolist(), graph.rhs.tolist(), strict=True))
    assert not torch.equal(*orders)


def test_batches_are_int64_but_for_weights_and_join_two_node_types(graph):
    for batch in _epoch(EdgeBatches(graph, CONFIG, seed=1)):
        floats = {name for name, values in batch.items() if name != "reads" and values.dtype != torch.int64}
        assert floats == {"weight", "count"}
        relations = batch["relation"].reshape(-1).tolist()
        assert len({(graph.relations[r].head, graph.relations[r].tail) for r in relations}) == 1
        chunks, width = batch["head"].shape
        assert width <= 5
        assert batch["relation"].shape == (chunks, 1)
        assert batch["tail"].shape == batch["weight"].shape == (chunks, width)
        assert batch["head_negatives"].shape == batch["tail_negatives"].shape == (chunks, 5)


@pytest.mark.parametrize("after", [0, 3, 12, 20])
def test_a_resumed_stream_goes_on_with_the_same_bits(graph, after):
    stream, resumed = EdgeBatches(graph, CONFIG, seed=2), EdgeBatches(graph, CONFIG, seed=2)
    for _ in range(after):
        next(stream)
    resumed.load_state_dict(stream.state_dict())
    for _ in range(15):
        one, other = next(stream), next(resumed)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one if name != "reads")


@pytest.fixture
def folder(graph, tmp_path):
    """The graph on disk, in row groups of 20 edges, with weights."""
    (tmp_path / "vocabulary").mkdir()
    for node, ids in graph.vocabularies.items():
        pq.write_table(pa.table({"id": ids}), tmp_path / "vocabulary" / f"{node}.parquet")
    relations = [{"name": r.name, "head": r.head, "tail": r.tail} for r in graph.relations]
    (tmp_path / "relations.json").write_text(json.dumps(relations))
    weight = np.arange(1, len(graph) + 1, dtype=np.float32)
    columns = {"lhs": graph.lhs, "rel": graph.rel, "rhs": graph.rhs, "weight": weight}
    pq.write_table(pa.table(columns), tmp_path / "edges.parquet", row_group_size=20)
    return GraphFolder(tmp_path)


@pytest.mark.parametrize("pool", [1, 50, 10_000])
def test_edges_on_disk_come_once_an_epoch_with_their_weights(graph, folder, pool):
    stream = EdgeBatches(folder, CONFIG, seed=1, pool=pool)
    assert stream.batches_per_epoch == EdgeBatches(graph, CONFIG, seed=1).batches_per_epoch
    for _ in range(2):
        weights, batches = [], _epoch(stream)
        at = torch.cat([batch["edges"] for batch in batches])
        assert sorted(at.tolist()) == list(range(len(graph)))
        for batch in batches:
            weights += batch["weight"][batch["weight"] > 0].tolist()
            relation = batch["relation"].expand_as(batch["head"])
            for index in zip(*np.nonzero(batch["weight"].numpy()), strict=True):
                edge = int(batch["weight"][index]) - 1
                read = batch["head"][index], relation[index], batch["tail"][index]
                assert tuple(map(int, read)) == (graph.lhs[edge], graph.rel[edge], graph.rhs[edge])
        assert sorted(weights) == list(range(1, len(graph) + 1))


@pytest.mark.parametrize("after", [5, 11, 14])
def test_a_resumed_stream_from_disk_goes_on_with_the_same_bits(folder, after):
    config = CONFIG.model_copy(update={"degree_negatives": 2})
    stream, resumed = (EdgeBatches(folder, config, seed=2, pool=50) for _ in range(2))
    for _ in range(after):
        next(stream)
    resumed.load_state_dict(stream.state_dict())
    for _ in range(15):
        one, other = next(stream), next(resumed)
        assert all(torch.equal(one[name], other[name]) for name in one if name != "reads")


def test_degree_negatives_follow_the_edges_of_the_graph_and_relation(graph):
    config = CONFIG.model_copy(
        update={"in_batch_negatives": 0, "global_negatives": 0, "degree_negatives": 4000, "batch_size": 4}
    )
    for batch in _epoch(EdgeBatches(graph, config, seed=3))[:8]:
        for chunk, relation in enumerate(batch["relation"][:, 0].tolist()):
            drawn = np.bincount(batch["head_negatives"][chunk].numpy(), minlength=20)
            true = np.bincount(graph.lhs[graph.rel == relation], minlength=20)
            np.testing.assert_allclose(drawn / drawn.sum(), true / true.sum(), atol=0.03)


def test_what_is_read_is_summed_by_row(graph):
    batch = next(EdgeBatches(graph, CONFIG, seed=1))
    for read in batch["reads"].values():
        gradients = torch.randn(len(read["rows"]), 3, dtype=torch.float64)
        expected = torch.zeros(40, 3, dtype=torch.float64).index_add_(0, read["rows"], gradients)
        torch.testing.assert_close(sum_of_rows(gradients, read), expected[read["unique"]])
        assert read["unique"].tolist() == sorted(set(read["rows"].tolist()))


def test_another_seed_is_another_stream(graph):
    one, other = next(EdgeBatches(graph, CONFIG, seed=2)), next(EdgeBatches(graph, CONFIG, seed=3))
    assert not torch.equal(one["edges"], other["edges"])


def _arranged(graph, edges, in_batch, uniform, chunk_size=4, seed=0):
    config = TwhinConfig(in_batch_negatives=in_batch, global_negatives=uniform, chunk_size=chunk_size)
    chosen = Edges(graph.lhs[edges], graph.rel[edges], graph.rhs[edges])
    return Arranger(graph.relations, graph.sizes, config).arrange(chosen, np.random.default_rng(seed))


def test_in_batch_negatives_are_nodes_of_the_same_relation_as_often_as_they_have_edges(graph):
    edges = np.flatnonzero(graph.rel != 1)
    batch = _arranged(graph, edges, in_batch=4000, uniform=0, chunk_size=8)
    for number in (0, 2):
        here = batch["relation"][:, 0] == number
        for side, column in (("head", graph.lhs), ("tail", graph.rhs)):
            drawn = np.bincount(batch[f"{side}_negatives"][here].reshape(-1).numpy(), minlength=20)
            true = np.bincount(column[graph.rel == number], minlength=20)
            assert not drawn[true == 0].any()
            np.testing.assert_allclose(drawn / drawn.sum(), true / true.sum(), atol=0.02)


def test_global_negatives_are_uniform_over_the_nodes_of_the_right_type(graph):
    """Regression: the published code ignored the global negatives."""
    batch = _arranged(graph, np.flatnonzero(graph.rel == 1), in_batch=0, uniform=3000)
    for side, size in (("head", 20), ("tail", 30)):
        drawn = np.bincount(batch[f"{side}_negatives"].reshape(-1).numpy())
        assert len(drawn) == size
        np.testing.assert_allclose(drawn / drawn.sum(), 1 / size, rtol=0.1)


def test_head_and_tail_negatives_are_drawn_apart(graph):
    batch = _arranged(graph, np.flatnonzero(graph.rel == 0), in_batch=50, uniform=0)
    pairs = set(zip(graph.lhs[graph.rel == 0].tolist(), graph.rhs[graph.rel == 0].tolist(), strict=True))
    drawn = zip(batch["head_negatives"].reshape(-1).tolist(), batch["tail_negatives"].reshape(-1).tolist(), strict=True)
    assert not set(drawn) <= pairs
