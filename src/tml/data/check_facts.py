"""What is in a log, in figures: the queries behind `tml data check`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import duckdb

from tml.data.contract import TIMES, Read
from tml.data.log import Log
from tml.data.outcomes import Outcome, find_outcomes
from tml.data.tables import number_gaps, quote

HOURLY_UP_TO_DAYS = 3
"""A log no longer than this is counted by the hour."""
QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
DELAY_SHARES = tuple(share / 50 for share in range(1, 51))
"""Where the distribution of delays is looked at."""


@dataclass(frozen=True)
class TableFacts:
    """One table of a log.

    Attributes:
        name: its name in the contract.
        ending: of its files.
        files, bytes: how many files, and their size together.
        rows, kept: rows that can be used, and those of them that are no exact duplicates.
        columns: by the contract's names.
        number_gaps: files that may be missing, as the numbers in the names of the others say.
    """

    name: str
    ending: str
    files: int
    bytes: int
    rows: int
    kept: int
    columns: tuple[str, ...]
    number_gaps: tuple[str, ...]


@dataclass(frozen=True)
class EngagementFacts:
    """One engagement type.

    Attributes:
        type: its name.
        events: how often it happened.
        positives: impressions that it followed.
        delays: seconds from the impression, at each of `DELAY_SHARES`; empty where labels are inline.
    """

    type: str
    events: int
    positives: int
    delays: tuple[float, ...]

    def delay(self, share: float) -> float | None:
        """The seconds in which this share of the engagements had come."""
        if not self.delays:
            return None
        return self.delays[min(round(share * len(self.delays)), len(self.delays)) - 1]


@dataclass(frozen=True)
class Facts:
    """What is in a log.

    Attributes:
        tables: each table.
        start, end: the first and the last impression.
        impressions: how many there are, duplicates dropped.
        unit: `hour` or `day`.
        per_unit: impressions of each hour or day from the first to the last that is not in the future.
        people: who was shown something.
        posts_shown: distinct posts of impressions; posts: rows of the table; authors: distinct ones of it.
        sessions: how many, and whether the log has them itself.
        repeats: impressions of a post that its viewer had been shown before.
        activity: impressions of a person at each of `QUANTILES`.
        activity_bins: (impressions from, people) in powers of two.
        engagements: each engagement type.
        inline: whether labels are columns of the impressions.
        counts: what is odd → how much of it.
        outcomes: columns that look like outcomes.
    """

    tables: tuple[TableFacts, ...]
    start: datetime
    end: datetime
    impressions: int
    unit: str
    per_unit: tuple[tuple[datetime, int], ...]
    people: int
    posts_shown: int
    posts: int
    authors: int
    sessions: int
    own_sessions: bool
    repeats: int
    activity: tuple[int, ...]
    activity_bins: tuple[tuple[int, int], ...]
    engagements: tuple[EngagementFacts, ...]
    inline: bool
    counts: Mapping[str, int]
    outcomes: tuple[Outcome, ...]


def collect_facts(log: Log, reads: Mapping[str, Read], labels: Sequence[str], now: datetime) -> Facts:
    """Count what is in an open log.

    Args:
        reads: its raw tables, as `open_with_sources` gives them.
        labels: the columns of the impressions that are labels.
        now: UTC without an offset; what is later is in the future.
    """
    c = log.connection
    inline = bool(labels)
    _match(c, inline)
    unit = "hour" if (log.end - log.start).days < HOURLY_UP_TO_DAYS else "day"
    # What is in the future would leave the past no room; it is counted apart.
    last = _row(c, f"SELECT max(served_at) FILTER (served_at <= {_timestamp(now)}) FROM impressions")[0] or log.end
    per_unit = c.execute(
        f"SELECT s.t, count(i.row) FROM generate_series(date_trunc('{unit}', ?::TIMESTAMP), ?, INTERVAL 1 {unit}) s(t) "
        f"LEFT JOIN impressions i ON date_trunc('{unit}', i.served_at) = s.t GROUP BY 1 ORDER BY 1",
        [log.start, last],
    ).fetchall()
    people, shown, sessions = _row(
        c, "SELECT count(DISTINCT user_id), count(DISTINCT post_id), count(DISTINCT session_id) FROM impressions"
    )
    pairs = _row(c, "SELECT count(*) FROM (SELECT DISTINCT user_id, post_id FROM impressions)")[0]
    c.execute("CREATE OR REPLACE TEMP TABLE activity AS SELECT user_id, count(*) AS n FROM impressions GROUP BY 1")
    quantiles = _row(c, f"SELECT quantile_disc(n, {[*QUANTILES]}) FROM activity")[0]
    bins = c.execute("SELECT 1 << CAST(floor(log2(n)) AS INTEGER) AS bin, count(*) FROM activity GROUP BY 1 ORDER BY 1")
    activity_bins = tuple((int(low), int(count)) for low, count in bins.fetchall())
    posts, authors = _row(c, "SELECT count(*), count(DISTINCT author_id) FROM posts")
    return Facts(
        tables=tuple(_table(c, read) for read in reads.values()),
        start=log.start,
        end=log.end,
        impressions=log.rows,
        unit=unit,
        per_unit=tuple((at, int(count)) for at, count in per_unit),
        people=people,
        posts_shown=shown,
        posts=posts,
        authors=authors,
        sessions=sessions,
        own_sessions="session_id" in reads["impressions"].readings,
        repeats=log.rows - pairs,
        activity=tuple(quantiles),
        activity_bins=activity_bins,
        engagements=_engagements(c, log.engagement_types(), inline),
        inline=inline,
        counts={name: int(_row(c, query)[0] or 0) for name, query in _odd(log, reads, inline, now).items()},
        outcomes=tuple(find_outcomes(log, labels)),
    )


def _match(c: duckdb.DuckDBPyConnection, inline: bool) -> None:
    """Make the table `matched`: every engagement with the row of its impression, the latest before it, or null."""
    if inline:
        select = "SELECT row, type, user_id, post_id, engaged_at, CAST(NULL AS DOUBLE) AS delay FROM engagements"
    else:
        latest = "(SELECT user_id, post_id, served_at, max(row) AS row FROM impressions GROUP BY ALL)"
        same = "e.user_id = i.user_id AND e.post_id = i.post_id AND e.engaged_at >= i.served_at"
        select = (
            "SELECT i.row, e.type, e.user_id, e.post_id, e.engaged_at, epoch(e.engaged_at - i.served_at) AS delay "
            f"FROM engagements e ASOF LEFT JOIN {latest} i ON {same}"
        )
    c.execute(f"CREATE OR REPLACE TEMP TABLE matched AS {select}")


def _engagements(c: duckdb.DuckDBPyConnection, types: Sequence[str], inline: bool) -> tuple[EngagementFacts, ...]:
    shares = [*DELAY_SHARES]
    rows = c.execute(
        f"SELECT type, count(*), count(DISTINCT row), quantile_disc(delay, {shares}) FROM matched GROUP BY 1"
    ).fetchall()
    found = {
        str(kind): EngagementFacts(str(kind), events, positives, () if inline or not delays else tuple(delays))
        for kind, events, positives, delays in rows
    }
    return tuple(sorted((found[kind] for kind in types), key=lambda facts: -facts.positives))


def _table(c: duckdb.DuckDBPyConnection, read: Read) -> TableFacts:
    source = read.source
    rows = _row(c, f"SELECT count(*) FROM {quote(source.table)}")[0]
    kept = _row(c, f"SELECT count(*) FROM {source.name}")[0]
    sizes = sum(file.stat().st_size for file in source.files)
    ending = "".join(source.files[0].suffixes[-2 if source.files[0].suffix in (".gz", ".zst") else -1 :])
    return TableFacts(
        name=source.name,
        ending=ending,
        files=len(source.files),
        bytes=sizes,
        rows=rows,
        kept=kept,
        columns=tuple(source.columns),
        number_gaps=tuple(number_gaps(source.files)),
    )


def _odd(log: Log, reads: Mapping[str, Read], inline: bool, now: datetime) -> dict[str, str]:
    """What could be wrong with a log → the SQL that counts it."""
    at = _timestamp(now)
    shown = "(SELECT DISTINCT user_id, post_id FROM impressions)"
    queries = {
        "future impressions": f"SELECT count(*) FROM impressions WHERE served_at > {at}",
        "impressions without post": "SELECT count(*) FROM impressions ANTI JOIN posts USING (post_id)",
        "posts unknown": "SELECT count(DISTINCT post_id) FROM impressions ANTI JOIN posts USING (post_id)",
        "sessions of several": "SELECT count(*) FROM (SELECT session_id FROM impressions GROUP BY 1 "
        "HAVING min(user_id) <> max(user_id))",
        "posts without author": "SELECT count(*) FROM posts WHERE author_id IS NULL",
        "shown before created": "SELECT count(*) FROM impressions i JOIN posts p USING (post_id) "
        "WHERE i.served_at < p.created_at",
    }
    if not inline:
        queries |= {
            "future engagements": f"SELECT count(*) FROM engagements WHERE engaged_at > {at}",
            "orphans": f"SELECT count(*) FROM matched ANTI JOIN {shown} USING (user_id, post_id) WHERE row IS NULL",
            "engaged before shown": f"SELECT count(*) FROM matched SEMI JOIN {shown} USING (user_id, post_id) "
            "WHERE row IS NULL",
        }
    if log.has("users"):
        queries["viewers unknown"] = "SELECT count(DISTINCT user_id) FROM impressions ANTI JOIN users USING (user_id)"
    if log.has("follows"):
        known = "SELECT user_id FROM impressions" + " UNION SELECT user_id FROM users" * log.has("users")
        queries["follows of unknown"] = (
            f"SELECT count(*) FROM follows WHERE user_id NOT IN ({known}) "
            f"OR followed_id NOT IN ({known} UNION SELECT author_id FROM posts WHERE author_id IS NOT NULL)"
        )
    for name, read in reads.items():
        column = TIMES.get(name, ("",))[0]
        if name in ("impressions", "engagements") and column in read.readings:
            # A window without an order sees the rows as the files have them.
            queries[f"{name} out of order"] = (
                f"SELECT count(*) FROM (SELECT t < lag(t) OVER () AND file = lag(file) OVER () AS back "
                f"FROM (SELECT {read.value(column)} AS t, __file AS file FROM {quote(read.source.table)})) WHERE back"
            )
    return queries


def _timestamp(time: datetime) -> str:
    return f"TIMESTAMP '{time:%Y-%m-%d %H:%M:%S}'"


def _row(c: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    row = c.execute(query).fetchone()
    assert row is not None
    return row
