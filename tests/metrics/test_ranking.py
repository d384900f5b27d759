"""Ranking metrics against slow loops and scikit-learn."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score, roc_auc_score

from tml.core.errors import DataError
from tml.metrics.ranking import grouped_auc, mean_at_top, ndcg

items = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from([-1.0, 0.0, 0.5, 2.0]), st.sampled_from([-3.0, 0.0, 0.5, 1.0, 13.5])),
    min_size=1,
    max_size=30,
)


def by_group(rows):
    for group in sorted({row[0] for row in rows}):
        yield np.array([row[1:] for row in rows if row[0] == group])


@given(items, st.sampled_from([None, 1, 3, 100]))
@settings(deadline=None, max_examples=150)
def test_ndcg_agrees_with_scikit_learn(rows, k):
    expected = []
    for group in by_group(rows):
        scores, gains = group[:, 0], np.maximum(group[:, 1], 0)
        if gains.max() > 0:
            # scikit-learn wants two items; an item without gain and far below the others changes nothing.
            padded_scores, padded_gains = np.append(scores, -100.0), np.append(gains, 0.0)
            expected.append(ndcg_score([padded_gains], [padded_scores], k=k))
    found = ndcg(*zip(*rows, strict=True), k=k)
    assert found == (pytest.approx(np.mean(expected), abs=1e-12) if expected else None)


@given(items, st.integers(1, 7))
@settings(deadline=None, max_examples=100)
def test_mean_at_top_without_ties_agrees_with_a_loop(rows, k):
    rows = [(group, score + number * 1e-6, value) for number, (group, score, value) in enumerate(rows)]
    expected = []
    for group in by_group(rows):
        ordered = sorted(group.tolist(), reverse=True)
        expected.append(np.mean([value for _, value in ordered[:k]]))
    assert mean_at_top(*zip(*rows, strict=True), k=k) == pytest.approx(np.mean(expected), abs=1e-12)


def test_equal_scores_give_the_expectation_over_all_orders():
    gains = np.array([0.0, 1.0, 13.5, 0.5])
    orders = [np.array(order, float) for order in itertools.permutations(range(4))]
    group = np.zeros(4)
    expected_ndcg = np.mean([ndcg(group, order, gains, k=3) for order in orders])
    expected_mean = np.mean([mean_at_top(group, order, gains, k=3) for order in orders])
    assert ndcg(group, np.zeros(4), gains, k=3) == pytest.approx(expected_ndcg)
    assert mean_at_top(group, np.zeros(4), gains, k=3) == pytest.approx(expected_mean)


@given(items)
@settings(deadline=None, max_examples=100)
def test_grouped_auc_agrees_with_a_loop(rows):
    rows = [(group, score, {13.5: 1.0, -3.0: np.nan}.get(value, 0.0)) for group, score, value in rows]
    aucs, sizes = [], []
    for group in by_group(rows):
        scores, labels = group[~np.isnan(group[:, 1])].T
        if len(set(labels)) == 2:
            aucs.append(roc_auc_score(labels, scores))
            sizes.append(len(labels))
    expected = np.average(aucs, weights=sizes) if aucs else None
    assert grouped_auc(*zip(*rows, strict=True)) == (pytest.approx(expected, abs=1e-12) if aucs else None)


@given(items, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=50)
def test_the_order_of_the_input_does_not_matter(rows, random):
    before = ndcg(*zip(*rows, strict=True)), mean_at_top(*zip(*rows, strict=True), k=2)
    random.shuffle(rows)
    assert (ndcg(*zip(*rows, strict=True)), mean_at_top(*zip(*rows, strict=True), k=2)) == before


def test_groups_without_gain_are_left_out_and_empty_is_none():
    assert ndcg([1, 1, 2, 2], [2.0, 1.0, 2.0, 1.0], [1.0, 0.0, 0.0, -5.0]) == 1
    assert ndcg([1], [1.0], [-5.0]) is None
    assert ndcg([], [], []) is None
    assert mean_at_top([], [], [], k=5) is None
    assert grouped_auc([], [], []) is None


def test_nan_and_wrong_lengths_are_refused():
    with pytest.raises(DataError, match="scores: found NaN"):
        ndcg([1], [np.nan], [1.0])
    with pytest.raises(DataError, match=r"gains: found shape \(1,\)"):
        ndcg([1, 2], [1.0, 2.0], [1.0])


def test_grouped_auc_counts_weights_as_scikit_learn_does():
    rng = np.random.default_rng(0)
    groups, scores = rng.integers(0, 30, 600), rng.integers(0, 5, 600) / 5
    labels, weights = rng.integers(0, 2, 600), rng.integers(0, 3, 600) * 0.7
    aucs, sizes = [], []
    for group in range(30):
        rows = (groups == group) & (weights > 0)
        if len(set(labels[rows])) == 2:
            aucs.append(roc_auc_score(labels[rows], scores[rows], sample_weight=weights[rows]))
            sizes.append(weights[rows].sum())
    found = grouped_auc(groups, scores, labels, weights)
    assert found == pytest.approx(np.average(aucs, weights=sizes), abs=1e-12)
