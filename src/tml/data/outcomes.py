"""Columns of the impressions that look like outcomes: known only after the impression, they must never be inputs.

An outcome gives itself away by how well it alone predicts an engagement: its AUC, the chance that an impression with
the engagement has a higher value than one without (a value that is missing counts as the lowest; of text only whether
it is missing counts). What is known when a post is shown rarely reaches 0.9 alone. Others are told by their names.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import duckdb

from tml.data.log import Log
from tml.data.tables import literal, quote

SUSPICIOUS_AUC = 0.9
SAMPLE_ROWS = 500_000
MOST_TYPES = 50
"""Engagement types that are looked at, the most frequent."""
LEAST_POSITIVES = 20
"""Below this many, in the sample, an AUC is chance."""

_NAMED = re.compile(
    r"^(is|has|did|was)_|click|dwell|duration|(play|watch|view|stay|read|listen|spent)(ed|ing)?_?(time|ms|sec|rate|pct)"
    r"|completion|finish|liked?$|shared?$|reply|replied|comment|purchase|bought|rating|reward|feedback",
    re.IGNORECASE,
)
_KNOWN = ("row", "impression_id", "user_id", "post_id", "served_at", "impressed_at", "session_id", "position")


@dataclass(frozen=True)
class Outcome:
    """A column that looks like an outcome.

    Attributes:
        column: its name.
        engagement: the engagement type that it tells most of; empty where none has enough positives.
        auc: how well it does, 0.5 to 1; None where there are too few positives.
        by_name: whether its name alone is suspicious.
    """

    column: str
    engagement: str
    auc: float | None
    by_name: bool

    @property
    def is_suspicious(self) -> bool:
        """Whether the values, and not only the name, say that it is an outcome."""
        return self.auc is not None and self.auc >= SUSPICIOUS_AUC


def find_outcomes(log: Log, labels: Sequence[str]) -> list[Outcome]:
    """Look at every column of the impressions that is no id, no time and no label.

    Args:
        log: open, with the temporary table `matched` of (row, type): which impressions were engaged with.
        labels: the columns that are labels.

    Returns:
        What looks like an outcome, the best predictor first.
    """
    connection = log.connection
    kinds = {str(name): str(kind) for name, kind, *_ in connection.execute("DESCRIBE impressions").fetchall()}
    candidates = [name for name in kinds if name not in _KNOWN and name not in labels]
    if not candidates:
        return []
    frequent = connection.execute(
        f"SELECT type FROM engagements GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT {MOST_TYPES}"
    ).fetchall()
    types = [str(kind) for (kind,) in frequent]
    step = max(1, -(-log.rows // SAMPLE_ROWS))
    flags = "".join(
        f", CAST(coalesce(bool_or(m.type = {literal(kind)}), false) AS INTEGER) AS l{n}" for n, kind in enumerate(types)
    )
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE sampled AS SELECT i.row{flags} FROM impressions i "
        f"LEFT JOIN matched m ON m.row = i.row WHERE hash(i.row) % {step} = 0 GROUP BY i.row"
    )
    found = []
    for name in candidates:
        aucs = _aucs(connection, name, kinds[name], types)
        best = max(aucs, key=lambda kind: aucs[kind], default="")
        outcome = Outcome(name, best, aucs.get(best), bool(_NAMED.search(name)))
        if outcome.is_suspicious or outcome.by_name:
            found.append(outcome)
    connection.execute("DROP TABLE sampled")
    return sorted(found, key=lambda outcome: -(outcome.auc or 0))


def _aucs(connection: duckdb.DuckDBPyConnection, name: str, kind: str, types: Sequence[str]) -> Mapping[str, float]:
    """Engagement type → AUC of a column, the better of both directions, where there are enough positives."""
    if not types:
        return {}
    value = f"i.{quote(name)}" if _has_order(kind) else f"i.{quote(name)} IS NOT NULL"
    numbers = range(len(types))
    counts = "".join(f", sum(s.l{n}) AS p{n}" for n in numbers)
    # A pair of equal values is half won.
    sums = ", ".join(f"sum(p{n} * (below{n} + (n - p{n}) / 2.0)), sum(p{n}), sum(n - p{n})" for n in numbers)
    below = "".join(f", sum(n - p{n}) OVER line - (n - p{n}) AS below{n}" for n in numbers)
    row = connection.execute(
        f"WITH grouped AS (SELECT {value} AS value, count(*) AS n{counts} FROM impressions i "
        f"JOIN sampled s ON s.row = i.row GROUP BY 1), "
        f"ranked AS (SELECT *{below} FROM grouped WINDOW line AS (ORDER BY value NULLS FIRST)) "
        f"SELECT {sums} FROM ranked"
    ).fetchone()
    assert row is not None
    aucs = {}
    for number, of in enumerate(types):
        won, positives, negatives = row[3 * number : 3 * number + 3]
        if positives and min(positives, negatives) >= LEAST_POSITIVES:
            auc = float(won) / (float(positives) * float(negatives))
            aucs[of] = max(auc, 1 - auc)
    return aucs


def _has_order(kind: str) -> bool:
    return kind == "BOOLEAN" or kind.startswith(
        ("TINY", "SMALL", "INT", "BIG", "HUGE", "U", "FLOAT", "DOUBLE", "DECIMAL", "DATE", "TIME")
    )
