"""The popularity baseline: the rate at which everyone engaged with a post in training.

A post seen n times with k engagements gets (k + s·b) / (n + s), where b is the base rate: few impressions tell little,
so the rate is drawn towards everyone's. The strength s is the one of a fixed row under which the training labels are
likeliest, each predicted from the others of its post. A post that training has not seen gets the base rate.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tml.metrics.binary import PROBABILITY_RESOLUTION

STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
"""In impressions."""

Floats = npt.NDArray[np.float64]


class Popularity:
    """Counts impressions and engagements by post, batch by batch; memory grows with the posts alone.

    Example:
        >>> popularity = Popularity(tasks=1)
        >>> popularity.update(pa.array([7] * 4000 + [8] * 4000), np.array([[1.0]] * 4000 + [[0.0]] * 4000))
        >>> popularity.predict(pa.array([7, 8, 9])).round(2).ravel().tolist()
        [1.0, 0.0, 0.5]
    """

    def __init__(self, tasks: int) -> None:
        self.row_of: dict[Any, int] = {}
        self.counts, self.positives = np.zeros((0, tasks)), np.zeros((0, tasks))

    def update(self, posts: pa.Array, labels: npt.ArrayLike) -> None:
        """Add a batch: the ids of the posts, and labels (rows, tasks) of 0, 1 or NaN, which does not count."""
        y = np.asarray(labels, np.float64)
        encoded = posts.dictionary_encode()
        ids = encoded.dictionary.to_pylist()
        rows = np.array([self.row_of.setdefault(post, len(self.row_of)) for post in ids], np.int64)
        missing = max(0, len(self.row_of) - len(self.counts))
        self.counts, self.positives = (np.pad(x, ((0, missing), (0, 0))) for x in (self.counts, self.positives))
        at = rows[encoded.indices.to_numpy()] if len(posts) else rows
        np.add.at(self.counts, at, np.isfinite(y))
        np.add.at(self.positives, at, np.nan_to_num(y))

    def predict(self, posts: pa.Array) -> Floats:
        """Probabilities, (rows, tasks)."""
        encoded = posts.dictionary_encode()
        rows = np.array([self.row_of.get(post, -1) for post in encoded.dictionary.to_pylist()], np.int64)
        at = rows[encoded.indices.to_numpy()] if len(posts) else rows
        known = (at >= 0)[:, None]
        strengths, rates = self._strengths(), self._rates()
        positives = np.where(known, self.positives[at], 0.0)
        counts = np.where(known, self.counts[at], 0.0)
        predicted: Floats = (positives + strengths * rates) / (counts + strengths)
        return predicted

    def _rates(self) -> Floats:
        counts = self.counts.sum(axis=0)
        rates: Floats = np.where(counts > 0, self.positives.sum(axis=0) / np.maximum(counts, 1), 0.5)
        return rates

    def _strengths(self) -> Floats:
        losses = np.stack([_left_out(self.positives, self.counts, strength, self._rates()) for strength in STRENGTHS])
        strengths: Floats = np.asarray(STRENGTHS)[losses.argmin(axis=0)]
        return strengths


def _left_out(positives: Floats, counts: Floats, strength: float, rates: Floats) -> Floats:
    """The cross-entropy of each task's labels, (tasks,), each predicted from the other labels of its post."""
    others = np.maximum(counts - 1, 0) + strength
    of_a_positive = (np.maximum(positives - 1, 0) + strength * rates) / others
    of_a_negative = 1 - (positives + strength * rates) / others
    logs = [np.log(np.clip(p, PROBABILITY_RESOLUTION, None)) for p in (of_a_positive, of_a_negative)]
    loss: Floats = -(positives * logs[0] + (counts - positives) * logs[1]).sum(axis=0)
    return loss
