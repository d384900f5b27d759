"""The model against a slow reference in NumPy, float64, and the published code's errors one by one."""

import math

import numpy as np
import pytest
import torch

from tml.projects.twhin.config import EmbeddingsConfig, TwhinConfig
from tml.projects.twhin.model import TwhinModel
from tml.projects.twhin.negatives import arrange
from tml.projects.twhin.train import build_optimizer

DIM = 6


def _model(graph, negative_weight=1.0):
    embeddings = EmbeddingsConfig(initial_scale=2.0)
    config = TwhinConfig(embedding_dim=DIM, negative_weight=negative_weight, embeddings=embeddings)
    model = TwhinModel(graph.sizes, graph.relations, config, torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        model.operators.weights[0, 0].normal_(generator=torch.Generator().manual_seed(1))
    return model


def _batch(graph, edges, in_batch=3, uniform=4, chunk_size=5):
    rng = np.random.default_rng(7)
    return arrange(graph, edges, rng, chunk_size=chunk_size, in_batch_negatives=in_batch, global_negatives=uniform)


def _table(model, name):
    return model.embeddings.get_submodule(model.embeddings.path(name)).weight


def _vectors(model):
    tables = {name: model.embeddings.vectors(name).numpy().copy() for name in ("user", "author", "post")}
    return {**tables, "translations": model.operators.weights.detach()[0, 0].numpy().copy()}


def _reference_loss(vectors, relations, batch, negative_weight):
    """One edge and one negative at a time: binary cross-entropy with label 1 for the edge, 0 for the negatives."""

    def cross_entropy(logit, label):
        probability = 1 / (1 + math.exp(-logit))
        return -math.log(probability if label == 1 else 1 - probability)

    values = {name: tensor.numpy() for name, tensor in batch.items()}
    losses = []
    for chunk, number in enumerate(values["relation"]):
        heads, tails = vectors[relations[number].head], vectors[relations[number].tail]
        translation = vectors["translations"][number]
        for slot in range(values["head"].shape[1]):
            if values["weight"][chunk, slot] == 0:
                continue
            head, tail = values["head"][chunk, slot], values["tail"][chunk, slot]
            negatives = [
                cross_entropy((heads[head] + translation) @ tails[other], 0)
                for other in values["tail_negatives"][chunk]
                if other != tail
            ] + [
                cross_entropy((heads[other] + translation) @ tails[tail], 0)
                for other in values["head_negatives"][chunk]
                if other != head
            ]
            positive = cross_entropy((heads[head] + translation) @ tails[tail], 1)
            losses.append(positive + negative_weight * (np.mean(negatives) if negatives else 0.0))
    return np.mean(losses)


@pytest.mark.parametrize("types", [[0, 2], [1]])
@pytest.mark.parametrize(("in_batch", "uniform"), [(3, 4), (5, 0), (0, 6), (0, 0)])
def test_the_loss_is_that_of_the_reference(graph, types, in_batch, uniform):
    edges = np.flatnonzero(np.isin(graph.rel, types))[::4]
    batch = _batch(graph, edges, in_batch, uniform)
    model = _model(graph, negative_weight=1.7)
    loss, outputs = model(batch)
    assert abs(loss.item() - _reference_loss(_vectors(model), graph.relations, batch, 1.7)) < 1e-12
    assert outputs["positive"].shape == batch["head"].shape
    assert (batch["weight"] == 0).any()  # the filling was there, and counted nothing


@pytest.mark.parametrize("types", [[0, 2], [1]])
def test_gradients_are_those_of_the_reference(graph, types):
    edges = np.flatnonzero(np.isin(graph.rel, types))[::9]
    batch = _batch(graph, edges)
    model = _model(graph)
    model(batch)[0].backward()
    gradients = {name: _table(model, name).grad for name in ("user", "author", "post")}
    gradients["translations"] = model.operators.weights.grad[0, 0]

    vectors = _vectors(model)
    for name, gradient in gradients.items():
        untouched = gradient is None
        actual = np.zeros_like(vectors[name]) if untouched else gradient.to_dense().numpy()
        expected = np.zeros_like(actual)
        for place in np.ndindex(*actual.shape):
            step = 1e-5
            sides = []
            for sign in (1, -1):
                moved = {key: value.copy() for key, value in vectors.items()}
                moved[name][place] += sign * step
                sides.append(_reference_loss(moved, graph.relations, batch, 1.0))
            expected[place] = (sides[0] - sides[1]) / (2 * step)
            if untouched or place[0] > 5:
                break
        np.testing.assert_allclose(actual[: place[0]], expected[: place[0]], atol=1e-8)


def test_gradients_of_tables_are_sparse_and_of_what_was_read_only(graph):
    batch = _batch(graph, np.flatnonzero(graph.rel == 0)[:4], in_batch=0, uniform=2)
    model = _model(graph)
    model(batch)[0].backward()
    gradient = _table(model, "author").grad
    assert gradient.is_sparse
    read = set(batch["tail"].reshape(-1).tolist()) | set(batch["tail_negatives"].reshape(-1).tolist())
    assert set(gradient.coalesce().indices()[0].tolist()) == read
    assert _table(model, "post").grad is None


def _one_edge(head, tail, head_negatives, tail_negatives):
    rows = {"head": [[head]], "tail": [[tail]], "relation": [0]}
    rows |= {"head_negatives": [head_negatives], "tail_negatives": [tail_negatives]}
    batch = {name: torch.tensor(values, dtype=torch.int64) for name, values in rows.items()}
    return {**batch, "weight": torch.ones(1, 1)}


def test_a_step_raises_the_edge_and_lowers_its_negatives(graph):
    """Regression: the published code labelled negatives 1."""
    model = _model(graph)
    batch = _one_edge(3, 4, [5], [6])

    def scores():
        rows = [(3, 4), (5, 4), (3, 6)]
        heads, tails = (torch.tensor(side) for side in zip(*rows, strict=True))
        return model.score(0, heads, tails).detach()

    before = scores()
    model(batch)[0].backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.01 * parameter.grad.to_dense()
    change = scores() - before
    assert change[0] > 0
    assert change[1] < 0
    assert change[2] < 0


def test_translations_are_in_the_scores_of_negatives_and_learn_from_them(graph):
    """Regression: the published code's translations got no gradient and were left out of the negatives' scores."""
    model = _model(graph)
    model(_one_edge(3, 4, [5], []))[0].backward()
    users, authors = model.embeddings.vectors("user"), model.embeddings.vectors("author")
    translation = model.operators.weights.detach()[0, 0][0]
    positive, negative = (users[3] + translation) @ authors[4], (users[5] + translation) @ authors[4]
    expected = (torch.sigmoid(negative) - torch.sigmoid(-positive)) * authors[4]
    torch.testing.assert_close(model.operators.weights.grad[0, 0][0], expected)
    assert not model.operators.weights.grad[0, 0][1:].any()


def test_translations_are_moved_by_the_optimizer_at_their_own_rate(graph):
    rate = {"sgd": {}, "learning_rate": {"constant": 0.5}}
    tables = {"optimizer": {"sgd": {}, "learning_rate": {"constant": 0.0}}}
    config = TwhinConfig(embedding_dim=DIM, embeddings=EmbeddingsConfig(**tables), translation_optimizer=rate)
    part = {name: graph.sizes[name] for name in config.node_types}
    model = TwhinModel(part, graph.relations[:1], config, torch.Generator().manual_seed(0))
    before = model.embeddings.vectors("user").clone()
    optimizer, _ = build_optimizer(model, config)
    model(_one_edge(3, 4, [5], [6]))[0].backward()
    gradient = model.operators.weights.grad[0, 0].clone()
    optimizer.step()
    torch.testing.assert_close(model.operators.weights.detach()[0, 0], -0.5 * gradient)
    assert torch.equal(model.embeddings.vectors("user"), before)


def test_a_negative_that_is_the_edges_own_node_counts_nothing(graph):
    """Regression: in the published code a negative could be the edge's own positive."""
    losses = [
        _model(graph)(_one_edge(3, 4, *negatives))[0].item()
        for negatives in ([[5], [6]], [[5, 3], [4, 6, 4]], [[3], [4]], [[], []])
    ]
    assert losses[0] == losses[1]
    assert losses[2] == losses[3]


def test_no_negatives_is_a_finite_loss_with_finite_gradients(graph):
    """Regression: the published code divided zero by zero."""
    model = _model(graph)
    batch = _one_edge(3, 4, [], [])
    loss, outputs = model(batch)
    loss.backward()
    torch.testing.assert_close(loss, -torch.nn.functional.logsigmoid(outputs["positive"]).mean())
    assert torch.isfinite(model.operators.weights.grad[0, 0]).all()


def test_large_scores_stay_finite(graph):
    model = _model(graph).float()
    with torch.no_grad():
        for parameter in model.embeddings.parameters():
            parameter *= 1e3
    loss, _ = model(_batch(graph, np.flatnonzero(graph.rel == 1)))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(_table(model, "user").grad.to_dense()).all()
