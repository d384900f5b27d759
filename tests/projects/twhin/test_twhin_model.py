"""The model against a slow reference in float64, and the published code's errors one by one."""

import numpy as np
import pytest
import torch

from reference import twhin_loss as reference
from tml.projects.twhin import gradients, losses
from tml.projects.twhin.config import EmbeddingsConfig, TwhinConfig
from tml.projects.twhin.edges import Edges
from tml.projects.twhin.known import KnownEdges
from tml.projects.twhin.model import TwhinModel
from tml.projects.twhin.negatives import Arranger
from tml.projects.twhin.train import build_optimizer

DIM = 6


def _model(graph, config):
    model = TwhinModel(graph.sizes, graph.relations, config, torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        noise = torch.randn(model.operators.weights.shape, generator=torch.Generator().manual_seed(1)).double()
        model.operators.weights += noise / 2
    return model


def _config(**fields):
    fields = {"in_batch_negatives": 2, "global_negatives": 3, "chunk_size": 4, "embedding_dim": DIM, **fields}
    return TwhinConfig(embeddings=EmbeddingsConfig(initial_scale=2.0), **fields)


def _batch(graph, config, edges, weight=None, known=None):
    chosen = Edges(graph.lhs[edges], graph.rel[edges], graph.rhs[edges], weight)
    arranger = Arranger(graph.relations, graph.sizes, config, known)
    pool = arranger.pool(Edges(graph.lhs, graph.rel, graph.rhs)) if config.degree_negatives else None
    return arranger.arrange(chosen, np.random.default_rng(7), pool)


def _table(model, name):
    return model.embeddings.get_submodule(model.embeddings.path(name)).weight


def _check_against_the_reference(graph, config, edges, weight=None, known=None):
    batch = _batch(graph, config, edges, weight, known)
    model = _model(graph, config)
    loss, outputs = model(batch)
    loss.backward()
    names = {end for r in graph.rel[edges] for end in (graph.relations[r].head, graph.relations[r].tail)}
    tables = {name: model.embeddings.vectors(name).clone().requires_grad_() for name in names}
    weights = model.operators.weights.detach().clone().requires_grad_()
    pairs = zip(graph.lhs.tolist(), graph.rel.tolist(), graph.rhs.tolist(), strict=True) if known else ()
    expected = reference.batch_loss(config, graph.relations, tables, weights, batch, set(pairs))
    torch.testing.assert_close(loss.detach(), expected.detach(), rtol=1e-10, atol=1e-10)
    expected.backward()
    for name, table in tables.items():
        torch.testing.assert_close(_table(model, name).grad.to_dense(), table.grad, rtol=1e-8, atol=1e-9)
    wanted = torch.zeros_like(weights) if weights.grad is None else weights.grad
    torch.testing.assert_close(model.operators.weights.grad, wanted, rtol=1e-8, atol=1e-9)
    assert outputs["positive"].shape == batch["head"].shape
    return batch


@pytest.mark.parametrize("loss", ["logistic", "softmax", "margin"])
@pytest.mark.parametrize("score", ["dot", "cosine", "l1", "l2"])
@pytest.mark.parametrize("operator", ["identity", "translation", "diagonal", "complex_diagonal"])
def test_losses_and_gradients_are_those_of_the_reference(graph, operator, score, loss):
    config = _config(operator=operator, score=score, loss=loss, margin=0.7, negative_weight=1.7)
    edges = np.flatnonzero(np.isin(graph.rel, [0, 2]))[::16]
    batch = _check_against_the_reference(graph, config, edges)
    assert len(batch["edges"]) == len(edges)


@pytest.mark.parametrize(
    "fields",
    [
        {"side": "tail"},
        {"side": "both", "operator": "complex_diagonal"},
        {"reciprocal": True},
        {"reciprocal": True, "operator": "complex_diagonal", "loss": "softmax", "l2": 0.1, "n3": 0.2},
        {"reciprocal": True, "side": "both", "operator": "diagonal", "score": "cosine"},
        {"reciprocal": True, "all_negatives": True, "loss": "softmax", "operator": "diagonal"},
        {"reciprocal": True, "all_negatives": True, "loss": "logistic", "score": "l2"},
        {"temperature": 0.2, "score": "cosine", "loss": "softmax"},
        {"temperature": 0.5, "score": "l2"},
        {"temperature": 0.5, "score": "l1", "loss": "softmax"},
        {"n3": 0.3, "operator": "diagonal", "side": "both"},
        {"degree_negatives": 3, "global_negatives": 0},
        {"in_batch_negatives": 0, "global_negatives": 0, "l2": 0.1},
        {"in_batch_negatives": 0, "global_negatives": 0, "loss": "softmax"},
        {"in_batch_negatives": 0, "global_negatives": 0, "loss": "margin"},
        {"chunk_size": 1},
        {"chunk_size": 100},
    ],
)
@pytest.mark.parametrize("types", [[0, 2], [1]])
def test_settings_are_those_of_the_reference(graph, fields, types):
    config = _config(**fields)
    edges = np.flatnonzero(np.isin(graph.rel, types))[::12]
    weight = np.linspace(0.2, 3.0, len(edges), dtype=np.float32)
    _check_against_the_reference(graph, config, edges, weight)


@pytest.mark.parametrize("fields", [{}, {"reciprocal": True, "all_negatives": True, "loss": "softmax"}])
def test_known_edges_are_no_negatives_where_they_are_excluded(graph, fields):
    config = _config(exclude_known_edges=True, **fields)
    edges = np.flatnonzero(np.isin(graph.rel, [0, 2]))[::12]
    batch = _check_against_the_reference(graph, config, edges, known=KnownEdges([graph]))
    assert len(batch["tail_excluded"]) > len(_batch(graph, config, edges)["tail_excluded"])


def test_a_node_type_that_is_both_ends_has_one_gradient(graph):
    relations = (graph.relations[0].__class__("knows", "user", "user"),) * 3
    loop = type(graph)(relations, graph.vocabularies, graph.lhs, graph.rel * 0, graph.rhs)
    _check_against_the_reference(loop, _config(), np.arange(0, len(loop), 20))


@pytest.mark.parametrize("score", ["dot", "l2"])
@pytest.mark.parametrize("block", [8, 40, 10_000])
def test_blocks_change_nothing(graph, monkeypatch, block, score):
    monkeypatch.setattr(gradients, "BLOCK", block)
    monkeypatch.setattr(gradients, "LEAST", 1)
    edges = np.flatnonzero(np.isin(graph.rel, [0, 2]))[::12]
    _check_against_the_reference(graph, _config(score=score), edges)
    config = _config(score=score, reciprocal=True, all_negatives=True, loss="softmax")
    _check_against_the_reference(graph, config, edges)


@pytest.mark.parametrize(
    "fields",
    [
        {"score": "cosine", "temperature": 0.3},
        {"score": "dot", "reciprocal": True, "all_negatives": True, "exclude_known_edges": True},
        {"operator": "complex_diagonal", "temperature": 2.0},
    ],
)
@pytest.mark.parametrize("block", [40, 10_000])
def test_products_in_bfloat16_are_near_those_in_float64(graph, monkeypatch, block, fields):
    monkeypatch.setattr(gradients, "BLOCK", block)
    monkeypatch.setattr(gradients, "LEAST", 1)
    found = {}
    for products in ("fp32", "bf16"):
        config = _config(products=products, loss="softmax", **{**fields, "embedding_dim": 32})
        edges = np.flatnonzero(graph.rel == 0)
        known = KnownEdges([graph]) if config.exclude_known_edges else None
        batch = _batch(graph, config, edges, np.linspace(0.5, 3, len(edges)).astype(np.float32), known)
        model = _model(graph, config)
        model = model.float() if products == "bf16" else model
        loss, _ = model(batch)
        loss.backward()
        tables = (_table(model, name).grad.to_dense() for name in ("user", "author"))
        found[products] = loss, model.operators.weights.grad, *tables
    for narrow, wide in zip(found["bf16"], found["fp32"], strict=True):
        assert narrow.dtype == torch.float32
        assert (narrow.double() - wide).norm() < 0.01 * wide.norm()


def test_a_loss_measured_on_some_edges_is_near_that_of_all(graph, monkeypatch):
    config = _config(chunk_size=64, in_batch_negatives=30)
    batch, model = _batch(graph, config, np.flatnonzero(graph.rel == 0)), _model(graph, config)
    whole = model(batch)
    whole[0].backward()
    gradient = _table(model, "user").grad.to_dense()
    _table(model, "user").grad = None
    monkeypatch.setattr(losses, "MEASURED", 1)
    some = model(batch)
    some[0].backward()
    assert abs(some[0].item() / whole[0].item() - 1) < 0.2
    assert torch.equal(_table(model, "user").grad.to_dense(), gradient)


def test_gradients_of_tables_are_sparse_and_of_what_was_read_only(graph):
    config = _config(in_batch_negatives=0, global_negatives=2)
    batch = _batch(graph, config, np.flatnonzero(graph.rel == 0)[:4])
    model = _model(graph, config)
    model(batch)[0].backward()
    gradient = _table(model, "author").grad
    assert gradient.is_sparse
    assert gradient.is_coalesced()
    read = set(batch["tail"].reshape(-1).tolist()) | set(batch["tail_negatives"].reshape(-1).tolist())
    assert set(gradient.indices()[0].tolist()) == read
    assert _table(model, "post").grad is None


def test_batches_whose_backward_waits_do_not_share_their_memory(graph):
    config = _config()
    batches = [_batch(graph, config, np.flatnonzero(graph.rel == 0)[start::4]) for start in range(3)]
    model = _model(graph, config)
    model(batches[0])[0].backward()  # what it leaves is used by one of the next two
    model.zero_grad()
    for loss in [model(batch)[0] for batch in batches[1:]]:
        loss.backward()
    found = _table(model, "user").grad.to_dense()
    expected = torch.zeros_like(found)
    for batch in batches[1:]:
        fresh = _model(graph, config)
        fresh(batch)[0].backward()
        expected += _table(fresh, "user").grad.to_dense()
    torch.testing.assert_close(found, expected)


def test_dropout_leaves_the_gradient_right(graph):
    """With the same random numbers a small step along a gradient changes the loss by its length squared."""
    config = _config(dropout=0.4)
    batch, model = _batch(graph, config, np.flatnonzero(graph.rel == 1)[::4]), _model(graph, config)

    def loss():
        torch.manual_seed(3)
        return model(batch)[0]

    before = loss()
    before.backward()
    length = 0.0
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                gradient = parameter.grad.to_dense()
                length += gradient.square().sum().item()
                parameter -= 1e-6 * gradient
    assert (before - loss()).item() == pytest.approx(1e-6 * length, rel=1e-3)
    assert loss().item() != _model(graph, _config())(batch)[0].item()


def _one_edge(graph, head, tail, head_negatives, tail_negatives):
    """A batch with one edge and the negatives given."""

    class Given(Arranger):
        def _negatives(self, side, *_):
            return np.array([head_negatives if side == "head" else tail_negatives], np.int64).reshape(1, -1)

    edge = Edges(*(np.array([number]) for number in (head, 0, tail)))
    return Given(graph.relations, graph.sizes, _config()).arrange(edge, np.random.default_rng(0))


def test_a_step_raises_the_edge_and_lowers_its_negatives(graph):
    """Regression: the published code labelled negatives 1."""
    model = _model(graph, _config())
    with torch.no_grad():
        model.operators.weights.zero_()
        model.embeddings.write("user", slice(None), torch.ones(20, DIM) / DIM)
        model.embeddings.write("author", slice(None), torch.ones(15, DIM))
        before = model.embeddings.vectors("author").clone(), model.embeddings.vectors("user").clone()
    model(_one_edge(graph, 3, 4, [5], [6]))[0].backward()
    moved = {name: -_table(model, name).grad.to_dense() for name in ("user", "author")}
    assert (moved["author"][6] * before[1][3]).sum() < 0  # the other tail goes away from the head,
    assert (moved["user"][5] * before[0][4]).sum() < 0  # the other head from the tail;
    alone = _model(graph, _config())
    alone.load_state_dict(model.state_dict())
    alone(_one_edge(graph, 3, 4, [], []))[0].backward()
    toward = {name: -_table(alone, name).grad.to_dense() for name in ("user", "author")}
    assert (toward["author"][4] * before[1][3]).sum() > 0  # the edge's own ends come nearer
    assert (toward["user"][3] * before[0][4]).sum() > 0


def test_translations_are_in_the_scores_of_negatives_and_learn_from_them(graph):
    """Regression: the published code's translations got no gradient and were left out of the negatives' scores."""
    model = _model(graph, _config(negative_weight=1.0))
    model(_one_edge(graph, 3, 4, [5], []))[0].backward()
    users, authors = model.embeddings.vectors("user"), model.embeddings.vectors("author")
    translation = model.operators.weights.detach()[0, 0, 0]
    positive, negative = (users[3] + translation) @ authors[4], (users[5] + translation) @ authors[4]
    expected = (torch.sigmoid(negative) - torch.sigmoid(-positive)) * authors[4]
    torch.testing.assert_close(model.operators.weights.grad[0, 0, 0], expected)
    assert not model.operators.weights.grad[0, 0, 1:].any()


def test_translations_are_moved_by_the_optimizer_at_their_own_rate(graph):
    rate = {"sgd": {}, "learning_rate": {"constant": 0.5}}
    tables = {"optimizer": {"sgd": {}, "learning_rate": {"constant": 0.0}}}
    config = TwhinConfig(embedding_dim=DIM, embeddings=EmbeddingsConfig(**tables), translation_optimizer=rate)
    model = TwhinModel(graph.sizes, graph.relations, config, torch.Generator().manual_seed(0))
    before = model.embeddings.vectors("user").clone()
    optimizer, _ = build_optimizer(model, config)
    model(_one_edge(graph, 3, 4, [5], [6]))[0].backward()
    gradient = model.operators.weights.grad[0, 0].clone()
    optimizer.step()
    torch.testing.assert_close(model.operators.weights.detach()[0, 0], -0.5 * gradient)
    assert torch.equal(model.embeddings.vectors("user"), before)


def test_a_negative_that_is_the_edges_own_node_counts_nothing(graph):
    """Regression: in the published code a negative could be the edge's own positive."""
    losses_ = [
        _model(graph, _config())(_one_edge(graph, 3, 4, *negatives))[0].item()
        for negatives in ([[5], [6]], [[5, 3], [4, 6, 4]], [[3], [4]], [[], []])
    ]
    assert losses_[0] == pytest.approx(losses_[1], abs=1e-14)
    assert losses_[2] == losses_[3]


def test_no_negatives_is_a_finite_loss_with_finite_gradients(graph):
    """Regression: the published code divided zero by zero."""
    model = _model(graph, _config())
    loss, outputs = model(_one_edge(graph, 3, 4, [], []))
    loss.backward()
    torch.testing.assert_close(loss, -torch.nn.functional.logsigmoid(outputs["positive"]).mean())
    assert torch.isfinite(model.operators.weights.grad).all()


@pytest.mark.parametrize("score", ["dot", "cosine", "l1", "l2"])
def test_large_and_equal_vectors_stay_finite(graph, score):
    config = _config(score=score)
    for factor in (1e3, 0.0):
        model = _model(graph, config).float()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter *= factor
        loss, _ = model(_batch(graph, config, np.flatnonzero(graph.rel == 1)))
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(_table(model, "user").grad.to_dense()).all()


@pytest.mark.parametrize("fields", [{}, {"reciprocal": True}, {"side": "both", "score": "l2"}])
def test_queries_with_candidates_score_as_edges_do(graph, fields):
    config = _config(**fields)
    model = _model(graph, config)
    heads, tails = torch.arange(6), torch.arange(5)
    with torch.no_grad():
        for side in ("head", "tail"):
            asked, found = (heads, tails) if side == "tail" else (tails, heads)
            matrix = model.compare(model.queries(0, side, asked), model.candidates(0, side, found))
            grid = torch.cartesian_prod(asked, found)
            ends = (grid[:, 0], grid[:, 1]) if side == "tail" else (grid[:, 1], grid[:, 0])
            torch.testing.assert_close(matrix.reshape(-1), model.score(0, *ends, side))
        both = [model.score(0, heads[:5], tails, side) for side in ("head", "tail")]
        torch.testing.assert_close(model.score(0, heads[:5], tails), sum(both) / 2)


def test_edges_of_weight_zero_teach_nothing(graph):
    config, edges = _config(), np.flatnonzero(graph.rel == 1)[:9]
    model = _model(graph, config)
    loss, _ = model(_batch(graph, config, edges, np.zeros(9, np.float32)))
    loss.backward()
    assert loss.item() == 0
    assert not _table(model, "user").grad.to_dense().any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("fields", [{}, {"score": "l2"}, {"score": "l1"}, {"reciprocal": True, "loss": "softmax"}])
def test_an_accelerator_gives_the_same_gradients(graph, fields):
    config, edges = _config(**fields), np.flatnonzero(np.isin(graph.rel, [0, 2]))
    weight = np.linspace(0.2, 3.0, len(edges), dtype=np.float32)
    batch = _batch(graph, config, edges, weight)
    results = []
    for device in ("cpu", "cuda"):
        model = _model(graph, config).to(device)
        moved = {name: value.to(device) for name, value in batch.items() if name != "reads"}
        moved["reads"] = {n: {k: v.to(device) for k, v in read.items()} for n, read in batch["reads"].items()}
        loss, _ = model(moved)
        loss.backward()
        results.append([loss.detach().cpu(), *(_table(model, n).grad.to_dense().cpu() for n in ("user", "author"))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)
