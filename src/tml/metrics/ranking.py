"""Metrics of an order within groups, such as the posts of one session: NDCG, the mean at the top, grouped AUC.

A group's items are ordered by falling score. Where scores tie, the metric is the expectation over all orders of the
tied items; equal scores for a whole group therefore give exactly what a random order gives on average.

    DCG@k   Σ over ranks r = 1..k of gain_r / log2(r + 1)
    NDCG@k  DCG@k over the DCG@k of the best order (Järvelin and Kekäläinen 2002), with the gain itself in the sum
    GAUC    mean of the groups' AUCs, weighted by their items' weights (Zhou et al. 2018, arXiv 1706.06978)

Groups, scores and values are (items,) arrays in any order; groups may be integers or strings.
"""

import numpy as np
import numpy.typing as npt

from tml.core.errors import DataError

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


def ndcg(groups: npt.ArrayLike, scores: npt.ArrayLike, gains: npt.ArrayLike, k: int | None = None) -> float | None:
    """Mean NDCG over the groups that have a positive gain; None if no group has one.

    Args:
        groups: (items,) which group an item is of.
        scores: (items,) higher comes first.
        gains: (items,) what an item is worth; a negative gain counts as 0, since NDCG is not defined below that.
        k: how many ranks count; None for all.

    Example:
        >>> round(ndcg(["a", "a", "a"], [3.0, 2.0, 1.0], [0.0, 1.0, 0.0]), 4)
        0.6309
    """
    values, _ = ndcg_by_group(groups, scores, gains, k)
    return float(values.mean()) if len(values) else None


def ndcg_by_group(
    groups: npt.ArrayLike, scores: npt.ArrayLike, gains: npt.ArrayLike, k: int | None = None
) -> tuple[Floats, Indices]:
    """The NDCG of each group that has a positive gain, and an item of each of these groups, by its place.

    Example:
        >>> ndcg_by_group([5, 7, 7], [3.0, 2.0, 1.0], [0.0, 1.0, 0.0])
        (array([1.]), array([1]))
    """
    index, counts = _group_index(groups)
    gain = np.maximum(_column("gains", gains, index), 0.0)
    discounts = _discounts(int(counts.max(initial=0)), k)
    achieved, best = (
        np.bincount(index[order], expected * discounts[rank], minlength=len(counts))
        for order, rank, expected in (
            _ordered(index, counts, key, gain) for key in (_column("scores", scores, index), gain)
        )
    )
    some = best > 0
    return achieved[some] / best[some], _first_items(index, counts)[some]


def mean_at_top(groups: npt.ArrayLike, scores: npt.ArrayLike, values: npt.ArrayLike, k: int) -> float | None:
    """Mean over the groups of the mean value among a group's first k items (of all, if it has fewer); None if empty.

    Example:
        >>> mean_at_top([7, 7, 7, 8], [3.0, 2.0, 1.0, 0.0], [1.0, 0.0, 5.0, 2.0], k=2)
        1.25
    """
    found, _ = mean_at_top_by_group(groups, scores, values, k)
    return float(found.mean()) if len(found) else None


def mean_at_top_by_group(
    groups: npt.ArrayLike, scores: npt.ArrayLike, values: npt.ArrayLike, k: int
) -> tuple[Floats, Indices]:
    """The mean value among the first k items of each group, and an item of each group, by its place."""
    index, counts = _group_index(groups)
    order, rank, expected = _ordered(index, counts, _column("scores", scores, index), _column("values", values, index))
    total = np.bincount(index[order], expected * (rank < k), minlength=len(counts))
    return total / np.minimum(counts, k), _first_items(index, counts)


