"""Spark as the engine of an example dataset: DuckDB opens and checks the log, Spark computes all that follows.

    log/ ── DuckDB ──► tables ── Spark ──► selected, labels, a folder a key ──► shards

All of these are Parquet beside the dataset while it is made. What Spark writes is in the order of rows, so that it is
read once, a chunk of each folder at a time, by the code that writes the shards of any engine.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tml.data.config import TaskConfig
from tml.data.log import Log
from tml.data.tables import literal, quote
from tml.features.aggregates import Aggregates
from tml.features.config import FeaturesConfig
from tml.features.engine import KEY_COLUMNS
from tml.features.graph import create_following, graph_features
from tml.features.labels import select_labels
from tml.features.selection import Selection, Vectors
from tml.features.sides import SIDES, key_column, select_sides
from tml.features.spark.aggregates import SparkAggregates
from tml.features.spark.database import LATEST_IMPRESSIONS, Database, uri
from tml.features.spark.session import open_session
from tml.features.split import Span
from tml.features.static import IMPRESSED, StaticColumns, load_vocabularies, static_columns

_CONTRACT = {
    "impressions": ("row", "impression_id", "session_id", "user_id", "post_id", "served_at", "position", IMPRESSED),
    "engagements": ("user_id", "post_id", "type", "engaged_at", "row"),
    "posts": ("post_id", "author_id", "created_at"),
    "users": ("user_id",),
    "follows": ("user_id", "followed_id", "followed_at"),
    "history": ("user_id", "post_id", "type"),
}
_SAME_TEXT = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "VARCHAR", "BOOLEAN", "DATE", "TIMESTAMP")
"""Types whose values both engines write the same way."""


@contextmanager
def open_spark_engine(
    log: Log, tasks: Mapping[str, TaskConfig], config: FeaturesConfig, spans: Sequence[Span], out: Path
) -> Iterator["SparkEngine"]:
    """Hand a log over to Spark, for the length of a block.

    Raises:
        UserError: PySpark or Java is not installed.
        DataError: Spark fails, or a column is not what it is named for.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        open_session(config.spark) as session,
        TemporaryDirectory(prefix=".tml-spark-", dir=out.parent) as folder,
    ):
        database = Database(session, Path(folder))
        yield SparkEngine(log, database, tasks, config, spans)


