"""The bootstrap over viewers against drawing viewers by hand, and what must not move it."""

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from tml.metrics.bootstrap import BinaryBootstrap, interval, multiplicities, p_value, viewer_keys


def made(viewers: int = 60, each: int = 12, seed: int = 0):
    """Viewers who differ, so that examples of one viewer say less than as many of several."""
    rng = np.random.default_rng(seed)
    own = np.repeat(rng.normal(0, 1.5, viewers), each)
    signal = rng.normal(size=viewers * each)
    y = (rng.random(len(own)) < 1 / (1 + np.exp(-own - signal))).astype(float)
    ids = np.repeat(np.arange(viewers), each)
    good, bad = (1 / (1 + np.exp(-own / 2 - x)) for x in (signal, rng.normal(size=len(own)) / 3 + signal / 2))
    return ids, y, {"good": good, "bad": bad}


def test_each_draw_is_the_metric_of_the_viewers_as_often_as_they_count() -> None:
    ids, y, said = made()
    weights = np.random.default_rng(1).random(len(y))
    bootstrap = BinaryBootstrap(["good", "bad"], draws=12, seed=5)
    bootstrap.update(ids, y, said, weights)
    counts = multiplicities(viewer_keys(ids), 12, 5)
    for model, p in said.items():
        found = bootstrap.values(model)
        for draw in range(12):
            w = counts[:, draw] * weights
            base = log_loss(y, np.full(len(y), np.average(y, weights=w)), sample_weight=w)
            assert found["auc"][draw] == pytest.approx(roc_auc_score(y, p, sample_weight=w), abs=2e-3)
            assert found["rce"][draw] == pytest.approx(100 * (1 - log_loss(y, p, sample_weight=w) / base), abs=1e-3)
            assert found["calibration"][draw] == pytest.approx((w @ p) / (w @ y), rel=1e-5)


def test_order_batches_merging_and_other_models_do_not_move_the_draws() -> None:
    ids, y, said = made()
    whole = BinaryBootstrap(["good", "bad"], 20, seed=1)
    whole.update([f"u{i}" for i in ids], y, said)
    parts = [BinaryBootstrap(["good"], 20, seed=1) for _ in range(2)]
    order = np.random.default_rng(3).permutation(len(y))
    for part, rows in zip(parts, np.array_split(order, 2), strict=True):
        for few in np.array_split(rows, 3):
            part.update([f"u{i}" for i in ids[few]], y[few], {"good": said["good"][few]})
    merged = parts[0].merge(parts[1])
    for name, values in whole.values("good").items():
        np.testing.assert_allclose(merged.values("good")[name], values, rtol=1e-5)


def test_the_deviation_is_that_of_the_mean_over_new_viewers() -> None:
    """Against the truth: many samples of viewers, of each the AUC."""
    aucs, deviations = [], []
    for seed in range(60):
        ids, y, said = made(seed=seed)
        aucs.append(roc_auc_score(y, said["good"]))
        if seed < 12:
            bootstrap = BinaryBootstrap(["good"], 150, seed=0)
            bootstrap.update(ids, y, said)
            found = interval(bootstrap.values("good")["auc"])
            assert found is not None
            deviations.append(found.deviation)
    assert np.mean(deviations) == pytest.approx(np.std(aucs, ddof=1), rel=0.3)


def test_multiplicities_are_poisson_and_independent() -> None:
    m = multiplicities(viewer_keys(np.arange(20_000)), draws=6, seed=0)
    shares = np.bincount(m.ravel(), minlength=5)[:5] / m.size
    np.testing.assert_allclose(shares, np.exp(-1) / np.array([1, 1, 2, 6, 24]), atol=5e-3)
    assert np.abs(np.corrcoef(m.T) - np.eye(6)).max() < 0.03
    assert not np.array_equal(m, multiplicities(viewer_keys(np.arange(20_000)), 6, seed=1))


def test_empty_and_one_class_have_no_interval() -> None:
    bootstrap = BinaryBootstrap(["a"], 10, seed=0)
    assert interval(bootstrap.values("a")["auc"]) is None
    bootstrap.update([1, 2], [1.0, np.nan], {"a": [0.5, 0.5]})
    assert interval(bootstrap.values("a")["rce"]) is None


def test_one_viewer_alone_has_no_interval() -> None:
    labels, said = np.tile([0.0, 1.0, 1.0], 20), {"a": np.linspace(0.1, 0.9, 60), "b": np.linspace(0.4, 0.8, 60)}
    alone, second = BinaryBootstrap(["a", "b"], 50, 0), BinaryBootstrap(["a", "b"], 50, 0)
    alone.update(np.full(60, 7), labels, said)
    alone.update(np.full(60, 7), labels, said)
    assert interval(alone.values("a")["auc"] - alone.values("b")["auc"]) is None
    second.update(np.full(60, 8), labels, said)
    assert interval(alone.merge(second).values("a")["auc"]) is not None


def test_p_values() -> None:
    assert p_value(0.0, 0.0) == 1
    assert p_value(0.1, 0.0) == 0
    assert p_value(-2.5758, 1.0) == pytest.approx(0.01, rel=1e-3)
