"""The engagement log, opened: DuckDB tables under the contract's names, checked and in one order.

    impressions(row, impression_id, user_id, post_id, served_at, position, session_id, …)
    engagements(user_id, post_id, type, engaged_at), and the impression's `row` where labels are inline
    posts(post_id, author_id, created_at, …)    users(user_id, …)    follows(user_id, followed_id, followed_at)
    history(user_id, post_id, type)

`row` numbers the impressions from 0 by time. Exact duplicates of rows are dropped, and those of impressions counted.
Whatever other columns the tables have stay as they are, for features to name. Optional tables that are not there are
not made. The database of a large log is a temporary file: its size is bound by the disk and not by the memory.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb

from tml.core.errors import DataError
from tml.core.progress import Bar, progress
from tml.data import contract, tables
from tml.data.config import LogConfig, TableConfig
from tml.data.contract import Read, create_table, drop_faulty_rows, read_columns, table_configs
from tml.data.faults import Faults, Skipped, first_line, skipped_line
from tml.data.impressions import create_impressions, create_inline_engagements
from tml.data.source import Source, open_source
from tml.data.tables import literal, quote

IMPRESSION = "impression"
"""The event type of having been shown, beside the engagement types."""

MEGABYTE = 1_000_000
LARGE = 20 * MEGABYTE
"""A log with files smaller than this together is opened in a moment, and in memory."""


@dataclass(frozen=True)
class Log:
    """An open engagement log.

    Attributes:
        connection: the DuckDB database that holds the tables of the module's docstring.
        tables: the tables there are, each with its column names.
        start, end: the first and the last `served_at`, UTC without an offset.
        rows: impressions after duplicates were dropped.
        duplicates: exact duplicate impressions that were dropped.
        skipped: what could not be used and was left out, with `on_error: skip`.
        labels: the columns of the impressions that are labels.
    """

    connection: duckdb.DuckDBPyConnection
    tables: dict[str, list[str]]
    start: datetime
    end: datetime
    rows: int
    duplicates: int
    skipped: tuple[Skipped, ...] = ()
    labels: tuple[str, ...] = ()

    def has(self, table: str, column: str | None = None) -> bool:
        """Whether the log has a table, or a column of it."""
        return table in self.tables and (column is None or column in self.tables[table])

    def engagement_types(self) -> list[str]:
        """The engagement types that occur, sorted."""
        rows = self.connection.execute("SELECT DISTINCT type FROM engagements ORDER BY type").fetchall()
        return [row[0] for row in rows]

    def skipped_line(self) -> str:
        """What was skipped, in one line to print; empty where nothing was."""
        return skipped_line(self.skipped)


def is_log(source: Path) -> bool:
    """Whether a path is the folder of an engagement log in the contract's form, which has impressions."""
    return source.is_dir() and bool(tables.find_files(source, "impressions", TableConfig()))


def log_fingerprint(config: LogConfig) -> str:
    """A digest of the content of every file of the log."""
    found = [tables.find_files(config.path, name, table) for name, table in table_configs(config).items()]
    if config.truth:
        found.append(tables.find_files(config.path, "truth", TableConfig(file=config.truth)))
    return tables.content_hash([file for files in found for file in files])


@contextmanager
def open_log(config: LogConfig, memory: str = "2GB") -> Iterator[Log]:
    """Open a log for the length of a block.

    Args:
        config: where it lies, what its columns are called, and what is to be done about what is wrong in it.
        memory: how much memory DuckDB may hold before it spills to disk.

    Raises:
        DataError: one sentence that names file, place and column, what was found and what is allowed.
    """
    with open_with_sources(config, memory) as (log, reads):
        for read in reads.values():
            log.connection.execute(f"DROP TABLE {quote(read.source.table)}")
        yield log


