import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from tml.projects.twhin import evaluate
from tml.projects.twhin.config import TwhinConfig
from tml.projects.twhin.data import hold_out
from tml.projects.twhin.evaluate import evaluate_edges
from tml.projects.twhin.model import TwhinModel


def _setting(graph):
    kept, held_out = hold_out(graph, 0.3, np.random.default_rng(0))
    model = TwhinModel(
        graph.sizes, graph.relations, TwhinConfig(embedding_dim=4), torch.Generator().manual_seed(0)
    ).double()
    return model, kept, held_out


def _candidates(held_out, number, rng, count):
    """The same draws as the evaluation makes, as (head, tail) candidates of one edge and side."""
    relation = held_out.relations[number]
    edges = np.flatnonzero(held_out.rel == number)
    tails = rng.integers(0, held_out.sizes[relation.tail], (len(edges), count))
    heads = rng.integers(0, held_out.sizes[relation.head], (len(edges), count))
    for side in ("tail", "head"):
        for i, edge in enumerate(edges):
            own = (held_out.lhs[edge], held_out.rhs[edge])
            others = [(own[0], t) for t in tails[i]] if side == "tail" else [(h, own[1]) for h in heads[i]]
            yield own, [other for other in others if other != own]


def test_metrics_are_those_of_a_slow_count_and_of_scikit_learn(graph):
    model, kept, held_out = _setting(graph)
    values = evaluate_edges(model, kept, held_out, np.random.default_rng(3), candidates=12)
    rng = np.random.default_rng(3)
    translations = model.operators.weights.detach()[0, 0].numpy()
    for number, relation in enumerate(graph.relations):
        heads = model.embeddings.vectors(relation.head).numpy()
        tails = model.embeddings.vectors(relation.tail).numpy()
        here = kept.rel == number

        def by_model(pair, number=number, heads=heads, tails=tails):
            return (heads[pair[0]] + translations[number]) @ tails[pair[1]]

        def by_degree(pair, here=here):
            return (kept.lhs[here] == pair[0]).sum() * (kept.rhs[here] == pair[1]).sum()

        auc, mrr = {by_model: [], by_degree: []}, {by_model: [], by_degree: []}
        for own, others in _candidates(held_out, number, rng, 12):
            for score in (by_model, by_degree):
                rivals = [score(other) for other in others]
                auc[score].append(roc_auc_score([1] + [0] * len(rivals), [score(own), *rivals]))
                ahead = sum(r > score(own) for r in rivals) + sum(r == score(own) for r in rivals) / 2
                mrr[score].append(1 / (1 + ahead))
        for prefix, score in (("", by_model), ("degree_", by_degree)):
            assert abs(values[f"{prefix}auc/{relation.name}"] - np.mean(auc[score])) < 1e-12
            assert abs(values[f"{prefix}mrr/{relation.name}"] - np.mean(mrr[score])) < 1e-12
    for name in ("auc", "mrr", "degree_auc", "degree_mrr"):
        assert abs(values[name] - np.mean([values[f"{name}/{r.name}"] for r in graph.relations])) < 1e-12


def test_a_relation_without_held_out_edges_is_left_out(graph):
    model, kept, held_out = _setting(graph)
    values = evaluate_edges(model, kept, held_out.take(np.flatnonzero(held_out.rel == 1)), np.random.default_rng(3))
    assert {name for name in values if "/" in name} == {
        f"{name}/like" for name in ("auc", "mrr", "degree_auc", "degree_mrr")
    }
    assert values["auc"] == values["auc/like"]


def test_perfect_vectors_get_1(graph):
    """One-hot vectors that point each head at its only tail."""
    one_to_one = graph.take(np.arange(15))
    one_to_one.lhs[:], one_to_one.rel[:], one_to_one.rhs[:] = np.arange(15), 0, np.arange(15)
    model = TwhinModel(graph.sizes, graph.relations, TwhinConfig(embedding_dim=20), torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.embeddings.write("user", slice(None), torch.eye(20))
        model.embeddings.write("author", slice(None), torch.eye(15, 20))
    values = evaluate_edges(model, one_to_one, one_to_one, np.random.default_rng(3))
    assert values["auc"] == values["mrr"] == 1.0


def test_blocks_do_not_change_what_is_counted(graph, monkeypatch):
    model, kept, held_out = _setting(graph)
    whole = evaluate_edges(model, kept, held_out, np.random.default_rng(3), candidates=2000)
    monkeypatch.setattr(evaluate, "BLOCK", 7)
    blocks = evaluate_edges(model, kept, held_out, np.random.default_rng(3), candidates=2000)
    assert abs(whole["auc"] - blocks["auc"]) < 0.01  # other draws of the same candidates
