"""Triples become a graph's folder, compared with dictionaries; and every fault is named."""

import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tml.core.errors import ConfigError, DataError, UserError
from tml.projects.twhin.graph import GraphFolder, Relation, read_graph
from tml.projects.twhin.prepare import prepare_triples

TRIPLES = [("b", "likes", "a"), ("a", "likes", "c"), ("c", "hates", 'the "big" one'), ("b", "likes", "c")]


def _write(path, rows, separator="\t"):
    text = "".join(separator.join(map(str, row)) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    elif path.name.endswith(".zst"):
        path.write_bytes(pa.Codec("zstd").compress(text.encode(), asbytes=True))
    else:
        path.write_text(text)
    return path


def _named(graph):
    """Edges by the names of their ends, in order."""
    rows = []
    for lhs, rel, rhs in zip(graph.lhs, graph.rel, graph.rhs, strict=True):
        relation = graph.relations[rel]
        head, tail = graph.vocabularies[relation.head][lhs], graph.vocabularies[relation.tail][rhs]
        rows.append((head.as_py(), relation.name, tail.as_py()))
    return rows


@pytest.mark.parametrize("name", ["train.txt", "train.tsv.gz", "train.tsv.zst"])
def test_text_becomes_a_graph_with_sorted_vocabularies(tmp_path, name):
    prepared = prepare_triples(_write(tmp_path / name, [*TRIPLES, TRIPLES[0]]), tmp_path / "graph")
    graph = read_graph(tmp_path / "graph")
    assert graph.relations == (Relation("hates", "node", "node"), Relation("likes", "node", "node"))
    assert graph.vocabularies["node"].to_pylist() == ["a", "b", "c", 'the "big" one']
    assert sorted(_named(graph)) == sorted(TRIPLES)
    assert (prepared.edges, prepared.repeated) == ({"train": 4}, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["graph", name])


def test_integers_are_numbers_and_are_in_their_order(tmp_path):
    _write(tmp_path / "a" / "1.tsv", [(10, "r", 9), (9, "r", -3)])
    _write(tmp_path / "a" / "2.txt", [(100, "r", 9)])
    (tmp_path / "a" / "SOURCE.md").write_text("about")
    prepare_triples(tmp_path / "a", tmp_path / "graph")
    assert read_graph(tmp_path / "graph").vocabularies["node"].to_pylist() == [-3, 9, 10, 100]
    _write(tmp_path / "a" / "3.tsv", [("010", "r", 9)])
    prepare_triples(tmp_path / "a" / "*.tsv", tmp_path / "graph")
    assert read_graph(tmp_path / "graph").vocabularies["node"].to_pylist() == ["-3", "010", "10", "9"]


def test_types_number_nodes_apart(tmp_path):
    train = _write(tmp_path / "train.tsv", [(1, "likes", "x"), (2, "likes", "1"), (2, "knows", 1)])
    types = _write(tmp_path / "types.tsv", [("likes", "user", "item"), ("knows", "user", "user")])
    prepare_triples(train, tmp_path / "graph", types=types)
    graph = read_graph(tmp_path / "graph")
    assert graph.relations == (Relation("knows", "user", "user"), Relation("likes", "user", "item"))
    assert graph.vocabularies["user"].to_pylist() == [1, 2]
    assert graph.vocabularies["item"].to_pylist() == ["1", "x"]
    assert sorted(_named(graph), key=str) == [(1, "likes", "x"), (2, "knows", 1), (2, "likes", "1")]


def test_other_orders_and_labelled_pairs(tmp_path):
    train = _write(tmp_path / "train.txt", [(1, 7, 8), (2, 8, 9)], " ")
    test = _write(tmp_path / "test.txt", [(1, 8, 7, 0), (2, 8, 9, 1)], " ")
    columns = ("relation", "head", "tail", "label")
    prepare_triples(train, tmp_path / "graph", test=test, columns=columns)
    graph = GraphFolder(tmp_path / "graph")
    assert _named(graph.read()) == [(7, "1", 8), (8, "2", 9)]
    assert graph.read().label is None
    pairs = dict(zip(_named(graph.read("test")), graph.read("test").label.tolist(), strict=True))
    assert pairs == {(8, "1", 7): False, (8, "2", 9): True}
    assert not graph.has("validation")


def test_parquet_with_weights_and_times_sums_what_is_there_twice(tmp_path):
    times = pa.array([1_000_000, 3_000_000, 2_000_000], pa.timestamp("us"))
    table = {"lhs": [5, 5, 6], "rel": ["r"] * 3, "rhs": ["x", "x", "y"], "weight": [0.5, 2.0, 1.0], "time": times}
    pq.write_table(pa.table(table), tmp_path / "train.parquet")
    prepare_triples(tmp_path / "train.parquet", tmp_path / "graph", types=_write(tmp_path / "t.tsv", [("r", "u", "i")]))
    graph = read_graph(tmp_path / "graph")
    assert graph.vocabularies["u"].to_pylist() == [5, 6]
    assert graph.weight.tolist() == [2.5, 1.0]
    assert graph.time.tolist() == [3_000_000, 2_000_000]


def test_equal_triples_make_equal_bytes(tmp_path):
    one = prepare_triples(_write(tmp_path / "1.tsv", TRIPLES), tmp_path / "one").path
    two = prepare_triples(_write(tmp_path / "2.tsv", TRIPLES[::-1]), tmp_path / "two").path
    files = [path.relative_to(one) for path in one.rglob("*") if path.is_file()]
    assert len(files) == 3
    assert all((one / file).read_bytes() == (two / file).read_bytes() for file in files)


def test_any_names_come_through(tmp_path):
    rng = np.random.default_rng(0)
    names = ["".join(rng.choice(list("ab 1\"'\\,;|#é"), rng.integers(1, 4))) for _ in range(900)]
    rows = list(zip(names[:300], names[300:600], names[600:], strict=True))
    prepare_triples(_write(tmp_path / "train.tsv", rows), tmp_path / "graph")
    assert sorted(_named(read_graph(tmp_path / "graph"))) == sorted(set(rows))


def test_integers_of_64_bits_are_numbers_and_longer_ones_are_names(tmp_path):
    largest = (1 << 63) - 1
    _write(tmp_path / "train.tsv", [(str(largest), "r", str(-largest - 1)), ("7", "r", "8")])
    prepare_triples(tmp_path / "train.tsv", tmp_path / "graph")
    assert read_graph(tmp_path / "graph").vocabularies["node"].to_pylist() == [-largest - 1, 7, 8, largest]
    _write(tmp_path / "train.tsv", [(str(largest + 1), "r", "7")])
    prepare_triples(tmp_path / "train.tsv", tmp_path / "graph")
    assert read_graph(tmp_path / "graph").vocabularies["node"].to_pylist() == ["7", str(largest + 1)]


def test_nothing_but_an_older_graph_is_replaced(tmp_path):
    _write(tmp_path / "in" / "train.tsv", TRIPLES)
    for _ in range(2):
        prepare_triples(tmp_path / "in" / "train.tsv", tmp_path / "graph")
    with pytest.raises(UserError, match=r"in: found a folder with train\.tsv in it, which would be lost"):
        prepare_triples(tmp_path / "in" / "train.tsv", tmp_path / "in")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: found a file, allowed is a folder"):
        prepare_triples(tmp_path / "in" / "train.tsv", tmp_path / "file")
    assert (tmp_path / "in" / "train.tsv").exists()


def test_what_test_has_and_training_lacks_is_named_or_left_out(tmp_path):
    train = _write(tmp_path / "train.tsv", TRIPLES)
    test = _write(tmp_path / "test.tsv", [("a", "likes", "b"), ("z", "likes", "b"), ("a", "loves", "b")])
    with pytest.raises(DataError, match=r"test\.tsv: found 2 edges with what training lacks, as the head z, .*skip"):
        prepare_triples(train, tmp_path / "graph", test=test)
    assert not (tmp_path / "graph").exists()
    prepared = prepare_triples(train, tmp_path / "graph", test=test, unknown="skip")
    assert prepared.skipped == {"test": 2}
    assert _named(read_graph(tmp_path / "graph", "test")) == [("a", "likes", "b")]


def test_what_is_wrong_is_one_sentence(tmp_path):
    def refused(message, error=DataError, *, train=TRIPLES, **options):
        path = _write(tmp_path / "train.tsv", train) if isinstance(train, list) else train
        with pytest.raises(error, match=message):
            prepare_triples(path, tmp_path / "graph", **options)
        assert not (tmp_path / "graph").exists()

    def types(*rows):
        return _write(tmp_path / "types.tsv", rows)

    refused("gone: no such file of triples", train=tmp_path / "gone")
    refused("columns: found head,tail, allowed are", ConfigError, columns=("head", "tail"))
    refused("columns: found head,relation,tail,colour", ConfigError, columns=("head", "relation", "tail", "colour"))
    refused("the first line is 'a', allowed are 3 columns", train=[("a",)])
    refused(r"not readable as triples \(line 2 has 2 columns, allowed are 3\)", train=[("a", "r", "b"), ("a", "r")])
    for name in ("relations", "a/b", ".hidden", "user.ids"):
        refused(f"found the node type '{name}'", types=types(("likes", name, "u"), ("hates", "u", "u")))
    refused("found 1 rows with an empty head", train=[("a", "r", "b"), ("", "r", "b")])
    refused("found no types of the relation 'hates'", types=types(("likes", "u", "u")))
    refused("no edge of the relation 'x'", types=types(("likes", "u", "u"), ("hates", "u", "u"), ("x", "u", "u")))
    refused("found the relation 'likes' twice", types=types(("likes", "u", "u"), ("likes", "u", "v")))
    weighted = ("head", "relation", "tail", "weight")
    refused("found weight 'nan', allowed are finite", train=[("a", "r", "b", "nan")], columns=weighted)
    refused("found weight '-1'", train=[("a", "r", "b", "-1")], columns=weighted)
    refused("1 rows have no weight", train=[("a", "r", "b", "1"), ("a", "r", "c", "")], columns=weighted)
    timed = ("head", "relation", "tail", "time")
    refused("found time 'noon'", train=[("a", "r", "b", "noon")], columns=timed)
    labelled = ("head", "relation", "tail", "label")
    refused("allowed in training are edges alone", train=[("a", "r", "b", "1")], columns=labelled)
    broken = tmp_path / "broken.parquet"
    pq.write_table(pa.table({"lhs": [1], "rhs": [1]}), broken)
    refused("found the columns lhs, rhs, allowed are lhs, rel, rhs", train=broken)
    broken.write_bytes(broken.read_bytes()[:-9])
    refused("not a readable Parquet file", train=broken)
