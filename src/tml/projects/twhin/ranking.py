"""Ranking: the place of an edge among the edges that other candidates would make, with ties counted fairly.

For a relation, a given end and a side to be found, all candidates get a score. The rank of the true one is

    1 + (candidates with a higher score) + ½ · (other candidates with the same score)

the mean of the best and the worst place that ties allow, which PyKEEN calls realistic. A model that gives all the same
score gets the middle place, not the first. Filtered, candidates that make another known edge do not compete.

Scores come in blocks, one matrix product each, and are counted by comparison with the true candidate's; nothing is
sorted. The true candidate's score is read from the same product, so that equal vectors give equal scores.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tml.core.errors import DataError
from tml.projects.twhin.edges import Rows
from tml.projects.twhin.known import Known
from tml.projects.twhin.operators import Side

BLOCK_SCORES = 1 << 22
"""Scores that are looked at together: few enough to stay in a processor's cache."""
LARGEST = 1e38
"""Of scores: float32 ends not far above."""
EXACT = 1 << 24
"""Up to here float32 counts exactly."""


class Scorer(Protocol):
    """What can be ranked by; `TwhinModel` is one, and `Degrees` another."""

    @property
    def device(self) -> torch.device:
        """Where rows are to be."""

    def queries(self, relation: int, side: Side, rows: Tensor) -> Tensor:
        """What is asked with, (n, dimension); `side` is to be found, and the rows are of the other end."""

    def candidates(self, relation: int, side: Side, rows: Tensor | None = None) -> Tensor:
        """What is asked for, (m, dimension); None is all nodes of the type."""

    def compare(self, queries: Tensor, candidates: Tensor) -> Tensor:
        """Scores (..., n, m) of (..., n, dimension) with (..., m, dimension); higher is better."""

    def score(self, relation: int, head: Tensor, tail: Tensor) -> Tensor:
        """Scores of edges, (n,)."""


@dataclass(frozen=True)
class Ranks:
    """Where edges stand among their candidates, each (edges,) int64.

    Attributes:
        above: competing candidates with a higher score.
        equal: competing candidates with the same score, without the true one.
        rivals: all competing candidates, without the true one.
    """

    above: Rows
    equal: Rows
    rivals: Rows

    @property
    def rank(self) -> npt.NDArray[np.float64]:
        """The realistic rank, from 1, (edges,)."""
        return 1 + self.above + self.equal / 2

    @staticmethod
    def concatenate(parts: list["Ranks"]) -> "Ranks":
        """The ranks of several parts, in their order."""
        columns = [[part.above for part in parts], [part.equal for part in parts], [part.rivals for part in parts]]
        return Ranks(*(np.concatenate(column) for column in columns))


