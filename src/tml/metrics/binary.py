"""Metrics of one task's probabilities: AUC, PR-AUC, RCE and calibration.

With labels y, probabilities p and weights w, sums over the examples that count:

    AUC          share of (positive, negative) pairs where the positive has the higher p; a tie counts half
    PR-AUC       average precision, Σ (recall_k - recall_{k-1}) · precision_k over the distinct p, from high to low
    RCE          100 · (CE(base rate) - CE(p)) / CE(base rate), in percent; the base rate is Σwy / Σw
    NE           CE(p) / CE(base rate), normalised entropy (He et al. 2014): 1 - RCE / 100
    calibration  Σwp / Σwy, mean predicted over mean observed; 1 is right, above 1 promises too much
    ECE          expected calibration error: mean |predicted - observed| over ten bins of equal weight

An example counts if its label is not NaN and its weight is not 0, and it then counts in all metrics alike. Examples
are kept and sorted when the result is asked for, so the result is exact, ties are right, and neither the order of the
batches nor how they were merged moves a bit of it. Beyond `KEPT_EXAMPLES` they are folded into bins (`binned`), so that
memory does not grow any more; the result then says by how much the AUC may be off.
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from tml.core.errors import DataError
from tml.metrics.binned import Bins

PROBABILITY_RESOLUTION = 2.0**-24
"""Probabilities are kept this far from 0 and 1 in the cross-entropy, so that one that is certain and wrong costs 16.6
nats and not infinitely many. It is what float32 resolves just below 1: a float32 model that says 1 means no more."""

KEPT_EXAMPLES = 4_000_000
"""As many are kept as they are, 17 bytes each."""

CALIBRATION_BINS = 10

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class BinaryResult:
    """Metrics of one task; None where one is not defined.

    Attributes:
        examples: how many examples count.
        positives: how many of them are positive.
        auc: in [0, 1]; None with one class only.
        pr_auc: in [0, 1]; None with one class only.
        rce: in percent, at most 100; None with one class only.
        calibration: above 0; None without positives.
        log_loss: mean cross-entropy in nats; None without examples.
        ne: at least 0; None with one class only.
        ece: in [0, 1]; None without examples.
        auc_error: by how much `auc` may be off; 0 where it is exact.
    """

    examples: int
    positives: int
    auc: float | None
    pr_auc: float | None
    rce: float | None
    calibration: float | None
    log_loss: float | None = None
    ne: float | None = None
    ece: float | None = None
    auc_error: float = 0.0


@dataclass(frozen=True)
class Examples:
    """The examples that count, by rising probability, then label, then weight: an order that is theirs alone.

    Attributes:
        labels: (examples,) bool.
        probabilities: (examples,) float64.
        weights: (examples,) float64, all above 0.
    """

    labels: npt.NDArray[np.bool_]
    probabilities: Floats
    weights: Floats

    def per_threshold(self) -> tuple[Floats, Floats]:
        """Weight of the positives and of the negatives at each distinct probability, from high to low."""
        if not len(self.labels):
            return np.zeros(0), np.zeros(0)
        starts = np.flatnonzero(np.diff(self.probabilities, prepend=-1.0))
        positives = np.add.reduceat(np.where(self.labels, self.weights, 0.0), starts)
        negatives = np.add.reduceat(np.where(self.labels, 0.0, self.weights), starts)
        return positives[::-1], negatives[::-1]


def examples_that_count(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> Examples:
    """Check, select and sort the examples of one task.

    Args:
        labels: (examples,) 0, 1 or NaN, which does not count.
        probabilities: (examples,) in [0, 1].
        weights: (examples,) finite and at least 0; None is 1 each.

    Raises:
        DataError: another shape or value in an example that counts.
    """
    y, p = np.asarray(labels, np.float64), np.asarray(probabilities, np.float64)
    w = np.ones(y.shape) if weights is None else np.asarray(weights, np.float64)
    if y.ndim != 1 or y.shape != p.shape or y.shape != w.shape:
        raise DataError(
            f"labels, probabilities and weights: found shapes {y.shape}, {p.shape} and {w.shape}, "
            "allowed is one length for all"
        )
    counts = ~np.isnan(y)
    _refuse("weights", w, counts & ~((w >= 0) & np.isfinite(w)), "finite numbers of at least 0")
    counts &= w != 0
    _refuse("labels", y, counts & (y != 0) & (y != 1), "0, 1 and NaN")
    _refuse("probabilities", p, counts & ~((p >= 0) & (p <= 1)), "0 to 1")
    y, p, w = y[counts], p[counts], w[counts]
    order = np.lexsort((y, p) if weights is None else (w, y, p))
    return Examples(y[order] == 1, p[order], w[order])


def _refuse(name: str, values: Floats, wrong: npt.NDArray[np.bool_], allowed: str) -> None:
    if wrong.any():
        raise DataError(f"{name}: found {values[wrong][0]:g}, allowed are {allowed}")


class BinaryMetrics:
    """Collects the labels and probabilities of one task, batch by batch.

    Example:
        >>> metrics = BinaryMetrics()
        >>> metrics.update([0, 1, 1, float("nan")], [0.2, 0.9, 0.7, 0.5])
        >>> result = metrics.compute()
        >>> result.examples, result.positives, result.auc, round(result.calibration, 2)
        (3, 2, 1.0, 0.9)
    """

    def __init__(self, kept_examples: int = KEPT_EXAMPLES) -> None:
        self._parts: list[Examples] = []
        self._kept, self._limit = 0, kept_examples
        self._bins: Bins | None = None

    def update(self, labels: npt.ArrayLike, probabilities: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> None:
        """Add a batch; arguments and errors as in `examples_that_count`."""
        self._add(examples_that_count(labels, probabilities, weights))

    def merge(self, other: "BinaryMetrics") -> Self:
        """Add what `other` has collected, as on another rank; `other` stays as it is."""
        if other._bins is not None:
            self._bins = self._bins or Bins()
            self._bins.merge(other._bins)
        for part in other._parts:
            self._add(part)
        return self

    def compute(self) -> BinaryResult:
        """The metrics of all that was collected so far."""
        if self._bins is not None:
            self._fold()
            return _binned_result(self._bins)
        if not self._parts:
            return binary_result(examples_that_count([], []))
        if len(self._parts) > 1:
            columns = (np.concatenate(column) for column in zip(*map(_columns, self._parts), strict=True))
            self._parts = [examples_that_count(*columns)]
        return binary_result(self._parts[0])

    def _add(self, part: Examples) -> None:
        self._parts.append(part)
        self._kept += len(part.labels)
        if self._kept > self._limit or self._bins is not None:
            self._fold()

    def _fold(self) -> None:
        self._bins = self._bins or Bins()
        for part in self._parts:
            if len(part.labels):
                loss = cross_entropy(part.labels, part.probabilities, part.weights) * float(part.weights.sum())
                self._bins.add(part.labels, part.probabilities, part.weights, loss)
        self._parts, self._kept = [], 0


def _columns(examples: Examples) -> tuple[npt.NDArray[np.bool_], Floats, Floats]:
    return examples.labels, examples.probabilities, examples.weights


def binary_result(examples: Examples) -> BinaryResult:
    """All metrics of one task's examples."""
    positives, negatives = examples.per_threshold()
    if not len(positives):
        return BinaryResult(0, 0, None, None, None, None)
    starts = np.flatnonzero(np.diff(examples.probabilities, prepend=-1.0))
    predicted = np.add.reduceat(examples.weights * examples.probabilities, starts)[::-1]
    loss = cross_entropy(examples.labels, examples.probabilities, examples.weights)
    total = float(examples.weights @ examples.probabilities)
    counts = len(examples.labels), int(examples.labels.sum())
    return _result(counts, positives, negatives, predicted, loss, total)


