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


def of_key(all_events: Sequence[Row], columns: Mapping[str, Any], now: datetime) -> list[Row]:
    """The events whose columns have these values, strictly before `now`; none where a value is missing."""
    return [
        event
        for event in all_events
        if event["at"] < now and all(event[c] is not None and event[c] == value for c, value in columns.items())
    ]


def count(before: Sequence[Row], kind: str, now: datetime, window: timedelta | None) -> int:
    """Events of a type that are not older than the window."""
    return sum(event["type"] == kind and (window is None or event["at"] >= now - window) for event in before)


def everyone(all_events: Sequence[Row], kind: str, now: datetime) -> float:
    """The rate of the whole log so far."""
    before = of_key(all_events, {}, now)
    return (count(before, kind, now, None) + 1) / (count(before, "impression", now, None) + 50)


def rate(
    before: Sequence[Row], kind: str, now: datetime, window: timedelta | None, prior: float, smoothing: float
) -> float:
    """The smoothed rate of an engagement per impression."""
    shown = count(before, "impression", now, window)
    return (count(before, kind, now, window) + smoothing * prior) / (shown + smoothing)


def since(before: Sequence[Row], kind: str, now: datetime) -> float:
    """Seconds since the latest event of a type whose time is known, or -1."""
    times = [event["at"] for event in before if event["type"] == kind and event["at"] != HISTORY]
    return (now - max(times)).total_seconds() if times else -1.0


def decayed(before: Sequence[Row], kind: str, now: datetime, half_life: timedelta) -> float:
    """Every event of a type whose time is known, counted half for each half-life since."""
    times = [event["at"] for event in before if event["type"] == kind and event["at"] != HISTORY]
    return float(sum(0.5 ** ((now - at) / half_life) for at in times))


def follows(all_follows: Sequence[Row], user: Any, followed: Any, now: datetime) -> bool:
    """Whether a user follows another by now; a follow without a time has always held."""
    return any(
        (f["user_id"], f["followed_id"]) == (user, followed) and (f["followed_at"] is None or f["followed_at"] < now)
        for f in all_follows
    )


def common_follows(all_follows: Sequence[Row], user: Any, other: Any, now: datetime) -> int:
    """How many accounts two users both follow by now."""
    accounts = {f["followed_id"] for f in all_follows}
    return sum(
        follows(all_follows, user, account, now) and follows(all_follows, other, account, now) for account in accounts
    )


def label(
    impression: Row, impressions: Sequence[Row], engagements: Sequence[Row], kind: str, window: timedelta | None
) -> int:
    """1 if an engagement of the type belongs to this impression, the latest of its post to its person before it.

    Where impressions have an `impressed_at`, it must be there, and lie with the engagement in the window.
    """
    pair = ("user_id", "post_id")
    served = impression["served_at"]
    for engagement in engagements:
        if engagement["type"] != kind or any(engagement[key] != impression[key] for key in pair):
            continue
        earlier = [
            other["served_at"]
            for other in impressions
            if all(other[key] == engagement[key] for key in pair) and other["served_at"] <= engagement["engaged_at"]
        ]
        times = [engagement["engaged_at"]]
        if "impressed_at" in impression:
            times.append(impression["impressed_at"])
        in_time = all(at is not None and served <= at and (window is None or at <= served + window) for at in times)
        if earlier and max(earlier) == served and in_time:
            return 1
    return 0
