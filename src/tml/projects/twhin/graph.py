"""A graph of typed nodes: what is on disk, what is in memory, and what may be wrong with it.

    relations.json           a list of {"name", "head", "tail"}: a kind of edge, with the node types that it joins
    vocabulary/TYPE.parquet  `id` of each row number, integers or strings
    edges.parquet            the edges to learn from
    validation.parquet       optional: edges to measure on in training
    test.parquet             optional: edges to measure on at the end

Edges have the columns `lhs`, `rel`, `rhs`, row numbers of the head's vocabulary, of `relations.json` and of the tail's
vocabulary, and may have a `weight`, a `time` and, to measure on, a `label` (`edges.py`). In the place of one file
`edges.parquet` a folder `edges.parquet/` or `edges/` of Parquet files will do. A graph larger than memory is read as a
stream of row groups.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tml.core.errors import DataError
from tml.core.files import read_json
from tml.data.faults import first_line
from tml.data.readers.parquet import BROKEN
from tml.projects.twhin.edges import EdgeReader, Edges, Labels, RowGroup, Rows, Weights

Split = Literal["train", "validation", "test"]
SPLITS: Mapping[str, str] = {"train": "edges", "validation": "validation", "test": "test"}
"""What the edges of a split are called on disk."""

PARTS = ("relations.json", "vocabulary", *(f"{name}{end}" for name in SPLITS.values() for end in (".parquet", "")))
"""What a graph's folder has in it."""


@dataclass(frozen=True)
class Relation:
    """A kind of edge, by name, with the types of its head and tail nodes."""

    name: str
    head: str
    tail: str


@dataclass(frozen=True)
class Graph:
    """Edges as row numbers, with what the numbers stand for.

    `lhs`, `rel` and `rhs` are (edges,) int64: rows of the head's vocabulary, of `relations`, of the tail's vocabulary.
    `weight` is (edges,) float32, `time` (edges,) int64 and `label` (edges,) bool; None where the edges have none.
    """

    relations: tuple[Relation, ...]
    vocabularies: dict[str, pa.Array]
    lhs: Rows
    rel: Rows
    rhs: Rows
    weight: Weights | None = None
    time: Rows | None = None
    label: Labels | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """The number of nodes of each type."""
        return {name: len(ids) for name, ids in self.vocabularies.items()}

    def of_relation(self, relation: int) -> Rows:
        """Positions of the edges of a relation, (n,) int64, ascending."""
        order, starts = self._by_relation
        return order[starts[relation] : starts[relation + 1]]

    @cached_property
    def _by_relation(self) -> tuple[Rows, Rows]:
        order = np.argsort(self.rel, kind="stable")
        return order, np.searchsorted(self.rel[order], np.arange(len(self.relations) + 1))

    def take(self, edges: Rows | Labels) -> "Graph":
        """The graph with some of the edges, (n,) int64 positions or (edges,) bool, and all of the nodes."""
        columns = {name: None if c is None else c[edges] for name, c in self._columns().items()}
        return Graph(self.relations, self.vocabularies, **columns)  # type: ignore[arg-type]

    def edges_alone(self) -> "Graph":
        """The graph without the pairs that are labelled to be no edge."""
        return self if self.label is None else self.take(self.label)

    def _columns(self) -> dict[str, Rows | Weights | Labels | None]:
        return {field.name: getattr(self, field.name) for field in fields(Edges)}

    def __len__(self) -> int:
        return len(self.lhs)


TYPE_NAMES = "allowed are names of files that do not begin with a dot, but for relations, *.ids and *.interests"


def is_type_name(name: str) -> bool:
    """Whether a node type can be called so: its files are, and must not be others that vectors have beside them."""
    others = name == "relations" or name.endswith((".ids", ".interests"))
    return bool(name) and not name.startswith(".") and not set(name) & set("/\\") and not others


