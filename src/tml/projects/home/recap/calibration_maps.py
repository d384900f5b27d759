"""Calibration fitted on held-out data: what a model's probability has to become to mean what it says.

isotonic   the rising step function nearest to the labels, by pool-adjacent-violators (Ayer et al. 1955), linear between
           the means of its pools, as scikit-learn's `IsotonicRegression` predicts between its thresholds; but a pool
           of n examples that are all alike says 1/(2n + 2) and not 0, for never seen is not impossible. It needs
           hundreds of positives; for rarer engagements take the other
platt      sigmoid(a·logit(p) + b) of least cross-entropy (Platt 1999), with his corrected targets, by Newton's method

A weighted sum of probabilities is an expected worth only if each is right on its own scale. A map is fitted to examples
that are apart from those it is judged on: half of the viewers for the other half (`cross_fitted`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tml.core.errors import DataError
from tml.metrics.binary import PROBABILITY_RESOLUTION, examples_that_count
from tml.metrics.bootstrap import viewer_keys

Floats = npt.NDArray[np.float64]
Kind = Literal["isotonic", "platt"]

NEWTON_STEPS = 50


@dataclass(frozen=True)
class CalibrationMap:
    """A map of one task: linear between `x` and `y` (isotonic), or by `slope` and `intercept` in the logit (platt)."""

    kind: Kind
    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()
    slope: float = 1.0
    intercept: float = 0.0

    def __call__(self, probabilities: npt.ArrayLike) -> Floats:
        """Calibrated probabilities, of the shape of what is given."""
        p = np.asarray(probabilities, np.float64)
        if self.kind == "isotonic":
            return np.interp(p, self.x, self.y) if self.x else p
        result: Floats = 1 / (1 + np.exp(-(self.slope * _logit(p) + self.intercept)))
        return result

    def to_json(self) -> dict[str, Any]:
        """The map as plain values."""
        if self.kind == "isotonic":
            return {"kind": self.kind, "x": list(self.x), "y": list(self.y)}
        return {"kind": self.kind, "slope": self.slope, "intercept": self.intercept}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "CalibrationMap":
        """The map that `to_json` wrote."""
        try:
            given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
            return cls(**given)
        except TypeError as error:
            raise DataError(f"calibration map: {error}") from None


def fit_calibration(
    kind: Kind, labels: npt.ArrayLike, probabilities: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> CalibrationMap:
    """Fit a map; arguments as in `examples_that_count`. With one class or none it is the identity.

    Example:
        >>> calibrate = fit_calibration("isotonic", [0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4])
        >>> calibrate([0.1, 0.25, 0.4]).tolist()
        [0.25, 0.5, 0.75]
    """
    examples = examples_that_count(labels, probabilities, weights)
    y, p, w = examples.labels.astype(np.float64), examples.probabilities, examples.weights
    if not 0 < y.sum() < len(y):
        return CalibrationMap("platt")
    return _never_certain(isotonic(y, p, w), p, w) if kind == "isotonic" else _platt(y, p, w)


def _never_certain(fitted: CalibrationMap, p: Floats, w: Floats) -> CalibrationMap:
    """The map without 0 and 1: one certain and wrong prediction would cost more than all others gain."""
    x, y = np.asarray(fitted.x), np.asarray(fitted.y)
    inner = y[(y > 0) & (y < 1)]
    for certain, end in ((0.0, inner.min(initial=0.5)), (1.0, inner.max(initial=0.5))):
        at = y == certain
        if at.any():
            weight = float(w[(p >= x[at].min()) & (p <= x[at].max())].sum())
            least = 1 / (2 * weight + 2)
            y[at] = min(least, end) if certain == 0 else max(1 - least, end)
    return replace(fitted, y=tuple(y.tolist()))


def isotonic(y: Floats, p: Floats, w: Floats) -> CalibrationMap:
    """The isotonic regression of labels `y` on rising `p`, weighted by `w`."""
    starts = np.flatnonzero(np.diff(p, prepend=-1.0))
    weight, total = np.add.reduceat(w, starts), np.add.reduceat(w * y, starts)
    # Each pool: its weight, its weighted labels, and where it begins among the distinct probabilities.
    pools: list[tuple[float, float, int]] = []
    for place, (own_weight, own_total) in enumerate(zip(weight.tolist(), total.tolist(), strict=True)):
        pool = (own_weight, own_total, place)
        while pools and pools[-1][1] * pool[0] >= pool[1] * pools[-1][0]:
            before = pools.pop()
            pool = (before[0] + pool[0], before[1] + pool[1], before[2])
        pools.append(pool)
    distinct = p[starts]
    x, values = [], []
    ends = [pool[2] for pool in pools[1:]] + [len(distinct)]
    for (pool_weight, pool_total, first), end in zip(pools, ends, strict=True):
        for place in {first, end - 1}:
            x.append(float(distinct[place]))
            values.append(pool_total / pool_weight)
    order = np.argsort(x, kind="stable")
    return CalibrationMap("isotonic", tuple(np.asarray(x)[order].tolist()), tuple(np.asarray(values)[order].tolist()))


def _platt(y: Floats, p: Floats, w: Floats) -> CalibrationMap:
    positive = float(w @ y)
    negative = float(w.sum()) - positive
    target = np.where(y == 1, (positive + 1) / (positive + 2), 1 / (negative + 2))
    z = np.stack([_logit(p), np.ones_like(p)])
    theta = np.array([1.0, 0.0])

    def loss(at: Floats) -> float:
        score = at @ z
        return float(w @ (np.logaddexp(0, score) - target * score))

    value = loss(theta)
    for _ in range(NEWTON_STEPS):
        q = 1 / (1 + np.exp(-(theta @ z)))
        gradient = z @ (w * (q - target))
        hessian = (z * (w * q * (1 - q))) @ z.T + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while size > 1e-6 and loss(theta - size * step) > value:
            size /= 2
        theta, before = theta - size * step, value
        value = loss(theta)
        if before - value < 1e-12 * max(1.0, abs(before)):
            break
    return CalibrationMap("platt", slope=float(theta[0]), intercept=float(theta[1]))


def _logit(p: Floats) -> Floats:
    inner = np.clip(p, PROBABILITY_RESOLUTION, 1 - PROBABILITY_RESOLUTION)
    result: Floats = np.log(inner) - np.log1p(-inner)
    return result


def halves(viewers: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Cut viewers into two halves, (examples,): a viewer is in one of them, whatever the order."""
    # Another bit than those that decide the bootstrap's draws.
    upper: npt.NDArray[np.bool_] = (viewer_keys(viewers) >> np.uint64(5)) % np.uint64(2) == 1
    return upper