class SparkEngine:
    """Computes everything in `prepare`, and then reads it."""

    latest = LATEST_IMPRESSIONS

    def __init__(
        self,
        log: Log,
        database: Database,
        tasks: Mapping[str, TaskConfig],
        config: FeaturesConfig,
        spans: Sequence[Span],
    ) -> None:
        self._opened, self._database, self._tasks, self._config = log, database, tasks, config
        self._first, self._last = min(span.first for span in spans), max(span.last for span in spans)
        # SQL of features and labels goes through this, whichever engine's it is.
        self.log = dataclasses.replace(log, connection=cast(Any, database))
        self._columns = static_columns(log, config)
        self._aggregates = Aggregates.of(config.aggregates or (), config.smoothing)
        self._hand_over()
        self._selection: Selection | None = None
        self._readers: dict[str, _Ordered] = {}

    def _hand_over(self) -> None:
        """Write what Spark needs of the log's tables."""
        needed = {table: list(columns) for table, columns in _CONTRACT.items()}
        for name in _static_names(self._columns):
            table, _, column = name.partition(".")
            needed[table].append(column)
        for name in self._aggregates.columns:
            table, column = key_column(self._opened, name)
            needed[table].append(column)
        for table in needed:
            if self._opened.has(table):
                columns = [c for c in dict.fromkeys(needed[table]) if self._opened.has(table, c)]
                selected = ", ".join(self._handed_over(table, column) for column in columns)
                path = self._database.folder / f"log-{table}.parquet"
                self._opened.connection.execute(
                    f"COPY (SELECT {selected} FROM {table}) TO {literal(str(path))} (FORMAT parquet)"
                )
                self._database.open(table, path)

    def _handed_over(self, table: str, column: str) -> str:
        name = f"{table}.{column}"
        [(kind,)] = self._opened.connection.execute(
            f"SELECT any_value(typeof({quote(column)})) FROM {table}"
        ).fetchall()
        if name in self._columns.discrete and kind not in _SAME_TEXT:
            return f"CAST({quote(column)} AS VARCHAR) AS {quote(column)}"
        if (name in self._columns.ages and name not in self._columns.discrete) or name == f"impressions.{IMPRESSED}":
            return f"CAST({quote(column)} AS TIMESTAMP) AS {quote(column)}"
        return quote(column)

    def prepare(self, vocabularies: Mapping[str, list[str]]) -> Selection:
        """Compute the examples of all spans."""
        database, folder = self._database, self._database.folder
        graph = graph_features(self._opened, self._config)
        self._selection = Selection(self._columns, graph, self._aggregates, vocabularies)
        load_vocabularies(self.log.connection, self._columns, vocabularies)
        # Keys are partitions here, and a value is as good as its number.
        for table, query in select_sides(self._opened, self._aggregates.columns, self._columns, str).items():
            database.execute(f"CREATE TABLE {SIDES[table]} AS {query}")
        create_following(self.log)
        relation = f"(FROM impressions WHERE row BETWEEN {self._first} AND {self._last})"
        queries = {
            "selected": self._selection.query(relation, {"row": "i.row", **KEY_COLUMNS}),
            "labels": select_labels(self._tasks, self._first, self._last),
        }
        for name, query in queries.items():
            database.sql(query).write.parquet(uri(folder / f"out-{name}"))
            self._readers[name] = _Ordered(folder / f"out-{name}", self._first)
        aggregates = SparkAggregates(database, self._opened, self._aggregates)
        for number, path in enumerate(aggregates.write(self._first, self._last, folder)):
            self._readers[f"key {number}"] = _Ordered(path, self._first)
        return self._selection

    def examples(self, first: int, last: int) -> tuple[Vectors, pa.Table]:
        """Read a chunk of all that was computed."""
        assert self._selection is not None
        tables = {name: reader.read(first, last) for name, reader in self._readers.items()}
        selected, labels = tables.pop("selected"), tables.pop("labels")
        assert np.array_equal(selected["row"].to_numpy(), np.arange(first, last + 1)), "Spark's rows are out of order"
        vectors, aggregates = self._selection.vectors(selected)
        column = 0
        for table in tables.values():
            assert table["row"].equals(selected["row"]), "Spark's rows are out of order"
            for values in table.columns[1:]:
                aggregates[:, column] = values.to_numpy()
                column += 1
        keys = selected.select(list(KEY_COLUMNS)).cast(self._key_schema())
        for task in self._tasks:
            # 0 where there is no label widens a float to a double, to Spark.
            keys = keys.append_column(task, labels[task].cast(pa.float32()))
        return vectors, keys

    def _key_schema(self) -> pa.Schema:
        """The types of the keys as DuckDB gives them."""
        selected = ", ".join(f"{sql} AS {quote(name)}" for name, sql in KEY_COLUMNS.items())
        query = f"SELECT {selected} FROM impressions i LEFT JOIN posts p USING (post_id) LIMIT 0"
        return self._opened.connection.sql(query).to_arrow_table().schema


def _static_names(columns: StaticColumns) -> list[str]:
    return [*columns.continuous, *columns.binary, *columns.discrete, *columns.ages]


class _Ordered:
    """The rows of a Parquet folder that Spark wrote in order, read once from beginning to end."""

    def __init__(self, folder: Path, first: int) -> None:
        self._files = sorted(folder.glob("part-*.parquet"), key=lambda path: int(path.name.split("-")[1]))
        self._batches = self._read()
        self._next = first
        self._left: list[pa.RecordBatch] = []

    def _read(self) -> Iterator[pa.RecordBatch]:
        for path in self._files:
            with pq.ParquetFile(path) as file:
                yield from file.iter_batches()

    def read(self, first: int, last: int) -> pa.Table:
        """The rows from `first` to `last`; those between the last call's and these are passed over."""
        table = self._take(last + 1 - self._next).slice(first - self._next)
        self._next = last + 1
        return table

    def _take(self, rows: int) -> pa.Table:
        while sum(len(batch) for batch in self._left) < rows:
            self._left.append(next(self._batches))
        table = pa.Table.from_batches(self._left)
        self._left = table.slice(rows).to_batches()
        return table.slice(0, rows)