def grouped_auc(
    groups: npt.ArrayLike, scores: npt.ArrayLike, labels: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> float | None:
    """GAUC over the groups that have both classes; None if no group has. Labels of NaN and weights of 0 do not count.

    Example:
        >>> grouped_auc([1, 1, 2, 2, 2], [0.1, 0.9, 0.5, 0.4, 0.3], [0, 1, 0, 1, 1])
        0.4
    """
    values, sizes, _ = auc_by_group(groups, scores, labels, weights)
    return float(np.average(values, weights=sizes)) if len(values) else None


def auc_by_group(
    groups: npt.ArrayLike, scores: npt.ArrayLike, labels: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> tuple[Floats, Floats, Indices]:
    """The AUC of each group that has both classes, the weight of its items, and one of them, by its place."""
    y = np.asarray(labels, np.float64)
    w = np.ones(y.shape) if weights is None else np.asarray(weights, np.float64)
    chosen = np.flatnonzero(~np.isnan(y) & (w != 0))
    index, counts = _group_index(np.asarray(groups)[chosen])
    y, w, s = y[chosen], w[chosen], _column("scores", np.asarray(scores)[chosen], index)
    order = np.lexsort((w, y, s, index))
    y, w, s, of = y[order], w[order], s[order], index[order]
    negative = np.cumsum(w * (1 - y))
    before = np.concatenate([[0.0], negative])
    new = np.ones(len(of), np.bool_)
    new[1:] = (of[1:] != of[:-1]) | (s[1:] != s[:-1])
    starts = np.flatnonzero(new)
    sizes = np.diff(starts, append=len(of))
    # Of the negatives of an item's group: all before its run of equal scores, and half of those in it.
    run_start, run_end = np.repeat(before[starts], sizes), np.repeat(before[starts + sizes], sizes)
    group_start = before[np.cumsum(counts) - counts][of]
    wins = np.bincount(of, w * y * ((run_start + run_end) / 2 - group_start), minlength=len(counts))
    positives = np.bincount(of, w * y, minlength=len(counts))
    negatives = np.bincount(of, w * (1 - y), minlength=len(counts))
    both = (positives > 0) & (negatives > 0)
    first = chosen[_first_items(index, counts)][both].astype(np.int64)
    pairs = positives[both] * negatives[both]
    return np.asarray(wins[both] / pairs, np.float64), np.asarray((positives + negatives)[both], np.float64), first


def _first_items(index: Indices, counts: Indices) -> Indices:
    """An item of each group, by its place."""
    first = np.zeros(len(counts), np.int64)
    first[index[::-1]] = np.arange(len(index))[::-1]
    return first


def _group_index(groups: npt.ArrayLike) -> tuple[Indices, Indices]:
    """Number the groups from 0: (items,) the number of each item's group, and (groups,) the items in each."""
    _, index, counts = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    return index.astype(np.int64), counts.astype(np.int64)


def _column(name: str, values: npt.ArrayLike, index: Indices) -> Floats:
    column = np.asarray(values, np.float64)
    if column.shape != index.shape:
        raise DataError(f"{name}: found shape {column.shape}, allowed is that of the groups, {index.shape}")
    if np.isnan(column).any():
        raise DataError(f"{name}: found NaN, allowed are numbers")
    return column


def _ordered(index: Indices, counts: Indices, scores: Floats, values: Floats) -> tuple[Indices, Indices, Floats]:
    """By group, then falling score: the items, the rank of each in its group from 0, and its expected value."""
    # Values last in the sort: the order of the input then moves no bit of the sums that follow.
    order = np.lexsort((values, -scores, index))
    starts = np.cumsum(counts) - counts
    rank = np.arange(len(index)) - starts[index[order]]
    return order, rank, _tie_means(index[order], scores[order], values[order])


def _tie_means(index: Indices, scores: Floats, values: Floats) -> Floats:
    """Replace each value by the mean over its run of equal group and score."""
    if not len(index):
        return values
    new = np.ones(len(index), np.bool_)
    new[1:] = (index[1:] != index[:-1]) | (scores[1:] != scores[:-1])
    starts = np.flatnonzero(new)
    sizes = np.diff(starts, append=len(index))
    return np.repeat(np.add.reduceat(values, starts) / sizes, sizes)


def _discounts(longest: int, k: int | None) -> Floats:
    ranks = np.arange(longest)
    discounts = 1 / np.log2(ranks + 2.0)
    return discounts if k is None else np.where(ranks < k, discounts, 0.0)
