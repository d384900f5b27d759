"""Metrics of one task in constant memory: probabilities in bins, for more examples than are to be kept.

A probability goes into one of 65,536 bins, 0.0005 wide in the logit. Cross-entropy, RCE and calibration are summed
from the probabilities themselves, so they are exact but for rounding. AUC and PR-AUC take the examples of a bin as
ties. A pair in one bin then counts half where it should count 0 or 1, so the AUC is off by at most

    Σ over bins of positives · negatives / 2, over all pairs,

which the result says (`auc_error`), and in truth by far less. The order of batches may move the last bits.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

BINS = 65_536
LARGEST_LOGIT = 16.7


def bin_of(probabilities: Floats) -> npt.NDArray[np.int64]:
    """The bin of each probability, from 0 up."""
    with np.errstate(divide="ignore"):
        logits = np.log(probabilities) - np.log1p(-probabilities)
    return np.clip((logits / LARGEST_LOGIT + 1) / 2 * BINS, 0, BINS - 1).astype(np.int64)


class Bins:
    """Sums by bin: (BINS,) weight of the positives and of the negatives, weighted probability; and the cross-entropy.

    Example:
        >>> bins = Bins()
        >>> bins.add(np.array([True, False]), np.array([0.7, 0.2]), np.ones(2), loss=0.5)
        >>> bins.examples, bins.counted
        (2, 1)
    """

    def __init__(self) -> None:
        self.positives, self.negatives, self.predicted = np.zeros((3, BINS))
        self.loss, self.examples, self.counted = 0.0, 0, 0

    def add(self, labels: npt.NDArray[np.bool_], probabilities: Floats, weights: Floats, loss: float) -> None:
        """Add examples that count; `loss` is their summed weighted cross-entropy."""
        at = bin_of(probabilities)
        self.positives += np.bincount(at, weights * labels, BINS)
        self.negatives += np.bincount(at, weights * ~labels, BINS)
        self.predicted += np.bincount(at, weights * probabilities, BINS)
        self.loss += loss
        self.examples += len(labels)
        self.counted += int(labels.sum())

    def merge(self, other: "Bins") -> None:
        """Add another's sums."""
        self.positives += other.positives
        self.negatives += other.negatives
        self.predicted += other.predicted
        self.loss += other.loss
        self.examples += other.examples
        self.counted += other.counted

    def auc_error(self) -> float:
        """What the AUC is off by at most."""
        pairs = self.positives.sum() * self.negatives.sum()
        return float(self.positives @ self.negatives / 2 / pairs) if pairs > 0 else 0.0
