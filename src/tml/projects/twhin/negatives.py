"""Negatives: corrupted edges, made by putting another node in the place of an edge's head or of its tail.

Edges are laid out in chunks, and all edges of a chunk share the same replacements, so that the scores of every edge
against every replacement are one matrix product. A replacement is drawn in one of three ways:

- in the batch: the head (or tail) of a random edge of the same relation in the batch, so that a node is drawn as often
  as it has edges; this teaches more than popularity, for a popular node is as often a negative as a positive;
- globally: uniform over all nodes of the right type, so that nodes with few edges are negatives too;
- by degree: the head (or tail) of a random edge of the relation in all that is in memory, not only in the batch.

Or all nodes of the type are negatives, and none is drawn. A replacement can be the very node that stands in an edge, or
make another edge that is known; the places of such pairs among the scores are found here, and they count nothing.

A chunk holds edges of one relation where its operator works on replacements. Where none does, as with reciprocal
relations, it holds edges of any relation between the same two types of node.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tml.core.errors import ConfigError
from tml.projects.twhin.config import TwhinConfig
from tml.projects.twhin.edges import Edges, Rows
from tml.projects.twhin.graph import Relation
from tml.projects.twhin.known import Known, KnownEdges
from tml.projects.twhin.operators import Side

Batch = dict[str, Any]
Uniform = Callable[[str, tuple[int, int], np.random.Generator], Rows]
"""Draws nodes of a type, in some shape, from those that can be drawn."""

SIDES: tuple[Side, Side] = ("head", "tail")
ROLES = ("head", "head_negatives", "tail", "tail_negatives")


@dataclass(frozen=True)
class Pool:
    """Edges in the order of their groups (relations, or all of them), to draw nodes from by degree."""

    lhs: Rows
    rhs: Rows
    starts: Rows


class Arranger:
    """Lays out batches of edges and draws their negatives.

    Args:
        relations: the relations of the graph.
        sizes: the number of nodes of each type.
        config: chunk size and kinds of negatives.
        known: edges that are no negatives, if the config excludes them.

    Raises:
        ConfigError: all nodes are to be negatives, but a relation's operator works on them.
    """

    def __init__(
        self,
        relations: Sequence[Relation],
        sizes: dict[str, int],
        config: TwhinConfig,
        known: KnownEdges | None = None,
    ) -> None:
        self.relations, self.sizes, self.config = tuple(relations), sizes, config
        operators = [config.operator_of(relation.name) for relation in relations]
        self.mixes = np.array([o.operator == "identity" or (config.reciprocal and o.side == "head") for o in operators])
        if config.all_negatives and not self.mixes.all():
            name = relations[int(self.mixes.argmin())].name
            raise ConfigError(
                f"all_negatives: found true, but the operator of {name} works on the negatives, allowed are "
                "reciprocal relations with operators on the head"
            )
        kinds = [(r.head, r.tail, o.operator, o.side) for r, o in zip(relations, operators, strict=True)]
        self.family = np.array([kinds.index(kind) for kind in kinds], np.int16)
        """By relation, what edges of one batch share: node types and operator."""
        self._known_edges = known
        self._known: dict[tuple[int, Side], Known] = {}

    def groups(self, rel: Rows) -> Rows:
        """What edges of one chunk share: the relation, or only the family."""
        alone: Rows = np.arange(len(self.relations))
        return np.where(self.mixes, self.family, alone)[rel]

    def pool(self, edges: Edges) -> Pool:
        """Edges to draw from by degree."""
        group = self.groups(edges.rel)
        order = np.argsort(group, kind="stable")
        starts = np.searchsorted(group[order], np.arange(len(self.relations) + 1))
        return Pool(edges.lhs[order], edges.rhs[order], starts)

    def arrange(
        self, edges: Edges, rng: np.random.Generator, pool: Pool | None = None, uniform: Uniform | None = None
    ) -> Batch:
        """Lay out edges of one family and draw the negatives of each chunk.

        Args:
            edges: the edges of a batch.
            rng: draws the negatives.
            pool: to draw from by degree, where the config says so.
            uniform: draws nodes uniformly; by default from all of the type.

        Returns:
            Numbers are int64 and nodes are rows of the vocabulary of their type:
            `edges` (n,), which edge of the batch each one is, in the order of the chunks;
            `head`, `tail` (chunks, chunk_size); chunks are filled up with edges of weight 0;
            `relation` (chunks, 1), or (chunks, chunk_size) where a chunk mixes them;
            `weight` (chunks, chunk_size) float32, 0 for filling;
            `head_negatives`, `tail_negatives` (chunks, negatives);
            `head_excluded`, `tail_excluded` (pairs,), ascending, which of the (chunks, chunk_size, negatives) count
            nothing; `count` (chunks, chunk_size) float32, how many of both sides do;
            `reads`, by node type, what `_reads` returns.
        """
        group = self.groups(edges.rel)
        order = np.argsort(group.astype(np.int16), kind="stable")
        lhs, rel, rhs, group = edges.lhs[order], edges.rel[order], edges.rhs[order], group[order]
        starts = _starts(group)
        counts = np.diff(starts, append=len(group))
        width = self._width(counts)
        chunks = -(-counts // width)
        slots = np.repeat((np.cumsum(chunks) - chunks) * width - starts, counts) + np.arange(len(group))
        shape = (int(chunks.sum()), width)

        laid = {"head": _laid(lhs, slots, shape), "tail": _laid(rhs, slots, shape)}
        weight = np.zeros(shape, np.float32)
        weight.reshape(-1)[slots] = 1.0 if edges.weight is None else edges.weight[order]
        if self.mixes[rel[0]]:
            relation = np.full(shape, rel[0])
            relation.reshape(-1)[slots] = rel
        else:
            relation = np.repeat(rel[starts], chunks)[:, None]
        drawn = _Drawn(
            np.repeat(starts, chunks), np.repeat(counts, chunks), np.repeat(group[starts], chunks), rng, uniform
        )
        batch: dict[str, npt.NDArray[Any]] = {"edges": order, **laid, "relation": relation, "weight": weight}
        excluded = np.zeros(weight.size, np.int64)
        for side in SIDES:
            column = lhs if side == "head" else rhs
            negatives = self._negatives(side, column, rel[0], drawn, pool)
            batch[f"{side}_negatives"] = negatives
            batch[f"{side}_excluded"] = pairs = self._excluded(side, lhs, rel, rhs, slots, negatives, width)
            excluded += np.bincount(pairs // max(negatives.shape[1], 1), minlength=weight.size)
        both = batch["head_negatives"].shape[1] + batch["tail_negatives"].shape[1]
        batch["count"] = (both - excluded.reshape(shape)).astype(np.float32)
        # The edges come first: the training loop counts the examples of a batch by its first tensor.
        tensors: Batch = {name: torch.from_numpy(values) for name, values in batch.items()}
        between = self.relations[rel[0]]
        return tensors | {"reads": _reads(batch, {"head": between.head, "tail": between.tail})}

    def _width(self, counts: Rows) -> int:
        """Edges a chunk: at most as configured, and so that few slots are left over."""
        if self.config.all_negatives:
            return int(counts.max())
        most = min(self.config.chunk_size, int(counts.max()))
        widths = np.unique(-(-most * np.arange(1, 33) // 32))
        # A chunk costs its slots, and some more for its negatives.
        costs = (-(-counts[:, None] // widths)).sum(axis=0) * (widths + most // 8)
        return int(widths[costs.argmin()])

    def _negatives(self, side: Side, column: Rows, rel: int, drawn: "_Drawn", pool: Pool | None) -> Rows:
        config, node = self.config, getattr(self.relations[rel], side)
        size = self.sizes[node]
        if config.all_negatives:
            return np.arange(size)[None]
        parts = [
            column[drawn.starts[:, None] + drawn.below(drawn.counts, config.in_batch_negatives)],
            drawn.of_type(node, size, config.global_negatives),
        ]
        if config.degree_negatives:
            assert pool is not None
            start, end = pool.starts[drawn.groups], pool.starts[drawn.groups + 1]
            nodes = pool.lhs if side == "head" else pool.rhs
            parts.append(nodes[start[:, None] + drawn.below(end - start, config.degree_negatives)])
        return np.concatenate(parts, axis=1)

    def _excluded(self, side: Side, lhs: Rows, rel: Rows, rhs: Rows, slots: Rows, negatives: Rows, width: int) -> Rows:
        size, count = self.sizes[getattr(self.relations[rel[0]], side)], negatives.shape[1]
        nodes = lhs if side == "head" else rhs
        if self._known_edges is not None:
            slots, nodes = self._with_known(side, lhs, rel, rhs, slots)
        keys = (np.arange(len(negatives))[:, None] * size + negatives).reshape(-1)
        wanted = slots // width * size + nodes
        likely = _maybe_among(keys, wanted)
        slots, wanted = slots[likely], wanted[likely]
        order = np.argsort(keys)
        keys = keys[order]
        first = np.searchsorted(keys, wanted)
        times = np.searchsorted(keys, wanted, side="right") - first
        within = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
        pairs = np.repeat(slots, times) * count + order[np.repeat(first, times) + within] % max(count, 1)
        return np.sort(pairs) if self._known_edges is None else np.unique(pairs)

    def _with_known(self, side: Side, lhs: Rows, rel: Rows, rhs: Rows, slots: Rows) -> tuple[Rows, Rows]:
        """Slots of edges and nodes that make them, or another known edge."""
        ends, nodes = (rhs, lhs) if side == "head" else (lhs, rhs)
        found = [(slots, nodes)]
        for number in np.unique(rel).tolist():
            here = np.flatnonzero(rel == number)
            at, others = self._known_of(number, side).of(ends[here])
            found.append((slots[here[at]], others))
        return np.concatenate([of for of, _ in found]), np.concatenate([nodes for _, nodes in found])

    def _known_of(self, relation: int, side: Side) -> Known:
        assert self._known_edges is not None
        if (relation, side) not in self._known:
            self._known[relation, side] = self._known_edges.of(relation, side)
        return self._known[relation, side]


@dataclass(frozen=True)
class _Drawn:
    """Draws for chunks: where the edges of a chunk's group start in the batch, how many they are, and which group."""

    starts: Rows
    counts: Rows
    groups: Rows
    rng: np.random.Generator
    uniform: Uniform | None

    def of_type(self, node: str, size: int, count: int) -> Rows:
        """Nodes of a type, (chunks, count)."""
        if self.uniform is not None:
            return self.uniform(node, (len(self.starts), count), self.rng)
        return self.below(np.full(len(self.starts), size), count)

    def below(self, ends: Rows, count: int) -> Rows:
        """Numbers below each chunk's end, (chunks, count)."""
        # Three times faster than integers below ends that differ.
        return (self.rng.random((len(ends), count)) * ends[:, None]).astype(np.int64)


