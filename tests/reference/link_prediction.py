"""Link prediction as one would count it by hand: an edge and a candidate at a time."""

from collections import defaultdict
from collections.abc import Callable, Iterable

import numpy as np

Edge = tuple[int, int, int]
"""Head, relation, tail."""
Score = Callable[[Edge], float]


def realistic_rank(
    edge: Edge, side: str, candidates: Iterable[int], score: Score, known: set[Edge]
) -> tuple[float, int]:
    """The mean of the best and the worst place of an edge, and the number of its rivals."""
    head, relation, tail = edge
    others = [(head, relation, c) if side == "tail" else (c, relation, tail) for c in candidates]
    scores = [score(other) for other in others if other != edge and other not in known]
    own = score(edge)
    best = 1 + sum(s > own for s in scores)
    worst = 1 + sum(s >= own for s in scores)
    return (best + worst) / 2, len(scores)


def measures(ranks: list[tuple[float, int]]) -> dict[str, float]:
    """The measures of `realistic_rank`s."""
    places = [rank for rank, _ in ranks]
    return {
        "mrr": float(np.mean([1 / rank for rank in places])),
        "mr": float(np.mean(places)),
        "hits@1": float(np.mean([rank <= 1 for rank in places])),
        "hits@3": float(np.mean([rank <= 3 for rank in places])),
        "hits@10": float(np.mean([rank <= 10 for rank in places])),
        "auc": float(np.mean([1 - (rank - 1) / rivals if rivals else 0.5 for rank, rivals in ranks])),
    }


def recall_at(k: int, held_out: list[Edge], candidates: range, score: Score, past: set[Edge]) -> float:
    """Recall@k of tails by sorting all items of a user, where no two score the same."""
    wanted = defaultdict(set)
    for head, relation, tail in held_out:
        wanted[head, relation].add(tail)
    found = []
    for (head, relation), tails in wanted.items():
        items = [c for c in candidates if (head, relation, c) not in past or c in tails]
        top = sorted(items, key=lambda c: -score((head, relation, c)))[:k]
        found.append(len(tails & set(top)) / len(tails))
    return float(np.mean(found))
