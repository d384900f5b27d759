"""First vectors from files: pre-trained ones of a node type, and those of an older run.

Files have vectors by id, so the vocabulary may have grown since: nodes that they have start from them, all others start
as they would without, and what the files have beside is left. Of an older run relations of the same name start from
their operator's vectors, too, where the operator is the same.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from tml.core.errors import DataError
from tml.embeddings.files import Embeddings, read_embeddings
from tml.embeddings.local import TYPES
from tml.projects.twhin.config import TwhinConfig
from tml.projects.twhin.graph import read_ids
from tml.projects.twhin.model import TwhinModel
from tml.projects.twhin.vectors import TrainedVectors, load_vectors


def load_first_vectors(model: TwhinModel, vocabularies: Mapping[str, pa.Array], config: TwhinConfig) -> dict[str, int]:
    """Put the vectors of the config's files into a model.

    Returns:
        By node type how many nodes start from a file.

    Raises:
        DataError: a file is missing or broken, its vectors or ids are of another kind than the model's, or it has none
            of the nodes.
    """
    older = load_vectors(config.warm_start) if config.warm_start else None
    if older is not None and older.dim != model.embeddings.dim:
        raise DataError(f"{older.folder}: found vectors of width {older.dim}, allowed is {model.embeddings.dim}")
    found: dict[str, int] = {}
    for node, ids in vocabularies.items():
        vocab = config.embeddings.table(node).vocab
        if vocab is not None and not _equal(read_ids(vocab), ids):
            raise DataError(f"{vocab}: found other ids than the graph's of {node}, allowed are those in their order")
        path = config.embeddings.table(node).pretrained
        if path is not None:
            found[node] = _put(model, node, ids, read_embeddings(path, model.embeddings.dim), str(path))
        elif older is not None and node in older.node_types:
            found[node] = _put(model, node, ids, older.table(node), f"{older.folder}: {node}")
    if older is not None:
        _put_relations(model, older)
    return found


def _put(model: TwhinModel, node: str, ids: pa.Array, table: Embeddings, where: str) -> int:
    if pa.types.is_integer(table.ids.type) != pa.types.is_integer(ids.type):
        raise DataError(f"{where}: found ids of type {table.ids.type}, allowed are those of {node}, {ids.type}")
    at = table.rows(ids) if pa.types.is_integer(ids.type) else _rows_of_names(ids, table.ids)
    rows: npt.NDArray[np.int64] = np.flatnonzero(at >= 0)
    if not len(rows):
        raise DataError(f"{where}: found none of the {len(ids):,} ids of {node}, allowed is a file with some of them")
    vectors = torch.from_numpy(np.array(table.vectors[at[rows]]))
    kind = model.config.embeddings.table(node).data_type
    if not bool(vectors.to(TYPES[kind]).isfinite().all()):
        largest = float(vectors.abs().max())
        raise DataError(f"{where}: found the number {largest:g}, allowed in tables of {kind} are smaller ones")
    model.embeddings.write(node, torch.from_numpy(rows).to(model.device), vectors.to(model.device))
    return len(rows)


def _equal(some: pa.Array, others: pa.Array) -> bool:
    integers = pa.types.is_integer(some.type) and pa.types.is_integer(others.type)
    return np.array_equal(some.to_numpy(), others.to_numpy()) if integers else bool(some.equals(others))


def _rows_of_names(names: pa.Array, among: pa.Array) -> npt.NDArray[np.int64]:
    """The rows of names, -1 where they are not there; one pass, where a table would make an index to ask again."""
    return np.asarray(pc.index_in(names.cast(among.type), among).fill_null(-1), np.int64)


@torch.no_grad()
def _put_relations(model: TwhinModel, older: TrainedVectors) -> None:
    own, theirs = model.operators, older.operators
    if own.reciprocal != theirs.reciprocal:
        return
    names = [relation.name for relation in older.relations]
    for number, relation in enumerate(model.relations):
        if relation.name in names:
            other = names.index(relation.name)
            if own.operators[number] == theirs.operators[other]:
                own.weights[:, :, number] = theirs.weights[:, :, other].to(own.weights)
