"""Calibration after down-sampling: exact on a population that is counted out, and made once."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tml.core.errors import ConfigError
from tml.projects.home.recap.calibration import calibrated_probabilities, sampling_ratio
from tml.projects.home.recap.config import InputShapes, ModelConfig
from tml.projects.home.recap.model import HeavyRanker

# In three kinds of impressions, how many were engaged with and how many were not.
POSITIVES = np.array([100, 4_000, 20])
NEGATIVES = np.array([900, 1_000, 99_980])


@pytest.mark.parametrize(("positive_rate", "negative_rate"), [(1.0, 0.1), (0.5, 0.05), (0.25, 1.0), (1.0, 1.0)])
def test_a_perfect_model_of_the_sample_becomes_a_perfect_model_of_the_population(
    positive_rate: float, negative_rate: float
) -> None:
    kept_positives, kept_negatives = POSITIVES * positive_rate, NEGATIVES * negative_rate
    logits = torch.from_numpy(np.log(kept_positives / kept_negatives))
    q = calibrated_probabilities(logits, sampling_ratio(positive_rate, negative_rate)).numpy()
    np.testing.assert_allclose(q, POSITIVES / (POSITIVES + NEGATIVES), rtol=1e-12)
    assert (q * (POSITIVES + NEGATIVES)).sum() == pytest.approx(POSITIVES.sum(), rel=1e-12)


@given(p=st.floats(1e-6, 1 - 1e-6), ratio=st.floats(1e-4, 1e4))
def test_equals_the_formula_on_probabilities(p: float, ratio: float) -> None:
    q = calibrated_probabilities(torch.tensor(p, dtype=torch.float64).logit(), ratio).item()
    assert q == pytest.approx(p * ratio / (1 - p + ratio * p), rel=1e-9)


def test_the_models_probabilities_are_calibrated_once_and_per_task() -> None:
    shapes = InputShapes(continuous=3, tasks=("is_click", "video_playback_50"))
    ranker = HeavyRanker(ModelConfig(), shapes, torch.Generator().manual_seed(0)).eval()
    batch = {"continuous": torch.randn(5, 3, generator=torch.Generator().manual_seed(1)), "binary": torch.zeros(5, 0)}
    p = ranker.probabilities(batch)
    q = ranker.probabilities(batch, {"video_playback_50": 0.00427})
    torch.testing.assert_close(torch.stack(list(p.values()), 1), ranker(batch).sigmoid())
    assert torch.equal(q["is_click"], p["is_click"])
    once = p["video_playback_50"].double()
    once = once * 0.00427 / (1 - once + 0.00427 * once)
    torch.testing.assert_close(q["video_playback_50"].double(), once, rtol=1e-5, atol=0)


@pytest.mark.parametrize("rates", [(0.0, 1.0), (1.0, -0.1), (1.0, 1.5), (float("nan"), 1.0)])
def test_rates_outside_0_to_1_are_refused(rates: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match=r"downsampling_rate: found .*, allowed is above 0 and at most 1"):
        sampling_ratio(*rates)
