"""Batches of edges: every edge exactly once an epoch, in an order and with negatives that follow from the seed.

Edges in memory are shuffled as a whole. Of a graph on disk row groups are read in random order, a few million edges at
a time, and shuffled together; so memory holds a pool of edges, and neighbours in the file are seldom neighbours in
training. A batch holds edges between the same two node types with the same operator, of any of their relations, in the
proportion of their numbers.

The order of an epoch comes from (seed, epoch) and the negatives of a batch from (seed, epoch, number of the batch), so
the place in the stream is those two numbers and a resumed stream goes on with the same bits. A thread reads and
arranges a few batches ahead of training.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import fields
from typing import Any

import numpy as np

from tml.data.prefetch import items_ahead
from tml.projects.twhin.config import TwhinConfig
from tml.projects.twhin.edges import Edges, Rows
from tml.projects.twhin.graph import Graph, GraphFolder
from tml.projects.twhin.known import KnownEdges
from tml.projects.twhin.negatives import Arranger, Batch, Pool

POOL = 1 << 22
"""Edges on disk that are read and shuffled together."""

AHEAD = 3
"""Batches that are arranged before they are asked for."""


class BatchesAhead(ABC):
    """A stream of batches that a thread makes ahead of training.

    Args:
        place: where it begins, the numbers that `_batches` takes.

    Attributes:
        place: after the batch that was given last.
    """

    def __init__(self, place: tuple[int, ...]) -> None:
        self.place = place
        self._made: Generator[tuple[Batch, tuple[int, ...]], None, None] | None = None

    @abstractmethod
    def _batches(self, *place: int) -> Generator[tuple[Batch, tuple[int, ...]], None, None]:
        """Batches from a place on, each with the place after it."""

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._made is None:
            self._made = items_ahead(self._batches(*self.place), AHEAD)
        batch, self.place = next(self._made)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The place in the stream."""
        return {"place": list(self.place)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a place in the stream."""
        self.close()
        self.place = tuple(state["place"])

    def close(self) -> None:
        """End the thread; the next batch starts it anew."""
        made, self._made = self._made, None
        if made is not None:
            made.close()

    def __del__(self) -> None:
        with suppress(Exception):
            self.close()


class EdgeBatches(BatchesAhead):
    """An endless stream of batches over the edges of a graph, epoch after epoch.

    Args:
        graph: the edges to learn from, in memory or on disk.
        config: batch and chunk size and kinds of negatives.
        seed: of the order and the negatives.
        pool: edges on disk that are shuffled together.

    Each batch is what `Arranger.arrange` returns, `edges` being positions in the graph. `state_dict` after a batch and
    `load_state_dict` in a new stream of the same graph, config and seed go on with the next batch.

    Raises:
        ConfigError: known edges are to be excluded, but the graph is on disk; or as `Arranger`.
    """

    def __init__(self, graph: Graph | GraphFolder, config: TwhinConfig, seed: int, pool: int = POOL) -> None:
        super().__init__((0, 0))
        self.graph = graph.edges_alone() if isinstance(graph, Graph) else graph
        self.config, self.seed, self.pool = config, seed, pool
        known = None
        if config.exclude_known_edges:
            known = KnownEdges([graph if isinstance(graph, Graph) else graph.read()])
        self.arranger = Arranger(graph.relations, graph.sizes, config, known)
        self._counts = self._edges_by_family()

    @property
    def batches_per_epoch(self) -> int:
        """The number of batches in which every edge comes once; the last of a family can be smaller."""
        return int((-(-self._counts // self.config.batch_size)).sum())

    def state_dict(self) -> dict[str, Any]:
        """The place in the stream."""
        return dict(zip(("epoch", "position"), self.place, strict=True))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a place in the stream."""
        super().load_state_dict({"place": (int(state["epoch"]), int(state["position"]))})

    def _batches(self, *place: int) -> Generator[tuple[Batch, tuple[int, ...]], None, None]:
        epoch, position = place
        last = self.batches_per_epoch - 1
        while True:
            for number, (edges, at, pool) in enumerate(self._slices(np.random.default_rng([self.seed, epoch]))):
                if number >= position:
                    rng = np.random.default_rng([self.seed, epoch, number])
                    batch = self.arranger.arrange(edges, rng, pool)
                    batch["edges"] = batch["edges"].new_tensor(at[batch["edges"].numpy()])
                    yield batch, ((epoch, number + 1) if number < last else (epoch + 1, 0))
            epoch, position = epoch + 1, 0

    def _slices(self, rng: np.random.Generator) -> Iterator[tuple[Edges, Rows, Pool | None]]:
        """The edges of each batch of an epoch, with their positions in the graph and the pool they are from."""
        size = self.config.batch_size
        rest: dict[int, tuple[Edges, Rows]] = {}
        pool = None
        for edges, at in self._pools(rng):
            if self.config.degree_negatives:
                # What is left of earlier pools may have relations that this one lacks.
                pool = self.arranger.pool(Edges.concatenate([edges, *(left for left, _ in rest.values())]))
            family = self.arranger.family[edges.rel]
            full = []
            for number in np.flatnonzero(np.bincount(family)).tolist():
                here = np.flatnonzero(family == number)
                part = (edges, at) if len(here) == len(edges) else (_take(edges, here), at[here])
                if number in rest:
                    part = Edges.concatenate([rest[number][0], part[0]]), np.concatenate([rest[number][1], part[1]])
                end = len(part[0]) // size * size
                full += [(part, slice(start, start + size)) for start in range(0, end, size)]
                rest[number] = (_take(part[0], slice(end, None)), part[1][end:])
            for index in rng.permutation(len(full)):
                (of, where), chosen = full[index]
                yield _take(of, chosen), where[chosen], pool
        left = [part for part in rest.values() if len(part[0])]
        for index in rng.permutation(len(left)):
            yield *left[index], pool

    def _pools(self, rng: np.random.Generator) -> Iterator[tuple[Edges, Rows]]:
        """Edges in random order, with their positions in the graph."""
        if isinstance(self.graph, Graph):
            order = rng.permutation(len(self.graph))
            yield _take(_columns(self.graph), order), order
            return
        groups = self.graph.row_groups()
        firsts = np.cumsum([0, *(group.rows for group in groups)])
        parts: list[Edges] = []
        at: list[Rows] = []
        for index in rng.permutation(len(groups)).tolist():
            if parts and sum(map(len, at)) + groups[index].rows > self.pool:
                yield _shuffled(parts, at, rng)
                parts, at = [], []
            (edges,) = self.graph.stream(groups=[groups[index]])
            parts.append(edges)
            at.append(np.arange(firsts[index], firsts[index + 1]))
        if parts:
            yield _shuffled(parts, at, rng)

    def _edges_by_family(self) -> Rows:
        if isinstance(self.graph, Graph):
            by_relation = np.bincount(self.graph.rel, minlength=len(self.graph.relations))
        else:
            by_relation = sum(
                (np.bincount(_alone(edges).rel, minlength=len(self.graph.relations)) for edges in self.graph.stream()),
                np.zeros(len(self.graph.relations), np.int64),
            )
        counts = np.zeros(len(by_relation), np.int64)
        np.add.at(counts, self.arranger.family, by_relation)
        return counts


def _columns(graph: Graph) -> Edges:
    return Edges(graph.lhs, graph.rel, graph.rhs, graph.weight)


def _alone(edges: Edges) -> Edges:
    """Edges without the pairs that are labelled to be none."""
    return edges if edges.label is None else _take(edges, np.flatnonzero(edges.label))


def _shuffled(parts: list[Edges], at: list[Rows], rng: np.random.Generator) -> tuple[Edges, Rows]:
    edges, where = Edges.concatenate(parts), np.concatenate(at)
    order = rng.permutation(len(edges) if edges.label is None else np.flatnonzero(edges.label))
    return _take(edges, order), where[order]


def _take(edges: Edges, which: Rows | slice) -> Edges:
    columns = {field.name: getattr(edges, field.name) for field in fields(Edges)}
    return Edges(**{name: None if values is None else values[which] for name, values in columns.items()})  # type: ignore[arg-type]
