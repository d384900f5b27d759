"""Binary metrics against scikit-learn, and what must not move them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

from tml.core.errors import DataError
from tml.metrics.binary import BinaryMetrics, BinaryResult, binary_result, examples_that_count

# Few distinct probabilities, so that ties are everywhere; weights that sum exactly in any order are of no interest.
example = st.tuples(
    st.sampled_from([0.0, 1.0, float("nan")]),
    st.sampled_from([1e-6, 0.1, 0.25, 0.3, 0.7, 1 - 1e-6]),
    st.sampled_from([0.0, 0.1, 0.3, 1.0, 2.7]),
)
batches = st.lists(st.lists(example, max_size=12), max_size=6)


def collect(parts: list[list[tuple[float, float, float]]]) -> BinaryMetrics:
    metrics = BinaryMetrics()
    for part in parts:
        metrics.update(*(zip(*part, strict=True) if part else ([], [], [])))
    return metrics


@given(batches)
@settings(deadline=None, max_examples=200)
def test_agrees_with_scikit_learn(parts):
    rows = [row for part in parts for row in part if not np.isnan(row[0]) and row[2] > 0]
    result = collect(parts).compute()
    assert result.examples == len(rows)
    assert result.positives == sum(y == 1 for y, _, _ in rows)
    if len({y for y, _, _ in rows}) < 2:
        assert result.auc is result.pr_auc is result.rce is None
        return
    y, p, w = (np.array(column) for column in zip(*rows, strict=True))
    base = np.full(len(y), np.average(y, weights=w))
    base_ce = log_loss(y, base, sample_weight=w)
    assert result.auc == pytest.approx(roc_auc_score(y, p, sample_weight=w), abs=1e-12)
    assert result.pr_auc == pytest.approx(average_precision_score(y, p, sample_weight=w), abs=1e-12)
    assert result.rce == pytest.approx(100 * (1 - log_loss(y, p, sample_weight=w) / base_ce), abs=1e-8)
    assert result.calibration == pytest.approx((w @ p) / (w @ y), abs=1e-12)


@given(batches, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=100)
def test_order_batches_and_merging_do_not_move_a_bit(parts, random):
    rows = [row for part in parts for row in part]
    random.shuffle(rows)
    cut = random.randint(0, len(rows))
    merged = collect([rows[:cut]]).merge(collect([rows[cut:], []]))
    assert merged.compute() == collect(parts).compute()


def test_large_and_random_agrees_with_scikit_learn():
    rng = np.random.default_rng(1)
    p = rng.random(50_000).astype(np.float32) ** 4
    y = (rng.random(50_000) < p).astype(np.float32)
    result = binary_result(examples_that_count(y, p))
    assert result.auc == pytest.approx(roc_auc_score(y, p), abs=1e-12)
    assert result.pr_auc == pytest.approx(average_precision_score(y, p), abs=1e-12)


@pytest.mark.parametrize(
    ("labels", "probabilities", "weights", "expected"),
    [
        ([], [], None, BinaryResult(0, 0, None, None, None, None)),
        ([np.nan], [0.5], None, BinaryResult(0, 0, None, None, None, None)),
        ([0, 1], [0.5, 0.5], [0, 0], BinaryResult(0, 0, None, None, None, None)),
        ([0, 0], [0.1, 0.2], None, BinaryResult(2, 0, None, None, None, None)),
        ([1, 1], [0.4, 0.6], None, BinaryResult(2, 2, None, None, None, 0.5)),
    ],
)
def test_undefined_is_none(labels, probabilities, weights, expected):
    assert binary_result(examples_that_count(labels, probabilities, weights)) == expected


def test_a_batch_of_weight_zero_changes_nothing():
    metrics = collect([[(0, 0.2, 1.0), (1, 0.6, 1.0)]])
    before = metrics.compute()
    metrics.update([1, 0], [0.9, 0.1], [0.0, 0.0])
    assert metrics.compute() == before


def test_base_rate_has_an_rce_of_zero_and_truth_of_a_hundred():
    y = np.array([0, 0, 0, 1])
    assert binary_result(examples_that_count(y, np.full(4, 0.25))).rce == pytest.approx(0, abs=1e-12)
    assert binary_result(examples_that_count(y, y)).rce == pytest.approx(100, abs=1e-4)


def test_certain_and_wrong_is_finite():
    result = binary_result(examples_that_count([0, 1], [1.0, 0.0]))
    assert result.rce == pytest.approx(100 * (1 - 24 * np.log(2) / np.log(2)))
    assert result.auc == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 9], [0.1, 0.2]), "labels: found 9, allowed are 0, 1 and NaN"),
        (([0, 1], [0.1, 1.2]), "probabilities: found 1.2, allowed are 0 to 1"),
        (([0, 1], [0.1, np.nan]), "probabilities: found nan, allowed are 0 to 1"),
        (([0, 1], [0.1, 0.2], [1, -1]), "weights: found -1, allowed are finite numbers of at least 0"),
        (([0, 1], [0.1]), r"found shapes \(2,\), \(1,\) and \(2,\)"),
    ],
)
def test_wrong_values_are_refused(arguments, message):
    with pytest.raises(DataError, match=message):
        BinaryMetrics().update(*arguments)


def test_values_of_examples_that_do_not_count_may_be_anything():
    assert binary_result(examples_that_count([np.nan, 0, 1], [np.nan, 0.1, 0.9])).auc == 1
