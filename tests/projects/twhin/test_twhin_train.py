import json
from datetime import timedelta

import numpy as np
import pytest
import torch

from tml.embeddings.files import read_embeddings
from tml.projects.twhin import train as module
from tml.projects.twhin.config import TwhinConfig, TwhinTraining
from tml.projects.twhin.data import extract_graph
from tml.projects.twhin.export import export_embeddings
from tml.projects.twhin.graph import read_graph
from tml.projects.twhin.model import TwhinModel
from tml.projects.twhin.train import train_twhin


@pytest.fixture
def config(two_relations):
    return two_relations.model_copy(update={"batch_size": 512, "chunk_size": 32, "epochs": 2.0})


def _bytes(folder):
    return {path.name: path.read_bytes() for path in (folder / "embeddings").iterdir()}


def test_the_export_has_every_node_and_relation(make_log, community_rows, config, tmp_path):
    train_twhin(make_log(*community_rows), config, None, tmp_path, seed=0, fingerprint="f")
    graph = read_graph(tmp_path / "graph")
    for node in ("user", "author"):
        table = read_embeddings(tmp_path / "embeddings" / f"{node}.parquet", width=8)
        assert table.ids.to_pylist() == sorted(graph.vocabularies[node].to_pylist())
        assert table.vectors.any(axis=1).all()
    relations = read_embeddings(tmp_path / "embeddings" / "relations.parquet")
    assert relations.ids.to_pylist() == ["follow", "favorited"]
    assert relations.vectors.any(axis=1).all()  # translations learn
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"validation/auc", "validation/degree_auc", "validation/mrr/follow"} <= last.keys()


def test_exported_vectors_are_the_models_with_ids_of_their_type(make_log, two_relations, tmp_path):
    log = make_log([("u2", "a", 0), ("u10", "b", 0)], [("u2", "p", "favorited", 1)], [("p", "b")])
    graph = extract_graph(log, two_relations, None, tmp_path / "graph")
    model = TwhinModel(graph.sizes, graph.relations, two_relations, torch.Generator().manual_seed(0))
    export_embeddings(model, graph, tmp_path / "embeddings")
    users = read_embeddings(tmp_path / "embeddings" / "user.parquet")
    assert users.ids.to_pylist() == ["u10", "u2"]
    np.testing.assert_array_equal(users.vectors, model.embeddings.vectors("user").numpy())


def test_an_edge_at_or_after_the_time_changes_nothing(make_log, community_rows, config, tmp_path, start):
    follows, likes, posts = community_rows
    until = start + timedelta(hours=80)
    train_twhin(make_log(follows, likes, posts), config, until, tmp_path / "plain", seed=0, fingerprint="f")
    future_follows = [*follows, (0, 1079, 80), (9999, 7777, 81), (1, 1001, 2000)]
    future_likes = [*likes, (0, 5079, "favorited", 80), (8888, 5001, "favorited", 99)]
    log = make_log(future_follows, future_likes, [*posts, (6000, 7777)])
    train_twhin(log, config, until, tmp_path / "planted", seed=0, fingerprint="f")
    assert _bytes(tmp_path / "plain") == _bytes(tmp_path / "planted")

    past = make_log([*follows, (0, 7777, 79.9)], likes, posts)
    train_twhin(past, config, until, tmp_path / "past", seed=0, fingerprint="f")
    assert _bytes(tmp_path / "plain") != _bytes(tmp_path / "past")


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(make_log, community_rows, config, tmp_path):
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        follows, likes, posts = community_rows
        if name == "two":  # the order of a log's rows is nothing that counts
            follows, likes = follows[::-1], likes[::-1]
        train_twhin(make_log(follows, likes, posts), config, None, tmp_path / name, seed=seed, fingerprint="f")
    assert _bytes(tmp_path / "one") == _bytes(tmp_path / "two")
    assert _bytes(tmp_path / "one") != _bytes(tmp_path / "three")


def test_what_is_drawn_in_a_step_follows_from_the_seed(make_log, community_rows, config, tmp_path):
    tables = {"tables": [{"name": "user", "data_type": "bf16"}]}
    config = TwhinConfig(**{**config.model_dump(), "dropout": 0.2, "embeddings": tables})
    for name in ("one", "two"):
        train_twhin(make_log(*community_rows), config, None, tmp_path / name, seed=0, fingerprint="f")
        torch.rand(7)
    assert _bytes(tmp_path / "one") == _bytes(tmp_path / "two")


def test_an_interrupted_training_goes_on_with_the_same_bits(make_log, community_rows, config, tmp_path, monkeypatch):
    training = TwhinTraining(num_steps=17, log_every=5, evaluate_every=10, checkpoint_every=4)
    config = config.model_copy(update={"training": training})
    train_twhin(make_log(*community_rows), config, None, tmp_path / "whole", seed=0, fingerprint="f")

    class Interrupted(module.EdgeBatches):
        def __next__(self):
            if self.place == (1, 1):
                raise RuntimeError("power cut")
            return super().__next__()

    with monkeypatch.context() as patched:
        patched.setattr(module, "EdgeBatches", Interrupted)
        with pytest.raises(RuntimeError, match="power cut"):
            train_twhin(make_log(*community_rows), config, None, tmp_path / "parts", seed=0, fingerprint="f")
    assert not (tmp_path / "parts" / "embeddings").exists()
    result = train_twhin(make_log(*community_rows), config, None, tmp_path / "parts", seed=0, fingerprint="f")
    assert result.step == 17
    assert _bytes(tmp_path / "whole") == _bytes(tmp_path / "parts")


def test_without_held_out_edges_it_trains_on_all_and_measures_nothing(make_log, community_rows, config, tmp_path):
    config = config.model_copy(update={"validation_fraction": 0.0})
    result = train_twhin(make_log(*community_rows), config, None, tmp_path, seed=0, fingerprint="f")
    assert not [name for name in result.metrics if name.startswith("validation/")]


def test_vectors_find_held_out_edges_better_than_degrees_do(make_log, community_rows, config, tmp_path):
    config = config.model_copy(update={"epochs": 30.0, "validation_fraction": 0.1})
    result = train_twhin(make_log(*community_rows), config, None, tmp_path, seed=0, fingerprint="f")
    assert result.metrics["validation/auc"] > result.metrics["validation/degree_auc"] + 0.05
    assert result.metrics["validation/mrr"] > result.metrics["validation/degree_mrr"] + 0.03
