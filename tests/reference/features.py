"""Point-in-time features and labels, slow and obvious: for each impression, look at everything that ever happened."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

Row = Mapping[str, Any]

HISTORY = datetime(1970, 1, 1)


def events(impressions: Sequence[Row], engagements: Sequence[Row], history: Sequence[Row]) -> list[dict[str, Any]]:
    """Everything that happened: who, with which post, of what type, when."""
    shown = [{**row, "type": "impression", "at": row["served_at"]} for row in impressions]
    engaged = [{**row, "at": row["engaged_at"]} for row in engagements]
    before = [{**row, "at": HISTORY} for row in history]
    return [{key: row[key] for key in ("user_id", "post_id", "type", "at")} for row in shown + engaged + before]


def count(
    all_events: Sequence[Row], columns: Mapping[str, Any], kind: str, now: datetime, window: timedelta | None
) -> int:
    """Events of a type whose columns have these values, strictly before `now` and not before the window."""
    return sum(
        event["type"] == kind
        and all(event[name] is not None and event[name] == value for name, value in columns.items())
        and event["at"] < now
        and (window is None or event["at"] >= now - window)
        for event in all_events
    )


def rate(
    all_events: Sequence[Row],
    columns: Mapping[str, Any],
    kind: str,
    now: datetime,
    window: timedelta | None,
    smoothing: float,
) -> float:
    """The smoothed rate of an engagement per impression."""
    everyone = (count(all_events, {}, kind, now, None) + 1) / (count(all_events, {}, "impression", now, None) + 50)
    engaged = count(all_events, columns, kind, now, window)
    shown = count(all_events, columns, "impression", now, window)
    return (engaged + smoothing * everyone) / (shown + smoothing)


def label(
    impression: Row, impressions: Sequence[Row], engagements: Sequence[Row], kind: str, window: timedelta | None
) -> int:
    """1 if an engagement of the type belongs to this impression, the latest of its post to its person before it."""
    pair = ("user_id", "post_id")
    for engagement in engagements:
        if engagement["type"] != kind or any(engagement[key] != impression[key] for key in pair):
            continue
        earlier = [
            other["served_at"]
            for other in impressions
            if all(other[key] == engagement[key] for key in pair) and other["served_at"] <= engagement["engaged_at"]
        ]
        in_time = window is None or engagement["engaged_at"] <= impression["served_at"] + window
        if earlier and max(earlier) == impression["served_at"] and in_time:
            return 1
    return 0