class GraphFolder:
    """A graph on disk, of which nothing large is read before it is asked for.

    Args:
        path: the folder.

    Attributes:
        relations: the kinds of edge, in the order of their numbers.

    Raises:
        DataError: it is no graph; relations that are no list of names, are there twice, or join a type of node without
            a vocabulary.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._vocabularies: dict[str, pa.Array] = {}
        if not (path / "relations.json").is_file():
            raise DataError(
                f"{path}: no such graph, allowed is a folder with relations.json, edges.parquet and vocabulary/"
            )
        self.relations = _read_relations(path / "relations.json")
        _require_declared(path, self.relations)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """The number of nodes of each type that a relation joins, from the ends of the vocabularies' files."""
        return {node: _rows(self._vocabulary_path(node)) for node in node_types(self.relations)}

    def vocabulary(self, node: str) -> pa.Array:
        """The ids of a type of node, in the order of the row numbers.

        Raises:
            DataError: the file is broken, or an id is null, there twice, or neither integer nor string.
        """
        if node not in self._vocabularies:
            self._vocabularies[node] = read_ids(self._vocabulary_path(node))
        return self._vocabularies[node]

    def has(self, split: Split) -> bool:
        """Whether there are edges of this split."""
        return bool(self._files(split))

    def row_groups(self, split: Split = "train") -> tuple[RowGroup, ...]:
        """The parts in which edges can be read, with their numbers of rows.

        Raises:
            DataError: there are no such edges, or a file is no whole Parquet file with the columns of edges.
        """
        return self._reader(split).row_groups

    def stream(self, split: Split = "train", groups: Sequence[RowGroup] | None = None) -> Iterator[Edges]:
        """Read edges one row group at a time, checked.

        Args:
            split: which edges.
            groups: some of `row_groups`, in any order; None reads all in their order.

        Raises:
            DataError: an edge names a node or a relation that is not there; a null; a weight that is not a finite
                number of at least 0.
        """
        reader = self._reader(split)
        for group in reader.row_groups if groups is None else groups:
            yield reader.read(group)

    def edges_by_relation(self, split: Split = "train") -> Rows:
        """The number of edges of each relation, (relations,) int64, by one pass; pairs that are none do not count.

        Raises:
            DataError: as `stream`; or edges to learn from lack a relation.
        """
        counts = np.zeros(len(self.relations), np.int64)
        for edges in self.stream(split):
            counts += self._by_relation(edges)
        if split == "train":
            self.require_edges(counts)
        return counts

    def require_edges(self, counts: Rows) -> None:
        """Refuse edges to learn from that lack a relation, given their number by relation."""
        empty = [relation.name for relation, count in zip(self.relations, counts, strict=True) if not count]
        if empty:
            file = self._files("train")[0]
            raise DataError(f"{file}: found no edge of the relation {empty[0]!r}, allowed are relations with edges")

    def _by_relation(self, edges: Edges) -> Rows:
        rel = edges.rel if edges.label is None else edges.rel[edges.label]
        return np.bincount(rel, minlength=len(self.relations))

    def nodes(self) -> Graph:
        """The graph without its edges."""
        none = np.zeros(0, np.int64)
        vocabularies = {node: self.vocabulary(node) for node in node_types(self.relations)}
        return Graph(self.relations, vocabularies, none, none, none)

    def part(self, number: int, count: int) -> Graph:
        """Every `count`-th edge to learn from, in memory, beginning with the edge of this number; no vocabularies."""
        start, parts = number, []
        for edges in self.stream():
            columns = {field.name: getattr(edges, field.name) for field in fields(Edges)}
            own: dict[str, Any] = {name: c if c is None else c[start::count] for name, c in columns.items()}
            parts.append(Edges(**own))
            start = (start - len(edges)) % count
        edges = Edges.concatenate(parts)
        vocabularies = {node: pa.nulls(size) for node, size in self.sizes.items()}
        return Graph(self.relations, vocabularies, **{f.name: getattr(edges, f.name) for f in fields(Edges)})

    def read(self, split: Split = "train") -> Graph:
        """All edges of a split in memory; see `stream` and `edges_by_relation` for what is raised."""
        reader = self._reader(split)
        edges = Edges.concatenate([reader.read(group) for group in reader.row_groups])
        if split == "train":
            self.require_edges(self._by_relation(edges))
        vocabularies = {node: self.vocabulary(node) for node in node_types(self.relations)}
        columns = {field.name: getattr(edges, field.name) for field in fields(Edges)}
        return Graph(self.relations, vocabularies, **columns)

    def _reader(self, split: Split) -> EdgeReader:
        files = self._files(split)
        if not files:
            raise DataError(f"{self.path / SPLITS[split]}.parquet: no such file, the edges of {split} are missing")
        heads = np.array([self.sizes[relation.head] for relation in self.relations])
        tails = np.array([self.sizes[relation.tail] for relation in self.relations])
        return EdgeReader(files, heads, tails)

    def _files(self, split: Split) -> tuple[Path, ...]:
        name = SPLITS[split]
        for path in (self.path / f"{name}.parquet", self.path / name):
            if path.is_file():
                return (path,)
            if path.is_dir():
                return tuple(sorted(path.glob("*.parquet")))
        return ()

    def _vocabulary_path(self, node: str) -> Path:
        return self.path / "vocabulary" / f"{node}.parquet"


