import numpy as np
import pytest
import torch

from tml.projects.twhin.batches import EdgeBatches
from tml.projects.twhin.config import TwhinConfig
from tml.projects.twhin.edges import Edges
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
