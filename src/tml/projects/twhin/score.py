"""Scores of given edges, from exported vectors alone, block by block.

The result is Parquet with `head`, `relation`, `tail` as they came, in their order, and `score`; for vectors that were
trained with the logistic loss also `probability`, the logistic function of score / temperature. It is the chance that
an edge is an observed one *among the negatives of training*, which are many times as frequent as there: good to compare
edges by, not the share of such pairs that are edges.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from tml.core.files import whole_file
from tml.projects.twhin.edge_files import NamedEdges, read_edges
from tml.projects.twhin.vectors import TrainedVectors

Unknown = Literal["error", "skip"]


@dataclass(frozen=True)
class Scored:
    """How many edges were scored, and how many were not, since an end of them is unknown."""

    edges: int
    unknown: int


def score_file(vectors: TrainedVectors, edges: Path, out: Path, unknown: Unknown = "error") -> Scored:
    """Score the edges of a file and write them with their scores, whole or not at all.

    Args:
        vectors: scores them.
        edges: a file that `edge_files.read_edges` reads.
        out: the Parquet file to write.
        unknown: an id without a vector is refused, or its edge's score is null.

    Raises:
        DataError: an id or a relation is unknown, or the file is no file of edges.
    """
    blocks = read_edges(edges)
    first = next(blocks)
    columns = [("head", first.head.type), ("relation", pa.string()), ("tail", first.tail.type), ("score", pa.float32())]
    if vectors.objective.loss == "logistic":
        columns.append(("probability", pa.float32()))
    schema = pa.schema(columns)
    total, missing = 0, 0
    with whole_file(out) as partial, pq.ParquetWriter(partial, schema) as writer:
        for block in _chain(first, blocks):
            scores = score_edges(vectors, block, unknown, str(edges))
            values = [block.head, block.relation.cast(pa.string()), block.tail, _nullable(scores)]
            if len(schema) == 5:
                logits = torch.from_numpy(scores) / vectors.objective.temperature
                values.append(_nullable(torch.sigmoid(logits).numpy()))
            writer.write_table(pa.table(values, schema=schema))
            total, missing = total + len(block), missing + int(np.isnan(scores).sum())
    return Scored(total - missing, missing)


def score_edges(
    vectors: TrainedVectors, edges: NamedEdges, unknown: Unknown = "error", where: str = "edges"
) -> npt.NDArray[np.float32]:
    """Scores of edges, (edges,) float32; NaN where an end has no vector and that is no error.

    Raises:
        DataError: an id or a relation is unknown.
    """
    scores = np.full(len(edges), np.nan, np.float32)
    for name in pc.unique(edges.relation).to_pylist():
        number = vectors.relation(str(name))
        here = np.flatnonzero(pc.equal(edges.relation, name).to_numpy(zero_copy_only=False))
        ends = vectors.relations[number]
        sides = ((ends.head, edges.head), (ends.tail, edges.tail))
        at = pa.array(here)
        heads, tails = (
            vectors.find(node, ids.take(at)) if unknown == "skip" else vectors.rows(node, ids.take(at), where)
            for node, ids in sides
        )
        known = (heads >= 0) & (tails >= 0)
        scores[here[known]] = vectors.score_edges(number, heads[known], tails[known]).numpy()
    return scores


def _chain(first: NamedEdges, others: Iterable[NamedEdges]) -> Iterable[NamedEdges]:
    yield first
    yield from others


def _nullable(values: npt.NDArray[np.float32]) -> pa.Array:
    return pa.array(values, pa.float32(), mask=np.isnan(values))
