"""What the continuous columns look like in training: mean, spread, range and zeros, raw and as a signed logarithm.

The signed logarithm is sign(x)·log(1 + |x|), which the ranker sees. A value that is not finite counts as 0, as the
ranker reads it. Means and squares are merged block by block (Chan, Golub and LeVeque 1979), which loses nothing to a
mean far from 0.
"""

import numpy as np

from tml.features.lines import Array

BLOCK = 1024
"""Rows at a time: they stay in the processor's cache."""


class _Moments:
    def __init__(self, width: int) -> None:
        self.rows = 0
        self.mean, self.squares = np.zeros(width), np.zeros(width)

    def add(self, block: Array) -> None:
        """Take in some rows, (rows, width) float64."""
        rows = len(block)
        mean = block.sum(axis=0) / rows
        centred = block - mean
        squares = np.einsum("ij,ij->j", centred, centred)
        total = self.rows + rows
        self.squares += squares + (mean - self.mean) ** 2 * (self.rows * rows / total)
        self.mean += (mean - self.mean) * (rows / total)
        self.rows = total

    def deviation(self) -> Array:
        return np.sqrt(self.squares / max(self.rows, 1))


class ColumnStatistics:
    """Running statistics of the columns of a matrix.

    Example:
        >>> found = ColumnStatistics(1)
        >>> found.add(np.array([[0.0], [2.0]], np.float32))
        >>> found.result()["mean"], found.result()["zeros"]
        ([1.0], [0.5])
    """

    def __init__(self, width: int) -> None:
        self._raw, self._log = _Moments(width), _Moments(width)
        self._minimum, self._maximum = np.full(width, np.inf), np.full(width, -np.inf)
        self._zeros = np.zeros(width, np.int64)

    def add(self, values: Array) -> None:
        """Take in some rows, (rows, width) float32."""
        for first in range(0, len(values), BLOCK):
            block = values[first : first + BLOCK]
            finite = np.isfinite(block)
            if not finite.all():
                block = np.where(finite, block, np.float32(0))
            self._raw.add(block.astype(np.float64))
            low, high = block.min(axis=0), block.max(axis=0)
            logarithm = np.log1p(np.abs(block))
            if low.min(initial=0) < 0:
                logarithm = np.copysign(logarithm, block)
            self._log.add(logarithm.astype(np.float64))
            np.minimum(self._minimum, low, out=self._minimum)
            np.maximum(self._maximum, high, out=self._maximum)
            self._zeros += len(block) - np.count_nonzero(block, axis=0)

    def result(self) -> dict[str, list[float]]:
        """Name of the statistic → its value for each column; those of the logarithm begin with `log_`.

        `zeros` is the share of values that are 0, raw and logarithm alike.
        """
        found = {
            "mean": self._raw.mean,
            "deviation": self._raw.deviation(),
            "minimum": self._minimum,
            "maximum": self._maximum,
            "zeros": self._zeros / max(self._raw.rows, 1),
            "log_mean": self._log.mean,
            "log_deviation": self._log.deviation(),
            "log_minimum": _signed_log(self._minimum),
            "log_maximum": _signed_log(self._maximum),
        }
        return {name: [float(f"{value:.7g}") for value in values] for name, values in found.items()}


def _signed_log(values: Array) -> Array:
    return np.sign(values) * np.log1p(np.abs(values))
