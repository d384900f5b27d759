"""Curves of one task's probabilities, small enough to draw: the ROC curve and the reliability curve.

The ROC curve is the share of positives found against the share of negatives let in, as the threshold falls; the area
under it is the AUC. The reliability curve puts what was predicted against what came true: examples are cut by rising
probability into bins of equal weight, equal probabilities into one bin, and a calibrated model lies on the diagonal.
"""

from dataclasses import dataclass

import numpy as np

from tml.metrics.binary import Examples, Floats


@dataclass(frozen=True)
class RocCurve:
    """Attributes: (points,) float64 each, both rising from 0 to 1."""

    false_positive_rate: Floats
    true_positive_rate: Floats


@dataclass(frozen=True)
class Reliability:
    """Attributes: (bins,) float64 each, by rising prediction; bins that would be empty are left out."""

    predicted: Floats
    observed: Floats
    examples: Floats


def roc_curve(examples: Examples, points: int = 200) -> RocCurve | None:
    """The ROC curve in at most `points` points, evenly spread along its length; None with one class only.

    Example:
        >>> from tml.metrics.binary import examples_that_count
        >>> roc_curve(examples_that_count([0, 1], [0.1, 0.9])).true_positive_rate.tolist()
        [0.0, 1.0, 1.0]
    """
    positives, negatives = examples.per_threshold()
    if not (positives.sum() > 0 and negatives.sum() > 0):
        return None
    true_rate, false_rate = (
        np.concatenate([[0.0], np.minimum(np.cumsum(side) / side.sum(), 1.0)]) for side in (positives, negatives)
    )
    # The ends must be exactly 1, which a cumulative sum divided by a sum need not be.
    true_rate[-1] = false_rate[-1] = 1.0
    if len(true_rate) > points:
        # true + false rate rises from 0 to 2 along the curve, so equal steps of it leave no gap wider than 2/points.
        wanted = np.linspace(0, 2, points)
        chosen = np.unique(np.searchsorted(true_rate + false_rate, wanted).clip(max=len(true_rate) - 1))
        true_rate, false_rate = true_rate[chosen], false_rate[chosen]
    return RocCurve(false_rate, true_rate)


def reliability(examples: Examples, bins: int = 10) -> Reliability:
    """The reliability curve in at most `bins` bins of about equal weight.

    Example:
        >>> from tml.metrics.binary import examples_that_count
        >>> reliability(examples_that_count([0, 0, 1, 1], [0.1, 0.3, 0.6, 0.8]), bins=2).predicted.tolist()
        [0.2, 0.7]
    """
    p, w = examples.probabilities, examples.weights
    if not len(p):
        return Reliability(np.zeros(0), np.zeros(0), np.zeros(0))
    starts = np.flatnonzero(np.diff(p, prepend=-1.0))
    tied = np.add.reduceat(w, starts)
    middle = (np.cumsum(tied) - tied / 2) / tied.sum()
    bin_of_tie = np.minimum((middle * bins).astype(np.int64), bins - 1)
    index = np.repeat(bin_of_tie, np.diff(starts, append=len(p)))
    weight = np.bincount(index, w, minlength=bins)
    predicted = np.bincount(index, w * p, minlength=bins)
    observed = np.bincount(index, w * examples.labels, minlength=bins)
    count = np.bincount(index, minlength=bins).astype(np.float64)
    filled = weight > 0
    return Reliability(predicted[filled] / weight[filled], observed[filled] / weight[filled], count[filled])
