"""A graph's folder of triples: vocabularies and edges by SQL on disk, so that neither needs to fit in memory.

Nodes are what training has; each type is numbered in the order of its ids, which are integers where every one of them
is, and strings otherwise. Relations are numbered in the order of their names. An edge that training has more than once
is there once, with the sum of the weights and the latest time; edges to measure on stay as they are. Equal triples make
equal bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import duckdb

from tml.core.errors import DataError
from tml.core.files import require_replaceable, whole_folder, write_json
from tml.data.faults import first_line
from tml.data.tables import literal
from tml.projects.twhin.graph import PARTS, SPLITS, TYPE_NAMES, Split, is_type_name
from tml.projects.twhin.triples import EXTRAS, read_triples, require_columns, triple_files

MEMORY = "2GB"
ROW_GROUP = 1 << 18
ONE_TYPE = "node"
INTEGER = "0|-?[1-9][0-9]{0,18}"


@dataclass(frozen=True)
class Prepared:
    """What was written.

    Attributes:
        path: the folder.
        edges: how many a split has.
        skipped: edges to measure on that were left out, since training lacks a node or the relation, by split.
        repeated: edges of training that were there before.
    """

    path: Path
    edges: Mapping[Split, int]
    skipped: Mapping[Split, int]
    repeated: int


def prepare_triples(
    train: Path,
    out: Path,
    *,
    validation: Path | None = None,
    test: Path | None = None,
    columns: Sequence[str] = ("head", "relation", "tail"),
    types: Path | None = None,
    unknown: Literal["error", "skip"] = "error",
) -> Prepared:
    """Make a graph's folder of triples.

    Args:
        train: a file, a folder of files, or a pattern; see `triples.py`.
        out: the folder to write, whole or not at all.
        validation: edges to measure on in training.
        test: edges to measure on at the end.
        columns: the columns of text files in their order.
        types: a text file of relation, head type and tail type; without it all nodes are of one type.
        unknown: what becomes of edges to measure on whose node or relation training lacks.

    Raises:
        ConfigError: the columns are none.
        UserError: `out` has something else than an older graph in it.
        DataError: a file that is missing or not as it should be, a relation without types or without an edge, a weight,
            time or label that is none, an unknown node.
    """
    require_columns(columns)
    require_replaceable(out, PARTS, ["relations.json"])
    sources: dict[Split, tuple[Path, ...]] = {"train": triple_files(train)}
    for split, source in (("validation", validation), ("test", test)):
        if source is not None:
            sources[split] = triple_files(source)  # type: ignore[index]
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        TemporaryDirectory(prefix=".tml-", dir=out.parent) as scratch,
        duckdb.connect(Path(scratch) / "triples.duckdb") as connection,
        whole_folder(out) as folder,
    ):
        connection.execute(f"SET memory_limit='{MEMORY}'; SET temp_directory={literal(scratch)}; SET TimeZone='UTC'")
        work = _Preparing(connection, folder, sources)
        try:
            return work.run(columns, types, unknown, out)
        except duckdb.Error as error:
            raise DataError(f"{train}: no graph can be made of it ({first_line(error)})") from None


@dataclass(frozen=True)
class _Preparing:
    connection: duckdb.DuckDBPyConnection
    folder: Path
    sources: Mapping[Split, tuple[Path, ...]]

    def run(self, columns: Sequence[str], types: Path | None, unknown: str, out: Path) -> Prepared:
        for split, files in self.sources.items():
            read_triples(self.connection, files, columns, f"raw_{split}")
            self._require_values(split)
        self._relations(types)
        self._nodes()
        edges: dict[Split, int] = {}
        skipped: dict[Split, int] = {}
        for split in self.sources:
            skipped[split] = self._edges(split, unknown)
            edges[split] = self._write_edges(split)
        repeated = self._one("SELECT count(*) FROM raw_train") - edges["train"]
        self._write_vocabularies()
        skipped.pop("train")
        return Prepared(out, edges, skipped, repeated)

    def _relations(self, types: Path | None) -> None:
        """Make relations(number, name, head, tail)."""
        if types is None:
            self.connection.execute(
                "CREATE TABLE relations AS SELECT row_number() OVER (ORDER BY relation) - 1 AS number, "
                f"relation AS name, '{ONE_TYPE}' AS head, '{ONE_TYPE}' AS tail "
                "FROM (SELECT DISTINCT relation FROM raw_train)"
            )
            return
        read_triples(self.connection, triple_files(types), ("relation", "head", "tail"), "types")
        twice = self._first("SELECT relation FROM types GROUP BY relation HAVING count(*) > 1 ORDER BY 1")
        if twice is not None:
            raise DataError(f"{types}: found the relation {twice!r} twice, allowed is each name once")
        found = self.connection.execute("SELECT head FROM types UNION SELECT tail FROM types ORDER BY 1").fetchall()
        odd = next((name for (name,) in found if not is_type_name(name)), None)
        if odd is not None:
            raise DataError(f"{types}: found the node type {odd!r}, {TYPE_NAMES}")
        untyped = self._first("SELECT DISTINCT relation FROM raw_train ANTI JOIN types USING (relation) ORDER BY 1")
        if untyped is not None:
            raise DataError(f"{types}: found no types of the relation {untyped!r}, allowed is a line for each relation")
        empty = self._first("SELECT relation FROM types ANTI JOIN raw_train USING (relation) ORDER BY 1")
        if empty is not None:
            raise DataError(
                f"{self._file('train')}: found no edge of the relation {empty!r} of {types.name}, "
                "allowed are relations with edges"
            )
        self.connection.execute(
            "CREATE TABLE relations AS SELECT row_number() OVER (ORDER BY relation) - 1 AS number, relation AS name, "
            "head, tail FROM types"
        )

    def _nodes(self) -> None:
        """Make nodes(type, id, row), of all ids of training as text."""
        self.connection.execute(
            "CREATE TABLE ids AS SELECT DISTINCT type, id FROM ("
            "SELECT r.head AS type, e.head AS id FROM raw_train e JOIN relations r ON r.name = e.relation UNION ALL "
            "SELECT r.tail, e.tail FROM raw_train e JOIN relations r ON r.name = e.relation)"
        )
        self.connection.execute("CREATE TABLE nodes (type VARCHAR, id VARCHAR, row BIGINT)")
        for node, order in self._orders().items():
            self.connection.execute(
                f"INSERT INTO nodes SELECT type, id, row_number() OVER (ORDER BY {order}) - 1 FROM ids "
                f"WHERE type = {literal(node)}"
            )

    def _orders(self) -> dict[str, str]:
        """Type of node → its id as SQL: an integer where every id is one."""
        found = self.connection.execute(
            f"SELECT type, bool_and(regexp_full_match(id, '{INTEGER}') AND TRY_CAST(id AS BIGINT) IS NOT NULL) "
            "FROM ids GROUP BY type ORDER BY type"
        ).fetchall()
        return {node: "CAST(id AS BIGINT)" if integers else "id" for node, integers in found}

    def _edges(self, split: Split, unknown: str) -> int:
        """Make edges_SPLIT of rows; return how many edges were left out."""
        extras = "".join(f", {sql} AS {name}" for name, sql in self._extras(split).items())
        self.connection.execute(
            f"""CREATE TABLE found AS
            SELECT e.relation, e.head, e.tail, h.row AS lhs, r.number AS rel, t.row AS rhs{extras}
            FROM raw_{split} e LEFT JOIN relations r ON r.name = e.relation
            LEFT JOIN nodes h ON h.type = r.head AND h.id = e.head
            LEFT JOIN nodes t ON t.type = r.tail AND t.id = e.tail"""
        )
        lacking = "rel IS NULL OR lhs IS NULL OR rhs IS NULL"
        count: int = self._one(f"SELECT count(*) FROM found WHERE {lacking}")
        if count and unknown == "error":
            what = self._first(
                "SELECT CASE WHEN rel IS NULL THEN 'relation ' || relation WHEN lhs IS NULL THEN 'head ' || head "
                f"ELSE 'tail ' || tail END AS what FROM found WHERE {lacking} ORDER BY what"
            )
            raise DataError(
                f"{self._file(split)}: found {count:,} edges with what training lacks, as the {what}, allowed are "
                "known nodes and relations; `--unknown skip` leaves such edges out"
            )
        self.connection.execute(
            f"CREATE TABLE edges_{split} AS SELECT * EXCLUDE (relation, head, tail) FROM found WHERE NOT ({lacking}); "
            "DROP TABLE found"
        )
        return count

    def _write_edges(self, split: Split) -> int:
        select = f"SELECT * FROM edges_{split} ORDER BY ALL"
        if split == "train":
            merged = {"weight": "CAST(sum(weight) AS FLOAT)", "time": "max(time)"}
            extras = "".join(f", {merged[name]} AS {name}" for name in self._extras(split))
            select = f"SELECT lhs, rel, rhs{extras} FROM edges_train GROUP BY lhs, rel, rhs ORDER BY rel, lhs, rhs"
        path = self.folder / f"{SPLITS[split]}.parquet"
        self._copy(select, path)
        return int(self._one(f"SELECT count(*) FROM read_parquet({literal(str(path))})"))

    def _write_vocabularies(self) -> None:
        relations = self.connection.execute("SELECT name, head, tail FROM relations ORDER BY number").fetchall()
        entries = [dict(zip(("name", "head", "tail"), row, strict=True)) for row in relations]
        write_json(self.folder / "relations.json", entries)
        (self.folder / "vocabulary").mkdir()
        for node, order in self._orders().items():
            select = f"SELECT {order} AS id FROM nodes WHERE type = {literal(node)} ORDER BY row"
            self._copy(select, self.folder / "vocabulary" / f"{node}.parquet")

    def _copy(self, select: str, path: Path) -> None:
        self.connection.execute(f"COPY ({select}) TO {literal(str(path))} (FORMAT parquet, ROW_GROUP_SIZE {ROW_GROUP})")

    def _extras(self, split: Split) -> dict[str, str]:
        """The optional columns that a split has, as SQL of the raw ones."""
        has = {name: self._one(f"SELECT count({name}) FROM raw_{split}") for name in EXTRAS}
        casts = {"weight": "CAST(weight AS FLOAT)", "time": self._time(split), "label": "CAST(label AS TINYINT)"}
        return {name: casts[name] for name in EXTRAS if has[name]}

    def _time(self, split: Split) -> str:
        odd = self._one(f"SELECT count(*) FROM raw_{split} WHERE NOT regexp_full_match(time, '{INTEGER}')")
        return "CAST(time AS TIMESTAMP)" if odd else "CAST(time AS BIGINT)"

    def _require_values(self, split: Split) -> None:
        """Refuse weights, times and labels that are none; a column is there for all edges of a split or for none."""
        kind = "TIMESTAMP" if "TIMESTAMP" in self._time(split) else "BIGINT"
        number = "TRY_CAST(weight AS FLOAT)"
        checks = {
            "weight": (f"isfinite({number}) AND {number} >= 0", "finite numbers of at least 0"),
            "time": (f"TRY_CAST(time AS {kind}) IS NOT NULL", "all integers or all times such as 2024-05-01 12:00:00"),
            "label": ("label IN ('0', '1', 'true', 'false')", "0 and 1"),
        }
        for name, (check, allowed) in checks.items():
            rows = self._one(f"SELECT count({name}) FROM raw_{split}")
            if not rows:
                continue
            if name == "label" and split == "train":
                raise DataError(f"{self._file(split)}: found labels, allowed in training are edges alone")
            total = self._one(f"SELECT count(*) FROM raw_{split}")
            if rows < total:
                raise DataError(f"{self._file(split)}: {total - rows:,} rows have no {name}, allowed is all or none")
            odd = self._first(f"SELECT {name} FROM raw_{split} WHERE NOT coalesce({check}, false)")
            if odd is not None:
                raise DataError(f"{self._file(split)}: found {name} {odd!r}, allowed are {allowed}")
        if self._one(f"SELECT count(label) FROM raw_{split} WHERE label IN ('true', 'false')"):
            self.connection.execute(f"UPDATE raw_{split} SET label = CAST(CAST(label AS BOOLEAN) AS TINYINT)")

    def _file(self, split: Split) -> str:
        files = self.sources[split]
        return str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"

    def _one(self, sql: str) -> Any:
        row = self.connection.execute(sql).fetchone()
        assert row is not None  # an aggregate always has a row
        return row[0]

    def _first(self, sql: str) -> Any:
        row = self.connection.execute(f"{sql} LIMIT 1").fetchone()
        return None if row is None else row[0]
