"""Batches of edges: every edge exactly once an epoch, in an order and with negatives that follow from the seed.

A batch holds edges between the same two node types, of any of their relations, in the proportion of their numbers. The
order of an epoch comes from (seed, epoch) and the negatives of a batch from (seed, epoch, number of the batch), so the
place in the stream is those two numbers and a resumed stream goes on with the same bits.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from tml.projects.twhin.config import TwhinConfig
from tml.projects.twhin.data import Graph, Rows
from tml.projects.twhin.negatives import Batch, arrange


class EdgeBatches:
    """An endless stream of batches over the edges of a graph, epoch after epoch.

    Args:
        graph: the edges to learn from.
        config: batch and chunk size and numbers of negatives.
        seed: of the order and the negatives.

    Each batch is what `negatives.arrange` returns. `state_dict` after a batch and `load_state_dict` in a new stream of
    the same graph, config and seed go on with the next batch.
    """

    def __init__(self, graph: Graph, config: TwhinConfig, seed: int) -> None:
        self.graph, self.config, self.seed = graph, config, seed
        self.epoch, self.position = 0, 0
        types = [(relation.head, relation.tail) for relation in graph.relations]
        pairs = np.array([types.index(pair) for pair in types], np.int64)
        pair_of_edge = pairs[graph.rel]
        self._edges_of_pair = [np.flatnonzero(pair_of_edge == pair) for pair in np.unique(pair_of_edge)]
        self._order: tuple[int, list[Rows]] | None = None

    @property
    def batches_per_epoch(self) -> int:
        """The number of batches in which every edge comes once; the last of two node types can be smaller."""
        return sum(-(-len(edges) // self.config.batch_size) for edges in self._edges_of_pair)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batches = self._batches_of(self.epoch)
        batch = arrange(
            self.graph,
            batches[self.position],
            np.random.default_rng([self.seed, self.epoch, self.position]),
            chunk_size=min(self.config.chunk_size, self.config.batch_size),
            in_batch_negatives=self.config.in_batch_negatives,
            global_negatives=self.config.global_negatives,
        )
        self.position += 1
        if self.position == len(batches):
            self.epoch, self.position = self.epoch + 1, 0
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The place in the stream."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a place in the stream."""
        self.epoch, self.position = int(state["epoch"]), int(state["position"])

    def _batches_of(self, epoch: int) -> list[Rows]:
        if self._order is None or self._order[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            size = self.config.batch_size
            batches: list[Rows] = []
            for edges in self._edges_of_pair:
                shuffled = rng.permutation(edges)
                batches += [shuffled[start : start + size] for start in range(0, len(shuffled), size)]
            self._order = (epoch, [batches[i] for i in rng.permutation(len(batches))])
        return self._order[1]
