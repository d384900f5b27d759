"""What ranks and scores say of a model, as the field counts it.

    MRR        mean of 1 / rank
    MR         mean rank
    Hits@k     share of edges with a rank of at most k
    AUC        share of an edge's rivals with a lower score, a tie counting half; of labelled pairs the chance that an
               edge scores higher than a pair that is none
    Recall@k   share of a user's held-out items that are among the k with the highest scores, by user, then the mean

Where ties go across the k-th place, Recall@k counts what is to be expected if they are broken at random.
"""

import numpy as np
import numpy.typing as npt

from tml.metrics.ranking import grouped_auc
from tml.projects.twhin.edges import Labels, Rows
from tml.projects.twhin.ranking import Ranks

Measures = dict[str, float]

HITS = (1, 3, 10)


def rank_measures(ranks: Ranks) -> Measures:
    """Means over edges: `mrr`, `mr`, `hits@1`, `hits@3`, `hits@10`, `auc`."""
    rank = ranks.rank
    hits = {f"hits@{k}": float((rank <= k).mean()) for k in HITS}
    beaten = np.where(ranks.rivals > 0, 1 - (rank - 1) / np.maximum(ranks.rivals, 1), 0.5)
    return {"mrr": float((1 / rank).mean()), "mr": float(rank.mean()), **hits, "auc": float(beaten.mean())}


def mean_measures(of_relations: list[Measures]) -> Measures:
    """The mean of each measure, every relation counting the same."""
    return {name: float(np.mean([measures[name] for measures in of_relations])) for name in of_relations[0]}


def recalls(ranks: Ranks, users: Rows, at: tuple[int, ...]) -> Measures:
    """`recall@k` for each k, the mean over users.

    Args:
        ranks: of held-out edges among items; other held-out items compete.
        users: (edges,) int64, whose edge each is.
        at: the numbers k of items at the top.
    """
    _, user, items = np.unique(users, return_inverse=True, return_counts=True)
    found = {}
    for k in at:
        chance = np.clip((k - ranks.above) / (ranks.equal + 1), 0, 1)
        found[f"recall@{k}"] = float((np.bincount(user, chance) / items).mean())
    return found


def pair_auc(scores: npt.NDArray[np.float64], labels: Labels) -> float | None:
    """AUC of labelled pairs; None where all have one label."""
    return grouped_auc(np.zeros(len(scores), np.int64), scores, labels)