def _maybe_among(keys: Rows, wanted: Rows) -> Rows:
    """Positions of those wanted that may be among the keys; most edges meet themselves nowhere, and a hash shows it."""
    seen = np.zeros(1 << 19, np.bool_)
    multiplier, shift = np.uint64(0x9E3779B97F4A7C15), np.uint64(64 - 19)
    seen[(keys.view(np.uint64) * multiplier) >> shift] = True
    return np.flatnonzero(seen[(wanted.view(np.uint64) * multiplier) >> shift])


def _starts(ordered: Rows) -> Rows:
    """Where in ascending numbers another one begins."""
    new = np.ones(len(ordered), np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    return np.flatnonzero(new)


def _laid(column: Rows, slots: Rows, shape: tuple[int, int]) -> Rows:
    # What fills up is a node that the batch reads anyway.
    laid = np.full(shape, column[0])
    laid.reshape(-1)[slots] = column
    return laid


def _reads(batch: dict[str, npt.NDArray[Any]], nodes: dict[str, str]) -> dict[str, dict[str, torch.Tensor]]:
    """What is read of each node type's table, so that gradients are summed by row without looking for equal rows.

    Returns:
        By node type `rows` (n,), of all roles of that type in the order of `ROLES`; `unique` (rows,), each row once,
        ascending; `order` (n,), positions in `rows` by row, and `starts` (rows,), where in it those of a row begin.
    """
    reads = {}
    for node in dict.fromkeys(nodes.values()):
        roles = [role for role in ROLES if nodes[role.removesuffix("_negatives")] == node]
        rows = np.concatenate([batch[role].reshape(-1) for role in roles])
        # One sort of row and position together is several times faster than an argsort.
        keys = np.sort((rows << 32) | np.arange(len(rows)))
        order, ordered = keys & 0xFFFFFFFF, keys >> 32
        starts = _starts(ordered)
        arrays = {"rows": rows, "unique": ordered[starts], "order": order, "starts": starts}
        reads[node] = {name: torch.from_numpy(values) for name, values in arrays.items()}
    return reads
