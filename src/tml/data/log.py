"""The engagement log, opened: DuckDB tables under the contract's names, checked and in one order.

    impressions(row, impression_id, user_id, post_id, served_at, position, session_id, …)
    engagements(user_id, post_id, type, engaged_at), and the impression's `row` where labels are inline
    posts(post_id, author_id, created_at, …)    users(user_id, …)    follows(user_id, followed_id, followed_at)
    history(user_id, post_id, type)

`row` numbers the impressions from 0 by time. Exact duplicates of rows are dropped, and those of impressions counted.
Whatever other columns the tables have stay as they are, for features to name. Optional tables that are not there are
not made.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from tempfile import TemporaryDirectory
from typing import Any

import duckdb

from tml.core.errors import DataError
from tml.data import tables
from tml.data.config import LogConfig, TableConfig
from tml.data.tables import Source, literal, quote

IMPRESSION = "impression"
"""The event type of having been shown, beside the engagement types."""

_USER_IDS = {"impressions": ["user_id"], "engagements": ["user_id"], "users": ["user_id"], "history": ["user_id"]}
_USER_IDS |= {"follows": ["user_id", "followed_id"], "posts": ["author_id"]}
_POST_IDS = {"impressions": ["post_id"], "engagements": ["post_id"], "posts": ["post_id"], "history": ["post_id"]}
_REQUIRED = {
    "impressions": ("user_id", "post_id", "served_at"),
    "engagements": ("user_id", "post_id", "type", "engaged_at"),
    "posts": ("post_id", "author_id"),
    "users": ("user_id",),
    "follows": ("user_id", "followed_id"),
    "history": ("user_id", "post_id", "type"),
}
_TIMES = {"impressions": "served_at", "engagements": "engaged_at", "posts": "created_at", "follows": "followed_at"}


@dataclass(frozen=True)
class Log:
    """An open engagement log.

    Attributes:
        connection: the DuckDB database that holds the tables of the module's docstring.
        tables: the tables there are, each with its column names.
        start, end: the first and the last `served_at`, UTC without an offset.
        rows: impressions after duplicates were dropped.
        duplicates: exact duplicate impressions that were dropped.
    """

    connection: duckdb.DuckDBPyConnection
    tables: dict[str, list[str]]
    start: datetime
    end: datetime
    rows: int
    duplicates: int

    def has(self, table: str, column: str | None = None) -> bool:
        """Whether the log has a table, or a column of it."""
        return table in self.tables and (column is None or column in self.tables[table])

    def engagement_types(self) -> list[str]:
        """The engagement types that occur, sorted."""
        rows = self.connection.execute("SELECT DISTINCT type FROM engagements ORDER BY type").fetchall()
        return [row[0] for row in rows]


def log_fingerprint(config: LogConfig) -> str:
    """A digest of the content of every file of the log."""
    found = [tables.find_files(config.path, name, table) for name, table in _table_configs(config)]
    if config.truth:
        found.append(tables.find_files(config.path, "truth", TableConfig(file=config.truth)))
    return tables.content_hash([file for files in found for file in files])


@contextmanager
def open_log(config: LogConfig, memory: str = "2GB") -> Iterator[Log]:
    """Open a log for the length of a block.

    Args:
        config: where it lies and what its columns are called.
        memory: how much memory DuckDB may hold before it spills to disk.

    Raises:
        DataError: one sentence that names file and column, what was found and what is allowed.
    """
    if not config.path.is_dir():
        raise DataError(f"{config.path}: no such folder (log.path), allowed is a folder with the tables of a log")
    with TemporaryDirectory(prefix="tml-") as spill, duckdb.connect() as connection:
        connection.execute(
            f"SET TimeZone='UTC'; SET memory_limit={literal(memory)}; SET temp_directory={literal(spill)}"
        )
        try:
            log = _load(connection, config)
        except duckdb.Error as error:
            raise DataError(f"{config.path}: not a readable log ({str(error).splitlines()[0][:200]})") from None
        yield log


def _table_configs(config: LogConfig) -> list[tuple[str, TableConfig]]:
    named: list[tuple[str, TableConfig | None]] = [
        ("impressions", config.impressions),
        ("engagements", config.engagements if not config.impressions.labels else None),
        ("posts", config.posts),
        ("users", config.users),
        ("follows", config.follows),
        ("history", config.history),
    ]
    return [(name, table) for name, table in named if table is not None]


def _load(connection: duckdb.DuckDBPyConnection, config: LogConfig) -> Log:
    configs = dict(_table_configs(config))
    opened = {name: tables.open_source(connection, config.path, name, table) for name, table in configs.items()}
    sources = {name: source for name, source in opened.items() if source is not None}
    for name in ("impressions", "posts", *(() if config.impressions.labels else ("engagements",))):
        if name not in sources:
            raise DataError(
                f"{config.path}: no {name} table, allowed is a file {name}.parquet, .csv or .jsonl "
                f"(plain, .gz or .zst), or one named with log.{name}.file"
            )
    for name, source in sources.items():
        tables.require(source, _REQUIRED[name])
    integer_users, integer_posts = _all_integer(sources, _USER_IDS), _all_integer(sources, _POST_IDS)
    for name, source in sources.items():
        _create(connection, source, configs[name], integer_users, integer_posts)
    duplicates = _order_impressions(connection, sources["impressions"], config)
    if config.impressions.labels:
        _inline_engagements(connection, sources["impressions"], config.impressions.labels)
    if config.history:
        _rename_history(connection, config.history.relations)
    start, end, rows = _one(connection, "SELECT min(served_at), max(served_at), count(*) FROM impressions")
    if config.history and config.history.ended_at.replace(tzinfo=None) > start:
        raise DataError(
            f"log.history.ended_at: found {config.history.ended_at:%Y-%m-%d %H:%M}, allowed is a time not later than "
            f"the first impression, {start:%Y-%m-%d %H:%M}"
        )
    names = {row[0] for row in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    columns = {name: [row[0] for row in connection.execute(f"DESCRIBE {quote(name)}").fetchall()] for name in names}
    return Log(connection, columns, start, end, rows, duplicates)


def _all_integer(sources: dict[str, Source], ids: dict[str, list[str]]) -> bool:
    kinds = [source.columns[column][1] for name, source in sources.items() for column in ids.get(name, [])]
    return all(tables.is_integer(kind) for kind in kinds)


def _create(
    connection: duckdb.DuckDBPyConnection, source: Source, config: TableConfig, integer_users: bool, integer_posts: bool
) -> None:
    """Copy a table in, its ids and times read by the contract, exact duplicates dropped, and check it."""
    name, selected = source.name, []
    for column, (own, _) in source.columns.items():
        if column in _USER_IDS.get(name, []):
            expression = tables.id_expression(source, column, integer_users)
        elif column in _POST_IDS.get(name, []):
            expression = tables.id_expression(source, column, integer_posts)
        elif column == _TIMES.get(name):
            expression = tables.time_expression(connection, source, column, config)
        else:
            expression = quote(own)
        selected.append(f"{expression} AS {quote(column)}")
    try:
        # Without times, equal rows of a history are things that happened more than once.
        distinct = "" if name == "history" else "DISTINCT "
        connection.execute(f"CREATE TABLE {name} AS SELECT {distinct}{', '.join(selected)} FROM {source.relation}")
    except duckdb.Error as error:
        raise DataError(f"{source.label}: not a readable {name} table ({str(error).splitlines()[0][:200]})") from None
    if name in ("impressions", "posts") and _one(connection, f"SELECT count(*) FROM {name}")[0] == 0:
        raise DataError(f"{source.label}: the table {name} is empty, allowed is one row or more")
    for column in _REQUIRED[name]:
        if name == "posts" and column == "author_id":
            continue
        missing = _one(connection, f"SELECT count(*) FROM {name} WHERE {quote(column)} IS NULL")[0]
        if missing:
            own = source.columns[column][0]
            raise DataError(f"{source.label}: column {own}: found {missing} rows without a value, allowed are none")
    for table, key in (("posts", "post_id"), ("users", "user_id")):
        if name == table:
            row = connection.execute(
                f"SELECT {key} FROM {name} GROUP BY 1 HAVING count(*) > 1 ORDER BY 1 LIMIT 1"
            ).fetchone()
            if row:
                raise DataError(f"{source.label}: found two different rows of {key} {row[0]!r}, allowed is one")
    if name == "follows" and "followed_at" not in source.columns:
        connection.execute("ALTER TABLE follows ADD COLUMN followed_at TIMESTAMP")
    if name == "posts" and "created_at" not in source.columns:
        connection.execute("ALTER TABLE posts ADD COLUMN created_at TIMESTAMP")


def _order_impressions(connection: duckdb.DuckDBPyConnection, source: Source, config: LogConfig) -> int:
    """Number the impressions by time and add what optional columns are missing; return the number of duplicates."""
    raw = _one(connection, f"SELECT count(*) FROM {source.relation}")[0]
    rows = _one(connection, "SELECT count(*) FROM impressions")[0]
    columns = [row[0] for row in connection.execute("DESCRIBE impressions").fetchall()]
    first = [c for c in ("served_at", "user_id", "post_id", "position", "impression_id") if c in columns]
    order = ", ".join(quote(c) for c in first + [c for c in columns if c not in first])
    steps = [f"SELECT row_number() OVER (ORDER BY {order}) - 1 AS row, * FROM impressions"]
    if "impression_id" not in columns:
        steps.append("SELECT *, row AS impression_id FROM impressions")
    if "session_id" not in columns:
        gap = f"INTERVAL '{round(config.session_gap_minutes * 60_000)} milliseconds'"
        pause = f"coalesce(served_at - lag(served_at) OVER (PARTITION BY user_id ORDER BY row) > {gap}, true)"
        steps.append(f"SELECT *, {pause} AS opens FROM impressions")
        number = "CAST(sum(CAST(opens AS INTEGER)) OVER (ORDER BY user_id, row) - 1 AS BIGINT)"
        steps.append(f"SELECT * EXCLUDE (opens), {number} AS session_id FROM impressions")
    if "position" not in columns:
        steps.append(
            "SELECT *, row_number() OVER (PARTITION BY session_id ORDER BY row) - 1 AS position FROM impressions"
        )
    for step in [*steps, "SELECT * FROM impressions ORDER BY row"]:
        connection.execute(f"CREATE OR REPLACE TABLE impressions AS {step}")
    twice = connection.execute(
        "SELECT impression_id FROM impressions GROUP BY 1 HAVING count(*) > 1 ORDER BY 1 LIMIT 1"
    ).fetchone()
    if twice:
        raise DataError(f"{source.label}: found impression_id {twice[0]!r} in two different rows, allowed is one")
    return int(raw - rows)


def _inline_engagements(connection: duckdb.DuckDBPyConnection, source: Source, labels: Sequence[str]) -> None:
    parts = []
    for label in labels:
        if label not in source.columns:
            raise DataError(
                f"{source.label}: unknown column {label!r} (log.impressions.labels), "
                f"found are {', '.join(source.columns)}"
            )
        try:
            bad = connection.execute(
                f"SELECT any_value({quote(label)}) FROM impressions WHERE CAST({quote(label)} AS DOUBLE) NOT IN (0, 1)"
            ).fetchone()
        except duckdb.Error:
            bad = connection.execute(f"SELECT any_value({quote(label)}) FROM impressions").fetchone()
        if bad and bad[0] is not None:
            raise DataError(f"{source.label}: column {label}: found {bad[0]!r}, allowed are 0 and 1")
        parts.append(
            f"SELECT user_id, post_id, {literal(label)} AS type, served_at AS engaged_at, row FROM impressions "
            f"WHERE CAST({quote(label)} AS DOUBLE) = 1"
        )
    connection.execute("CREATE TABLE engagements AS " + " UNION ALL ".join(parts))


def _rename_history(connection: duckdb.DuckDBPyConnection, relations: dict[str, str]) -> None:
    known = [
        row[0] for row in connection.execute("SELECT DISTINCT CAST(type AS VARCHAR) FROM history ORDER BY 1").fetchall()
    ]
    for own in relations:
        if own not in known:
            raise DataError(f"log.history.relations: found {own!r}, allowed are {', '.join(known)}")
    cases = " ".join(f"WHEN {literal(own)} THEN {literal(new)}" for own, new in relations.items())
    renamed = f"CASE CAST(type AS VARCHAR) {cases} ELSE CAST(type AS VARCHAR) END" if cases else "CAST(type AS VARCHAR)"
    connection.execute(f"CREATE OR REPLACE TABLE history AS SELECT * REPLACE ({renamed} AS type) FROM history")


def _one(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    row = connection.execute(query).fetchone()
    assert row is not None
    return row
