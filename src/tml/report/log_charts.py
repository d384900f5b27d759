"""Pictures of a log: impressions over time, how long engagements take, how much people are shown."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import altair as alt

from tml.data.check_facts import DELAY_SHARES, EngagementFacts
from tml.report.charts import Axis, to_svg

DELAY_TICKS = (1.0, 10.0, 60.0, 600.0, 3_600.0, 21_600.0, 86_400.0, 864_000.0)
DELAY_LABEL = (
    "datum.value >= 86400 ? datum.value / 86400 + ' d' : datum.value >= 3600 ? datum.value / 3600 + ' h' : "
    "datum.value >= 60 ? datum.value / 60 + ' min' : datum.value + ' s'"
)
SHORTEST_DELAY = 1.0
"""Seconds; on a logarithmic scale 0 has no place."""
MOST_LINED_BARS = 150
"""More bars than this have no room for a line between them."""


def time_bars(title: str, counts: Sequence[tuple[datetime, int]], unit: str, width: int, height: int) -> str:
    """A bar an hour or a day, from 0."""
    length = timedelta(hours=1) if unit == "hour" else timedelta(days=1)
    rows = [{"from": _milliseconds(at), "to": _milliseconds(at + length), "count": count} for at, count in counts]
    labels = "%d %b" if unit == "day" else "%d %b %H:%M"
    scale = alt.Scale(type="utc", nice=False, domain=[rows[0]["from"], rows[-1]["to"]])
    axis = alt.Axis(grid=False, labelExpr=f"utcFormat(datum.value, '{labels}')", tickCount=8)
    x = alt.X("from:T", title=None, scale=scale, axis=axis)
    return _bars(title, rows, x, alt.X2("to:T"), "impressions", width, height)


def activity_bars(title: str, bins: Sequence[tuple[int, int]], width: int, height: int) -> str:
    """A bar for each power of two of impressions: how many people were shown so many."""
    there = dict(bins)
    lows = [1 << power for power in range(max(there).bit_length())]
    rows = [{"from": low, "to": 2 * low, "count": there.get(low, 0)} for low in lows]
    scale = alt.Scale(type="log", base=2, nice=False, domain=[1, 2 * lows[-1]])
    ticks = lows[:: max(1, len(lows) // 8)]
    axis = alt.Axis(grid=False, values=ticks, labelExpr="format(datum.value, ',')")
    x = alt.X("from:Q", title="impressions of a person, from", scale=scale, axis=axis)
    return _bars(title, rows, x, alt.X2("to:Q"), "people", width, height)


def delay_curves(title: str, engagements: Sequence[tuple[EngagementFacts, str]], width: int, height: int) -> str:
    """For each engagement type with its colour: the share that had come by then, on a logarithmic scale of time."""
    longest = max(one.delays[-1] for one, _ in engagements)
    end = max(longest, 60.0)
    scale = alt.Scale(type="log", nice=False, domain=[SHORTEST_DELAY, end])
    axis = alt.Axis(values=[tick for tick in DELAY_TICKS if tick <= end], labelExpr=DELAY_LABEL)
    x = alt.X("delay:Q", title="after the impression", scale=scale, axis=axis)
    y = Axis("had come", (0.0, 1.0), ".0%").encoding(alt.Y, "share")
    layers = []
    for one, color in engagements:
        points = zip(one.delays, DELAY_SHARES, strict=True)
        rows = [{"delay": max(delay, SHORTEST_DELAY), "share": share} for delay, share in points]
        mark: dict[str, Any] = {"stroke": color, "strokeWidth": 1.8, "strokeJoin": "round"}
        layers.append(alt.Chart(alt.InlineData(values=rows)).mark_line(**mark).encode(x=x, y=y, order="share:Q"))
    return to_svg(title, alt.layer(*layers).properties(width=width, height=height))


def _bars(title: str, rows: list[dict[str, Any]], x: alt.X, x2: alt.X2, what: str, width: int, height: int) -> str:
    mark: dict[str, Any] = {"fill": "var(--ranker)"}
    if len(rows) <= MOST_LINED_BARS:
        mark |= {"stroke": "var(--card)", "strokeWidth": 1.5}
    y = alt.Y("count:Q", title=what, scale=alt.Scale(zero=True), axis=alt.Axis(labelExpr="format(datum.value, '~s')"))
    chart = alt.Chart(alt.InlineData(values=rows)).mark_rect(**mark).encode(x=x, x2=x2, y=y, y2=alt.Y2Datum(0))
    return to_svg(title, chart.properties(width=width, height=height))


def _milliseconds(at: datetime) -> int:
    return int((at - datetime(1970, 1, 1)) / timedelta(milliseconds=1))
