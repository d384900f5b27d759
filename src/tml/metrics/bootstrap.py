"""How sure a metric is: a bootstrap over viewers, streaming, and paired for all models that are compared.

What one viewer does is not independent, so whole viewers are drawn and not examples. In a Poisson bootstrap a viewer
counts k times in a draw, k from Poisson(1), instead of being drawn from a list (Chamandy et al. 2012): no list is
needed, and the examples may come in any order. The k of a viewer in a draw follow from seed, viewer and draw alone. So
all models see the same draws, whatever the batches, and ranks agree without talking: differences are paired.

    interval   the percentiles of the draws
    p-value    two-sided, of the difference over its standard deviation among the draws, against the normal distribution

Cross-entropy and calibration of a draw are exact. AUC is of probabilities cut into bins of 0.008 in the logit, within
which a pair counts half; that serves for intervals, while the figures themselves come from `binary`.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from tml.metrics.binary import PROBABILITY_RESOLUTION, examples_that_count

Floats = npt.NDArray[np.float64]
Keys = npt.NDArray[np.uint64]

BINS = 4096
LARGEST_LOGIT = 16.7
ROWS_AT_A_TIME = 8192
LARGEST_MULTIPLICITY = 12
"""A Poisson(1) is above it once in ten billion times."""


def viewer_keys(viewers: npt.ArrayLike) -> Keys:
    """A 64-bit number for each viewer, the same everywhere; ids are integers or strings.

    Example:
        >>> keys = viewer_keys(["u1", "u2", "u1"])
        >>> bool(keys[0] == keys[2] != keys[1])
        True
    """
    ids = np.asarray(viewers)
    if ids.dtype.kind in "iu":
        return _mixed(ids.astype(np.int64).view(np.uint64))
    unique, inverse = np.unique(ids.astype(str), return_inverse=True)
    digests = [hashlib.blake2b(str(name).encode(), digest_size=8).digest() for name in unique]
    return np.frombuffer(b"".join(digests), np.uint64)[inverse] if len(unique) else np.zeros(0, np.uint64)


def multiplicities(keys: Keys, draws: int, seed: int) -> npt.NDArray[np.uint8]:
    """How often each viewer counts in each draw, (keys, draws), Poisson(1).

    Example:
        >>> m = multiplicities(viewer_keys(np.arange(10_000)), draws=4, seed=0)
        >>> np.abs(m.mean(axis=0) - 1).max() < 0.05
        np.True_
    """
    numbers = _mixed(np.arange(draws, dtype=np.uint64) + _mixed(np.array([seed], np.uint64)))
    uniform = (_mixed(keys[:, None] ^ numbers[None, :]) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    masses = [math.exp(-1) / math.factorial(k) for k in range(LARGEST_MULTIPLICITY)]
    return np.searchsorted(np.cumsum(masses), uniform, side="right").astype(np.uint8)


def _mixed(x: Keys) -> Keys:
    """The output function of SplitMix64 (Steele et al. 2014): neighbours become unlike."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class BinaryBootstrap:
    """Collects one task's examples for several models; memory does not grow with them.

    Args:
        models: the names.
        draws: how many.
        seed: of the draws.

    Example:
        >>> bootstrap = BinaryBootstrap(["a"], draws=50, seed=0)
        >>> bootstrap.update(np.arange(100), np.arange(100) % 2, {"a": np.arange(100) / 100})
        >>> bootstrap.values("a")["auc"].shape
        (50,)
    """

    def __init__(self, models: Sequence[str], draws: int, seed: int) -> None:
        self.models, self.draws, self.seed = tuple(models), draws, seed
        self.totals = np.zeros((2, draws))  # weight of all, of the positives
        self.viewers: set[int] = set()  # the first two: of one viewer alone no draw tells anything
        self.losses = {model: np.zeros((2, draws)) for model in models}  # cross-entropy, predicted
        self.counts = {model: np.zeros((2, BINS, draws), np.float32) for model in models}  # positives, negatives

    def update(
        self,
        viewers: npt.ArrayLike,
        labels: npt.ArrayLike,
        probabilities: Mapping[str, npt.ArrayLike],
        weights: npt.ArrayLike | None = None,
    ) -> None:
        """Add a batch.

        Args:
            viewers: (examples,) ids.
            labels, weights: as in `examples_that_count`.
            probabilities: by model, (examples,) each.
        """
        y = np.asarray(labels, np.float64)
        w = np.ones(y.shape) if weights is None else np.asarray(weights, np.float64)
        for values in probabilities.values():
            examples_that_count(y, values, w)  # refuses what is wrong
        rows = np.flatnonzero(~np.isnan(y) & (w != 0))
        keys = viewer_keys(viewers)
        for start in range(0, len(rows), ROWS_AT_A_TIME):
            chosen = rows[start : start + ROWS_AT_A_TIME]
            said = {model: np.asarray(probabilities[model], np.float64)[chosen] for model in self.models}
            self._add(keys[chosen], y[chosen], said, w[chosen])

    def _add(self, keys: Keys, y: Floats, said: Mapping[str, Floats], w: Floats) -> None:
        unique, inverse = np.unique(keys, return_inverse=True)
        self._see(unique[:2].tolist())
        weights = multiplicities(unique, self.draws, self.seed)[inverse].astype(np.float32) * w[:, None]
        self.totals += np.stack([np.ones_like(y), y]) @ weights
        for model, probability in said.items():
            p = np.clip(probability, PROBABILITY_RESOLUTION, 1 - PROBABILITY_RESOLUTION)
            self.losses[model] += np.stack([-np.log(np.where(y == 1, p, 1 - p)), probability]) @ weights
            logits = np.log(p) - np.log1p(-p)
            at = np.clip((logits / LARGEST_LOGIT + 1) / 2 * BINS, 0, BINS - 1).astype(np.int64)
            for counts, side in zip(self.counts[model], (y == 1, y == 0), strict=True):
                order = np.flatnonzero(side)[np.argsort(at[side], kind="stable")]
                if len(order):
                    starts = np.flatnonzero(np.diff(at[order], prepend=-1))
                    counts[at[order][starts]] += np.add.reduceat(weights[order], starts, axis=0)

    def _see(self, viewers: Iterable[int]) -> None:
        for viewer in viewers:
            if len(self.viewers) < 2:
                self.viewers.add(viewer)

    def merge(self, other: "BinaryBootstrap") -> Self:
        """Add what `other`, of the same models, draws and seed, has collected."""
        assert (self.models, self.draws, self.seed) == (other.models, other.draws, other.seed)
        self._see(other.viewers)
        self.totals += other.totals
        for model in self.models:
            self.losses[model] += other.losses[model]
            self.counts[model] += other.counts[model]
        return self

    def values(self, model: str) -> dict[str, Floats]:
        """By metric, its value in each draw, (draws,); NaN where the draw has one class or all is of one viewer."""
        weight, positive = self.totals
        negative = weight - positive
        with np.errstate(divide="ignore", invalid="ignore"):
            rate = positive / weight
            base = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
            loss, predicted = self.losses[model][0] / weight, self.losses[model][1] / positive
            positives, negatives = (side.astype(np.float64) for side in self.counts[model])
            below = np.cumsum(negatives, axis=0) - negatives / 2
            auc = (below * positives).sum(axis=0) / (positive * negative)
            found = {"auc": auc, "rce": 100 * (1 - loss / base), "ne": loss / base, "calibration": predicted}
        both = (positive > 0) & (negative > 0) & (len(self.viewers) > 1)
        return {name: np.where(both, values, np.nan) for name, values in found.items()}


@dataclass(frozen=True)
class Interval:
    """Attributes: the ends; `deviation`, the standard deviation among the draws."""

    low: float
    high: float
    deviation: float


def interval(draws: Floats, confidence: float = 0.95) -> Interval | None:
    """The interval of a metric by its values in the draws; None where fewer than half of them have one.

    Example:
        >>> round(interval(np.arange(101.0), confidence=0.9).low, 6)
        5.0
    """
    defined = draws[np.isfinite(draws)]
    if 2 * len(defined) < len(draws) or len(defined) < 2:
        return None
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high), float(defined.std(ddof=1)))


def p_value(difference: float, deviation: float) -> float:
    """Two-sided: how often a difference at least as large would be seen if there were none.

    Example:
        >>> round(p_value(1.96, 1.0), 3)
        0.05
    """
    if deviation == 0:
        return 1.0 if difference == 0 else 0.0
    return math.erfc(abs(difference) / deviation / math.sqrt(2))
