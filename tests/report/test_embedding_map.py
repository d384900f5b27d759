"""The map: near points stay near, it is the same each time, and without vectors there is none."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.manifold import trustworthiness

from tml.projects.twhin.config import RelationConfig, TwhinConfig
from tml.projects.twhin.export import export_embeddings
from tml.projects.twhin.graph import Graph, Relation
from tml.projects.twhin.model import TwhinModel
from tml.projects.twhin.vectors import load_vectors
from tml.report.embedding_map import map_card, sample
from tml.report.layout import _affinities, _gradient, layout
from tml.report.style import SERIES_COLORS

CENTRES = np.random.default_rng(1).normal(size=(5, 20))


def blobs(points, seed=0):
    rng = np.random.default_rng(seed)
    group = np.arange(points) % 5
    return (CENTRES[group] + 0.2 * rng.normal(size=(points, 20))).astype(np.float32), group


def test_clusters_stay_together_and_near_points_near():
    vectors, group = blobs(200)
    places = layout(vectors)
    distances = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (group[distances.argmin(axis=1)] == group).mean() > 0.99
    assert trustworthiness(vectors, places, n_neighbors=10) > 0.9
    np.testing.assert_array_equal(places, layout(vectors))


def test_the_gradient_is_that_of_the_divergence():
    near = _affinities(torch.from_numpy(blobs(30)[0])).double()
    near = near.fill_diagonal_(0) / near.sum()
    place = torch.randn(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    closeness = (1 / (1 + torch.cdist(place, place).square())).fill_diagonal_(0)
    q = closeness / closeness.sum()
    off = ~torch.eye(30, dtype=torch.bool)
    (near[off] * (near[off] / q[off]).log()).sum().backward()
    torch.testing.assert_close(_gradient(place.detach(), near), place.grad)


def test_equal_points_and_few_dimensions_are_laid_out():
    assert np.isfinite(layout(np.ones((25, 3), np.float32))).all()
    assert np.isfinite(layout(np.arange(25, dtype=np.float32)[:, None])).all()


@pytest.fixture
def run(tmp_path):
    """A run with vectors of 40 users and 30 posts, and the log that they are from."""
    vectors, _ = blobs(70)
    names = {"user": pa.array(range(40)), "post": pa.array([f"p{n}" for n in range(30)])}
    empty = np.zeros(0, np.int64)
    graph = Graph((Relation("like", "user", "post"),), names, empty, empty, empty)
    config = TwhinConfig(relations=(RelationConfig(name="like", tail="post"),), embedding_dim=20)
    model = TwhinModel(graph.sizes, graph.relations, config, torch.Generator().manual_seed(0))
    model.embeddings.write("user", slice(None), torch.from_numpy(vectors[:40]))
    model.embeddings.write("post", slice(None), torch.from_numpy(vectors[40:]))
    export_embeddings(model, graph, tmp_path / "twhin" / "embeddings")
    log = tmp_path / "log"
    log.mkdir()
    topics = ["<art>" if number % 5 else "news" for number in range(30)]
    table = {"post_id": names["post"], "author_id": pa.array([n % 7 for n in range(30)]), "language": topics}
    pq.write_table(pa.table(table), log / "posts.parquet")
    languages = [["en", "ja", "es", None][number % 4] for number in range(40)]
    pq.write_table(pa.table({"user_id": names["user"], "language": languages}), log / "users.parquet")
    times = pa.array([10**15, 10**15 + 1], pa.timestamp("us", "UTC"))
    impressions = {"user_id": [0, 1], "post_id": ["p0", "p1"], "served_at": times, "liked": [0, 1]}
    pq.write_table(pa.table(impressions), log / "impressions.parquet")
    return tmp_path


def test_the_map_is_coloured_by_what_the_log_knows(run):
    card = map_card(run, {"path": str(run / "log"), "impressions": {"labels": ["liked"]}})
    assert "40 users (dots) and 30 posts (diamonds)" in card
    assert "Colours are the language" in card
    assert re.findall(r"</i>([^<]*)</li>", card) == ["&lt;art&gt;", "en", "ja", "es", "unknown", "news"]
    (drawn,) = re.findall(r"<svg.*</svg>", card, re.DOTALL)
    marks = re.findall(r'<path [^>]*fill="(var\([^"]*\))"', drawn)
    assert {color: marks.count(color) for color in SERIES_COLORS[:6]} == dict(
        zip(SERIES_COLORS, (24, 10, 10, 10, 10, 6), strict=False)
    )
    assert card == map_card(run, {"path": str(run / "log"), "impressions": {"labels": ["liked"]}})


def test_without_a_log_types_are_the_colours_and_without_vectors_there_is_no_map(run, tmp_path):
    card = map_card(run, {"path": str(run / "gone")})
    assert re.findall(r"</i>([^<]*)</li>", card) == ["user", "post"]
    assert map_card(tmp_path / "nowhere", None) == ""


def test_a_sample_has_nodes_of_each_type_and_of_unit_length(run, monkeypatch):
    monkeypatch.setattr("tml.report.embedding_map.MOST_POINTS", 50)
    chosen = sample(load_vectors(run))
    assert sorted(set(chosen.types), key=chosen.types.count) == ["post", "user"] or chosen.types.count("user") == 25
    assert len(chosen.ids) == 50
    np.testing.assert_allclose(np.linalg.norm(chosen.vectors, axis=1), 1, rtol=1e-5)
