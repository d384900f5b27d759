"""What other weights would do: held-out sessions in the order of other weights, against that of the run's own.

For the first k posts of each session, before and after:

    expected engagement   the mean probability that the ranker gives each kind, as if the post stood first
    observed engagement   the mean label: what people did with these posts where they had been served
    followed authors      the share of posts whose author the viewer follows, where the features say so
    concentration         of the places among authors: the Gini index (0: all alike, 1: all to one), the Herfindahl
                          index (Σ share²), and the share of the top 1% of authors
    overlap               the share of the first k that stays among the first k; and Kendall's τ of the two orders

Observed figures hold only for posts that were served: an order that other people would have been shown cannot be known.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from rich.markup import escape
from rich.table import Table

from tml.core.errors import DataError
from tml.projects.home.recap.combine import columns_of, ranking_columns, score
from tml.projects.home.recap.names import UNDEFINED, plain_name
from tml.projects.home.recap.tables import plain_table

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

TOP = 10
TOP_AUTHORS = 0.01


def what_if(
    predictions: pa.Table,
    tasks: Sequence[str],
    before: Mapping[str, float],
    after: Mapping[str, float],
    followed: npt.NDArray[np.bool_] | None = None,
    k: int = TOP,
) -> dict[str, Any]:
    """What moves when weights change.

    Args:
        predictions: the columns of `recap/predictions.parquet`.
        tasks: the tasks of both weights.
        before, after: the weights.
        followed: (rows,) whether the viewer follows the author; None where nobody knows.
        k: how many posts of a session count as its top.

    Returns:
        `before` and `after` with the same figures each, and what connects them.
    """
    if not len(predictions):
        raise DataError("predictions: found no held-out examples, needed is at least one")
    said = ranking_columns(predictions, list(tasks))
    session = _numbers(predictions["session_id"])
    author = _numbers(predictions["author_id"])
    ranks = [_ranks(predictions, session, score(said, weights)) for weights in (before, after)]
    labels = columns_of(predictions, "label", tasks)
    sides = {
        name: {"weights": dict(weights), **_figures(rank < k, said, labels, author, followed)}
        for name, weights, rank in zip(("before", "after"), (before, after), ranks, strict=True)
    }
    sizes = np.bincount(session)
    both = np.bincount(session, (ranks[0] < k) & (ranks[1] < k)) / np.minimum(sizes, k)
    longer = sizes > k
    tau = _kendall(session, *ranks)
    return {
        "sessions": len(sizes),
        "k": k,
        **sides,
        "overlap": float(both.mean()),
        "sessions_longer_than_k": int(longer.sum()),
        "overlap_of_longer": float(both[longer].mean()) if longer.any() else None,
        "kendall_tau": tau,
        "other_first_post": float(((ranks[0] == 0) & (ranks[1] != 0)).sum() / len(sizes)),
    }


def _numbers(column: pa.ChunkedArray) -> Indices:
    indices = column.combine_chunks().dictionary_encode().indices
    numbers: Indices = indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return numbers


def _ranks(predictions: pa.Table, session: Indices, scores: Floats) -> Indices:
    """The place of each post in its session, from 0; of equal scores the one served higher comes first."""
    position = predictions["position"].to_numpy().astype(np.float64)
    order = np.lexsort((np.arange(len(session)), position, -scores, session))
    starts = np.flatnonzero(np.diff(session[order], prepend=-1))
    ranks = np.empty(len(session), np.int64)
    ranks[order] = np.arange(len(session)) - np.repeat(starts, np.diff(starts, append=len(session)))
    return ranks


def _figures(
    top: npt.NDArray[np.bool_],
    said: Mapping[str, Floats],
    labels: Mapping[str, Floats],
    author: Indices,
    followed: npt.NDArray[np.bool_] | None,
) -> dict[str, Any]:
    def mean(values: Floats) -> float | None:
        shown = values[top]
        shown = shown[~np.isnan(shown)]
        return float(shown.mean()) if len(shown) else None

    return {
        "expected": {task: mean(values) for task, values in said.items()},
        "observed": {task: mean(values) for task, values in labels.items()},
        "followed": None if followed is None else float(followed[top].mean()),
        "authors": concentration(np.bincount(author[top & (author >= 0)], minlength=int(author.max(initial=-1)) + 1)),
    }


def concentration(places: npt.ArrayLike) -> dict[str, float | None]:
    """How unevenly places are spread over authors, of whom some may have none.

    Example:
        >>> concentration([1, 1, 1, 1])["gini"], concentration([4, 0, 0, 0])["gini"]
        (0.0, 0.75)
    """
    counts = np.sort(np.asarray(places, np.float64))
    n, total = len(counts), counts.sum()
    if not total:
        return {"gini": None, "herfindahl": None, "top_1_percent": None}
    gini = float(2 * (np.arange(1, n + 1) @ counts) / (n * total)) - (n + 1) / n
    most = max(1, round(TOP_AUTHORS * n))
    return {
        "gini": gini,
        "herfindahl": float(((counts / total) ** 2).sum()),
        "top_1_percent": float(counts[-most:].sum() / total),
    }


def _kendall(session: Indices, before: Indices, after: Indices) -> float | None:
    """Kendall's τ of two orders without ties, over all pairs of posts of the same session."""
    order = np.lexsort((before, session))
    starts = np.flatnonzero(np.diff(session[order], prepend=-1))
    agree, pairs = 0, 0
    for first, end in zip(starts, [*starts[1:], len(session)], strict=True):
        places = after[order[first:end]]
        n = len(places)
        agree += int(np.triu(places[:, None] < places[None, :], 1).sum())
        pairs += n * (n - 1) // 2
    return 2 * agree / pairs - 1 if pairs else None


