"""Boosted trees and popularity as baselines: what they find, what they leave out, and that they repeat themselves."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import roc_auc_score

from tml.core.errors import DataError
from tml.projects.home.recap.boosting import BoostedTrees, LightGbmConfig, tree_matrix
from tml.projects.home.recap.config import InputShapes
from tml.projects.home.recap.popularity import STRENGTHS, Popularity

pytest.importorskip("lightgbm")
SMALL = LightGbmConfig(min_data_in_leaf=20, max_trees=60, stop_after=10, feature_fraction=1.0)


def made(rows: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """A task that hangs on missing values and on unordered categories, which no line could tell; and one without."""
    rng = np.random.default_rng(0)
    number, category = rng.normal(size=rows).astype(np.float32), rng.integers(0, 9, rows)
    number[rng.random(rows) < 0.3] = np.nan
    logit = np.where(np.isnan(number), 1.5, -1.0) + np.where(category % 2, 1.5, -1.5)
    labels = (rng.random((rows, 1)) < 1 / (1 + np.exp(-logit))[:, None]).astype(np.float32)
    labels = np.concatenate([labels, np.zeros((rows, 1), np.float32)], axis=1)
    return np.stack([number, category.astype(np.float32)], axis=1), labels


def test_missing_values_and_categories_are_used_and_a_task_of_one_class_gets_its_rate() -> None:
    x, y = made()
    trees = BoostedTrees(SMALL, seed=0).fit([x[:1000], x[1000:3000]], y[:3000], discrete=1)
    said = trees.predict(x[3000:])
    assert roc_auc_score(y[3000:, 0], said[:, 0]) > 0.83
    assert (said[:, 1] == 0).all()
    assert trees.tasks[0].trees >= 1


def test_labels_that_do_not_count_do_not_move_the_model() -> None:
    x, y = made()
    y[:, 0] = np.where(np.arange(len(y)) % 3 == 0, np.nan, y[:, 0])
    said = BoostedTrees(SMALL, seed=0).fit([x[:3000]], y[:3000], discrete=1).predict(x[3000:])
    counts = np.isfinite(y[3000:, 0])
    assert roc_auc_score(y[3000:, 0][counts], said[counts, 0]) > 0.83
    assert abs(said[:, 0].mean() - np.nanmean(y[:, 0])) < 0.05


def test_a_search_keeps_what_is_best_on_the_end_of_training_and_repeats_itself() -> None:
    x, y = made(2000)
    config = SMALL.model_copy(update={"search": True, "max_trees": 10})
    first, second = (BoostedTrees(config, seed=3).fit([x], y, discrete=1) for _ in range(2))
    assert np.array_equal(first.predict(x), second.predict(x))
    assert first.tasks[0].settings == second.tasks[0].settings
    assert "categorical" in first.tasks[0].settings


def test_no_rows_are_refused() -> None:
    with pytest.raises(DataError, match="boosted trees: found 0 rows"):
        BoostedTrees(SMALL, 0).fit([], np.zeros((0, 1)), 0)


def test_trees_see_what_the_ranker_sees() -> None:
    shapes = InputShapes(continuous=2, binary=1, discrete=(3,), embeddings={"user_embedding": 2}, tasks=("a",))
    batch = {
        "continuous": torch.tensor([[1.0, float("inf")], [float("nan"), 2.0]]),
        "binary": torch.tensor([[1.0], [0.0]]),
        "discrete": torch.tensor([[2], [7]]),
        "user_embedding": torch.tensor([[0.5, 0.25], [0.0, 0.0]]),
    }
    expected = [[1.0, np.nan, 1.0, 0.5, 0.25, 2.0], [np.nan, 2.0, 0.0, 0.0, 0.0, 0.0]]
    np.testing.assert_array_equal(tree_matrix(batch, shapes), np.array(expected, np.float32))


def test_popularity_is_the_rate_drawn_to_everyones_by_the_likeliest_strength() -> None:
    rng = np.random.default_rng(1)
    posts = rng.integers(0, 40, 3000)
    labels = (rng.random(3000) < rng.beta(3, 9, 40)[posts]).astype(float)
    labels[:50] = np.nan
    popularity = Popularity(tasks=1)
    for part in np.array_split(np.arange(3000), 7):
        popularity.update(pa.array([f"p{i}" for i in posts[part]]), labels[part, None])
    counted = np.isfinite(labels)
    rate = labels[counted].mean()
    losses = []
    for strength in STRENGTHS:
        total = 0.0
        for i in np.flatnonzero(counted):
            same = counted & (posts == posts[i])
            k, n = labels[same].sum() - labels[i], same.sum() - 1
            p = (k + strength * rate) / (n + strength)
            total -= np.log(p if labels[i] else 1 - p)
        losses.append(total)
    strength = STRENGTHS[int(np.argmin(losses))]
    found = popularity.predict(pa.array(["p3", "unseen"]))
    of_three = labels[counted & (posts == 3)]
    np.testing.assert_allclose(
        found.ravel(), [(of_three.sum() + strength * rate) / (len(of_three) + strength), rate], rtol=1e-12
    )