def rank_among_all(
    scorer: Scorer,
    relation: int,
    side: Side,
    ends: Rows,
    targets: Rows,
    known: Known | None,
    done: Callable[[int], None] = lambda _: None,
) -> Ranks:
    """Rank edges of one relation among all nodes of the type.

    Args:
        scorer: gives the scores.
        relation: its number.
        side: the side to be found.
        ends: (edges,) int64 rows of the given ends.
        targets: (edges,) int64 rows of the true candidates.
        known: edges whose candidates do not compete; None lets all compete. The true candidate always counts.
        done: is told the number of edges of each finished block.

    Raises:
        DataError: a vector is not finite.
    """
    with torch.inference_mode():
        candidates = _finite(scorer.candidates(relation, side, None))
        size = max(16, BLOCK_SCORES // len(candidates))
        largest = _largest(candidates)
        parts = []
        for start in range(0, len(ends), size):
            own, true = ends[start : start + size], targets[start : start + size]
            queries = _finite(scorer.queries(relation, side, torch.from_numpy(own).to(scorer.device)))
            _require_small(_largest(queries) * largest * queries.shape[1])
            parts.append(_count(scorer.compare(queries, candidates), own, true, known))
            done(len(own))
    return Ranks.concatenate(parts)


def rank_among_drawn(
    scorer: Scorer,
    relation: int,
    side: Side,
    ends: Rows,
    targets: Rows,
    drawn: Callable[[tuple[int, int]], Rows],
    count: int,
    known: Known | None,
    done: Callable[[int], None] = lambda _: None,
) -> Ranks:
    """Rank edges of one relation among candidates that are drawn for each edge.

    Args:
        scorer, relation, side, ends, targets, known, done: see `rank_among_all`.
        drawn: makes rows of candidates, int64, of a shape; the true candidate among them does not compete.
        count: candidates an edge.

    Raises:
        DataError: a vector is not finite.
    """
    with torch.inference_mode():
        dimension = scorer.candidates(relation, side, torch.zeros(1, dtype=torch.int64, device=scorer.device)).shape[1]
        size = max(16, BLOCK_SCORES // ((count + 1) * dimension))
        parts = []
        for start in range(0, len(ends), size):
            own, true = ends[start : start + size, None], targets[start : start + size, None]
            rows = np.concatenate([true, drawn((len(own), count))], axis=1)
            counts = rows != true
            if known is not None:
                counts &= ~known.contains(own, rows)
            queries = _finite(scorer.queries(relation, side, torch.from_numpy(own[:, 0]).to(scorer.device)))
            flat = torch.from_numpy(rows.reshape(-1)).to(scorer.device)
            candidates = _finite(scorer.candidates(relation, side, flat)).view(*rows.shape, -1)
            _require_small(_largest(queries) * _largest(candidates) * dimension)
            scores = scorer.compare(queries.unsqueeze(1), candidates).squeeze(1)
            competes = torch.from_numpy(counts).to(scorer.device)
            above, equal = (scores > scores[:, :1]) & competes, (scores == scores[:, :1]) & competes
            parts.append(Ranks(_sums(above), _sums(equal), counts.sum(axis=1)))
            done(len(own))
    return Ranks.concatenate(parts)


def _count(scores: Tensor, ends: Rows, targets: Rows, known: Known | None) -> Ranks:
    """Counts by row of scores (edges, candidates), less what known edges have to do with them."""
    own = scores.gather(1, torch.from_numpy(targets).to(scores.device).unsqueeze(1))
    above, at_least = _total(torch.gt, scores, own), _total(torch.ge, scores, own)
    rivals = np.full(len(ends), scores.shape[1] - 1)
    if known is not None:
        edge, candidate = known.of(ends)
        other = candidate != targets[edge]
        edge, candidate = edge[other], candidate[other]
        rows, columns = torch.from_numpy(edge).to(scores.device), torch.from_numpy(candidate).to(scores.device)
        excluded, least = scores[rows, columns], own[rows, 0]
        above -= np.bincount(edge[(excluded > least).cpu().numpy()], minlength=len(ends))
        at_least -= np.bincount(edge[(excluded >= least).cpu().numpy()], minlength=len(ends))
        rivals = rivals - np.bincount(edge, minlength=len(ends))
    return Ranks(above, at_least - above - 1, rivals)


def _total(compare: Callable[..., Tensor], scores: Tensor, own: Tensor) -> Rows:
    """How often a comparison holds, by row; booleans would be added up several times slower than floating numbers."""
    kind = torch.float32 if scores.shape[1] <= EXACT else torch.float64
    holds = compare(scores, own, out=torch.empty(scores.shape, dtype=kind, device=scores.device))
    return holds.sum(1).to(torch.int64).cpu().numpy()


def _sums(values: Tensor) -> Rows:
    return values.sum(1).cpu().numpy()


def _largest(vectors: Tensor) -> float:
    return float(torch.linalg.vector_norm(vectors, torch.inf)) if vectors.numel() else 0.0


def _require_small(most: float) -> None:
    """Refuse vectors whose scores may be too large for a float32: what is not a number would rank anyhow."""
    if most > LARGEST:
        raise DataError(f"embeddings: found vectors whose scores may be {most:.1g}, allowed is up to {LARGEST:.1g}")


def _finite(vectors: Tensor) -> Tensor:
    if not bool(torch.isfinite(vectors).all()):
        raise DataError("embeddings: found a vector with a number that is not finite, allowed are finite numbers")
    return vectors