@contextmanager
def open_with_sources(config: LogConfig, memory: str = "2GB") -> Iterator[tuple[Log, dict[str, Read]]]:
    """Open a log and keep the raw tables that it was made of, in the order of their files. See `open_log`."""
    if not config.path.is_dir():
        raise DataError(f"{config.path}: no such folder (log.path), allowed is a folder with the tables of a log")
    files = {name: tables.find_files(config.path, name, table) for name, table in table_configs(config).items()}
    sizes = {name: sum(file.stat().st_size for file in found if file.is_file()) for name, found in files.items()}
    with TemporaryDirectory(prefix="tml-") as folder, _connect(Path(folder), sum(sizes.values())) as connection:
        connection.execute(
            f"SET TimeZone='UTC'; SET memory_limit={literal(memory)}; SET temp_directory={literal(folder)}; "
            "SET preserve_insertion_order=true"
        )
        try:
            opened = _load(connection, config, sizes)
        except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
            raise DataError(f"{config.path}: found no room to open the log in ({first_line(error)})") from None
        yield opened


def _connect(folder: Path, size: int) -> duckdb.DuckDBPyConnection:
    return duckdb.connect(folder / "log.duckdb" if size >= LARGE else ":memory:")


def _load(
    connection: duckdb.DuckDBPyConnection, config: LogConfig, sizes: Mapping[str, int]
) -> tuple[Log, dict[str, Read]]:
    configs, faults = table_configs(config), Faults(config.on_error)
    with _progress(sum(sizes.values())) as bar:
        sources = {}
        for name, table in configs.items():
            source = open_source(connection, config.path, name, table, contract.REQUIRED[name], faults)
            if source is not None:
                sources[name] = source
            bar.advance(sizes[name] / 2 / MEGABYTE, name)
        _refuse_missing_tables(config, sources)
        reads = read_columns(connection, sources, config, faults)
        for read in reads.values():
            drop_faulty_rows(connection, read, faults)
        for name, read in reads.items():
            if name == "impressions":
                duplicates = create_impressions(connection, read, config.session_gap_minutes, faults)
            else:
                create_table(connection, read, faults)
            bar.advance(sizes[name] / 2 / MEGABYTE, name)
    if config.impressions.labels:
        create_inline_engagements(connection, config.impressions.labels, config.impressions.label_delay_minutes)
    if config.history:
        _rename_history(connection, config.history.relations)
    row = connection.execute("SELECT min(served_at), max(served_at), count(*) FROM impressions").fetchone()
    assert row is not None
    start, end, rows = row
    if config.history and config.history.ended_at.replace(tzinfo=None) > start:
        raise DataError(
            f"log.history.ended_at: found {config.history.ended_at:%Y-%m-%d %H:%M}, allowed is a time not later than "
            f"the first impression, {start:%Y-%m-%d %H:%M}"
        )
    made = [*reads, *(["engagements"] if config.impressions.labels else [])]
    columns = {name: [row[0] for row in connection.execute(f"DESCRIBE {quote(name)}").fetchall()] for name in made}
    log = Log(
        connection, columns, start, end, rows, duplicates, tuple(faults.skipped), labels=config.impressions.labels
    )
    return log, reads


def _refuse_missing_tables(config: LogConfig, sources: Mapping[str, Source]) -> None:
    for name in ("impressions", "posts", *(() if config.impressions.labels else ("engagements",))):
        if name not in sources:
            raise DataError(
                f"{config.path}: no {name} table, allowed is a file {name}.parquet, .csv or .jsonl "
                f"(plain, .gz or .zst), a folder of them, or one named with log.{name}.file"
            )


@contextmanager
def _progress(size: int) -> Iterator[Bar]:
    if size < LARGE:
        yield _Silent()
        return
    with progress("open log", total=size / MEGABYTE, unit="MB") as bar:
        yield bar


class _Silent:
    def advance(self, amount: float = 1, note: str = "") -> None:
        """Show nothing."""


def _rename_history(connection: duckdb.DuckDBPyConnection, relations: Mapping[str, str]) -> None:
    known = [row[0] for row in connection.execute("SELECT DISTINCT type FROM history ORDER BY 1").fetchall()]
    for own in relations:
        if own not in known:
            raise DataError(f"log.history.relations: found {own!r}, allowed are {', '.join(known)}")
    if relations:
        cases = " ".join(f"WHEN {literal(own)} THEN {literal(new)}" for own, new in relations.items())
        renamed = f"SELECT * REPLACE (CASE type {cases} ELSE type END AS type) FROM history"
        connection.execute(f"CREATE OR REPLACE TABLE history AS {renamed}")
