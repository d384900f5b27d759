"""Every figure of an evaluation against a count by hand, on a graph whose scores are whole numbers: many tie."""

from functools import partial

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import roc_auc_score

from reference.link_prediction import measures, realistic_rank, recall_at
from tml.core.errors import DataError
from tml.projects.twhin import ranking
from tml.projects.twhin.config import TwhinConfig
from tml.projects.twhin.data import hold_out
from tml.projects.twhin.degrees import Degrees
from tml.projects.twhin.evaluate import EvaluationConfig, evaluate_edges, evaluate_graph, protocol
from tml.projects.twhin.graph import Graph, Relation
from tml.projects.twhin.model import TwhinModel

NODES = 23
ITEMS = 17


@pytest.fixture
def splits():
    """Two relations between nodes and one to items, in three splits with the same nodes; some edges are there twice."""
    rng = np.random.default_rng(1)
    relations = (Relation("a", "node", "node"), Relation("b", "node", "item"), Relation("c", "node", "node"))
    vocabularies = {"node": pa.array(range(NODES)), "item": pa.array(range(ITEMS))}

    def some(count):
        rel = rng.choice(3, count, p=[0.5, 0.4, 0.1])
        rhs = rng.integers(0, np.array([NODES, ITEMS, NODES])[rel])
        return Graph(relations, vocabularies, rng.integers(0, NODES, count), rel, rhs)

    return {"train": some(150), "validation": some(30), "test": some(60)}


def _whole_numbers(graph, dim=3):
    """A model in float64 whose scores are small whole numbers."""
    model = TwhinModel(graph.sizes, graph.relations, TwhinConfig(embedding_dim=dim), torch.Generator().manual_seed(0))
    model = model.double()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for table in model.parameters():
            table.copy_(torch.randint(-1, 2, table.shape, generator=generator))
    return model


def _edges(graph):
    return list(zip(graph.lhs.tolist(), graph.rel.tolist(), graph.rhs.tolist(), strict=True))


def _model_score(model, edge):
    head, relation, tail = edge
    with torch.no_grad():
        return float(model.score(relation, torch.tensor([head]), torch.tensor([tail])))


def _degree_score(train, edge):
    edges = _edges(train)
    heads = sum((edge[0], edge[1]) == (h, r) for h, r, _ in edges)
    return (1 + heads) * (1 + sum((edge[2], edge[1]) == (t, r) for _, r, t in edges))


def _size(graph, relation, side):
    of = graph.relations[relation]
    return graph.sizes[of.tail if side == "tail" else of.head]


@pytest.mark.parametrize("filtered", [True, False])
def test_full_ranking_is_a_count_by_hand(splits, filtered, monkeypatch):
    monkeypatch.setattr(ranking, "BLOCK_SCORES", 100)  # several blocks
    model = _whole_numbers(splits["train"])
    result = evaluate_graph(model, splits, EvaluationConfig(filtered=filtered))
    known = {edge for graph in splits.values() for edge in _edges(graph)} if filtered else set()
    test = _edges(splits["test"])
    for name, score in (("model", partial(_model_score, model)), ("degree", partial(_degree_score, splits["train"]))):
        ranks = {
            side: [realistic_rank(e, side, range(_size(splits["test"], e[1], side)), score, known) for e in test]
            for side in ("tail", "head")
        }
        assert result[name]["micro"] == pytest.approx(measures(ranks["tail"] + ranks["head"]), abs=1e-12)
        for side in ("tail", "head"):
            assert result[name][side] == pytest.approx(measures(ranks[side]), abs=1e-12)
        of_relations = []
        for number, relation in enumerate(splits["test"].relations):
            of = [i for i, edge in enumerate(test) if edge[1] == number]
            of_relations.append(measures([ranks[side][i] for side in ("tail", "head") for i in of]))
            assert result[name]["relations"][relation.name]["micro"] == pytest.approx(of_relations[-1], abs=1e-12)
            assert result[name]["relations"][relation.name]["edges"] == len(of)
        macro = {key: np.mean([each[key] for each in of_relations]) for key in of_relations[0]}
        assert result[name]["macro"] == pytest.approx(macro, abs=1e-12)
    assert result["edges"] == len(test)
    assert result["recall"] is None
    assert result["pairs"] is None


