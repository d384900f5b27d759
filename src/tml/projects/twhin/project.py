"""Vectors for new nodes from their edges alone: nothing is trained again, and no other vector moves.

The vector v of a new node minimises the training's own loss of its edges against negatives, all else frozen, and a
prior that stands for the other nodes of its type (empirical Bayes, Gaussian by dimension):

    Σ over its edges of loss(edge, negatives) + ½ Σ over dimensions of (v - m)² / s²

m and s are the mean and the deviation of the type's trained vectors: a node with one edge stays near the others, one
with many goes where they say. Negatives replace the known end, half of them uniform over its type and half by how often
a node is a known end in the relation's edges here, as batches have it in training. They are drawn anew at each step,
the same for all nodes, so a node's vector depends on the seed and the edges but not on how the nodes are batched.
Adam takes a fixed number of steps with a rate that falls to 0 by a cosine; for the logistic loss of dot products the
problem is convex, so where it starts is of no matter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.nn import functional as F

from tml.core.errors import DataError
from tml.core.files import require_replaceable, whole_folder
from tml.core.progress import progress
from tml.embeddings.files import Vectors, write_embeddings
from tml.embeddings.nearest import Rows
from tml.projects.twhin.edge_files import NamedEdges, read_edges
from tml.projects.twhin.operators import Side
from tml.projects.twhin.scores import pairwise, rowwise
from tml.projects.twhin.vectors import MOST_NAMED, Objective, TrainedVectors

STEPS, NEGATIVES = 80, 128
"""Steps of Adam, and negatives of each of the two kinds."""
RATE = 0.3
"""The learning rate at the start, in deviations of the trained vectors' values."""
BLOCK = 32_768
"""Edges whose nodes are projected together."""


@dataclass(frozen=True)
class NewEdges:
    """Edges of new nodes of one type, whose other end is known.

    Attributes:
        relation: the relation's number.
        side: the end that the new nodes stand at.
        node: the type at the other end.
        new: (edges,) numbers of new nodes.
        known: (edges,) rows of the nodes at the other end.
    """

    relation: int
    side: Side
    node: str
    new: Rows
    known: Rows


@dataclass(frozen=True)
class Projected:
    """Vectors of the new nodes of one type: ids in order, (nodes, dimension) float32, and how many edges made them."""

    node: str
    ids: pa.Array
    vectors: Vectors
    edges: int


def project_file(vectors: TrainedVectors, edges: Path, out: Path, seed: int = 0) -> list[Projected]:
    """Make vectors of the nodes in a file of edges that have none, and write them into a folder, `TYPE.parquet` each.

    Raises:
        UserError: as `project_nodes`, the file is no file of edges, or the folder has something else in it.
    """
    require_replaceable(out, [f"{node}.parquet" for node in vectors.node_types])
    parts = list(read_edges(edges))
    columns = [pa.concat_arrays([getattr(p, name) for p in parts]) for name in ("head", "relation", "tail")]
    projected = project_nodes(vectors, NamedEdges(*columns), seed, str(edges))
    with whole_folder(out) as folder:
        for one in projected:
            write_embeddings(folder / f"{one.node}.parquet", one.ids, one.vectors)
    return projected


def project_nodes(vectors: TrainedVectors, edges: NamedEdges, seed: int = 0, where: str = "edges") -> list[Projected]:
    """Make vectors of the nodes of some edges that have none yet.

    Args:
        vectors: the trained ones.
        edges: edges between a new and a known node; those between two known ones, or two new ones, tell nothing.
        seed: of the negatives.
        where: what the edges are from, for errors.

    Raises:
        DataError: a relation is unknown, no node is new, or a new node has no edge to a known one.
    """
    found, ids = _new_edges(vectors, edges, where)
    if not ids:
        raise DataError(f"{where}: found no new node, allowed are edges of nodes that {vectors.folder} lacks")
    results = []
    for node, new_ids in ids.items():
        parts = found.get(node, [])
        counts = np.zeros(len(new_ids), np.int64)
        for part in parts:
            counts += np.bincount(part.new, minlength=len(new_ids))
        if not counts.all():
            lonely = new_ids.take(pa.array(np.flatnonzero(counts == 0))).to_pylist()
            named = ", ".join(map(str, lonely[:MOST_NAMED]))
            raise DataError(
                f"{where}: found no edge between the new {node} {named} and a known node, allowed is one or more"
            )
        results.append(Projected(node, new_ids, _solve(vectors, node, parts, counts, seed), int(counts.sum())))
    return results


def _new_edges(
    vectors: TrainedVectors, edges: NamedEdges, where: str
) -> tuple[dict[str, list[NewEdges]], dict[str, pa.Array]]:
    """The edges by the type of their new end, and the ids of new nodes by type."""
    read = []
    strange: dict[str, list[pa.Array]] = {}
    for name in pc.unique(edges.relation).to_pylist():
        number = vectors.relation(str(name))
        here = pa.array(np.flatnonzero(pc.equal(edges.relation, name).to_numpy(zero_copy_only=False)))
        heads, tails = edges.head.take(here), edges.tail.take(here)
        ends = vectors.relations[number]
        head_rows, tail_rows = vectors.find(ends.head, heads), vectors.find(ends.tail, tails)
        read.append((number, heads, head_rows, tails, tail_rows))
        for node, of_end, rows in ((ends.head, heads, head_rows), (ends.tail, tails, tail_rows)):
            if (rows < 0).any():
                strange.setdefault(node, []).append(_as_ids(vectors, node, of_end.filter(pa.array(rows < 0)), where))
    ids = {node: pc.unique(pa.concat_arrays(parts)).sort() for node, parts in strange.items()}
    found: dict[str, list[NewEdges]] = {}
    for number, heads, head_rows, tails, tail_rows in read:
        ends = vectors.relations[number]
        sides: tuple[tuple[Side, str, pa.Array, Rows, str, Rows], ...] = (
            ("head", ends.head, heads, head_rows, ends.tail, tail_rows),
            ("tail", ends.tail, tails, tail_rows, ends.head, head_rows),
        )
        for side, node, of_end, rows, other, known in sides:
            use = np.flatnonzero((rows < 0) & (known >= 0))
            if len(use):
                new = pc.index_in(_as_ids(vectors, node, of_end.take(pa.array(use)), where), ids[node])
                found.setdefault(node, []).append(
                    NewEdges(number, side, other, new.to_numpy().astype(np.int64), known[use])
                )
    return found, ids