def what_if_table(result: Mapping[str, Any]) -> Table:
    """Before and after, and by how much they differ."""
    k = result["k"]
    caption = (
        f"{100 * result['overlap']:.1f}% of the top {k} stays, in sessions of more posts "
        f"{_percent(result['overlap_of_longer'])} ({result['sessions_longer_than_k']:,} sessions); Kendall's τ "
        f"{_number(result['kendall_tau'])}; {100 * result['other_first_post']:.1f}% of sessions begin with another post"
    )
    table = plain_table(f"The first {k} posts of {result['sessions']:,} held-out sessions", caption)
    for number, name in enumerate(("", "before", "after", "change")):
        table.add_column(name, justify="right" if number else "left")
    before, after = result["before"], result["after"]
    for task, weight in before["weights"].items():
        if weight != after["weights"][task]:
            table.add_row(f"weight of {escape(plain_name(task))}", f"{weight:g}", f"{after['weights'][task]:g}", "")
    for kind in ("expected", "observed"):
        for task in before[kind]:
            table.add_row(f"{escape(plain_name(task))}, {kind}", *_change(before[kind][task], after[kind][task]))
    table.add_row("posts of followed authors", *_change(before["followed"], after["followed"]))
    for name, title in (
        ("gini", "authors: Gini index"),
        ("herfindahl", "authors: Herfindahl index"),
        ("top_1_percent", "places of the top 1% of authors"),
    ):
        share = name == "top_1_percent"
        table.add_row(title, *_change(before["authors"][name], after["authors"][name], share))
    return table


def _change(before: float | None, after: float | None, share: bool = True) -> tuple[str, str, str]:
    if before is None or after is None:
        return UNDEFINED, UNDEFINED, UNDEFINED
    shown = _percent if share else _number
    relative = f"{100 * (after / before - 1):+.1f}%" if before else UNDEFINED
    return shown(before), shown(after), relative


def _percent(value: float | None) -> str:
    return UNDEFINED if value is None else f"{100 * value:.3g}%"


def _number(value: float | None) -> str:
    return UNDEFINED if value is None else f"{value:.3g}"
