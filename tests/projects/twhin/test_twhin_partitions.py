"""TwHIN on tables in partitions, against TwHIN in memory."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tml.core.errors import ConfigError, DataError
from tml.embeddings.files import read_embeddings
from tml.embeddings.partitions import Partitions
from tml.projects.twhin import train as module
from tml.projects.twhin.buckets import BucketBatches
from tml.projects.twhin.config import EmbeddingsConfig, TwhinConfig, TwhinTraining
from tml.projects.twhin.graph import GraphFolder
from tml.projects.twhin.train import train_on_graph

NODES, AUTHORS, COMMUNITIES, EDGES = 600, 400, 10, 18_000


@pytest.fixture
def folder(tmp_path):
    """People follow authors and like posts of their community, and each other; a few topics belong to all."""
    rng = np.random.default_rng(0)
    path = tmp_path / "graph"
    (path / "vocabulary").mkdir(parents=True)
    for name, size in (("user", NODES), ("author", AUTHORS), ("topic", 5)):
        pq.write_table(pa.table({"id": np.arange(size)}), path / "vocabulary" / f"{name}.parquet")
    ends = [("follow", "user", "author"), ("know", "user", "user"), ("read", "user", "topic")]
    (path / "relations.json").write_text(
        json.dumps([dict(zip(("name", "head", "tail"), e, strict=True)) for e in ends])
    )
    rel = rng.choice(3, EDGES, p=(0.6, 0.35, 0.05))
    lhs = rng.integers(0, NODES, EDGES)
    size = np.array([AUTHORS, NODES, 5])[rel]
    rhs = (rng.random(EDGES) ** 2 * size).astype(np.int64)
    same = (rng.random(EDGES) < 0.9) & (rel < 2)
    rhs = np.where(same, rhs // COMMUNITIES * COMMUNITIES + lhs % COMMUNITIES, rhs)
    weight = rng.uniform(0.5, 1.5, EDGES).astype(np.float32)
    table = pa.table({"lhs": lhs, "rel": rel, "rhs": rhs, "weight": weight})
    pq.write_table(table.slice(0, EDGES - 2000), path / "edges.parquet", row_group_size=1000)
    pq.write_table(table.slice(EDGES - 2000), path / "validation.parquet")
    return path


@pytest.fixture
def config():
    return TwhinConfig(
        embedding_dim=16,
        batch_size=512,
        chunk_size=64,
        epochs=8.0,
        embeddings=EmbeddingsConfig(memory="100KB"),
        training=TwhinTraining(num_steps=None, log_every=50, evaluate_every=10_000, checkpoint_every=100),
    )


def _metrics(out):
    return json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])


def _vectors(out):
    return {path.name: path.read_bytes() for path in (out / "embeddings").iterdir()}


@pytest.mark.parametrize("negatives", [{}, {"degree_negatives": 8}])
def test_every_edge_comes_once_an_epoch_with_all_it_needs_in_memory(folder, config, tmp_path, negatives):
    graph, cut = GraphFolder(folder), Partitions({"user": NODES, "author": AUTHORS}, 7, resident=3)
    config = config.model_copy(update=negatives)
    batches = BucketBatches(graph, cut, config, 0, tmp_path / "edges", epochs=1)
    found = []
    before = None
    for batch in batches:
        resident = batch["resident"]
        if before is not None and before["resident"] != resident:
            assert set(resident) - set(before["resident"]) == {before["next"]}
        before = batch
        real = batch["weight"].numpy() > 0
        relation = np.broadcast_to(batch["relation"].numpy(), real.shape)[real]
        lhs, rhs, weight = (batch[name].numpy()[real] for name in ("head", "tail", "weight"))
        found.append(np.stack([lhs, relation, rhs, weight.view(np.int32)], axis=1))
        for node, read in batch["reads"].items():
            assert node == "topic" or set((read["unique"] % 7).tolist()) <= set(resident)
    edges = graph.read()
    expected = np.stack([edges.lhs, edges.rel, edges.rhs, edges.weight.view(np.int32)], axis=1)
    rows = np.concatenate(found)
    np.testing.assert_array_equal(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)])


def test_it_finds_held_out_edges_as_well_as_in_memory(folder, config, tmp_path):
    train_on_graph(folder, config, tmp_path / "cut", seed=0)
    assert len(list((tmp_path / "cut" / "partitions").glob("partition-*"))) >= 7
    whole = config.model_copy(update={"embeddings": EmbeddingsConfig()})
    train_on_graph(folder, whole, tmp_path / "whole", seed=0)
    cut, whole = _metrics(tmp_path / "cut"), _metrics(tmp_path / "whole")
    assert cut["validation/degree_mrr"] == pytest.approx(whole["validation/degree_mrr"])
    assert whole["validation/mrr"] > 1.3 * whole["validation/degree_mrr"]
    assert cut["validation/mrr"] == pytest.approx(whole["validation/mrr"], rel=0.03)
    users = read_embeddings(tmp_path / "cut" / "embeddings" / "user.parquet", width=16)
    assert users.ids.to_pylist() == list(range(NODES))
    assert (np.linalg.norm(users.vectors, axis=1) > 0.1).mean() > 0.9


def test_a_training_that_is_killed_goes_on_with_the_same_bits(folder, config, tmp_path, monkeypatch):
    config = config.model_copy(update={"epochs": 2.0})
    train_on_graph(folder, config, tmp_path / "whole", seed=0)

    class Killed(BucketBatches):
        def __next__(self):
            if self.place[0] == 1 and self.place[1] == 3:
                raise RuntimeError("power cut")
            return super().__next__()

    with monkeypatch.context() as patched:
        patched.setattr(module, "BucketBatches", Killed)
        with pytest.raises(RuntimeError, match="power cut"):
            train_on_graph(folder, config, tmp_path / "parts", seed=0)
    train_on_graph(folder, config, tmp_path / "parts", seed=0)
    assert _vectors(tmp_path / "whole") == _vectors(tmp_path / "parts")


@pytest.mark.parametrize("memory", ["100KB", None])
def test_a_relation_without_an_edge_is_refused(folder, config, tmp_path, memory):
    config = config.model_copy(update={"embeddings": EmbeddingsConfig(memory=memory)})
    edges = pq.read_table(folder / "edges.parquet")
    pairs = edges.append_column("label", pa.array(np.asarray(edges["rel"]) != 1))
    for table in (edges.filter(pc.not_equal(edges["rel"], 1)), pairs):
        pq.write_table(table, folder / "edges.parquet")
        with pytest.raises(DataError, match=r"edges\.parquet: found no edge of the relation '\w+'"):
            train_on_graph(folder, config, tmp_path / "out", seed=0)


def test_negatives_that_need_the_whole_graph_are_refused(folder, config, tmp_path):
    config = config.model_copy(update={"exclude_known_edges": True})
    with pytest.raises(
        ConfigError, match="exclude_known_edges: found true, allowed with tables in partitions is false"
    ):
        train_on_graph(folder, config, tmp_path / "out", seed=0)
