"""The graph that TwHIN learns from: typed edges between typed nodes, extracted from an engagement log.

A relation such as `favorited` joins nodes of a head type (`user`) to nodes of a tail type (`author` or `post`); each
edge is there once, however often it happened. Only what happened strictly before a time is an edge, so that a ranker
whose examples begin at that time never sees its own labels through the vectors. Interactions of `history` come from
before the log and always count.

On disk a graph is a folder: `edges.parquet` with `lhs`, `rel`, `rhs` (int64 row numbers of head, relation and tail, in
that order sorted by relation, head, tail), `relations.json`, and `vocabulary/TYPE.parquet` with the `id` of each row
number, in the order of the ids. Equal logs make equal bytes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tml.core.errors import ConfigError, DataError
from tml.core.files import whole_file, whole_folder, write_json
from tml.projects.twhin.config import RelationConfig, TwhinConfig
from tml.projects.twhin.graph import Graph, read_graph
from tml.projects.twhin.known import KnownEdges

TIMES = {"follows": "followed_at", "engagements": "engaged_at", "history": None}


def extract_graph(
    connection: duckdb.DuckDBPyConnection, config: TwhinConfig, until: datetime | None, out: Path
) -> Graph:
    """Extract the graph of a log and write it.

    Args:
        connection: has the log's views `follows`, `engagements`, `history`, `posts`, as far as relations need them.
        config: names the relations.
        until: an edge must be older than this; without an offset it is UTC; None takes every edge.
        out: the folder to write.

    Raises:
        DataError: a relation needs a view, a column or an engagement type that the log has not, or has no edge; or the
            ids of one node type are integers in one place and strings in another.
    """
    with _temporary(connection, config):
        for number, relation in enumerate(config.relations):
            _extract_relation(connection, relation, number, until)
        vocabularies = {node: _vocabulary(connection, config, node) for node in config.node_types}
        edges = connection.sql(_edges_sql(config)).to_arrow_table()
    with whole_folder(out) as folder:
        (folder / "vocabulary").mkdir()
        for node, ids in vocabularies.items():
            pq.write_table(pa.table({"id": ids}), folder / "vocabulary" / f"{node}.parquet")
        pq.write_table(edges, folder / "edges.parquet")
        relations = [{"name": r.name, "head": r.head, "tail": r.tail} for r in config.relations]
        write_json(folder / "relations.json", relations)
    return read_graph(out)


def extract_new_edges(
    connection: duckdb.DuckDBPyConnection, config: TwhinConfig, path: Path, since: datetime, until: datetime
) -> int:
    """Write edges that a log has from a time on, and not before, as the `test.parquet` of a graph's folder.

    A relation of `history` goes on in `engagements` of the same type. Nodes that the graph lacks are left out.

    Args:
        connection: has the log's views; see `extract_graph`.
        config: names the relations, as it did for the graph.
        path: the graph's folder.
        since: the first time that counts; without an offset it is UTC.
        until: the first time that does not.

    Returns:
        How many edges there are.

    Raises:
        DataError: the log lacks what a relation needs, or no edge is new.
    """
    graph = read_graph(path)
    parts = []
    with _temporary(connection, config):
        for number, relation in enumerate(config.relations):
            later = relation
            if relation.source == "history":
                later = relation.model_copy(update={"source": "engagements"})
            _make_edges(connection, later, number, since, until)
            found = connection.sql(f"SELECT head, tail FROM twhin_edges_{number} ORDER BY ALL").to_arrow_table()
            ends = [
                pc.index_in(found[side].cast(ids.type), ids).fill_null(-1).to_numpy()
                for side, ids in (
                    ("head", graph.vocabularies[relation.head]),
                    ("tail", graph.vocabularies[relation.tail]),
                )
            ]
            lhs, rhs = (end[(ends[0] >= 0) & (ends[1] >= 0)].astype(np.int64) for end in ends)
            new = ~KnownEdges([graph]).of(number, "tail").contains(lhs, rhs)
            parts.append(pa.table({"lhs": lhs[new], "rel": np.full(new.sum(), number), "rhs": rhs[new]}))
    edges = pa.concat_tables(parts)
    if not len(edges):
        raise DataError(
            f"twhin.relations: found no edge that is new from {since} until {until}, allowed is one or more"
        )
    with whole_file(path / "test.parquet") as partial:
        pq.write_table(edges, partial)
    return len(edges)


def hold_out(graph: Graph, fraction: float, rng: np.random.Generator) -> tuple[Graph, Graph]:
    """Split the edges at random into those to train on and about `fraction` of them to validate on.

    Every node keeps at least one edge to learn from, so that no held-out edge meets a vector without training.
    """
    order = rng.permutation(len(graph)).astype(np.int64)
    eligible = np.ones(len(graph), dtype=bool)
    for node in graph.vocabularies:
        for side, rows in (("head", graph.lhs), ("tail", graph.rhs)):
            of_type = np.array([getattr(relation, side) == node for relation in graph.relations])
            here = np.flatnonzero(of_type[graph.rel[order]])
            eligible[here[np.unique(rows[order[here]], return_index=True)[1]]] = False
    chosen = np.flatnonzero(eligible)[: round(fraction * len(graph))]
    kept = np.delete(order, chosen)
    return graph.take(np.sort(kept)), graph.take(np.sort(order[chosen]))


def hold_out_on_disk(path: Path, fraction: float, rng: np.random.Generator) -> None:
    """Move about `fraction` of the edges of a graph's folder from `edges.parquet` to `validation.parquet`."""
    if fraction == 0:
        return
    kept, held_out = hold_out(read_graph(path), fraction, rng)
    for name, part in (("validation", held_out), ("edges", kept)):
        with whole_file(path / f"{name}.parquet") as partial:
            pq.write_table(pa.table({"lhs": part.lhs, "rel": part.rel, "rhs": part.rhs}), partial)


