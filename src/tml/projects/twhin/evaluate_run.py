"""Evaluation of trained vectors from their files: those of the main job, of a training on a graph, or any others.

The vectors are found by the ids of the graph's vocabularies, so that the rows of the two need not be the same.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tml.core.errors import DataError
from tml.core.files import write_json
from tml.projects.twhin.edges import Rows
from tml.projects.twhin.evaluate import EvaluationConfig, evaluate_graph
from tml.projects.twhin.graph import SPLITS, Graph, GraphFolder, Split
from tml.projects.twhin.operators import Side
from tml.projects.twhin.vectors import TrainedVectors, load_vectors


class TrainedScorer:
    """Trained vectors as `ranking.Scorer`, by the rows and relations of a graph.

    Args:
        vectors: the vectors.
        graph: names nodes and relations.

    Raises:
        DataError: the graph has a node or a relation that the vectors lack, or joins other types by it.
    """

    device = torch.device("cpu")

    def __init__(self, vectors: TrainedVectors, graph: Graph) -> None:
        self.vectors = vectors
        self._relations = [vectors.relation(relation.name) for relation in graph.relations]
        for own, number in zip(graph.relations, self._relations, strict=True):
            other = vectors.relations[number]
            if (own.head, own.tail) != (other.head, other.tail):
                raise DataError(
                    f"{vectors.folder}: {own.name} joins {other.head} to {other.tail}, but in the graph {own.head} to "
                    f"{own.tail}, allowed are the same types"
                )
        self._ends = [(relation.head, relation.tail) for relation in graph.relations]
        self._rows = {node: self._rows_of(node, ids) for node, ids in graph.vocabularies.items()}

    def queries(self, relation: int, side: Side, rows: Tensor) -> Tensor:
        """See `ranking.Scorer`."""
        node = self._ends[relation][0 if side == "tail" else 1]
        return self.vectors.queries(self._relations[relation], side, self._own(node, rows.numpy()))

    def candidates(self, relation: int, side: Side, rows: Tensor | None = None) -> Tensor:
        """See `ranking.Scorer`."""
        node = self._ends[relation][1 if side == "tail" else 0]
        own = self._rows[node] if rows is None else self._own(node, rows.numpy())
        return self.vectors.candidates(self._relations[relation], side, own)

    def compare(self, queries: Tensor, candidates: Tensor) -> Tensor:
        """See `ranking.Scorer`."""
        return self.vectors.compare(queries, candidates)

    def score(self, relation: int, head: Tensor, tail: Tensor) -> Tensor:
        """See `ranking.Scorer`."""
        nodes = self._ends[relation]
        heads, tails = self._own(nodes[0], head.numpy()), self._own(nodes[1], tail.numpy())
        return self.vectors.score_edges(self._relations[relation], heads, tails)

    def _rows_of(self, node: str, ids: Any) -> Rows | None:
        """The vectors' row of each row of the graph; None where they are the same."""
        rows = self.vectors.rows(node, ids, where=f"vocabulary/{node}.parquet")
        same = len(rows) == len(self.vectors.table(node)) and bool((rows == np.arange(len(rows))).all())
        return None if same else rows

    def _own(self, node: str, rows: Rows) -> Rows:
        own = self._rows[node]
        return rows if own is None else own[rows]


def evaluate_run(
    path: Path, graph: Path | None, config: EvaluationConfig, split: Split | None = None
) -> tuple[dict[str, Any], Path]:
    """Evaluate the vectors of a run, of a training, or of a folder of vectors, and write the result beside them.

    Args:
        path: the run, the training or the vectors.
        graph: a graph's folder; None is the one that the vectors were trained on.
        config: the protocol; its split counts for nothing.
        split: whose edges are looked for; None is test, or validation where there is no test.

    Returns:
        What `evaluate_graph` gives, and the file it was written to, `evaluation-SPLIT.json`.

    Raises:
        MissingStage: a training that has not finished.
        DataError: there are no vectors, no graph, or no such edges, or graph and vectors do not fit.
    """
    vectors = load_vectors(path)
    place = vectors.run or vectors.folder
    beside = place / "graph"
    if graph is None and not beside.exists():
        raise DataError(f"{path}: found no graph beside the vectors, allowed is one named with --graph")
    folder = GraphFolder(graph or beside)
    if split is None:
        split = "test" if folder.has("test") else "validation"
    if not folder.has(split):
        raise DataError(f"{folder.path}: found no {SPLITS[split]}.parquet, needed to measure on the edges of {split}")
    splits: tuple[Split, ...] = ("train", "validation", "test")
    graphs = {name: folder.read(name) for name in splits if folder.has(name)}
    result = evaluate_graph(TrainedScorer(vectors, graphs["train"]), graphs, config.model_copy(update={"split": split}))
    out = place / f"evaluation-{split}.json"
    write_json(out, {"vectors": str(vectors.folder), "graph": str(folder.path), **result})
    return result, out
