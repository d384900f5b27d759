"""ROC and reliability curves against scikit-learn and by hand."""

import numpy as np
import pytest
from sklearn.metrics import auc, roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve

from tml.metrics.binary import examples_that_count
from tml.metrics.curves import reliability, roc_curve


def test_roc_curve_is_scikit_learns_when_nothing_is_left_out():
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 2, 80), rng.integers(0, 10, 80) / 10
    curve = roc_curve(examples_that_count(y, p))
    false_rate, true_rate, _ = sklearn_roc_curve(y, p, drop_intermediate=False)
    np.testing.assert_allclose(curve.false_positive_rate, false_rate, atol=1e-12)
    np.testing.assert_allclose(curve.true_positive_rate, true_rate, atol=1e-12)


def test_roc_curve_keeps_its_area_in_few_points():
    rng = np.random.default_rng(0)
    p = rng.random(20_000) ** 5
    y = rng.random(20_000) < p
    curve = roc_curve(examples_that_count(y, p), points=200)
    assert len(curve.true_positive_rate) <= 200
    assert (curve.false_positive_rate[0], curve.true_positive_rate[-1]) == (0, 1)
    assert auc(curve.false_positive_rate, curve.true_positive_rate) == pytest.approx(roc_auc_score(y, p), abs=1e-3)


def test_roc_curve_needs_both_classes():
    assert roc_curve(examples_that_count([1, 1], [0.1, 0.2])) is None
    assert roc_curve(examples_that_count([], [])) is None


def test_reliability_bins_hold_equally_many_and_their_means():
    p = np.arange(100) / 100
    y = (p >= 0.55).astype(float)
    curve = reliability(examples_that_count(y, p), bins=10)
    np.testing.assert_allclose(curve.predicted, p.reshape(10, 10).mean(axis=1))
    np.testing.assert_allclose(curve.observed, y.reshape(10, 10).mean(axis=1))
    assert curve.examples.tolist() == [10] * 10


def test_equal_probabilities_share_a_bin():
    curve = reliability(examples_that_count([0, 1, 0, 1, 1], [0.5, 0.5, 0.5, 0.5, 0.9]), bins=5)
    np.testing.assert_allclose(curve.predicted, [0.5, 0.9])
    np.testing.assert_allclose(curve.observed, [0.5, 1.0])
    assert len(reliability(examples_that_count([], [])).predicted) == 0