def _as_ids(vectors: TrainedVectors, node: str, ids: pa.Array, where: str) -> pa.Array:
    """Ids of new nodes in the type of those that the table has."""
    own = vectors.as_ids(node, ids)
    own = own.cast(pa.int64()) if pa.types.is_integer(own.type) else own
    if own.null_count:
        odd = ids.filter(own.is_null())[0].as_py()
        kind = vectors.table(node).ids.type
        raise DataError(f"{where}: found the {node} {odd!r}, allowed are {kind}, as {vectors.folder} has them")
    return own


def _solve(vectors: TrainedVectors, node: str, parts: Sequence[NewEdges], counts: Rows, seed: int) -> Vectors:
    """Vectors of all new nodes of a type, some nodes at a time."""
    trained = vectors.table(node).vectors
    mean, deviation = (torch.from_numpy(np.array(of(trained, axis=0), np.float32)) for of in (np.mean, np.std))
    deviation = deviation.clamp_min(1e-6)
    block_of = (np.cumsum(counts) - counts) // BLOCK
    solved = mean.repeat(len(counts), 1)
    with progress(f"project {node}", int(counts.sum()), "edges") as bar:
        for block in np.unique(block_of):
            first, last = np.searchsorted(block_of, [block, block + 1])
            inside = [_within(part, int(first), int(last)) for part in parts]
            start = solved[first:last]
            solved[first:last] = _descend(vectors, parts, inside, start, mean, deviation, seed)
            bar.advance(int(counts[first:last].sum()))
    return solved.numpy()


def _within(part: NewEdges, first: int, last: int) -> NewEdges:
    here = (part.new >= first) & (part.new < last)
    return NewEdges(part.relation, part.side, part.node, part.new[here] - first, part.known[here])


def _descend(
    vectors: TrainedVectors,
    all_edges: Sequence[NewEdges],
    edges: Sequence[NewEdges],
    start: Tensor,
    mean: Tensor,
    deviation: Tensor,
    seed: int,
) -> Tensor:
    """Minimise the loss of some nodes in coordinates in which the prior is a standard normal distribution."""
    scaled = ((start - mean) / deviation).requires_grad_()
    optimizer = torch.optim.Adam([scaled], lr=RATE)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATE * (1 + np.cos(np.pi * step / STEPS)) / 2
        optimizer.zero_grad()
        loss = scaled.square().sum() / 2
        for number, (everything, part) in enumerate(zip(all_edges, edges, strict=True)):
            if len(part.new):
                rng = np.random.default_rng([seed, step, number])
                negatives = _negatives(everything, len(vectors.table(part.node)), rng)
                loss = loss + _loss_of(vectors, part, mean + deviation * scaled, negatives)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return (mean + deviation * scaled).detach()


def _negatives(edges: NewEdges, nodes: int, rng: np.random.Generator) -> Rows:
    """Rows of nodes to stand in the place of known ends: uniform ones, and some by frequency."""
    uniform = rng.integers(0, nodes, NEGATIVES)
    return np.concatenate([uniform, edges.known[rng.integers(0, len(edges.known), NEGATIVES)]])


def _loss_of(vectors: TrainedVectors, edges: NewEdges, new: Tensor, negatives: Rows) -> Tensor:
    """The sum of the edges' losses, each node standing at its side and the other end being asked for."""
    found: Side = "tail" if edges.side == "head" else "head"
    asked = vectors.operators(new[torch.from_numpy(edges.new)], edges.relation, edges.side, found)
    positive = rowwise(vectors.score, asked, vectors.candidates(edges.relation, found, edges.known))
    against = pairwise(vectors.score, asked, vectors.candidates(edges.relation, found, negatives))
    own = torch.from_numpy(edges.known[:, None] == negatives)
    return loss_against(vectors.objective, positive, against, own).sum()


def loss_against(objective: Objective, positive: Tensor, negatives: Tensor, own: Tensor) -> Tensor:
    """The training's loss of edges, (n,), whose negatives (n, m) are all at one side; `own` ones count nothing."""
    positive, negatives = positive / objective.temperature, negatives / objective.temperature
    if objective.loss == "softmax":
        rivals = negatives.masked_fill(own, -torch.inf)
        return torch.logsumexp(torch.cat([positive.unsqueeze(1), rivals], dim=1), dim=1) - positive
    count = own.logical_not().sum(1).clamp(min=1)
    if objective.loss == "margin":
        return F.relu(objective.margin - positive.unsqueeze(1) + negatives).masked_fill(own, 0).sum(1) / count
    against = F.softplus(negatives).masked_fill(own, 0).sum(1) / count
    return F.softplus(-positive) + objective.negative_weight * against