def _binned_result(bins: Bins) -> BinaryResult:
    filled = np.flatnonzero(bins.positives + bins.negatives)[::-1]
    if not len(filled):
        return BinaryResult(0, 0, None, None, None, None)
    positives, negatives, predicted = (x[filled] for x in (bins.positives, bins.negatives, bins.predicted))
    loss = bins.loss / float(positives.sum() + negatives.sum())
    counts = bins.examples, bins.counted
    result = _result(counts, positives, negatives, predicted, loss, float(predicted.sum()))
    return replace(result, auc_error=bins.auc_error())


def _result(
    counts: tuple[int, int], positives: Floats, negatives: Floats, predicted: Floats, loss: float, total: float
) -> BinaryResult:
    """The metrics from sums at each distinct probability or bin, from high to low, and what is summed over all."""
    positive, negative = float(positives.sum()), float(negatives.sum())
    both = positive > 0 and negative > 0
    base = _entropy(positive / (positive + negative)) if both else 1.0
    return BinaryResult(
        *counts,
        auc=_auc(positives, negatives) if both else None,
        pr_auc=_average_precision(positives, negatives) if both else None,
        rce=float(100 * (base - loss) / base) if both else None,
        calibration=total / positive if positive > 0 else None,
        log_loss=loss,
        ne=float(loss / base) if both else None,
        ece=_calibration_error(positives, negatives, predicted),
    )


def _calibration_error(positives: Floats, negatives: Floats, predicted: Floats) -> float:
    """Equal probabilities share a bin: that in which the middle of their weight lies."""
    weight = positives + negatives
    middle = (np.cumsum(weight) - weight / 2) / weight.sum()
    at = np.minimum((middle * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    return float(np.abs(np.bincount(at, predicted - positives)).sum() / weight.sum())


def cross_entropy(labels: npt.NDArray[np.bool_], probabilities: npt.ArrayLike, weights: Floats) -> float:
    """Weighted mean cross-entropy in nats, finite also for probabilities of exactly 0 and 1."""
    p = np.clip(np.asarray(probabilities, np.float64), PROBABILITY_RESOLUTION, 1 - PROBABILITY_RESOLUTION)
    of_the_label = np.where(labels, p, 1 - p)
    return float(-(weights @ np.log(of_the_label)) / weights.sum())


def _entropy(rate: float) -> float:
    return float(-(rate * np.log(rate) + (1 - rate) * np.log1p(-rate)))


def _auc(positives: Floats, negatives: Floats) -> float:
    above = np.cumsum(positives) - positives / 2
    return float((above @ negatives) / (positives.sum() * negatives.sum()))


def _average_precision(positives: Floats, negatives: Floats) -> float:
    precision = np.cumsum(positives) / np.cumsum(positives + negatives)
    return float((precision @ positives) / positives.sum())
