"""Running statistics against NumPy's of the whole matrix."""

import numpy as np
import pytest

from tml.features.normalisation import ColumnStatistics


def test_statistics_of_chunks_are_those_of_the_whole() -> None:
    random = np.random.default_rng(0)
    values = np.stack(
        [
            random.normal(1e6, 1.0, 5000),  # a mean far from 0 with little spread
            random.poisson(0.2, 5000),
            -random.exponential(3.0, 5000),
            np.full(5000, 7.0),
        ],
        axis=1,
    ).astype(np.float32)
    found = ColumnStatistics(4)
    for chunk in np.split(values, [1, 700, 3000]):
        found.add(chunk)
    result = {name: np.array(column) for name, column in found.result().items()}
    exact = values.astype(np.float64)
    logarithm = np.sign(exact) * np.log1p(np.abs(exact))
    for prefix, matrix in (("", exact), ("log_", logarithm)):
        np.testing.assert_allclose(result[f"{prefix}mean"], matrix.mean(axis=0), rtol=2e-6)
        np.testing.assert_allclose(result[f"{prefix}minimum"], matrix.min(axis=0), rtol=2e-6)
        np.testing.assert_allclose(result[f"{prefix}maximum"], matrix.max(axis=0), rtol=2e-6)
    np.testing.assert_allclose(result["deviation"], exact.std(axis=0), rtol=2e-6)
    np.testing.assert_allclose(result["log_deviation"][1:], logarithm.std(axis=0)[1:], rtol=1e-5, atol=1e-6)
    assert result["zeros"].tolist() == pytest.approx((exact == 0).mean(axis=0).tolist())


def test_what_is_not_finite_counts_as_zero() -> None:
    found = ColumnStatistics(1)
    found.add(np.array([[np.nan], [np.inf], [4.0], [0.0]], np.float32))
    result = found.result()
    assert (result["mean"], result["zeros"], result["maximum"]) == ([1.0], [0.75], [4.0])