def read_graph(path: Path, split: Split = "train") -> Graph:
    """Read a graph's folder into memory, with the edges of one split.

    Raises:
        DataError: it is not there or not whole; an edge names a row that its vocabulary or the relations lack; edges to
            learn from lack a relation. The sentence names the file.
    """
    return GraphFolder(path).read(split)


def graph_digest(path: Path) -> str:
    """A digest of the content of a graph's folder, by which a training knows its graph again."""
    digest = hashlib.sha256()
    # Nothing else counts: a folder may have come to hold what was learnt from the graph.
    files = [file for part in PARTS for file in ((path / part).rglob("*") if (path / part).is_dir() else [path / part])]
    for file in sorted(file for file in files if file.suffix in (".json", ".parquet") and file.is_file()):
        with file.open("rb") as opened:
            content = hashlib.file_digest(opened, "sha256").hexdigest()
        digest.update(f"{file.relative_to(path)} {content}\n".encode())
    return digest.hexdigest()


def node_types(relations: Sequence[Relation]) -> tuple[str, ...]:
    """The types of node that relations join, in the order of their first mention."""
    return tuple(dict.fromkeys(node for r in relations for node in (r.head, r.tail)))


def _read_relations(path: Path) -> tuple[Relation, ...]:
    allowed = 'allowed is a list of {"name": "…", "head": "…", "tail": "…"}'
    try:
        entries = read_json(path)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as JSON ({first_line(error)}), {allowed}") from None
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path}: found {_shortly(entries)}, {allowed}")
    for number, entry in enumerate(entries):
        named = isinstance(entry, dict) and set(entry) == {"name", "head", "tail"}
        if not named or not all(isinstance(value, str) and value for value in entry.values()):
            raise DataError(f"{path}: entry {number} is {_shortly(entry)}, {allowed}")
    names = [entry["name"] for entry in entries]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path}: found the relation {twice!r} twice, allowed is each name once")
    odd = next((e[end] for e in entries for end in ("head", "tail") if not is_type_name(e[end])), None)
    if odd is not None:
        raise DataError(f"{path}: found the node type {odd!r}, {TYPE_NAMES}")
    return tuple(Relation(**entry) for entry in entries)


def _require_declared(path: Path, relations: Sequence[Relation]) -> None:
    declared = sorted(file.stem for file in (path / "vocabulary").glob("*.parquet"))
    for relation in relations:
        for end in ("head", "tail"):
            node = getattr(relation, end)
            if node not in declared:
                raise DataError(
                    f"{path / 'relations.json'}: the {end} of {relation.name} is {node!r}, but vocabulary/ has no "
                    f"{node}.parquet, declared are {', '.join(declared) or 'none'}"
                )


def _rows(path: Path) -> int:
    try:
        return cast(int, pq.read_metadata(path).num_rows)
    except BROKEN as error:
        raise DataError(f"{path}: not a readable Parquet file ({first_line(error)})") from None


def read_ids(path: Path) -> pa.Array:
    """The ids of a vocabulary; see `GraphFolder.vocabulary`."""
    try:
        table = pq.read_table(path)
    except BROKEN as error:
        raise DataError(f"{path}: not a readable Parquet file ({first_line(error)})") from None
    if "id" not in table.column_names:
        raise DataError(f"{path}: found the columns {', '.join(table.column_names)}, allowed is `id`")
    ids = table["id"].combine_chunks()
    if pa.types.is_dictionary(ids.type):
        ids = ids.dictionary_decode()
    if pa.types.is_large_string(ids.type):
        ids = ids.cast(pa.string())
    if not (pa.types.is_integer(ids.type) or pa.types.is_string(ids.type)):
        raise DataError(f"{path}: the ids are {ids.type}, allowed are integers and strings")
    if ids.null_count:
        raise DataError(f"{path}: found {ids.null_count} ids that are null, allowed are none")
    if pc.count_distinct(ids).as_py() < len(ids):
        counts = pc.value_counts(ids)
        twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))[0]
        raise DataError(f"{path}: found the id {twice.as_py()!r} twice, allowed is each id once")
    return ids


def _shortly(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
