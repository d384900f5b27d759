"""How well the vectors find edges that were held out, beside what popularity alone finds.

Each held-out edge competes with candidates in which its head, and then its tail, is another node, drawn uniformly from
the type of node; a candidate that is the edge itself is left out. Over edges and sides,

    AUC   share of candidates with a lower score than the edge; a tie counts half
    MRR   mean of 1 / rank of the edge among its candidates; a tie counts half a rank

The baseline scores an edge by the product of the numbers of edges that its head and tail have in this relation: it
knows who is active and who is popular, and nothing else. A model that does not beat it has learnt nothing.
"""

import numpy as np
import numpy.typing as npt
import torch

from tml.projects.twhin.data import Graph, Rows
from tml.projects.twhin.model import TwhinModel

BLOCK = 4096


def evaluate_edges(
    model: TwhinModel, train: Graph, held_out: Graph, rng: np.random.Generator, candidates: int = 100
) -> dict[str, float]:
    """AUC and MRR of held-out edges, by relation and as the mean of the relations.

    Args:
        model: scores the edges.
        train: the edges the model learnt from, whose degrees make the baseline.
        held_out: the edges to find.
        rng: draws the candidates.
        candidates: how many for each edge and side.

    Returns:
        `auc`, `mrr`, `degree_auc`, `degree_mrr`, the means; and `auc/RELATION` and so on; a relation that has no
        held-out edge is left out.
    """
    results: dict[str, float] = {}
    names = []
    for number, relation in enumerate(held_out.relations):
        edges = np.flatnonzero(held_out.rel == number)
        if not len(edges):
            continue
        names.append(relation.name)
        head_degree, tail_degree = _degrees(train, number)
        sums = np.zeros(4)
        for start in range(0, len(edges), BLOCK):
            head, tail, keep = _candidates(held_out, edges[start : start + BLOCK], candidates, rng)
            sums[:2] += _auc_and_rank(_scores(model, number, head, tail), keep)
            sums[2:] += _auc_and_rank(head_degree[head] * tail_degree[tail], keep)
        for name, value in zip(("auc", "mrr", "degree_auc", "degree_mrr"), sums / (2 * len(edges)), strict=True):
            results[f"{name}/{relation.name}"] = float(value)
    for name in ("auc", "mrr", "degree_auc", "degree_mrr"):
        if names:
            results[name] = float(np.mean([results[f"{name}/{relation}"] for relation in names]))
    return results


def _candidates(
    graph: Graph, edges: Rows, count: int, rng: np.random.Generator
) -> tuple[Rows, Rows, npt.NDArray[np.bool_]]:
    """Heads and tails (2 · edges, 1 + count): the edge in column 0, its corruptions behind it; which of them count."""
    relation = graph.relations[graph.rel[edges[0]]]
    lhs, rhs = graph.lhs[edges][:, None], graph.rhs[edges][:, None]
    shape = (len(edges), count)
    tails = np.concatenate([rhs, rng.integers(0, graph.sizes[relation.tail], shape)], axis=1)
    heads = np.concatenate([lhs, rng.integers(0, graph.sizes[relation.head], shape)], axis=1)
    head = np.concatenate([np.broadcast_to(lhs, tails.shape), heads])
    tail = np.concatenate([tails, np.broadcast_to(rhs, heads.shape)])
    keep = (head != head[:, :1]) | (tail != tail[:, :1])
    return head, tail, keep


def _scores(model: TwhinModel, relation: int, head: Rows, tail: Rows) -> npt.NDArray[np.float64]:
    device = model.device
    with torch.no_grad():
        rows = [torch.from_numpy(values).reshape(-1).to(device) for values in (head, tail)]
        scores = model.score(relation, rows[0], rows[1])
    return scores.view(head.shape).double().cpu().numpy()


def _auc_and_rank(scores: npt.NDArray[np.float64], keep: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Sums over rows of the AUC and of 1 / rank of column 0 among the columns of `keep`."""
    own = scores[:, :1]
    ahead = ((scores > own) & keep).sum(axis=1) + 0.5 * ((scores == own) & keep).sum(axis=1)
    among = keep.sum(axis=1)
    auc = np.where(among > 0, 1 - ahead / np.maximum(among, 1), 0.5)
    return np.array([auc.sum(), (1 / (1 + ahead)).sum()])


def _degrees(graph: Graph, relation: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    here = graph.rel == relation
    ends = graph.relations[relation]
    head = np.bincount(graph.lhs[here], minlength=graph.sizes[ends.head])
    tail = np.bincount(graph.rhs[here], minlength=graph.sizes[ends.tail])
    return head.astype(np.float64), tail.astype(np.float64)
