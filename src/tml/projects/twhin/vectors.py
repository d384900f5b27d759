"""Trained vectors, from exported files alone: nothing of the graph, the config or a checkpoint is needed.

A folder of vectors, as training leaves it in `embeddings/` and `tml twhin export` makes it, has

    relations.json      dimension, score, the loss that was trained with, and of each relation its name, the types of
                        its ends, its operator and the side that it works on
    TYPE.parquet        `id`, `vector` of the nodes of a type
    relations.parquet   `id` (the relation's name), `vector` of its operator, `end`, the end of an edge whose vector it
                        changes, and `found`, the end that is asked for (`any` unless relations are reciprocal)

or, in NumPy's format, `TYPE.npy` (nodes, dimension) float32 with `TYPE.ids.npy`, and `relations.npy`, the parameter
of `operators.Operators`. For TwHIN as published `relations.parquet` has one row a relation: its translation of the
head.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from tml.core.errors import DataError, MissingStage
from tml.core.files import read_json
from tml.embeddings.files import Embeddings, read_embeddings
from tml.embeddings.nearest import Rows
from tml.projects.twhin.config import Loss
from tml.projects.twhin.graph import Relation
from tml.projects.twhin.operators import Operators, RelationOperator, Side
from tml.projects.twhin.scores import Score, pairwise, rowwise

MOST_NAMED = 5
"""Unknown ids that an error names."""


@dataclass(frozen=True)
class Objective:
    """The loss that vectors were trained with; the fields are those of `TwhinConfig`."""

    loss: Loss
    margin: float
    negative_weight: float
    temperature: float


@dataclass(frozen=True)
class TrainedVectors:
    """Vectors of nodes and operators of relations; a table is read when it is first used.

    Attributes:
        folder: where the files are.
        dim: the dimension of a vector.
        score: how vectors are compared.
        objective: the loss that was trained with.
        relations: the relations, in the order of their numbers.
        operators: what each does to vectors.
    """

    folder: Path
    dim: int
    score: Score
    objective: Objective
    relations: tuple[Relation, ...]
    operators: Operators
    _tables: dict[str, Embeddings] = field(default_factory=dict, repr=False)

    @property
    def run(self) -> Path | None:
        """The folder of the training that the vectors are in as it left them; None where they stand alone."""
        return self.folder.parent if self.folder.name == "embeddings" else None

    @cached_property
    def node_types(self) -> tuple[str, ...]:
        """The types of node, in the order of the relations."""
        return tuple(dict.fromkeys(node for r in self.relations for node in (r.head, r.tail)))

    def table(self, node: str) -> Embeddings:
        """Ids and vectors of a node type.

        Raises:
            DataError: there is no such type, or its file is not one of these vectors.
        """
        if node not in self.node_types:
            raise DataError(f"{self.folder}: found no node type {node!r}, allowed are {', '.join(self.node_types)}")
        if node not in self._tables:
            self._tables[node] = _read_table(self.folder, node, self.dim)
        return self._tables[node]

    def relation(self, name: str) -> int:
        """The number of a relation.

        Raises:
            DataError: there is no such relation.
        """
        names = [relation.name for relation in self.relations]
        if name not in names:
            raise DataError(f"{self.folder}: found no relation {name!r}, allowed are {', '.join(names)}")
        return names.index(name)

    def rows(self, node: str, ids: pa.Array | Sequence[Any], where: str = "") -> Rows:
        """The rows of ids in the table of a node type; text is read as a number where the ids are numbers.

        Args:
            node: the node type.
            ids: the ids.
            where: what they are from, for the error.

        Raises:
            DataError: some of them are unknown; it names them.
        """
        rows = self.find(node, ids)
        if (rows < 0).any():
            wanted = ids.to_pylist() if isinstance(ids, pa.Array) else list(ids)
            unknown = list(dict.fromkeys(wanted[row] for row in np.flatnonzero(rows < 0)))
            named = ", ".join(str(one) for one in unknown[:MOST_NAMED])
            more = f" and {len(unknown) - MOST_NAMED:,} more" if len(unknown) > MOST_NAMED else ""
            known = f"the {len(self.table(node)):,} ids of {self.folder}"
            raise DataError(f"{where or node}: found the unknown {node} {named}{more}, allowed are {known}")
        return rows

    def find(self, node: str, ids: pa.Array | Sequence[Any]) -> Rows:
        """The same, -1 for an id that is unknown or null."""
        return self.table(node).rows(self.as_ids(node, ids))

    def as_ids(self, node: str, ids: pa.Array | Sequence[Any]) -> pa.Array:
        """Ids as text or as integers, as those of a node type are; null where one is no integer."""
        wanted = ids if isinstance(ids, pa.Array) else pa.array(ids)
        if not pa.types.is_integer(self.table(node).ids.type):
            return wanted.cast(pa.string())
        return wanted if pa.types.is_integer(wanted.type) else _numbers(wanted)

    def queries(self, relation: int, side: Side, rows: Rows) -> Tensor:
        """What is compared with the candidates of a side: nodes of the other end (n), as (n, dimension)."""
        return self._read(relation, "head" if side == "tail" else "tail", side, rows)

    def candidates(self, relation: int, side: Side, rows: Rows | None = None) -> Tensor:
        """Nodes of a side as they are compared with queries, (m, dimension); None gives all of the type."""
        return self._read(relation, side, side, rows)

    def compare(self, queries: Tensor, candidates: Tensor) -> Tensor:
        """Scores of queries (n, dimension) with candidates (m, dimension), (n, m); higher is better."""
        return pairwise(self.score, queries, candidates)

    def score_edges(self, relation: int, heads: Rows, tails: Rows) -> Tensor:
        """Scores of edges of one relation, (n); with reciprocal relations the mean of both questions'."""
        sides: tuple[Side, ...] = ("tail", "head") if self.operators.reciprocal else ("tail",)
        scores = [
            rowwise(self.score, self._read(relation, "head", side, heads), self._read(relation, "tail", side, tails))
            for side in sides
        ]
        return torch.stack(scores).mean(0)

    def _read(self, relation: int, end: Side, found: Side, rows: Rows | None) -> Tensor:
        ends = self.relations[relation]
        vectors = self.table(ends.head if end == "head" else ends.tail).vectors
        with torch.no_grad():
            read = torch.from_numpy(np.array(vectors if rows is None else vectors[rows], np.float32))
            changed: Tensor = self.operators(read, relation, end, found)
        return changed