@pytest.mark.parametrize("by", ["uniform", "degree"])
@pytest.mark.parametrize("filtered", [True, False])
def test_ranking_among_drawn_candidates_is_a_count_by_hand(splits, by, filtered):
    model = _whole_numbers(splits["train"])
    config = EvaluationConfig(filtered=filtered, candidates=9, by=by, seed=5)
    result = evaluate_graph(model, splits, config)
    known = {edge for graph in splits.values() for edge in _edges(graph)} if filtered else set()
    rng = np.random.default_rng(5)
    train, test = splits["train"], splits["test"]
    ranks = []
    for number in range(3):
        edges = [edge for edge in _edges(test) if edge[1] == number]
        for side in ("tail", "head"):
            nodes = (train.rhs if side == "tail" else train.lhs)[train.rel == number]
            shape = (len(edges), 9)
            drawn = rng.choice(nodes, shape) if by == "degree" else rng.integers(0, _size(test, number, side), shape)
            ranks += [
                realistic_rank(edge, side, row, partial(_model_score, model), known)
                for edge, row in zip(edges, drawn.tolist(), strict=True)
            ]
    assert result["model"]["micro"] == pytest.approx(measures(ranks), abs=1e-12)


def test_candidates_by_degree_are_as_often_as_they_have_edges(splits):
    train = splits["train"]
    asked = []

    class Asked(Degrees):
        def candidates(self, relation, side, rows=None):
            asked.append((relation, side, rows))
            return super().candidates(relation, side, rows)

    evaluate_graph(Asked(train), splits, EvaluationConfig(candidates=4000, by="degree"))
    of_tails = [rows for number, side, rows in asked if (number, side) == (1, "tail") and len(rows) > 1]
    rows = np.concatenate([rows.numpy().reshape(-1, 4001)[:, 1:].ravel() for rows in of_tails])
    share = np.bincount(rows, minlength=ITEMS) / len(rows)
    expected = np.bincount(train.rhs[train.rel == 1], minlength=ITEMS) / (train.rel == 1).sum()
    np.testing.assert_allclose(share, expected, atol=0.01)


@pytest.mark.parametrize("exclude", ["relation", "any", "none"])
def test_recall_is_that_of_a_sort_where_nothing_ties(splits, exclude):
    generator = torch.Generator().manual_seed(0)
    graph = splits["train"]
    model = TwhinModel(graph.sizes, graph.relations, TwhinConfig(embedding_dim=4), generator).double()
    result = evaluate_graph(model, splits, EvaluationConfig(recall_at=(1, 5, 400), exclude=exclude))
    past = {edge for split in ("train", "validation") for edge in _edges(splits[split])}
    if exclude == "any":
        past |= {(h, 2 - r, t) for h, r, t in past if r != 1}
    past = set() if exclude == "none" else past
    means = []
    for number, relation in enumerate(graph.relations):
        held_out = sorted({edge for edge in _edges(splits["test"]) if edge[1] == number})
        expected = {
            f"recall@{k}": recall_at(
                k, held_out, range(_size(graph, number, "tail")), partial(_model_score, model), past
            )
            for k in (1, 5, 400)
        }
        means.append(expected)
        assert result["recall"]["model"]["relations"][relation.name] == pytest.approx(expected, abs=1e-12)
    assert result["recall"]["model"]["macro"]["recall@5"] == pytest.approx(np.mean([m["recall@5"] for m in means]))
    assert result["recall"]["model"]["macro"]["recall@400"] == 1.0


def test_ties_across_the_kth_place_count_as_chance_would_have_it():
    """Of 10 items that all score the same one is wanted: any of them is among 4 with a chance of 4 in 10."""
    relations = (Relation("r", "user", "item"),)
    vocabularies = {"user": pa.array([0]), "item": pa.array(range(10))}
    one = np.zeros(1, np.int64)
    graph = Graph(relations, vocabularies, one, one, one)
    model = _whole_numbers(graph)
    with torch.no_grad():
        model.embeddings.write("item", slice(None), torch.zeros(10, 3, dtype=torch.float64))
    graphs = {"train": graph.take(one[:0]), "test": graph}
    result = evaluate_graph(model, graphs, EvaluationConfig(recall_at=(4,)))
    assert result["recall"]["model"]["macro"]["recall@4"] == pytest.approx(0.4)
    assert result["model"]["tail"]["mr"] == 5.5


def test_labelled_pairs_have_the_auc_of_scikit_learn(splits):
    model = _whole_numbers(splits["train"])
    rng = np.random.default_rng(0)
    test = splits["test"]
    labelled = Graph(test.relations, test.vocabularies, test.lhs, test.rel, test.rhs, label=rng.random(len(test)) < 0.5)
    labelled.label[test.rel == 2] = True  # one class alone has no AUC
    result = evaluate_graph(model, {**splits, "test": labelled}, EvaluationConfig())
    of_relations = {}
    for number, name in enumerate("ab"):
        here = test.rel == number
        scores = [_model_score(model, edge) for edge in _edges(test.take(here))]
        of_relations[name] = roc_auc_score(labelled.label[here], scores)
    assert result["pairs"]["model"]["relations"] == pytest.approx(of_relations)
    assert result["pairs"]["model"]["auc"] == pytest.approx(np.mean(list(of_relations.values())))
    # Only edges are looked for, and pairs that are none are not known edges.
    without = evaluate_graph(model, {**splits, "test": test.take(labelled.label)}, EvaluationConfig())
    assert result["edges"] == without["edges"] == labelled.label.sum()
    assert result["model"] == without["model"]


