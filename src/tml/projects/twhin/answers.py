"""Questions for neighbours as the command line asks them, and the answers as a table."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from tml.core.errors import DataError, UserError
from tml.embeddings.nearest import Kind, NearestIndex, Rows, Scores, build_index
from tml.projects.twhin.clusters import find_interests, graph_edges, retrieve
from tml.projects.twhin.neighbours import Search, plain_search, read_names, relation_search
from tml.projects.twhin.vectors import TrainedVectors


def nearest_table(
    vectors: TrainedVectors, search: Search, index: NearestIndex, ids: Sequence[str], k: int, names: str | None = None
) -> tuple[Table, str]:
    """The nearest of some nodes, and a line on how they were compared, with the recall of an approximate index.

    Raises:
        DataError: an id is unknown, or the names cannot be read.
    """
    rows = vectors.rows(search.asked, ids)
    scores, found = search.nearest(index, rows, k)
    line = f"{len(index):,} of type {search.found} compared by {search.comparison}, {index.kind} index"
    if index.kind != "exact":
        line += f": recall@{k} {search.recall(index, k):.3f} of the exact one, on a sample"
    return _table(vectors, search.asked, search.found, rows, scores, found, "score", names), line


def interests_table(
    vectors: TrainedVectors, relation: str, ids: Sequence[str], k: int, kind: Kind = "exact", names: str | None = None
) -> tuple[Table, str]:
    """The same by several vectors a node, from clusters of what it has edges to; these nodes are left out.

    Raises:
        DataError: an id is unknown, there is no graph beside the vectors, or the names cannot be read.
    """
    number = vectors.relation(relation)
    ends = vectors.relations[number]
    rows = vectors.rows(ends.head, ids)
    heads, tails = graph_edges(vectors, number)
    interests = find_interests(vectors, number, heads, tails)
    without = [id_ for id_, row in zip(ids, rows, strict=True) if row not in interests.users]
    if without:
        raise DataError(
            f"--multi: {ends.head} {', '.join(without)} has no edge of {relation}, allowed are those that have"
        )
    index = build_index(interests.items, interests.comparison, kind)
    found, weights = np.full((len(rows), k), -1), np.zeros((len(rows), k), np.float32)
    for place, row in enumerate(rows):
        items, weight = retrieve(interests, index, int(row), k, known=tails[heads == row])
        found[place, : len(items)], weights[place, : len(items)] = items, weight
    line = f"several vectors each, from clusters of their {relation} edges; what they have an edge to is left out"
    return _table(vectors, ends.head, ends.tail, rows, weights, found, "weight of interest", names), line


def ask(
    vectors: TrainedVectors,
    node: str,
    ids: Sequence[str],
    *,
    relation: str | None,
    to: str | None,
    back: bool,
    k: int,
    kind: Kind,
    folder: Path | None,
    names: str | None,
    multi: bool,
) -> tuple[Table, str]:
    """Answer what `tml twhin neighbours` asks.

    Raises:
        UserError: options that do not go together, or what the question names is not there.
    """
    if relation is None:
        if multi or back:
            raise UserError(f"--{'multi' if multi else 'back'}: found no relation, allowed only with --relation")
        search = plain_search(vectors, node, to)
    elif multi:
        ends = vectors.relations[vectors.relation(relation)]
        if (node, to or ends.tail, back, folder) != (ends.head, ends.tail, False, None):
            raise UserError(f"--multi: allowed is from {ends.head} to {ends.tail}, without --back and --index-dir")
        return interests_table(vectors, relation, ids, k, kind, names)
    else:
        search = relation_search(vectors, node, relation, to, "head" if back else None)
    return nearest_table(vectors, search, search.index(kind, folder), ids, k, names)


def _table(
    vectors: TrainedVectors,
    asked: str,
    found_type: str,
    rows: Rows,
    scores: Scores,
    found: Rows,
    heading: str,
    names: str | None,
) -> Table:
    places = np.argwhere(found >= 0)
    ids = vectors.table(found_type).ids.take(found[found >= 0])
    asked_ids = vectors.table(asked).ids.take(rows).to_pylist()
    table = Table(asked, "rank", found_type, *(["name"] if names else []), heading)
    labels = read_names(names, found_type, ids) if names else None
    for number, ((row, rank), id_) in enumerate(zip(places, ids.to_pylist(), strict=True)):
        name = [labels[number]] if labels else []
        table.add_row(str(asked_ids[row]), str(rank + 1), str(id_), *name, f"{scores[row, rank]:.4f}")
    return table
