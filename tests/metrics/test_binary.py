"""Binary metrics against scikit-learn, and what must not move them."""

from dataclasses import asdict

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
    assert result.log_loss == pytest.approx(log_loss(y, p, sample_weight=w), abs=1e-12)
    assert result.ne == pytest.approx(1 - result.rce / 100, abs=1e-12)
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
        ([0, 0], [0.1, 0.2], None, BinaryResult(2, 0, None, None, None, None, -np.log(0.9 * 0.8) / 2, None, 0.15)),
        ([1, 1], [0.4, 0.6], None, BinaryResult(2, 2, None, None, None, 0.5, -np.log(0.4 * 0.6) / 2, None, 0.5)),
    ],
)
def test_undefined_is_none(labels, probabilities, weights, expected):
    found = asdict(binary_result(examples_that_count(labels, probabilities, weights)))
    assert found == {name: pytest.approx(value) for name, value in asdict(expected).items()}


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


def test_the_calibration_error_is_that_of_ten_bins_of_equally_many():
    rng = np.random.default_rng(2)
    p = np.sort(rng.permutation(1000) / 1000)
    y = rng.random(1000) < p**2
    gaps = [abs(a.mean() - b.mean()) for a, b in zip(p.reshape(10, 100), y.reshape(10, 100), strict=True)]
    assert binary_result(examples_that_count(y, p)).ece == pytest.approx(np.mean(gaps))


def test_beyond_what_is_kept_the_error_of_auc_is_bounded_and_the_rest_is_exact():
    rng = np.random.default_rng(4)
    p = rng.beta(0.4, 5, 40_000)
    y, w = rng.random(40_000) < p, rng.random(40_000)
    exact = binary_result(examples_that_count(y, p, w))
    binned, half = BinaryMetrics(kept_examples=1000), BinaryMetrics(kept_examples=1000)
    for rows in np.array_split(np.arange(30_000), 50):
        binned.update(y[rows], p[rows], w[rows])
    half.update(y[30_000:39_500], p[30_000:39_500], w[30_000:39_500])
    half.merge(collect([list(zip(y[39_500:].astype(float), p[39_500:], w[39_500:], strict=True))]))
    found = binned.merge(half).compute()
    assert 0 < found.auc_error < 1e-3
    assert abs(found.auc - exact.auc) <= found.auc_error
    assert found.pr_auc == pytest.approx(exact.pr_auc, abs=1e-3)
    for name in ("rce", "ne", "log_loss", "calibration"):
        assert getattr(found, name) == pytest.approx(getattr(exact, name), rel=1e-9)
    assert found.ece == pytest.approx(exact.ece, abs=1e-4)
    assert (found.examples, found.positives) == (exact.examples, exact.positives)
