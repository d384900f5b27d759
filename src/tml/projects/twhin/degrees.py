"""The baseline of graph embeddings: an edge's score is the product of how many edges its ends have.

    score(s, r, t) = (1 + edges of relation r from s) · (1 + edges of relation r to t)

counted in the edges that the model learnt from; by the ones, an end without an edge leaves the word to the other. It
knows who is active and who is popular, and nothing else: a model that does not beat it has learnt nothing.
"""

import numpy as np
import torch
from torch import Tensor

from tml.projects.twhin.graph import Graph
from tml.projects.twhin.operators import Side


class Degrees:
    """Scores edges by the product of degrees, on the CPU, through the interface of a model.

    Candidates are compared in float32, which keeps different degrees of fewer than eight million edges apart.

    Args:
        train: the edges that are counted.
    """

    device = torch.device("cpu")

    def __init__(self, train: Graph) -> None:
        self.train = train
        self._counted: tuple[int, dict[Side, Tensor]] | None = None

    def queries(self, relation: int, side: Side, rows: Tensor) -> Tensor:
        """The factors of the ends that are given, (n, 1)."""
        return self._degrees(relation)["head" if side == "tail" else "tail"][rows].unsqueeze(1)

    def candidates(self, relation: int, side: Side, rows: Tensor | None = None) -> Tensor:
        """The factors of the ends that are to be found, (m, 1)."""
        degrees = self._degrees(relation)[side]
        return (degrees if rows is None else degrees[rows]).unsqueeze(1)

    def compare(self, queries: Tensor, candidates: Tensor) -> Tensor:
        """Products, (..., n, m)."""
        return queries * candidates.transpose(-1, -2)

    def score(self, relation: int, head: Tensor, tail: Tensor) -> Tensor:
        """Products of edges' ends, (n,) float64."""
        degrees = self._degrees(relation)
        return degrees["head"][head].double() * degrees["tail"][tail]

    def _degrees(self, relation: int) -> dict[Side, Tensor]:
        # Only the last relation's are kept: all of them would be a table of relations by nodes.
        if self._counted is None or self._counted[0] != relation:
            edges, ends, sizes = self.train.of_relation(relation), self.train.relations[relation], self.train.sizes
            head = 1 + np.bincount(self.train.lhs[edges], minlength=sizes[ends.head])
            tail = 1 + np.bincount(self.train.rhs[edges], minlength=sizes[ends.tail])
            self._counted = (
                relation,
                {"head": torch.from_numpy(head).float(), "tail": torch.from_numpy(tail).float()},
            )
        return self._counted[1]
