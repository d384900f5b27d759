"""The nearest nodes of nodes: which authors a user would follow, and who is like whom.

Through a relation the candidates are the nodes at its other end, compared as the model scores edges. Without one, nodes
of any type are compared as they are: by cosine where the model multiplies, since a product would put the longest
vectors, the most popular nodes, first for everyone; by the model's own distance where it has one.
"""

from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from tml.core.errors import DataError
from tml.embeddings.files import Vectors
from tml.embeddings.nearest import Comparison, Kind, NearestIndex, Rows, Scores, build_index, read_index, recall
from tml.projects.twhin.operators import Side
from tml.projects.twhin.vectors import TrainedVectors

SAMPLE = 200
"""Queries that the recall of an approximate index is measured with."""


@dataclass(frozen=True)
class Search:
    """A kind of question: nodes of one type, asked for the nearest of another.

    Attributes:
        asked: the type of the nodes that are asked for.
        found: the type of the answers.
        comparison: how they are compared.
        queries: (nodes of the asked type, dimension) float32.
        candidates: (nodes of the found type, dimension) float32.
    """

    asked: str
    found: str
    comparison: Comparison
    queries: Vectors
    candidates: Vectors

    def index(self, kind: Kind, folder: Path | None = None) -> NearestIndex:
        """An index of the candidates; with a folder, read from there, or made and written where there is none.

        Raises:
            DataError: what is there indexes something else.
        """
        if folder is not None and (folder / "index.json").is_file():
            index = read_index(folder, self.candidates, self.comparison)
            if index.kind != kind:
                raise DataError(f"{folder}: found an index of kind {index.kind}, asked was {kind}; take another folder")
            return index
        index = build_index(self.candidates, self.comparison, kind)
        if folder is not None:
            index.write(folder)
        return index

    def nearest(self, index: NearestIndex, rows: Rows, k: int) -> tuple[Scores, Rows]:
        """Scores and rows of the k nearest candidates, (rows, k), best first; a node is no neighbour of itself.

        Where there are fewer, a row is -1 and its score -inf.
        """
        own = self.asked == self.found
        scores, found = index.search(self.queries[rows], k + own)
        if own:
            itself = found == rows[:, None]
            # What is not itself keeps its order, and the node's own place goes to the end.
            order = np.argsort(itself, axis=1, kind="stable")
            scores = np.take_along_axis(np.where(itself, np.float32(-np.inf), scores), order, axis=1)
            found = np.take_along_axis(np.where(itself, -1, found), order, axis=1)
        return scores[:, :k], found[:, :k]

    def recall(self, index: NearestIndex, k: int, seed: int = 0) -> float:
        """Share of the true k nearest that the index finds, on a sample of the asked nodes."""
        size = len(self.queries)
        rows = np.sort(np.random.default_rng(seed).choice(size, min(size, SAMPLE), replace=False))
        return recall(index, self.candidates, self.queries[rows], k)


def plain_search(vectors: TrainedVectors, asked: str, found: str | None = None) -> Search:
    """Compare nodes as they are, of one type or of two.

    Raises:
        DataError: a type is unknown.
    """
    comparison: Comparison = vectors.score if vectors.score in ("l1", "l2") else "cosine"
    other = found or asked
    return Search(asked, other, comparison, vectors.table(asked).vectors, vectors.table(other).vectors)


def relation_search(
    vectors: TrainedVectors, asked: str, relation: str, found: str | None = None, side: Side | None = None
) -> Search:
    """Ask for the other end of edges of a relation.

    Args:
        vectors: compares.
        asked: the type of the nodes that are asked for.
        relation: the relation's name.
        found: the type of the answers; None takes what the relation joins with `asked`.
        side: which end is to be found; None takes the tail if the head's type is `asked`, else the head.

    Raises:
        DataError: a type or the relation is unknown, or the relation does not join the two.
    """
    number = vectors.relation(relation)
    ends = vectors.relations[number]
    side = side or ("tail" if ends.head == asked else "head")
    types = (ends.head, ends.tail) if side == "tail" else (ends.tail, ends.head)
    vectors.table(asked)
    if types[0] != asked or types[1] != (found or types[1]):
        wanted = f"{asked} to {found}" if found else asked
        raise DataError(f"{relation}: found {wanted}, allowed is from {ends.head} to {ends.tail} or back")
    queries = vectors.queries(number, side, np.arange(len(vectors.table(asked)))).numpy()
    candidates = vectors.candidates(number, side).numpy()
    return Search(asked, types[1], vectors.score, queries, candidates)


def read_names(place: str, node: str, ids: pa.Array) -> list[str]:
    """Names of nodes from a column of a table, as `posts.parquet:topic`; the id of those that are not there.

    Args:
        place: FILE:COLUMN, Parquet, CSV or JSON lines; the file's ids are in `TYPE_id`, in `id`, or, of authors, in
            `user_id`.
        node: the node type.
        ids: the ids to name.

    Raises:
        DataError: no such file or column, or a file that cannot be read.
    """
    path, _, column = place.rpartition(":")
    if not path or not Path(path).is_file():
        raise DataError(f"{place}: no such file, allowed is FILE:COLUMN with Parquet, CSV or JSON lines")
    keys = (f"{node}_id", "id", *(("user_id",) if node == "author" else ()))
    with duckdb.connect() as connection:
        try:
            source = f"FROM '{path.replace(chr(39), chr(39) * 2)}'"
            columns = [one[0] for one in connection.execute(f"{source} LIMIT 0").description or ()]
            key = next((key for key in keys if key in columns), None)
            if key is None or column not in columns:
                found = ", ".join(columns)
                raise DataError(
                    f"{place}: found the columns {found}, allowed are {column} and one of {', '.join(keys)}"
                )
            connection.register("wanted", pa.table({"id": ids.cast(pa.string())}))
            id_, name = (f'"{one.replace(chr(34), chr(34) * 2)}"::VARCHAR' for one in (key, column))
            select = f"SELECT {id_}, {name} {source} WHERE {id_} IN (SELECT id FROM wanted)"
            names = dict(connection.execute(select).fetchall())
        except duckdb.Error as error:
            raise DataError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None
    return [names.get(one) or one for one in ids.cast(pa.string()).to_pylist()]
