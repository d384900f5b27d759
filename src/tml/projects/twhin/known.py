"""Known edges: which candidates would make an edge that is there already, found by search in sorted keys.

An edge of a given end and a candidate has the key end · size + candidate, size being the number of candidates. Sorted,
the keys are a compressed adjacency: all candidates of an end stand together, between the places of end · size and
(end + 1) · size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tml.projects.twhin.edges import Rows
from tml.projects.twhin.graph import Graph
from tml.projects.twhin.operators import Side


@dataclass(frozen=True)
class Known:
    """The known edges of one relation, for one side to be found.

    Attributes:
        keys: end · size + candidate, sorted, each once, (edges,) int64.
        size: the number of candidates.
    """

    keys: Rows
    size: int

    def of(self, ends: Rows) -> tuple[Rows, Rows]:
        """The candidates that make known edges with given ends, (n,) int64.

        Returns:
            (pairs,) positions in `ends`, ascending, and (pairs,) candidates.
        """
        first = np.searchsorted(self.keys, ends * self.size)
        counts = np.searchsorted(self.keys, (ends + 1) * self.size) - first
        position = np.repeat(np.arange(len(ends)), counts)
        within = np.arange(len(position)) - np.repeat(np.cumsum(counts) - counts, counts)
        return position, self.keys[first[position] + within] - ends[position] * self.size

    def contains(self, ends: Rows, candidates: Rows) -> npt.NDArray[np.bool_]:
        """Whether an end and a candidate make a known edge; the two broadcast, and the result has their shape."""
        wanted = ends * self.size + candidates
        if not len(self.keys):
            return np.zeros(wanted.shape, np.bool_)
        at = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        found: npt.NDArray[np.bool_] = self.keys[at] == wanted
        return found


class KnownEdges:
    """The known edges of some graphs with the same nodes and relations; pairs that are labelled no edge are none.

    Args:
        graphs: whose edges are known.
        any_relation: whether an edge is known for every relation between the same two types of node, too.
    """

    def __init__(self, graphs: Sequence[Graph], any_relation: bool = False) -> None:
        self.graphs, self.any_relation = tuple(graph.edges_alone() for graph in graphs), any_relation

    def of(self, relation: int, side: Side) -> Known:
        """Those of a relation, where the given side is to be found."""
        relations = self.graphs[0].relations
        own = relations[relation]
        size = self.graphs[0].sizes[own.tail if side == "tail" else own.head]
        numbers = [relation]
        if self.any_relation:
            numbers = [n for n, r in enumerate(relations) if (r.head, r.tail) == (own.head, own.tail)]
        keys = []
        for graph in self.graphs:
            for number in numbers:
                edges = graph.of_relation(number)
                ends, candidates = (graph.lhs, graph.rhs) if side == "tail" else (graph.rhs, graph.lhs)
                keys.append(ends[edges] * size + candidates[edges])
        return Known(np.unique(np.concatenate(keys)), size)