def calibrate_predictions(table: pa.Table, tasks: list[str], kind: Kind) -> tuple[pa.Table, dict[str, CalibrationMap]]:
    """Calibrate the ranker's columns of a predictions table, each half of the viewers by a map of the other half.

    Returns:
        The table, in which `ranker/task` and `first/task` are calibrated, but for the 0 of a task that does not apply,
        and `uncalibrated/task` is what the ranker said; and for each task the map of all examples, for use on what
        comes later.
    """
    half = halves(table["user_id"].to_numpy(zero_copy_only=False))
    maps = {}
    for task in tasks:
        labels, raw = table[f"label/{task}"].to_numpy(), table[f"ranker/{task}"].to_numpy()
        maps[task] = fit_calibration(kind, labels, raw)
        of_half = {side: fit_calibration(kind, labels[half != side], raw[half != side]) for side in (False, True)}
        table = table.append_column(f"uncalibrated/{task}", table[f"ranker/{task}"])
        for name in (f"ranker/{task}", f"first/{task}"):
            if name in table.column_names:
                said = table[name].to_numpy()
                mapped = np.where(half, of_half[True](said), of_half[False](said)).astype(np.float32)
                # Of a task that does not apply: that probability is known.
                mapped[np.isnan(labels) & (said == 0)] = 0
                table = table.set_column(table.column_names.index(name), name, pa.array(mapped))
    return table, maps