@contextmanager
def _temporary(connection: duckdb.DuckDBPyConnection, config: TwhinConfig) -> Iterator[None]:
    """Drop this module's temporary tables, whatever happens: the connection is the caller's."""
    names = [f"twhin_edges_{number}" for number in range(len(config.relations))]
    names += [f"twhin_nodes_{node}" for node in config.node_types]
    try:
        yield
    finally:
        for name in names:
            connection.execute(f"DROP TABLE IF EXISTS {name}")


def _columns(connection: duckdb.DuckDBPyConnection, relation: RelationConfig, view: str, needed: list[str]) -> None:
    try:
        found = [column[0] for column in connection.execute(f"SELECT * FROM {view} LIMIT 0").description or []]
    except duckdb.CatalogException:
        message = f"twhin.relations: {relation.name} needs the table `{view}`, which the log has not"
        raise DataError(message) from None
    for column in needed:
        if column not in found:
            raise DataError(
                f"twhin.relations: {relation.name} needs the column `{column}` of `{view}`, found {', '.join(found)}"
            )


def _extract_relation(
    connection: duckdb.DuckDBPyConnection, relation: RelationConfig, number: int, until: datetime | None
) -> None:
    """Make the temporary table twhin_edges_NUMBER(head, tail) of ids; one without an edge is refused."""
    _make_edges(connection, relation, number, None, until)
    if _one(connection, f"SELECT count(*) FROM twhin_edges_{number}") == 0:
        raise DataError(_why_empty(connection, relation, until))