def load_vectors(path: Path) -> TrainedVectors:
    """Read vectors from a folder of them, or from that of a training or a run.

    Raises:
        MissingStage: a training that has not finished.
        DataError: there are none, or a file is missing or is not what it should be.
    """
    for folder in (path, path / "embeddings", path / "twhin" / "embeddings"):
        if (folder / "relations.json").is_file() and not (folder / "edges.parquet").is_file():
            return _load(folder)
    if (path / "checkpoints").is_dir() or (path / "twhin").is_dir():
        raise MissingStage(f"{path}: found no vectors, which `tml twhin train` writes at its end")
    raise DataError(f"{path}: found no vectors, allowed is a run's folder or one of `tml twhin export`")


def _load(folder: Path) -> TrainedVectors:
    try:
        about = read_json(folder / "relations.json")
        if about["score"] not in get_args(Score):
            raise ValueError(f"the score {about['score']!r}")
        relations = tuple(Relation(each["name"], each["head"], each["tail"]) for each in about["relations"])
        kinds = [RelationOperator(each["operator"], each["side"]) for each in about["relations"]]
        operators = Operators(kinds, about["dim"], about["reciprocal"]).requires_grad_(False)
        objective = Objective(**about["objective"])
        vectors = TrainedVectors(folder, about["dim"], about["score"], objective, relations, operators)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder / 'relations.json'}: not the relations of trained vectors ({error})") from None
    if (folder / "relations.npy").is_file():
        _fill_from_numpy(operators, folder / "relations.npy")
    else:
        _fill_from_parquet(vectors, folder / "relations.parquet")
    return vectors


def _fill_from_numpy(operators: Operators, path: Path) -> None:
    weights = _read_numpy(path)
    if weights.shape != operators.weights.shape:
        allowed = tuple(operators.weights.shape)
        raise DataError(f"{path}: found the shape {weights.shape}, allowed by relations.json is {allowed}")
    operators.weights.copy_(torch.from_numpy(np.array(weights)))


def _fill_from_parquet(vectors: TrainedVectors, path: Path) -> None:
    if not path.is_file():
        raise DataError(f"{path}: no such file, needed beside relations.json")
    try:
        rows = pq.read_table(path, columns=["id", "vector", "end", "found"]).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not the operators of relations ({str(error).splitlines()[0]})") from None
    for row in rows:
        place = vectors.operators.of(
            vectors.relation(row["id"]), row["end"], "tail" if row["found"] == "any" else row["found"]
        )
        if place is None or len(row["vector"]) != vectors.dim:
            found = f"a vector of width {len(row['vector'])} for the {row['end']} of {row['id']}"
            raise DataError(f"{path}: found {found}, allowed by relations.json is another width or side")
        place.copy_(torch.tensor(row["vector"]))


def _read_table(folder: Path, node: str, dim: int) -> Embeddings:
    if (folder / f"{node}.parquet").is_file():
        return read_embeddings(folder / f"{node}.parquet", dim)
    path = folder / f"{node}.npy"
    if not path.is_file():
        raise DataError(f"{folder}: found no vectors of {node}, allowed are {node}.parquet and {node}.npy")
    vectors, ids = _read_numpy(path), _read_numpy(folder / f"{node}.ids.npy")
    if vectors.shape != (len(ids), dim):
        raise DataError(f"{path}: found the shape {vectors.shape}, allowed is {(len(ids), dim)}")
    return Embeddings(pa.array(ids), vectors)


def _read_numpy(path: Path) -> Any:
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError):
        raise DataError(f"{path}: not a readable NumPy file") from None


def _numbers(ids: pa.Array) -> pa.Array:
    """Text as integers, null where it is none."""
    texts = ids.cast(pa.string()).to_pylist()
    return pa.array([_number(text) for text in texts], pa.int64())


def _number(text: str | None) -> int | None:
    """A number as it is written, without signs, zeros or spaces that it need not have; None for all else."""
    if text is None or not re.fullmatch("0|-?[1-9][0-9]{0,18}", text):
        return None
    return number if -(1 << 63) <= (number := int(text)) < 1 << 63 else None
