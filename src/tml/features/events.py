"""Everything that happened, as one table, and the time lines that are made of it.

    events(happened_at, instant, kind, user_id's and post_id's key codes …)

Kind 0 is an impression, kind i + 1 an engagement of type i. What the log's history holds happened before everything.
SQL brings the events of each key into order, on disk where memory is short; `tml.features.lines` keeps them so.
"""

from collections.abc import Iterator, Sequence

import pyarrow as pa

from tml.data.log import IMPRESSION, Log
from tml.data.tables import literal
from tml.features.aggregates import Aggregates
from tml.features.labels import LATEST_IMPRESSIONS, select_engagements
from tml.features.lines import Folder, Instants, Line
from tml.features.sides import KeyCodes

BEFORE_THE_LOG = "TIMESTAMP '1970-01-01'"
"""When the history is taken to have happened: before every impression, and outside every window but `all`."""
ROWS_PER_BATCH = 1_000_000


def select_events(types: Sequence[str], log: Log, latest: str | None) -> str:
    """SQL of what happened when to whom with which post: happened_at, kind, user_id, post_id.

    Args:
        types: the engagement types, in the order of their kinds.
        log: the open log.
        latest: SQL of which impression an engagement belongs to; with it there is `row`, the event's impression, null
            where it has none.
    """
    kinds = " ".join(f"WHEN {literal(name)} THEN {i + 1}" for i, name in enumerate(types))
    kind = f"CASE type {kinds} WHEN {literal(IMPRESSION)} THEN 0 END"
    engagements, row, no_row = "engagements", "", ""
    if latest is not None:
        engagements, row, no_row = select_engagements(log, latest), ", row", ", CAST(NULL AS BIGINT)"
    parts = [f"SELECT served_at AS happened_at, 0 AS kind, user_id, post_id{row} FROM impressions"]
    of_type = f"type <> {literal(IMPRESSION)}"
    parts.append(f"SELECT engaged_at, {kind}, user_id, post_id{row} FROM {engagements} WHERE {of_type}")
    if log.has("history"):
        parts.append(f"SELECT {BEFORE_THE_LOG}, {kind}, user_id, post_id{no_row} FROM history")
    return f"SELECT * FROM ({' UNION ALL '.join(parts)}) WHERE kind IS NOT NULL"


def create_lines(
    log: Log, aggregates: Aggregates, codes: KeyCodes, folder: Folder
) -> tuple[Instants, dict[tuple[str, ...], Line]]:
    """Make the table `events` and the time lines of every key, and of everyone under the empty key."""
    connection = log.connection
    selected = ", ".join(codes.code(column) for column in aggregates.columns)
    # What an engagement's other columns are is read from its post, its user and its impression.
    latest = LATEST_IMPRESSIONS if codes.joins else None
    impressions = f"LEFT JOIN impressions i ON i.row = e.row{codes.joins}" if latest else ""
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE events AS SELECT e.happened_at, e.kind, "
        f"dense_rank() OVER (ORDER BY e.happened_at) - 1 AS instant{', ' * bool(selected)}{selected} "
        f"FROM ({select_events(aggregates.types, log, latest)}) e "
        "LEFT JOIN post_side p ON p.post_id = e.post_id LEFT JOIN user_side u ON u.user_id = e.user_id "
        f"{impressions}"
    )
    [(events,)] = connection.execute("SELECT count(*) FROM events").fetchall()
    times = _batches(log, "SELECT epoch_us(happened_at) AS happened_at FROM events ORDER BY happened_at")
    instants = Instants(folder, times, events)
    lines = {key: _line(log, aggregates, codes, folder, instants, key) for key in ((), *aggregates.keys)}
    connection.execute("DROP TABLE events")
    return instants, lines


def _line(
    log: Log, aggregates: Aggregates, codes: KeyCodes, folder: Folder, instants: Instants, key: tuple[str, ...]
) -> Line:
    source = f"(SELECT {codes.pack(key, 'e')} AS pack, instant, CAST(kind AS SMALLINT) AS kind FROM events e)"
    known = f"{source} WHERE pack IS NOT NULL"
    found = dict(log.connection.execute(f"SELECT kind, count(*) FROM {known} GROUP BY kind").fetchall())
    counts = [found.get(kind, 0) for kind in range(len(aggregates.types) + 1)]
    batches = _batches(log, f"SELECT * FROM {known} ORDER BY pack, instant")
    return Line(folder, batches, counts, instants, aggregates.half_lives(key), aggregates.has_since(key))


def _batches(log: Log, query: str) -> Iterator[pa.RecordBatch]:
    return (batch for batch in log.connection.sql(query).to_arrow_reader(ROWS_PER_BATCH) if len(batch))
