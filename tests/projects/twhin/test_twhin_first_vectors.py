"""Where vectors start: pre-trained files, an older run with a smaller vocabulary, frozen and narrow tables."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from tml.core.errors import ConfigError, DataError
from tml.embeddings.files import write_embeddings
from tml.projects.twhin.batches import EdgeBatches
from tml.projects.twhin.config import RelationConfig, TwhinConfig
from tml.projects.twhin.export import export_embeddings
from tml.projects.twhin.first_vectors import load_first_vectors
from tml.projects.twhin.graph import Graph
from tml.projects.twhin.model import TwhinModel
from tml.projects.twhin.optimizer import build_optimizer


def _model(graph, config, seed=0):
    return TwhinModel(graph.sizes, graph.relations, config, torch.Generator().manual_seed(seed))


def _config(*tables, **fields):
    return TwhinConfig(embedding_dim=4, embeddings={"tables": tables}, **fields)


def test_an_older_run_gives_its_vectors_to_a_grown_vocabulary(graph, tmp_path):
    older = _model(graph, _config(), seed=1)
    with torch.no_grad():
        older.operators.weights.normal_()
    export_embeddings(older, graph, tmp_path / "old")
    grown = {**graph.vocabularies, "user": pa.array([99, *reversed(range(20)), -5])}
    larger = Graph(graph.relations, grown, graph.lhs, graph.rel, graph.rhs)
    config = _config(warm_start=tmp_path / "old")
    model, without = _model(larger, config), _model(larger, _config())
    assert load_first_vectors(model, grown, config) == {"user": 20, "author": 15, "post": 30}
    users = model.embeddings.vectors("user")
    torch.testing.assert_close(users[1:21].flip(0), older.embeddings.vectors("user"))
    assert torch.equal(users[[0, 21]], without.embeddings.vectors("user")[[0, 21]])
    torch.testing.assert_close(model.operators.weights[0, 0], older.operators.weights[0, 0])


def test_pretrained_vectors_that_are_frozen_stay(graph, tmp_path):
    vectors = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    write_embeddings(tmp_path / "users.parquet", pa.array(range(20)), vectors)
    config = _config({"name": "user", "pretrained": tmp_path / "users.parquet", "frozen": True})
    model = _model(graph, config)
    load_first_vectors(model, graph.vocabularies, config)
    before = model.embeddings.vectors("author").clone()
    _steps(model, graph, config, 5)
    np.testing.assert_array_equal(model.embeddings.vectors("user").numpy(), vectors)
    assert not torch.equal(model.embeddings.vectors("author"), before)


def _steps(model, graph, config, count):
    optimizer, scheduler = build_optimizer(model, config)
    losses = []
    for _, batch in zip(range(count), EdgeBatches(graph, config, seed=0), strict=False):
        optimizer.zero_grad()
        loss, _ = model(batch)
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
@pytest.mark.parametrize("algorithm", ["sgd", "adagrad", "rowwise_adagrad", "adam"])
def test_narrow_tables_learn_about_as_well_as_wide_ones(graph, kind, algorithm):
    torch.manual_seed(0)
    rate = {algorithm: {}, "learning_rate": 2.0 if algorithm == "sgd" else 0.02}
    last = {}
    for name in ("fp32", kind):
        config = _config(*({"name": n, "data_type": name, "optimizer": rate} for n in ("user", "author", "post")))
        model = _model(graph, config)
        losses = _steps(model, graph, config, 60)
        assert model.embeddings.read("user", slice(None)).dtype == torch.float32
        last[name] = np.mean(losses[-10:])
        assert last[name] < np.mean(losses[:4])
    assert model.embeddings.vectors("user").element_size() == 2
    assert last[kind] == pytest.approx(last["fp32"], rel=0.02)


def test_what_does_not_fit_is_named(graph, tmp_path):
    write_embeddings(tmp_path / "a.parquet", pa.array(["x", "y"]), np.ones((2, 4), np.float32))
    write_embeddings(tmp_path / "b.parquet", pa.array([501, 502]), np.ones((2, 4), np.float32))
    write_embeddings(tmp_path / "c.parquet", pa.array([1]), np.ones((1, 5), np.float32))
    for name, message in (("a", "ids of type string"), ("b", "none of the 20 ids of user"), ("c", "of width 5")):
        config = _config({"name": "user", "pretrained": tmp_path / f"{name}.parquet"})
        with pytest.raises(DataError, match=message):
            load_first_vectors(_model(graph, config), graph.vocabularies, config)
    with pytest.raises(
        ConfigError, match=r"embeddings\.tables: found 'item', allowed are the graph's node types: user"
    ):
        _model(graph, _config({"name": "item"}))
    with pytest.raises(ConfigError, match="relations: found 'buys', allowed are those of the graph: follow, like"):
        _model(graph, _config(relations=(RelationConfig(name="buys"),)))
    with pytest.raises(ConfigError, match="like goes from user to author, but in the graph from user to post"):
        _model(graph, _config(relations=(RelationConfig(name="like", head="user", tail="author"),)))
    with pytest.raises(ConfigError, match="all_negatives: found true, but the operator of follow works on"):
        EdgeBatches(graph, _config(all_negatives=True), seed=0)
