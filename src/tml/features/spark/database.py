"""A database on Spark that is spoken to as DuckDB's connection is, with DuckDB's SQL.

SQLGlot translates. What it does not, or not rightly, is in `_rewrite`; what has no translation at all is written anew
for Spark: `LATEST_IMPRESSIONS` here, and the totals in `tml.features.spark.aggregates`. A table that a query makes is a
Parquet folder, so that it is computed once.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import sqlglot
from pyspark.sql import DataFrame, SparkSession
from sqlglot import exp

LATEST_IMPRESSIONS = (
    "SELECT user_id, post_id, type, engaged_at, row FROM ("
    "SELECT user_id, post_id, type, engaged_at, "
    "max(own) OVER (PARTITION BY user_id, post_id ORDER BY engaged_at) AS row FROM ("
    "SELECT user_id, post_id, type, engaged_at, CAST(NULL AS BIGINT) AS own FROM engagements UNION ALL "
    "SELECT user_id, post_id, NULL, served_at, row FROM impressions)) "
    "WHERE type IS NOT NULL"
)
"""As `tml.features.labels.LATEST_IMPRESSIONS`, whose ASOF join Spark lacks: rows are numbered by time, so the latest
impression at or before an engagement is the greatest row so far."""


def translate(query: str) -> exp.Expression:
    """A query for DuckDB as one for Spark."""
    return sqlglot.parse_one(query, read="duckdb").transform(_rewrite)


def _rewrite(node: exp.Expression) -> exp.Expression:
    if isinstance(node, exp.Anonymous) and node.name.lower() == "epoch_us":
        return exp.Anonymous(this="unix_micros", expressions=node.expressions)
    if isinstance(node, exp.DayOfWeekIso):
        # SQLGlot's own takes Sunday for the second day. Spark's weekday is 0 on Monday.
        return exp.paren(exp.Add(this=exp.Anonymous(this="weekday", expressions=[node.this]), expression=_number("1")))
    if isinstance(node, exp.Literal) and node.is_number and "." in node.this:
        # To Spark such a number is a decimal, and so is a quotient with it; to DuckDB a quotient is a double.
        return exp.Literal.number(f"{node.this}e0") if "e" not in node.this.lower() else node
    if isinstance(node, exp.DataType) and node.this == exp.DataType.Type.TIMESTAMP:
        # The session's zone is UTC, and an instant is what Parquet's times are read as.
        return exp.DataType(this=exp.DataType.Type.TIMESTAMPLTZ)
    return node


def _number(text: str) -> exp.Expression:
    return exp.Literal.number(text)


def uri(path: Path) -> str:
    """A path as Spark takes it, whatever file system it reads by default."""
    return f"file://{path.absolute()}"


class Database:
    """Tables and queries of one session.

    Args:
        session: the session, whose temporary views the tables are.
        folder: where the tables lie; every machine of a cluster must see it.
    """

    def __init__(self, session: SparkSession, folder: Path) -> None:
        self.session, self.folder = session, folder
        self._made = 0

    def execute(self, query: str) -> "Database.Result":
        """Run a query; one that makes a table makes it."""
        tree = translate(query)
        if isinstance(tree, exp.Create):
            selected = tree.expression
            # A table has no order.
            selected.set("order", None)
            self.keep(tree.this.name, self.session.sql(selected.sql("spark")))
            return Database.Result([])
        return Database.Result(self.session.sql(tree.sql("spark")).collect())

    def sql(self, query: str) -> DataFrame:
        """A query's rows, not yet computed."""
        return self.session.sql(translate(query).sql("spark"))

    def register(self, name: str, table: pa.Table) -> None:
        """Make a table of an Arrow table."""
        path = self._path(name)
        pq.write_table(table, path)
        self.open(name, path)

    def unregister(self, name: str) -> None:
        """Forget a table."""
        self.session.catalog.dropTempView(name)

    def keep(self, name: str, rows: DataFrame) -> DataFrame:
        """Compute rows once, as a table."""
        path = self._path(name)
        rows.write.parquet(uri(path))
        table = self.session.read.schema(rows.schema).parquet(uri(path))
        table.createOrReplaceTempView(name)
        return table

    def open(self, name: str, path: Path) -> None:
        """Make a table of Parquet that is there."""
        self.session.read.parquet(uri(path)).createOrReplaceTempView(name)

    def _path(self, name: str) -> Path:
        self._made += 1
        return self.folder / f"{name}-{self._made}.parquet"

    class Result:
        """Rows, as DuckDB's connection gives them."""

        def __init__(self, rows: Sequence[Any]) -> None:
            self._rows = rows

        def fetchall(self) -> list[tuple[Any, ...]]:
            """All rows."""
            return [tuple(row) for row in self._rows]
