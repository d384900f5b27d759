"""Draws from many categorical distributions at once.

Row r of a matrix of weights is a distribution. Its cumulative sums, scaled to end at 1 and shifted by r, lie in
(r, r + 1]; laid end to end they are one increasing sequence, in which a single binary search per draw finds the
category: O(log(rows · categories)) time and no memory beyond the result.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def draw_in_rows(weights: Floats, rows: Integers, rng: np.random.Generator) -> Integers:
    """Draw one category for each entry of `rows`.

    Args:
        weights: (distributions, categories), not negative, each row with a positive sum.
        rows: (draws,), which distribution each draw is from.

    Returns:
        (draws,) categories.

    Example:
        >>> draw_in_rows(np.array([[0.0, 1.0], [2.0, 0.0]]), np.array([0, 1, 0]), np.random.default_rng(0))
        array([1, 0, 1])
    """
    cumulative = np.cumsum(weights, axis=1)
    cumulative /= cumulative[:, -1:]
    categories = weights.shape[1]
    flat = (cumulative + np.arange(len(weights))[:, None]).ravel()
    found = np.searchsorted(flat, rows + rng.random(len(rows)), side="right") - rows * categories
    # The shift costs bits: a draw that rounds up to the end of its row belongs to the row's last likely category.
    last = categories - 1 - np.argmax(weights[:, ::-1] > 0, axis=1)
    drawn: Integers = np.minimum(found, last[rows])
    return drawn


def expand(lengths: Integers) -> tuple[Integers, Integers]:
    """The owner of each element, and its place within the owner, of groups laid end to end.

    Example:
        >>> expand(np.array([2, 0, 3]))
        (array([0, 0, 2, 2, 2]), array([0, 1, 0, 1, 2]))
    """
    owner = np.repeat(np.arange(len(lengths)), lengths)
    first = np.cumsum(lengths) - lengths
    return owner, np.arange(len(owner)) - first[owner]
