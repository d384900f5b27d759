"""Batches of edges for tables in partitions: only edges whose two ends are in memory, every edge once an epoch.

Edges are sorted into buckets by the partitions of their head and their tail (PyTorch-BigGraph, Lerer et al. 2019), all
in one file. A stage (`partition_order.py`) brings partitions into memory, and the buckets between them that have not
been trained yet are shuffled together, a few million edges at a time. Uniform negatives are nodes of these partitions,
so a stage trains like a small graph. An end whose table is whole is in memory anyway and goes with the other's
partition.

What follows from the seed is as in `batches.py`; the place in the stream is epoch, stage and number of the batch.
"""

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tml.core.errors import ConfigError
from tml.core.files import whole_file
from tml.core.progress import progress
from tml.embeddings.partition_order import Stage, stages
from tml.embeddings.partitions import Partitions
from tml.projects.twhin.batches import BatchesAhead
from tml.projects.twhin.config import TwhinConfig
from tml.projects.twhin.edges import Edges, Rows
from tml.projects.twhin.graph import GraphFolder
from tml.projects.twhin.negatives import Arranger, Batch

POOL = 1 << 22
"""Edges that are shuffled together."""


class EdgeBuckets:
    """The edges of a graph by the partitions of their ends, in one file.

    Args:
        graph: the edges.
        partitions: of the tables that are cut.
        path: the file to write.

    Attributes:
        starts: (partitions² + 1) int64, where in the file the edges of bucket head · partitions + tail begin.
    """

    def __init__(self, graph: GraphFolder, partitions: Partitions, path: Path) -> None:
        self.partitions, self.path = partitions, path
        cut = [[getattr(r, end) in partitions.sizes for r in graph.relations] for end in ("head", "tail")]
        self._head_is_cut, self._tail_is_cut = np.array(cut)
        counts = np.zeros(partitions.count**2, np.int64)
        by_relation = np.zeros(len(graph.relations), np.int64)
        for edges in map(_alone, graph.stream()):
            counts += np.bincount(self._buckets(edges), minlength=len(counts))
            by_relation += np.bincount(edges.rel, minlength=len(by_relation))
        graph.require_edges(by_relation)
        self.starts = np.cumsum([0, *counts])
        self._weighted = False
        with whole_file(path) as partial, partial.open("wb") as file, progress("sort edges", len(self), "edges") as bar:
            at = self.starts[:-1].copy()
            for edges in _pools(graph):
                self._weighted = edges.weight is not None
                self._write(file, edges, at)
                bar.advance(len(edges))

    def __len__(self) -> int:
        return int(self.starts[-1])

    def count(self, stage: Stage) -> int:
        """The number of edges of a stage."""
        return sum(end - start for start, end in self._spans(stage))

    def read(self, stage: Stage, part: int, parts: int) -> Edges:
        """A part of the edges of a stage, some of each of its buckets."""
        kind = self._kind
        found = []
        for start, end in self._spans(stage):
            first, last = (start + (end - start) * number // parts for number in (part, part + 1))
            found.append(np.fromfile(self.path, kind, last - first, offset=first * kind.itemsize))
        edges = np.concatenate(found)
        lhs, rel, rhs = (edges[name].astype(np.int64) for name in ("lhs", "rel", "rhs"))
        return Edges(lhs, rel, rhs, edges["weight"].copy() if self._weighted else None)

    def _spans(self, stage: Stage) -> list[tuple[int, int]]:
        buckets = [head * self.partitions.count + tail for head, tail in stage.pairs]
        return [(int(self.starts[bucket]), int(self.starts[bucket + 1])) for bucket in buckets]

    @property
    def _kind(self) -> np.dtype[Any]:
        columns = [("lhs", "<u4"), ("rel", "<u4"), ("rhs", "<u4")]
        return np.dtype([*columns, ("weight", "<f4")] if self._weighted else columns)

    def _buckets(self, edges: Edges) -> Rows:
        head, tail = edges.lhs % self.partitions.count, edges.rhs % self.partitions.count
        head = np.where(self._head_is_cut[edges.rel] | ~self._tail_is_cut[edges.rel], head, tail)
        tail = np.where(self._tail_is_cut[edges.rel], tail, head)
        return head * self.partitions.count + tail

    def _write(self, file: Any, edges: Edges, at: Rows) -> None:
        bucket = self._buckets(edges)
        order = np.argsort(bucket, kind="stable")
        records = np.empty(len(edges), self._kind)
        for name in records.dtype.names or ():
            records[name] = getattr(edges, name)[order]
        counts = np.bincount(bucket, minlength=len(at))
        first = 0
        for number in np.flatnonzero(counts).tolist():
            file.seek(int(at[number]) * records.itemsize)
            file.write(records[first : first + int(counts[number])].data)
            first += int(counts[number])
        at += counts


class BucketBatches(BatchesAhead):
    """A stream of batches over the edges of a graph whose tables are in partitions.

    Args:
        graph: the edges to learn from.
        partitions: of the tables that are cut.
        config: batch and chunk size and kinds of negatives.
        seed: of the order and the negatives.
        path: the file of buckets to write.
        epochs: passes over the edges; None never ends.

    Each batch is what `Arranger.arrange` returns, with `resident`, the partitions that it needs, and `next`, the one
    that comes after them, or None.

    Raises:
        ConfigError: negatives that need the whole graph.
    """

    def __init__(
        self,
        graph: GraphFolder,
        partitions: Partitions,
        config: TwhinConfig,
        seed: int,
        path: Path,
        epochs: int | None = None,
    ) -> None:
        super().__init__((0, 0, 0))
        for field in ("all_negatives", "exclude_known_edges"):
            if getattr(config, field):
                raise ConfigError(f"{field}: found true, allowed with tables in partitions is false")
        self.partitions, self.config, self.seed, self.epochs = partitions, config, seed, epochs
        self.arranger = Arranger(graph.relations, graph.sizes, config)
        self.buckets = EdgeBuckets(graph, partitions, path)

    def stages(self, epoch: int) -> list[Stage]:
        """The stages of an epoch that have an edge."""
        rng = np.random.default_rng([self.seed, epoch])
        found = stages(self.partitions.count, self.partitions.resident, rng)
        return [stage for stage in found if self.buckets.count(stage)]

    def _batches(self, *place: int) -> Generator[tuple[Batch, tuple[int, ...]], None, None]:
        epoch, first, position = place
        while self.epochs is None or epoch < self.epochs:
            plan = self.stages(epoch)
            for number in range(first, len(plan)):
                following = self._following(plan, number, epoch)
                for count, (edges, pool) in enumerate(self._slices(plan[number], epoch, number)):
                    if count >= position:
                        rng = np.random.default_rng([self.seed, epoch, number, count])
                        batch = self.arranger.arrange(edges, rng, pool, self._uniform(plan[number]))
                        after = (epoch, number, count + 1)
                        yield {**batch, "resident": plan[number].resident, "next": following}, after
                position = 0
            epoch, first = epoch + 1, 0

    def _following(self, plan: list[Stage], number: int, epoch: int) -> int | None:
        """A partition that comes into memory after a stage."""
        if number + 1 < len(plan):
            after = plan[number + 1]
        elif self.epochs is None or epoch + 1 < self.epochs:
            after = self.stages(epoch + 1)[0]
        else:
            return None
        return next((partition for partition in after.resident if partition not in plan[number].resident), None)

    def _slices(self, stage: Stage, epoch: int, number: int) -> Iterator[tuple[Edges, Any]]:
        """The edges of each batch of a stage, with the pool that they are from."""
        rng = np.random.default_rng([self.seed, epoch, number])
        parts = -(-self.buckets.count(stage) // POOL)
        for part in range(parts):
            edges = self.buckets.read(stage, part, parts)
            pool = self.arranger.pool(edges) if self.config.degree_negatives else None
            order = rng.permutation(len(edges))
            family = self.arranger.family[edges.rel[order]]
            batches: list[Rows] = []
            for one in np.unique(family).tolist():
                here = order[family == one]
                # Of equal sizes, so that none is left with a handful of edges.
                batches += np.array_split(here, -(-len(here) // self.config.batch_size))
            for index in rng.permutation(len(batches)):
                yield _take(edges, batches[index]), pool

    def _uniform(self, stage: Stage) -> Any:
        def draw(node: str, shape: tuple[int, int], rng: np.random.Generator) -> Rows:
            if node not in self.partitions.sizes:
                return rng.integers(0, self.arranger.sizes[node], shape)
            rows: Rows = self.partitions.draw(node, shape, stage.resident, rng)
            return rows

        return draw


def _pools(graph: GraphFolder) -> Iterator[Edges]:
    """All edges, many at a time: each time every bucket is written to."""
    parts: list[Edges] = []
    for edges in graph.stream():
        parts.append(_alone(edges))
        if sum(map(len, parts)) >= POOL:
            yield Edges.concatenate(parts)
            parts = []
    if parts:
        yield Edges.concatenate(parts)


def _alone(edges: Edges) -> Edges:
    """Edges without the pairs that are labelled to be none."""
    return edges if edges.label is None else _take(edges, np.flatnonzero(edges.label))


def _take(edges: Edges, which: Rows) -> Edges:
    weight = None if edges.weight is None else edges.weight[which]
    return Edges(edges.lhs[which], edges.rel[which], edges.rhs[which], weight)
