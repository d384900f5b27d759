"""Labels: which impression an engagement belongs to, and whether it came in time.

An engagement belongs to the latest impression of the same post to the same person at or before it. Later than the
task's window after that impression, it does not count. An inline label belongs to its own row.
"""

from collections.abc import Mapping

import duckdb

from tml.data.config import TaskConfig
from tml.data.tables import literal, quote


def create_labels(connection: duckdb.DuckDBPyConnection, tasks: Mapping[str, TaskConfig], inline: bool) -> None:
    """Make the table `labels`: `row` and one FLOAT column (0 or 1) a task, for impressions that have any engagement."""
    columns = []
    for name, task in tasks.items():
        condition = f"e.type = {literal(task.engagement)}"
        if task.window_hours is not None:
            condition += f" AND e.engaged_at <= i.served_at + INTERVAL '{round(task.window_hours * 3600)} seconds'"
        columns.append(f"CAST(bool_or({condition}) AS FLOAT) AS {quote(name)}")
    # Of two impressions of a post to a person at one moment, the later row is the latest: a join alone would pick any.
    latest = "(SELECT user_id, post_id, served_at, max(row) AS row FROM impressions GROUP BY ALL)"
    same = "e.user_id = i.user_id AND e.post_id = i.post_id AND e.engaged_at >= i.served_at"
    join = "JOIN impressions i USING (row)" if inline else f"ASOF JOIN {latest} i ON {same}"
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE labels AS SELECT i.row, {', '.join(columns)} "
        f"FROM engagements e {join} GROUP BY i.row"
    )


def select_labels(tasks: Mapping[str, TaskConfig], first: int, last: int) -> str:
    """SQL that gives the labels of the impressions from row `first` to `last`, in order, one column a task."""
    columns = ", ".join(f"coalesce(l.{quote(name)}, 0) AS {quote(name)}" for name in tasks)
    rows = f"s.row BETWEEN {first} AND {last}"
    return f"SELECT {columns} FROM served s LEFT JOIN labels l USING (row) WHERE {rows} ORDER BY s.row"
