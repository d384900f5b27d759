"""Fitted calibration against scikit-learn; and that it repairs what is wrong, without the labels it is judged on."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from tml.projects.home.recap.calibration_maps import (
    CalibrationMap,
    calibrate_predictions,
    fit_calibration,
    halves,
    isotonic,
)

rows = st.lists(
    st.tuples(
        st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.8, 1.0]), st.sampled_from([0.5, 1.0, 3.0])
    ),
    min_size=2,
    max_size=40,
)


@given(rows)
@settings(deadline=None, max_examples=150)
def test_isotonic_agrees_with_scikit_learn(examples) -> None:
    y, p, w = (np.array(column) for column in zip(*examples, strict=True))
    if len(set(y)) < 2:
        assert fit_calibration("isotonic", y, p, w) == CalibrationMap("platt")
        return
    reference = IsotonicRegression(out_of_bounds="clip").fit(p, y, sample_weight=w)
    grid = np.linspace(0, 1, 33)
    found = isotonic(*(column[np.argsort(p, kind="stable")] for column in (y, p, w)))
    np.testing.assert_allclose(found(grid), reference.predict(grid), atol=1e-9)
    assert CalibrationMap.from_json(found.to_json()) == found
    never_certain = fit_calibration("isotonic", y, p, w)(grid)
    assert (np.diff(never_certain) >= 0).all()
    assert 0 < never_certain[0] <= never_certain[-1] < 1
    assert (np.abs(never_certain - found(grid)) <= 0.5).all()


def test_what_never_happened_is_unlikely_and_not_impossible() -> None:
    found = fit_calibration("isotonic", [0] * 49 + [1, 0, 1], [0.1] * 49 + [0.5, 0.6, 0.7])
    assert found([0.1, 0.55, 0.7]).tolist() == [0.01, 0.5, 0.75]


def test_platt_agrees_with_scikit_learn_and_inverts_a_wrong_scale() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(-2, 1.5, 30_000)
    y = (rng.random(30_000) < 1 / (1 + np.exp(-truth))).astype(float)
    z = 2 * truth + 1
    found = fit_calibration("platt", y, 1 / (1 + np.exp(-z)))
    reference = LogisticRegression(C=1e9, tol=1e-10).fit(z[:, None], y)
    # Platt's corrected targets move the fit by about one example.
    assert found.slope == pytest.approx(reference.coef_[0, 0], rel=1e-2)
    assert (found.slope, found.intercept) == (pytest.approx(0.5, abs=0.02), pytest.approx(-0.5, abs=0.05))


@pytest.mark.parametrize("kind", ["isotonic", "platt"])
def test_calibrated_predictions_mean_what_they_say(kind) -> None:
    rng = np.random.default_rng(2)
    n = 20_000
    truth = rng.random(n) ** 3
    viewers = rng.integers(0, 500, n)
    label = (rng.random(n) < truth).astype(np.float32)
    wrong = np.clip(truth**2 * 0.7, 1e-4, 1).astype(np.float32)
    table = pa.table({"user_id": viewers, "label/a": label, "ranker/a": wrong, "first/a": wrong / 2})
    calibrated, maps = calibrate_predictions(table, ["a"], kind)
    assert calibrated["uncalibrated/a"].equals(table["ranker/a"])
    said = calibrated["ranker/a"].to_numpy()
    for low, high in ((0, 0.1), (0.3, 0.5), (0.7, 0.9)):
        rows = (truth >= low) & (truth < high)
        assert said[rows].mean() == pytest.approx(truth[rows].mean(), abs=0.03 if kind == "isotonic" else 0.12)
    # What a viewer did says nothing of what is predicted for the viewer.
    half = halves(viewers)
    other = np.where(half, 1 - label, label).astype(np.float32)
    swapped, _ = calibrate_predictions(table.set_column(1, "label/a", pa.array(other)), ["a"], kind)
    assert np.array_equal(swapped["ranker/a"].to_numpy()[half], said[half])
    assert abs(half.mean() - 0.5) < 0.1
    assert maps["a"].kind == kind
