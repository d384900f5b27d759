"""The baseline of graph embeddings: an edge's score is the product of how many edges its ends have.

    score(s, r, t) = (1 + edges of relation r from s) · (1 + edges of relation r to t)

counted in the edges that the model learnt from; by the ones, an end without an edge leaves the word to the other. It
knows who is active and who is popular, and nothing else: a model that does not beat it has learnt nothing.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from tml.projects.twhin.edges import Rows
from tml.projects.twhin.graph import Graph, GraphFolder
from tml.projects.twhin.operators import Side


class Degrees:
    """Scores edges by the product of degrees, on the CPU, through the interface of a model.

    Candidates are compared in float32, which keeps different degrees of fewer than eight million edges apart.

    Args:
        train: the edges that are counted, in memory or on disk.
    """

    device = torch.device("cpu")

    def __init__(self, train: Graph | GraphFolder) -> None:
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
            ends, sizes = self.train.relations[relation], self.train.sizes
            degrees: dict[Side, Tensor] = {
                "head": torch.ones(sizes[ends.head]),
                "tail": torch.ones(sizes[ends.tail]),
            }
            for lhs, rhs in self._edges(relation):
                one_each = torch.ones(len(lhs))
                degrees["head"].index_add_(0, torch.from_numpy(lhs), one_each)
                degrees["tail"].index_add_(0, torch.from_numpy(rhs), one_each)
            self._counted = relation, degrees
        return self._counted[1]

    def _edges(self, relation: int) -> Iterator[tuple[Rows, Rows]]:
        if isinstance(self.train, Graph):
            edges = self.train.of_relation(relation)
            yield self.train.lhs[edges], self.train.rhs[edges]
            return
        for part in self.train.stream():
            here = part.rel == relation
            if part.label is not None:
                here &= part.label
            yield part.lhs[here], part.rhs[here]
