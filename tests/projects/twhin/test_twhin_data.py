from datetime import timedelta

import numpy as np
import pytest

from tml.core.errors import DataError
from tml.projects.twhin.config import RelationConfig, TwhinConfig
from tml.projects.twhin.data import extract_graph, extract_new_edges, hold_out, hold_out_on_disk
from tml.projects.twhin.graph import read_graph

FOLLOWS = [(2, 11, 1), (1, 12, 2), (1, 12, 3), (1, 10, 50)]
LIKES = [(1, 100, "favorited", 4), (3, 101, "favorited", 5), (3, 102, "favorited", 6), (1, 101, "replied", 7)]
POSTS = [(100, 10), (101, 11), (102, 11)]


def _named(graph):
    """Edges as (head id, relation, tail id), in order."""
    edges = []
    for lhs, rel, rhs in zip(graph.lhs, graph.rel, graph.rhs, strict=True):
        relation = graph.relations[rel]
        head, tail = graph.vocabularies[relation.head][lhs], graph.vocabularies[relation.tail][rhs]
        edges.append((head.as_py(), relation.name, tail.as_py()))
    return edges


def _config(*relations):
    return TwhinConfig(relations=tuple(RelationConfig(**relation) for relation in relations))


FOLLOW = {"name": "follow", "source": "follows"}
LIKE = {"name": "like", "source": "engagements", "type": "favorited"}


def test_edges_are_distinct_and_go_to_authors_through_their_posts(make_log, tmp_path):
    graph = extract_graph(make_log(FOLLOWS, LIKES, POSTS), _config(FOLLOW, LIKE), None, tmp_path / "graph")
    assert graph.vocabularies["user"].to_pylist() == [1, 2, 3]
    assert graph.vocabularies["author"].to_pylist() == [10, 11, 12]
    assert _named(graph) == [
        (1, "follow", 10), (1, "follow", 12), (2, "follow", 11), (1, "like", 10), (3, "like", 11)
    ]  # fmt: skip


def test_edges_to_posts_and_of_history(make_log, tmp_path, start):
    history = [(9, 101, "clicked"), (9, 500, "clicked"), (8, 100, "liked"), (None, 100, "clicked")]
    config = _config(
        {"name": "like", "source": "engagements", "type": "favorited", "tail": "post"},
        {"name": "clicked", "source": "history", "type": "clicked"},
    )
    until = start + timedelta(hours=4.5)  # history has no times and is always older
    graph = extract_graph(make_log((), LIKES, POSTS, history), config, until, tmp_path / "graph")
    assert _named(graph) == [(1, "like", 100), (9, "clicked", 11)]
    assert graph.sizes == {"user": 2, "post": 1, "author": 1}


def test_only_what_is_strictly_older_is_an_edge(make_log, tmp_path, start):
    log = make_log(FOLLOWS, LIKES, POSTS)
    graph = extract_graph(log, _config(FOLLOW, LIKE), start + timedelta(hours=5), tmp_path / "graph")
    assert _named(graph) == [(1, "follow", 12), (2, "follow", 11), (1, "like", 10)]
    naive = (start + timedelta(hours=5)).replace(tzinfo=None)
    log.execute("SET TimeZone = 'America/New_York'")
    again = extract_graph(log, _config(FOLLOW, LIKE), naive, tmp_path / "again")
    assert _named(again) == _named(graph)


def test_string_ids_stay_strings(make_log, tmp_path):
    log = make_log([("u2", "a1", 0), ("u10", "b", 0)], [("u2", "p", "favorited", 1)], [("p", "b")])
    graph = extract_graph(log, _config(FOLLOW, LIKE), None, tmp_path / "graph")
    assert graph.vocabularies["user"].to_pylist() == ["u10", "u2"]
    assert _named(graph) == [("u10", "follow", "b"), ("u2", "follow", "a1"), ("u2", "like", "b")]


def test_a_graph_is_read_back_equal_and_leaves_no_tables_behind(make_log, tmp_path):
    log = make_log(FOLLOWS, LIKES, POSTS)
    written = extract_graph(log, _config(FOLLOW, LIKE), None, tmp_path / "graph")
    read = read_graph(tmp_path / "graph")
    assert _named(read) == _named(written)
    assert read.relations == written.relations
    assert not log.execute("SELECT * FROM duckdb_tables()").fetchall()


def _refused(log, config, until, path, message):
    with pytest.raises(DataError, match=message):
        extract_graph(log, config, until, path)
    assert not path.exists()