def test_the_protocol_says_what_was_done(splits):
    config = EvaluationConfig(candidates=50, by="degree", seed=3, recall_at=(50,), exclude="any")
    text = protocol(splits, 60, config)
    for part in ("60 edges of test", "50 nodes", "by their edges", "seed 3", "train, validation and test", "realistic",
                 "any relation", "of train and validation"):  # fmt: skip
        assert part in text
    text = protocol(splits, 60, EvaluationConfig(filtered=False))
    assert "all nodes of the type; raw;" in text
    assert "Recall" not in text


def test_a_model_of_equal_vectors_is_in_the_middle_and_a_perfect_one_is_first(graph):
    one_to_one = graph.take(np.arange(15))
    one_to_one.lhs[:], one_to_one.rel[:], one_to_one.rhs[:] = np.arange(15), 0, np.arange(15)
    config = TwhinConfig(embedding_dim=20)
    model = TwhinModel(graph.sizes, graph.relations, config, torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.embeddings.write("user", slice(None), torch.eye(20))
        model.embeddings.write("author", slice(None), torch.eye(15, 20))
    splits = {"train": one_to_one, "test": one_to_one}
    perfect = evaluate_graph(model, splits, EvaluationConfig())["model"]
    assert perfect["micro"]["mrr"] == perfect["micro"]["hits@1"] == perfect["micro"]["auc"] == 1.0
    with torch.no_grad():
        model.embeddings.write("user", slice(None), torch.full((20, 20), 0.3))
        model.embeddings.write("author", slice(None), torch.full((15, 20), 0.7))
    equal = evaluate_graph(model, splits, EvaluationConfig(filtered=False))["model"]
    assert (equal["tail"]["mr"], equal["head"]["mr"], equal["micro"]["auc"]) == (8.0, 10.5, 0.5)


def test_what_cannot_be_measured_is_named(splits):
    model = _whole_numbers(splits["train"])
    empty = splits["test"].take(np.zeros(0, np.int64))
    with pytest.raises(DataError, match=r"test\.parquet: found no edge"):
        evaluate_graph(model, {**splits, "test": empty}, EvaluationConfig())
    with torch.no_grad():
        model.embeddings.write("node", torch.tensor([3]), torch.full((1, 3), 1e20, dtype=torch.float64))
    for config in (EvaluationConfig(), EvaluationConfig(candidates=50)):
        with pytest.raises(DataError, match=r"found vectors whose scores may be 3e\+40, allowed is up to 1e\+38"):
            evaluate_graph(model, splits, config)
    with torch.no_grad():
        model.embeddings.write("node", torch.tensor([3]), torch.full((1, 3), torch.nan, dtype=torch.float64))
    for config in (EvaluationConfig(), EvaluationConfig(candidates=50)):
        with pytest.raises(DataError, match="not finite"):
            evaluate_graph(model, splits, config)


def test_the_quick_protocol_of_training_is_the_raw_one_of_drawn_candidates(graph):
    kept, held_out = hold_out(graph, 0.3, np.random.default_rng(0))
    model = _whole_numbers(graph)
    values = evaluate_edges(model, kept, held_out, np.random.default_rng(3), candidates=12)
    seed = int(np.random.default_rng(3).integers(1 << 62))
    config = EvaluationConfig(candidates=12, filtered=False, seed=seed)
    result = evaluate_graph(model, {"train": kept, "test": held_out}, config)
    for prefix, name in (("", "model"), ("degree_", "degree")):
        for measure in ("auc", "mrr"):
            assert values[f"{prefix}{measure}"] == result[name]["macro"][measure]
            for relation, of in result[name]["relations"].items():
                assert values[f"{prefix}{measure}/{relation}"] == of["micro"][measure]
    likes = evaluate_edges(model, kept, held_out.take(held_out.rel == 1), np.random.default_rng(3))
    assert {name.split("/")[1] for name in likes if "/" in name} == {"like"}
    assert evaluate_edges(model, kept, held_out.take(np.zeros(0, np.int64)), np.random.default_rng(3)) == {}