def _make_edges(
    connection: duckdb.DuckDBPyConnection,
    relation: RelationConfig,
    number: int,
    since: datetime | None,
    until: datetime | None,
) -> None:
    view = relation.source
    if view is None:
        raise ConfigError(f"twhin.relations: {relation.name} has no source, allowed of a log are {', '.join(TIMES)}")
    time = TIMES[view]
    follows = view == "follows"
    needed = ["user_id", "followed_id"] if follows else ["user_id", "post_id", "type"]
    _columns(connection, relation, view, needed + ([time] if time else []))
    tail, join = ("followed_id", "") if follows else (f"{view}.post_id", "")
    if not follows and relation.tail == "author":
        _columns(connection, relation, "posts", ["post_id", "author_id"])
        tail, join = "posts.author_id", f"JOIN posts ON posts.post_id = {view}.post_id"
    conditions = [f"{view}.user_id IS NOT NULL", f"{tail} IS NOT NULL"]
    values: dict[str, Any] = {}
    if not follows:
        conditions.append(f"{view}.type = $type")
        values["type"] = relation.type
    # Microseconds since the epoch: a comparison of times would depend on the session's time zone.
    if time is not None and since is not None:
        conditions.append(f"epoch_us({view}.{time}) >= $since")
        values["since"] = _microseconds(since)
    if time is not None and until is not None:
        conditions.append(f"epoch_us({view}.{time}) < $until")
        values["until"] = _microseconds(until)
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE twhin_edges_{number} AS
        SELECT DISTINCT {view}.user_id AS head, {tail} AS tail FROM {view} {join} WHERE {" AND ".join(conditions)}""",
        values,
    )


def _why_empty(connection: duckdb.DuckDBPyConnection, relation: RelationConfig, until: datetime | None) -> str:
    view = relation.source
    assert view is not None
    if view != "follows":
        rows = connection.execute(f"SELECT DISTINCT type FROM {view} WHERE type IS NOT NULL ORDER BY type").fetchall()
        types = [str(row[0]) for row in rows]
        if relation.type not in types:
            found = ", ".join(types) or "none"
            return f"twhin.relations: {relation.name} has the type {relation.type!r}, found in `{view}` are {found}"
    older = f" older than {until}" if until is not None and TIMES[view] is not None else ""
    kind = "" if view == "follows" else f" of type {relation.type!r}"
    known = " whose post is in `posts`" if view != "follows" and relation.tail == "author" else ""
    return f"twhin.relations: {relation.name} has no edge, since `{view}` has no row{kind}{older}{known}; leave it out"


def _vocabulary(connection: duckdb.DuckDBPyConnection, config: TwhinConfig, node: str) -> pa.Array:
    """Make the temporary table twhin_nodes_NODE(id, row) and return the ids in the order of the rows."""
    ends = [(n, side) for n, r in enumerate(config.relations) for side in ("head", "tail") if getattr(r, side) == node]
    kinds: dict[bool, str] = {}
    for number, side in ends:
        kind = _one(connection, f"SELECT typeof({side}) FROM twhin_edges_{number} LIMIT 1")
        kinds.setdefault(kind == "VARCHAR", f"{kind} in {config.relations[number].name}")
    if len(kinds) > 1:
        raise DataError(f"twhin: the ids of {node} are {' and '.join(kinds.values())}, allowed is one type")
    union = " UNION ALL ".join(f"SELECT {side} AS id FROM twhin_edges_{number}" for number, side in ends)
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE twhin_nodes_{node} AS SELECT id, row_number() OVER (ORDER BY id) - 1 AS row "
        f"FROM (SELECT DISTINCT id FROM ({union}))"
    )
    table = connection.sql(f"SELECT id FROM twhin_nodes_{node} ORDER BY row").to_arrow_table()
    ids: pa.Array = table["id"].combine_chunks()
    if not (pa.types.is_integer(ids.type) or pa.types.is_string(ids.type)):
        raise DataError(f"twhin: the ids of {node} are {ids.type}, allowed are integers and strings")
    return ids


def _edges_sql(config: TwhinConfig) -> str:
    parts = [
        f"""SELECT heads.row AS lhs, {number}::BIGINT AS rel, tails.row AS rhs FROM twhin_edges_{number} AS edges
        JOIN twhin_nodes_{relation.head} AS heads ON heads.id = edges.head
        JOIN twhin_nodes_{relation.tail} AS tails ON tails.id = edges.tail"""
        for number, relation in enumerate(config.relations)
    ]
    return " UNION ALL ".join(parts) + " ORDER BY rel, lhs, rhs"


def _one(connection: duckdb.DuckDBPyConnection, sql: str) -> Any:
    row = connection.execute(sql).fetchone()
    assert row is not None  # the queries are counts, or are of tables that are not empty
    return row[0]


def _microseconds(time: datetime) -> int:
    aware = time.replace(tzinfo=UTC) if time.tzinfo is None else time
    elapsed = aware - datetime(1970, 1, 1, tzinfo=UTC)
    return (elapsed.days * 86_400 + elapsed.seconds) * 1_000_000 + elapsed.microseconds
