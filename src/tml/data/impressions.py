"""The impressions of an open log: in one order, numbered, each with its session and its position.

The order is by time, and among equal times by all other columns, so that it does not depend on that of the files.
Exact duplicates stand next to each other in it, which is how they are found.
"""

from collections.abc import Sequence

import duckdb

from tml.data.contract import Read, last_place, one, refuse_empty
from tml.data.faults import Faults, shown
from tml.data.tables import literal, quote

_FIRST = ("served_at", "user_id", "post_id", "position", "impression_id")
_ADDED = ("impression_id", "session_id", "position")


def create_impressions(
    connection: duckdb.DuckDBPyConnection, read: Read, session_gap_minutes: float, faults: Faults
) -> int:
    """Make the table of impressions out of its raw one.

    Args:
        session_gap_minutes: where there is no session_id, a viewer's session ends after a pause this long.

    Returns:
        The number of exact duplicates that were dropped.

    Raises:
        DataError: no impression; an impression_id in two different rows, if faults stop the reading.
    """
    source = read.source
    missing = [column for column in _ADDED if column not in read.readings]
    raw = one(connection, f"SELECT count(*) FROM {quote(source.table)}")[0]
    assert isinstance(raw, int)
    connection.execute(f"CREATE OR REPLACE TABLE {'numbered' if missing else 'impressions'} AS {_numbered(read)}")
    if missing:
        _create_moments(connection, missing, session_gap_minutes)
        added = ", ".join("n.row AS impression_id" if c == "impression_id" else f"m.{c}" for c in missing)
        moments = " POSITIONAL JOIN moments m" if missing != ["impression_id"] else ""
        connection.execute(f"CREATE OR REPLACE TABLE impressions AS SELECT n.*, {added} FROM numbered n{moments}")
        connection.execute("DROP TABLE numbered; DROP TABLE IF EXISTS moments")
    refuse_empty(connection, source, faults)
    rows = one(connection, "SELECT count(*) FROM impressions")[0]
    assert isinstance(rows, int)
    if "impression_id" in read.readings:
        rows -= _one_impression_each(connection, read, faults)
    return raw - rows


def _numbered(read: Read) -> str:
    """SQL of the impressions in their order, each once, with `row` from 0.

    Windows without an order are streamed: they see the rows as the sort gives them, and hold none of them.
    """
    names = [*read.readings]
    values = ", ".join(f"{read.value(name)} AS {quote(name)}" for name in names)
    order = [name for name in _FIRST if name in names] + [name for name in names if name not in _FIRST]
    sort = f"SELECT {values} FROM {quote(read.source.table)} ORDER BY {', '.join(map(quote, order))}"
    same = " AND ".join(f"{quote(name)} IS NOT DISTINCT FROM lag({quote(name)}) OVER ()" for name in order)
    return (
        f"SELECT row_number() OVER () - 1 AS row, * EXCLUDE (__duplicate) FROM "
        f"(SELECT *, {same} AS __duplicate FROM ({sort})) WHERE NOT __duplicate"
    )


def _create_moments(connection: duckdb.DuckDBPyConnection, missing: Sequence[str], session_gap_minutes: float) -> None:
    """Make the sessions and positions that the impressions lack, in the order of `row`; few columns to sort by."""
    if "session_id" in missing:
        gap = f"INTERVAL '{round(session_gap_minutes * 60_000)} milliseconds'"
        pause = f"coalesce(served_at - lag(served_at) OVER (PARTITION BY user_id ORDER BY row) > {gap}, true)"
        opens = f"SELECT row, user_id, CAST({pause} AS INTEGER) AS opens FROM numbered"
        number = "CAST(sum(opens) OVER (ORDER BY user_id, row) - 1 AS BIGINT)"
        sessions = f"SELECT row, {number} AS session_id FROM ({opens})"
    elif "position" in missing:
        sessions = "SELECT row, session_id FROM numbered"
    else:
        return
    columns = "row, session_id"
    if "position" in missing:
        columns += ", row_number() OVER (PARTITION BY session_id ORDER BY row) - 1 AS position"
    connection.execute(f"CREATE OR REPLACE TABLE moments AS SELECT {columns} FROM ({sessions}) ORDER BY row")


def _one_impression_each(connection: duckdb.DuckDBPyConnection, read: Read, faults: Faults) -> int:
    """Refuse a second row of an impression_id, or keep the first; return how many rows were left out."""
    twice = connection.execute(
        "SELECT impression_id, sum(count(*) - 1) OVER () FROM impressions GROUP BY 1 HAVING count(*) > 1 "
        "ORDER BY 1 LIMIT 1"
    ).fetchone()
    if twice is None:
        return 0
    found = f"found impression_id {shown(twice[0])} in two different rows, allowed is one"
    file, place = last_place(connection, read, "impression_id", twice[0])
    faults.rows("impressions", file, place, found, "impression_id: another row of the same", int(twice[1]))
    connection.execute(
        "CREATE OR REPLACE TABLE impressions AS SELECT row_number() OVER () - 1 AS row, * EXCLUDE (row) FROM "
        "(SELECT * FROM impressions QUALIFY row_number() OVER (PARTITION BY impression_id ORDER BY row) = 1 "
        "ORDER BY row)"
    )
    return int(twice[1])


def create_inline_engagements(
    connection: duckdb.DuckDBPyConnection, labels: Sequence[str], delay_minutes: float
) -> None:
    """Make the table of engagements out of the labels of the impressions; each keeps the `row` it belongs to.

    Args:
        labels: the columns of the impressions that are labels.
        delay_minutes: how long after its impression a label happened.
    """
    engaged_at = f"served_at + INTERVAL '{round(delay_minutes * 60_000)} milliseconds'"
    parts = [
        f"SELECT user_id, post_id, {literal(label)} AS type, {engaged_at} AS engaged_at, row FROM impressions "
        f"WHERE {quote(label)} = 1"
        for label in labels
    ]
    connection.execute("CREATE OR REPLACE TABLE engagements AS " + " UNION ALL ".join(parts))