def test_what_the_log_has_not_is_named(make_log, tmp_path, start):
    log = make_log(FOLLOWS, LIKES, POSTS)
    path = tmp_path / "graph"
    _refused(log, _config({**LIKE, "source": "history"}), None, path, "like needs the table `history`")
    _refused(log, _config({**LIKE, "type": "liked"}), None, path, "type 'liked', found in .* are favorited, replied")
    _refused(log, _config(FOLLOW), start, path, "follow has no edge, since `follows` has no row older than 2024-01-01")
    _refused(make_log((), LIKES, ()), _config(LIKE), None, path, "no row of type 'favorited' whose post is in `posts`")
    mixed = make_log([("x", 11, 0)], LIKES, POSTS)
    _refused(mixed, _config(FOLLOW, LIKE), None, path, "ids of user are VARCHAR in follow and BIGINT in like")
    log.execute("DROP VIEW posts; CREATE VIEW posts AS SELECT 1 AS post_id")
    _refused(log, _config(LIKE), None, path, "like needs the column `author_id` of `posts`, found post_id")


def test_a_node_that_only_one_relation_names_has_one_row(make_log, tmp_path):
    graph = extract_graph(make_log([(1, 11, 0), (1, 12, 1), (2, 11, 2)]), _config(FOLLOW), None, tmp_path / "graph")
    assert {node: ids.to_pylist() for node, ids in graph.vocabularies.items()} == {"user": [1, 2], "author": [11, 12]}


def test_a_missing_or_damaged_graph_is_refused(make_log, tmp_path):
    with pytest.raises(DataError, match="no such graph"):
        read_graph(tmp_path)
    extract_graph(make_log(FOLLOWS), _config(FOLLOW), None, tmp_path / "few")
    extract_graph(make_log([*FOLLOWS, (7, 17, 1)]), _config(FOLLOW), None, tmp_path / "many")
    (tmp_path / "many" / "edges.parquet").replace(tmp_path / "few" / "edges.parquet")
    with pytest.raises(DataError, match=r"edges\.parquet: found lhs 2 in row 3 of row group 0, allowed are 0 to 1"):
        read_graph(tmp_path / "few")


def test_held_out_edges_leave_every_node_one_to_learn_from(graph):
    kept, held_out = hold_out(graph, 0.3, np.random.default_rng(5))
    assert len(held_out) == round(0.3 * len(graph))
    whole = sorted(zip(graph.lhs, graph.rel, graph.rhs, strict=True))
    parts = [
        *zip(kept.lhs, kept.rel, kept.rhs, strict=True),
        *zip(held_out.lhs, held_out.rel, held_out.rhs, strict=True),
    ]
    assert sorted(parts) == whole
    to_post, to_post_before = kept.rel == 1, graph.rel == 1
    assert set(kept.lhs) == set(graph.lhs)
    assert set(kept.rhs[to_post]) == set(graph.rhs[to_post_before])
    assert set(kept.rhs[~to_post]) == set(graph.rhs[~to_post_before])
    assert not len(hold_out(graph, 0.0, np.random.default_rng(5))[1])


def test_held_out_edges_lie_beside_those_to_learn_from(make_log, community_rows, tmp_path):
    whole = extract_graph(make_log(*community_rows), _config(FOLLOW, LIKE), None, tmp_path / "graph")
    hold_out_on_disk(tmp_path / "graph", 0.1, np.random.default_rng(5))
    kept, held_out = hold_out(whole, 0.1, np.random.default_rng(5))
    assert _named(read_graph(tmp_path / "graph")) == _named(kept)
    assert _named(read_graph(tmp_path / "graph", "validation")) == _named(held_out)


def test_new_edges_are_those_of_a_time_that_were_not_there_before(make_log, tmp_path, start):
    history = [(1, 100, "favorited"), (2, 101, "favorited")]
    likes = [
        (1, 100, "favorited", 5),  # known from history
        (1, 101, "favorited", 6),
        (1, 101, "favorited", 7),
        (2, 102, "favorited", 6),  # an unknown post
        (9, 100, "favorited", 6),  # an unknown user
        (2, 100, "favorited", 4),  # before
        (2, 100, "favorited", 9),  # after
    ]
    follows = [(1, 11, 1), (2, 11, 6), (1, 11, 7)]
    config = _config(FOLLOW, {**LIKE, "source": "history", "tail": "post"})
    log = make_log(follows, likes, POSTS, history)
    first, last = start + timedelta(hours=5), start + timedelta(hours=9)
    extract_graph(log, config, first, tmp_path / "graph")
    assert extract_new_edges(log, config, tmp_path / "graph", first, last) == 2
    assert _named(read_graph(tmp_path / "graph", "test")) == [(2, "follow", 11), (1, "like", 101)]
    with pytest.raises(DataError, match="found no edge that is new from"):
        extract_new_edges(log, config, tmp_path / "graph", last + timedelta(hours=5), last + timedelta(hours=6))
    assert not log.execute("SELECT * FROM duckdb_tables()").fetchall()
