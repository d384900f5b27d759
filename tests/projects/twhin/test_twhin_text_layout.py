"""Text files of edges by both of their readers: a line is an edge or is named, names come through as they are."""

import duckdb
import pytest

from tml.core.errors import DataError
from tml.projects.twhin.edge_files import read_edges
from tml.projects.twhin.triples import read_triples


def _by_both(path):
    """The edges that are read to be scored, which must be those that are read to be trained on."""
    blocks = list(read_edges(path))
    scored = [row for b in blocks for row in zip(*(c.to_pylist() for c in (b.head, b.relation, b.tail)), strict=True)]
    with duckdb.connect() as connection:
        read_triples(connection, [path], ("head", "relation", "tail"), "raw")
        prepared = connection.execute("SELECT head, relation, tail FROM raw").fetchall()
    assert sorted(scored) == sorted(prepared)
    return scored


@pytest.mark.parametrize(
    ("name", "content", "edges"),
    [
        ("e.tsv", "a\tr\tb\r\nc\tr\td\r\n", [("a", "r", "b"), ("c", "r", "d")]),
        ("e.tsv", "\ufeffa\tr\tb\n\n\nc\tr\td", [("a", "r", "b"), ("c", "r", "d")]),
        ("e.tsv", "\n \na\tr\tb\n", [("a", "r", "b")]),
        ("e.tsv", '"a"\tr\t"b"\n"c"\tr\t"d"\n', [('"a"', "r", '"b"'), ('"c"', "r", '"d"')]),
        ("e.tsv", "#a\tr\t'b\n\"c, c\tr r\té \\n\n", [("#a", "r", "'b"), ('"c, c', "r r", "é \\n")]),
        ("e.txt", "a r b\nc r d\n", [("a", "r", "b"), ("c", "r", "d")]),
        ("e.csv", '"a, a",r,"say ""b"""\nc c c,r,d\n', [("a, a", "r", 'say "b"'), ("c c c", "r", "d")]),
        ("e.tsv", "\ufeffhead\trelation\ttail\na\tr\tb\n", [("a", "r", "b")]),
        ("e.csv", "target,note,source,type\nb,x,a,r\n", [("a", "r", "b")]),
    ],
)
def test_both_readers_find_the_same_edges(tmp_path, name, content, edges):
    (tmp_path / name).write_bytes(content.encode())
    assert _by_both(tmp_path / name) == edges


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"# a comment\na\tr\tb\nc\tr\td\n", "the first line is '# a comment', allowed are 3 columns"),
        (b"a\tr\tb\nc\tr\n", "line 2 has 2 columns, allowed are 3"),
        (b"a\tr\tb\n\xff\tr\tc\n", "line 2 is not UTF-8"),
        (b"\xff\tr\tc\n", "not readable as text"),
        (b"\n\n", "found no edge"),
    ],
)
def test_what_is_no_edge_is_named_by_both(tmp_path, content, message):
    path = tmp_path / "e.tsv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_edges(path))
    with duckdb.connect() as connection, pytest.raises(DataError, match=message):
        read_triples(connection, [path], ("head", "relation", "tail"), "raw")
