"""TwHIN's published configuration: every name of it counts for what it says, or is refused."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tml.core.errors import ConfigError, DataError
from tml.graph_pipeline import graph_config, prepare_config, train_graph
from tml.projects.twhin.graph import read_graph

SGD = {"user": 0.01, "tweet": 0.005}


def _config(folder, **changed):
    """A file in the published form, with other values for some fields of its first table."""
    tables = [
        {
            "name": name,
            "num_embeddings": size,
            "embedding_dim": 4,
            "data_type": "fp32",
            "optimizer": {"sgd": {"lr": SGD[name]}, "learning_rate": {"constant": SGD[name]}},
        }
        for name, size in (("user", 20), ("tweet", 10))
    ]
    tables[0] |= changed
    relations = [{"name": name, "lhs": "user", "rhs": "tweet", "operator": "translation"} for name in ("fav", "reply")]
    data = {"data_root": str(folder / "edges" / "*"), "per_replica_batch_size": 25}
    data |= {"in_batch_negatives": 10, "global_negatives": 0}
    tree = {
        "runtime": {"enable_amp": False},
        "training": {"num_train_steps": 6},
        "model": {
            "embeddings": {"tables": tables},
            "relations": relations,
            "translation_optimizer": {"sgd": {"lr": 0.05}},
        },
        "train_data": {**data, "limit": 90, "offset": 5},
        "validation_data": {**data, "offset": 95},
    }
    (folder / "published.yaml").write_text(yaml.safe_dump(tree))
    return folder / "published.yaml"


@pytest.fixture
def edges(tmp_path):
    """Two files of 50 edges, of users 0 to 19 and tweets 0 to 9."""
    rng = np.random.default_rng(0)
    columns = {"lhs": rng.integers(0, 20, 100), "rel": np.arange(100) % 2, "rhs": rng.integers(0, 10, 100)}
    (tmp_path / "edges").mkdir()
    for number in range(2):
        part = pa.table({name: column[number * 50 : number * 50 + 50] for name, column in columns.items()})
        pq.write_table(part, tmp_path / "edges" / f"{number}.parquet", row_group_size=20)
    return columns


def test_its_graph_has_the_edges_that_it_names(tmp_path, edges):
    counts = prepare_config(_config(tmp_path), (), tmp_path / "graph", None, None)
    assert counts == {"train": 90, "validation": 5}
    for split, part in (("train", slice(5, 95)), ("validation", slice(95, 100))):
        graph = read_graph(tmp_path / "graph", split)
        assert graph.sizes == {"user": 20, "tweet": 10}
        for name, column in edges.items():
            np.testing.assert_array_equal(getattr(graph, name), column[part])


@pytest.mark.usefixtures("edges")
def test_its_fields_are_those_of_a_training(tmp_path, capsys):
    path = _config(tmp_path)
    prepare_config(path, (), tmp_path / "graph", None, None)
    twhin = graph_config(path, ["twhin.loss=softmax", "twhin.training.log_every=2"]).twhin
    assert "runtime of the published configuration have no meaning" in capsys.readouterr().err
    assert (twhin.embedding_dim, twhin.batch_size, twhin.in_batch_negatives, twhin.global_negatives) == (4, 25, 10, 0)
    assert (twhin.training.num_steps, twhin.training.log_every, twhin.loss) == (6, 2, "softmax")
    rates = [twhin.embeddings.table(node).optimizer.learning_rate.at(0) for node in SGD]
    assert [*rates, twhin.translation_optimizer.learning_rate.at(0)] == [0.01, 0.005, 0.05]
    train_graph(graph_config(path, ()), tmp_path / "graph", tmp_path / "run")
    assert len(pq.read_table(tmp_path / "run" / "embeddings" / "user.parquet")) == 20


@pytest.mark.usefixtures("edges")
def test_a_table_that_is_not_the_graphs_is_refused(tmp_path):
    graph = tmp_path / "graph"
    prepare_config(_config(tmp_path), (), graph, None, None)
    with pytest.raises(ConfigError, match="found the embedding_dim 4 of tweet, allowed is the model's, 8"):
        graph_config(_config(tmp_path, embedding_dim=8), ())
    with pytest.raises(ConfigError, match=r"found 21 as num_embeddings of user, allowed is the graph's .* 20"):
        train_graph(graph_config(_config(tmp_path, num_embeddings=21), ()), graph, tmp_path / "run")
    with pytest.raises(DataError, match=r"found lhs \d+ in row \d+ of row group 0, allowed are 0 to 4"):
        prepare_config(_config(tmp_path, num_embeddings=5), (), tmp_path / "other", None, None)
    assert not (tmp_path / "other").exists()
    pq.write_table(pa.table({"id": range(20)}), tmp_path / "same.parquet")
    pq.write_table(pa.table({"id": range(1, 21)}), tmp_path / "others.parquet")
    train_graph(graph_config(_config(tmp_path, vocab=str(tmp_path / "same.parquet")), ()), graph, tmp_path / "run")
    others = _config(tmp_path, vocab=str(tmp_path / "others.parquet"))
    with pytest.raises(DataError, match=r"others\.parquet: found other ids than the graph's of user"):
        train_graph(graph_config(others, ()), graph, tmp_path / "run")
