"""TwHIN's vectors as files that others read; `vectors.py` says what is in them, and reads them.

Tables are written in blocks, so they need not fit in memory. Ids are as the log or the graph has them, in the order of
the vocabulary; Parquet is for everyone, NumPy's format for programs that map a table into memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tml.core.files import require_replaceable, whole_folder, write_json
from tml.embeddings.engine import TableEngine
from tml.embeddings.files import Vectors, write_blocks
from tml.projects.twhin.graph import Graph, Relation
from tml.projects.twhin.model import TwhinModel
from tml.projects.twhin.operators import Operators, Side
from tml.projects.twhin.scores import Score
from tml.projects.twhin.vectors import Objective, TrainedVectors

Format = Literal["parquet", "numpy"]

BLOCK = 1 << 20
"""Numbers of a block, at most."""


def export_embeddings(model: TwhinModel, graph: Graph, out: Path, format_: Format = "parquet") -> None:
    """Write the vectors of a model, trained on `graph`, into the folder `out`, whole or not at all.

    Raises:
        DataError: a vector has a value that is not finite.
    """
    config = model.config
    objective = Objective(config.loss, config.margin, config.negative_weight, config.temperature)
    with whole_folder(out) as folder:
        for node, ids in graph.vocabularies.items():
            _write_table(folder, node, ids, _read(model.embeddings, node), format_)
        _write_relations(folder, graph.relations, model.operators, config.score, objective, format_)


def read_along(model: TwhinModel, graph: Graph) -> None:
    """Read what `export_embeddings` reads: where tables are sharded, every rank has to."""
    for node in graph.vocabularies:
        for _ in _read(model.embeddings, node):
            pass


def export_vectors(vectors: TrainedVectors, out: Path, format_: Format) -> None:
    """Write trained vectors into the folder `out` in another format or place, whole or not at all.

    Raises:
        UserError: there is something else than older vectors.
    """
    names = ("relations.json", "*.parquet", "*.npy", "evaluation-*.json")
    require_replaceable(out, names, ["relations.json"])
    with whole_folder(out) as folder:
        for node in vectors.node_types:
            table = vectors.table(node)
            _write_table(folder, node, table.ids, _slices(table.vectors), format_)
        _write_relations(folder, vectors.relations, vectors.operators, vectors.score, vectors.objective, format_)


def _read(engine: TableEngine, node: str) -> Iterator[Vectors]:
    size, step = engine.sizes[node], max(1, BLOCK // engine.dim)
    for start in range(0, max(size, 1), step):
        yield engine.read(node, slice(start, min(start + step, size))).float().cpu().numpy()


def _slices(vectors: Vectors) -> Iterator[Vectors]:
    step = max(1, BLOCK // vectors.shape[1])
    for start in range(0, max(len(vectors), 1), step):
        yield vectors[start : start + step]


def _write_table(folder: Path, node: str, ids: pa.Array, blocks: Iterator[Vectors], format_: Format) -> None:
    if format_ == "parquet":
        write_blocks(folder / f"{node}.parquet", ids, blocks)
        return
    # Strings of fixed width: NumPy would keep others as Python objects, which a reader has to trust.
    plain = ids.to_numpy() if pa.types.is_integer(ids.type) else np.array(ids.to_pylist(), np.str_)
    np.save(folder / f"{node}.ids.npy", plain)
    table, start = None, 0
    for block in blocks:
        if table is None:
            shape = (len(ids), block.shape[1])
            table = np.lib.format.open_memmap(folder / f"{node}.npy", "w+", np.float32, shape)
        table[start : start + len(block)] = block
        start += len(block)


def _write_relations(
    folder: Path,
    relations: Sequence[Relation],
    operators: Operators,
    score: Score,
    objective: Objective,
    format_: Format,
) -> None:
    about = [
        {"name": r.name, "head": r.head, "tail": r.tail, "operator": of.operator, "side": of.side}
        for r, of in zip(relations, operators.operators, strict=True)
    ]
    weights = operators.weights.detach().float().cpu()
    write_json(
        folder / "relations.json",
        {
            "dim": weights.shape[-1],
            "score": score,
            "reciprocal": operators.reciprocal,
            "objective": asdict(objective),
            "relations": about,
        },
    )
    if format_ == "numpy":
        np.save(folder / "relations.npy", weights.numpy())
    else:
        pq.write_table(_relation_table(relations, operators), folder / "relations.parquet")


def _relation_table(relations: Sequence[Relation], operators: Operators) -> pa.Table:
    """A row for each vector of an operator."""
    questions: Mapping[str, Side] = {"tail": "tail", "head": "head"} if operators.reciprocal else {"any": "tail"}
    ends: tuple[Side, Side] = ("head", "tail")
    rows = [
        (relation.name, end, name, vector.detach().float().cpu().numpy())
        for number, relation in enumerate(relations)
        for name, found in questions.items()
        for end in ends
        if (vector := operators.of(number, end, found)) is not None
    ]
    dim = operators.weights.shape[-1]
    flat = np.concatenate([vector for *_, vector in rows]) if rows else np.empty(0, np.float32)
    return pa.table(
        {
            "id": pa.array([name for name, *_ in rows], pa.string()),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(flat), dim),
            "end": pa.array([end for _, end, *_ in rows], pa.string()),
            "found": pa.array([found for *_, found, _ in rows], pa.string()),
        }
    )
