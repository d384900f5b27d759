"""Labels: which impression an engagement belongs to, and whether it came in time.

An engagement belongs to the latest impression of the same post to the same person at or before it. Later than the
task's window after that impression was served, it does not count. An inline label belongs to its own row.

**Rectified.** A post that is served is not seen at once, or ever. Where the impressions have a time `impressed_at`
beside `served_at`, an engagement counts only if both it and the impression lie within the window from the serving on;
without a window, if the post was seen at all.

**Down-sampled.** Training keeps a share of a task's negatives; the labels of the others do not count there. The share
is in the dataset's schema, and the probabilities are corrected for it after the model, once.
"""

from collections.abc import Mapping

import duckdb
import numpy as np
import pyarrow as pa

from tml.core.errors import DataError
from tml.data.config import TaskConfig
from tml.data.log import Log
from tml.data.tables import literal, quote
from tml.features.split import Span
from tml.features.static import IMPRESSED

# Of two impressions of a post to a person at one moment, the later row is the latest: a join alone would pick any.
LATEST_IMPRESSIONS = (
    "SELECT e.user_id, e.post_id, e.type, e.engaged_at, i.row FROM engagements e "
    "ASOF LEFT JOIN (SELECT user_id, post_id, served_at, "
    "max(row) AS row FROM impressions SEMI JOIN engagements USING (user_id, post_id) GROUP BY ALL) i "
    "ON e.user_id = i.user_id AND e.post_id = i.post_id AND e.engaged_at >= i.served_at"
)
"""SQL of engagements, each with the `row` of the latest impression at or before it; null where there was none."""


def select_engagements(log: Log, latest: str) -> str:
    """What to select engagements from, each with the `row` of the impression that it belongs to.

    Args:
        log: the open log.
        latest: SQL of the latest impressions, for engagements that are not inline.
    """
    return "engagements" if log.has("engagements", "row") else f"({latest})"


def create_labels(log: Log, tasks: Mapping[str, TaskConfig], latest: str = LATEST_IMPRESSIONS) -> None:
    """Make the table `labels`: `row` and one FLOAT column (0 or 1) a task, for impressions that have any engagement.

    Args:
        log: the open log.
        tasks: task → the engagement that is its label.
        latest: SQL of which impression an engagement belongs to, for an engine without ASOF joins.
    """
    rectified = log.has("impressions", IMPRESSED)
    inline = log.has("engagements", "row")
    # When an inline label became known is assumed; that it counts is given.
    times = ["e.engaged_at"] * (not inline) + [f"i.{IMPRESSED}"] * rectified
    columns = []
    for name, task in tasks.items():
        conditions = [f"e.type = {literal(task.engagement)}"]
        if rectified:
            conditions.append(f"i.{IMPRESSED} >= i.served_at")
        if task.window_hours is not None:
            end = f"i.served_at + INTERVAL '{round(task.window_hours * 3_600_000)} milliseconds'"
            conditions += [f"{time} <= {end}" for time in times]
        columns.append(f"CAST(coalesce(bool_or({' AND '.join(conditions)}), false) AS FLOAT) AS {quote(name)}")
    log.connection.execute(
        f"CREATE OR REPLACE TEMP TABLE labels AS SELECT row, {', '.join(columns)} "
        f"FROM {select_engagements(log, latest)} e JOIN impressions i USING (row) GROUP BY row ORDER BY row"
    )


def check_tasks(log: Log, tasks: Mapping[str, TaskConfig]) -> None:
    """Refuse a task whose engagement never occurs."""
    found = log.engagement_types()
    for name, task in tasks.items():
        if task.engagement not in found:
            raise DataError(
                f"tasks.{name}.engagement: found {task.engagement!r}, which never occurs in the log; "
                f"its engagement types are {', '.join(found) or 'none'}"
            )


def check_positives(connection: duckdb.DuckDBPyConnection, tasks: Mapping[str, TaskConfig], span: Span) -> None:
    """Refuse a task that has no positives in a span."""
    sums = ", ".join(f"coalesce(sum({quote(name)}), 0)" for name in tasks)
    [counts] = connection.execute(
        f"SELECT {sums} FROM labels WHERE row BETWEEN {span.first} AND {span.last}"
    ).fetchall()
    none = [name for name, count in zip(tasks, counts, strict=True) if count == 0]
    if none:
        raise DataError(
            f"tasks: found no positives for {', '.join(none)} in training, from {span.start:%Y-%m-%d %H:%M} to "
            f"{span.end:%Y-%m-%d %H:%M}; take them out of tasks or train on a longer span"
        )


def select_labels(tasks: Mapping[str, TaskConfig], first: int, last: int) -> str:
    """SQL that gives the labels of the impressions from row `first` to `last`, in order, one column a task."""
    columns = ", ".join(f"coalesce(l.{quote(name)}, 0) AS {quote(name)}" for name in tasks)
    asked = f"BETWEEN {first} AND {last}"
    rows = f"(SELECT row FROM impressions WHERE row {asked}) r LEFT JOIN (FROM labels WHERE row {asked}) l"
    return f"SELECT {columns} FROM {rows} USING (row) ORDER BY row"


def sample_negatives(table: pa.Table, tasks: Mapping[str, TaskConfig], seed: int, first: int) -> pa.Table:
    """Take the labels of the negatives that are not kept out of training: NaN does not count.

    Args:
        table: rows with one column a task.
        tasks: the tasks, each with the share of its negatives that is kept.
        seed, first: with the first row's number they decide which.
    """
    for number, (name, task) in enumerate(tasks.items()):
        if task.negative_sampling_rate < 1:
            labels = table[name].to_numpy().copy()
            drawn = np.random.default_rng([seed, first, number]).random(len(labels))
            labels[(labels == 0) & (drawn >= task.negative_sampling_rate)] = np.nan
            table = table.set_column(table.column_names.index(name), name, pa.array(labels))
    return table
