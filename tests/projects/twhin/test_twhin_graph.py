"""A graph's folder: what is read from it, and one sentence for everything that may be wrong with it."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tml.core.errors import DataError
from tml.projects.twhin.graph import GraphFolder, Relation, graph_digest, read_graph

RELATIONS = [
    {"name": "follows", "head": "user", "tail": "user"},
    {"name": "likes", "head": "user", "tail": "post"},
]
EDGES = {"lhs": [0, 1, 2, 2, 1], "rel": [0, 0, 1, 1, 1], "rhs": [1, 2, 0, 1, 1]}


def _folder(path, edges=None, relations=None, **vocabularies):
    (path / "vocabulary").mkdir(parents=True)
    (path / "relations.json").write_text(json.dumps(RELATIONS if relations is None else relations))
    for node, ids in ({"user": ["a", "b", "c"], "post": [7, 9]} | vocabularies).items():
        if ids is not None:
            pq.write_table(pa.table({"id": ids}), path / "vocabulary" / f"{node}.parquet")
    pq.write_table(pa.table(EDGES if edges is None else edges), path / "edges.parquet", row_group_size=2)
    return path


def test_edges_are_read_whole_and_by_row_groups(tmp_path):
    edges = {
        **EDGES,
        "weight": [0.5, 1.0, 2.0, 0.0, 1.0],
        "time": pa.array([1, 2, 3, 4, 5], pa.timestamp("s", "UTC")),
    }
    path = _folder(tmp_path / "graph", edges)
    graph = read_graph(path)
    assert graph.relations == (Relation("follows", "user", "user"), Relation("likes", "user", "post"))
    assert graph.sizes == {"user": 3, "post": 2}
    assert graph.weight.tolist() == edges["weight"]
    assert graph.time.tolist() == [1_000_000 * t for t in range(1, 6)]
    assert graph.of_relation(1).tolist() == [2, 3, 4]
    some = graph.take(np.array([4, 0]))
    assert (some.rhs.tolist(), some.weight.tolist(), some.label) == ([1, 1], [1.0, 0.5], None)

    folder = GraphFolder(path)
    groups = folder.row_groups()
    assert [group.rows for group in groups] == [2, 2, 1]
    assert [part.lhs.tolist() for part in folder.stream()] == [[0, 1], [2, 2], [1]]
    assert [part.time.tolist() for part in folder.stream(groups=groups[:0:-1])] == [[5_000_000], [3_000_000, 4_000_000]]
    assert folder.edges_by_relation().tolist() == [2, 3]
    assert not folder.has("test")


@pytest.mark.parametrize("name", ["edges", "edges.parquet"])
def test_a_folder_of_files_stands_for_a_file(tmp_path, name):
    path = _folder(tmp_path / "graph")
    (path / "edges.parquet").unlink()
    (path / name).mkdir()
    for number, (start, stop) in enumerate([(0, 3), (3, 5)]):
        part = pa.table(EDGES).slice(start, stop - start)
        pq.write_table(part, path / name / f"part-{number}.parquet")
    pq.write_table(pa.table(EDGES).slice(0, 0), path / name / "part-2.parquet")
    assert read_graph(path).lhs.tolist() == EDGES["lhs"]


def test_labels_are_read_as_what_they_are(tmp_path):
    path = _folder(tmp_path / "graph")
    for values in ([True, False, True, True, False], pa.array([1, 0, 1, 1, 0], pa.int8())):
        pq.write_table(pa.table({**EDGES, "label": values}), path / "test.parquet")
        graph = read_graph(path, "test")
        assert graph.label.tolist() == [True, False, True, True, False]
        assert graph.edges_alone().lhs.tolist() == [0, 2, 2]


def test_the_digest_is_of_the_content(tmp_path):
    digests = {graph_digest(_folder(tmp_path / name)) for name in ("one", "two")}
    assert len(digests) == 1
    assert graph_digest(_folder(tmp_path / "three", {**EDGES, "rhs": [1, 2, 0, 1, 0]})) not in digests


def _edges(**changed):
    return {"edges": {**EDGES, **changed}}


@pytest.mark.parametrize(
    ("faulty", "message"),
    [
        (_edges(lhs=[0, 3, 2, 2, 1]), r"edges\.parquet: found lhs 3 in row 1 of row group 0, allowed are 0 to 2"),
        (_edges(lhs=[0, 1, 2, 2, -1]), r"found lhs -1 in row 0 of row group 2, allowed are 0 to 2"),
        (_edges(rhs=[1, 2, 0, 2, 1]), r"found rhs 2 in row 1 of row group 1, allowed are 0 to 1"),
        (_edges(rel=[0, 0, 1, 2, 1]), r"found rel 2 in row 1 of row group 1, allowed are 0 to 1"),
        (_edges(rel=[1, 1, 1, 1, 1], rhs=[0] * 5), r"edges\.parquet: found no edge of the relation 'follows'"),
        (_edges(weight=[1, np.nan, 1, 1, 1]), r"found weight nan in row 1 of row group 0, allowed are finite"),
        (_edges(weight=[1, 1, 1, 1, -2.5]), r"found weight -2\.5 in row 0 of row group 2"),
        (_edges(weight=[1, 1, 1e300, 1, 1]), r"found weight inf in row 0 of row group 1"),
        (_edges(weight=["1"] * 5), "`weight` is string, allowed are numbers"),
        (_edges(label=[0, 1, 2, 1, 0]), "found the label 2, allowed are 0 and 1"),
        (_edges(time=[0.5] * 5), "`time` is double, allowed are timestamps and integers"),
        (_edges(lhs=["a"] * 5), "`lhs` is string, allowed are integers"),
        (_edges(lhs=[0, None, 2, 2, 1]), "`lhs` has nulls in row group 0, allowed are none"),
        ({"edges": {"lhs": [0], "rhs": [0]}}, "found the columns lhs, rhs, but not `rel`"),
        (
            {"post": None},
            r"relations\.json: the tail of likes is 'post', but vocabulary/ has no post\.parquet",
        ),
        ({"user": ["a", "b", "a"]}, r"user\.parquet: found the id 'a' twice"),
        ({"user": ["a", None, "c"]}, r"user\.parquet: found 1 ids that are null"),
        ({"post": [0.5, 1.5]}, r"post\.parquet: the ids are double, allowed are integers and strings"),
        ({"relations": [RELATIONS[0], RELATIONS[0]]}, "found the relation 'follows' twice"),
        ({"relations": []}, r"relations\.json: found \[\], allowed is a list"),
        ({"relations": [{"name": "x", "head": "user"}]}, "entry 0 is .*, allowed is a list"),
    ],
)
def test_a_fault_is_one_sentence(tmp_path, faulty, message):
    path = _folder(tmp_path / "graph", **faulty)
    with pytest.raises(DataError, match=message) as raised:
        read_graph(path)
    assert "\n" not in str(raised.value)


def test_files_that_are_missing_or_cut_off_are_named(tmp_path):
    with pytest.raises(DataError, match="no such graph"):
        GraphFolder(tmp_path)
    path = _folder(tmp_path / "graph")
    with pytest.raises(DataError, match=r"test\.parquet: no such file"):
        read_graph(path, "test")
    for file in (path / "edges.parquet", path / "vocabulary" / "user.parquet"):
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DataError, match=f"{file.name}: not a readable Parquet file"):
            read_graph(path)
        file.write_bytes(whole)
    damaged = bytearray((path / "edges.parquet").read_bytes())
    damaged[4:60] = b"\xff" * 56
    (path / "edges.parquet").write_bytes(damaged)
    with pytest.raises(DataError, match=r"edges\.parquet: row group 0 is not readable"):
        read_graph(path)
    (path / "relations.json").write_text("[{")
    with pytest.raises(DataError, match=r"relations\.json: not readable as JSON"):
        GraphFolder(path)


def test_files_must_have_the_same_columns(tmp_path):
    path = _folder(tmp_path / "graph")
    (path / "edges.parquet").unlink()
    (path / "edges").mkdir()
    pq.write_table(pa.table(EDGES), path / "edges" / "1.parquet")
    pq.write_table(pa.table({**EDGES, "weight": [1.0] * 5}), path / "edges" / "2.parquet")
    with pytest.raises(DataError, match=r"2\.parquet: found the columns lhs, rel, rhs, weight, allowed are those of 1"):
        read_graph(path)
