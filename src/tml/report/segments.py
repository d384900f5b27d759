"""The report's figures by segment: for each way to cut the held-out examples a table of AUC, and a picture of whether
probabilities keep their promise in each bucket."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import altair as alt

from tml.projects.home.recap.names import plain_name
from tml.report.charts import to_svg
from tml.report.style import SERIES_COLORS
from tml.report.tables import legend, number

TITLES = {
    "author_size": "By author's size",
    "viewer_activity": "By viewer's activity",
    "age": "By the post's age",
}
NOTES = {
    "author_size": "Impressions of the author's posts in training.",
    "viewer_activity": "Impressions of the viewer in training.",
    "age": "When the post was served.",
}
LEAST_POSITIVES = 20
"""A task with fewer in a bucket has no dot there: its calibration would be chance."""
WIDTH, HEIGHT = 760, 240


def segment_cards(segments: Mapping[str, Any], tasks: Sequence[str]) -> str:
    """A card a segment; empty where there are none."""
    return "".join(_card(name, buckets, tasks) for name, buckets in segments.items() if buckets)


def _card(name: str, buckets: Mapping[str, Mapping[str, Any]], tasks: Sequence[str]) -> str:
    shown = [task for task in tasks if any(bucket[task]["auc"] is not None for bucket in buckets.values())]
    head = "".join(f'<th scope="col" style="white-space:normal">{escape(plain_name(task))}</th>' for task in shown)
    rows = "".join(
        f'<tr><th scope="row">{escape(label)}</th><td>{max(v["examples"] for v in bucket.values()):,}</td>'
        + "".join(f"<td>{number(bucket[task]['auc'], 3)}</td>" for task in shown)
        + "</tr>"
        for label, bucket in buckets.items()
    )
    table = (
        '<div class="scroll"><table><thead><tr><th scope="col">AUC</th><th scope="col">Examples</th>'
        f"{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )
    title = TITLES.get(name, f"By {name}")
    note = NOTES.get(name, "A column of the features.")
    return (
        f'<article class="card"><h3>{escape(title)}</h3><p>{note}</p>{table}{_calibration(title, buckets, shown)}'
        "</article>"
    )


def _calibration(title: str, buckets: Mapping[str, Mapping[str, Any]], tasks: Sequence[str]) -> str:
    rows, drawn = [], []
    for place, task in enumerate(tasks):
        color = SERIES_COLORS[place % len(SERIES_COLORS)]
        found = [
            {"bucket": label, "ratio": values["calibration"], "task": task, "color": color}
            for label, bucket in buckets.items()
            if (values := bucket[task])["positives"] >= LEAST_POSITIVES and values["calibration"]
        ]
        if found:
            rows += found
            drawn.append((plain_name(task), color, False))
    if not rows:
        return ""
    base = alt.Chart(alt.InlineData(values=rows))
    x = alt.X("bucket:N", sort=list(buckets), title=None, axis=alt.Axis(labelAngle=0, labelLimit=90))
    end = max(2.0, *(max(row["ratio"], 1 / row["ratio"]) for row in rows))
    scale = alt.Scale(type="log", domain=[1 / end, end], nice=False)
    y = alt.Y("ratio:Q", title="predicted / observed", scale=scale, axis=alt.Axis(values=[0.25, 0.5, 1, 2, 4]))
    paint = alt.Color("color:N", scale=None, legend=None)
    right = (
        alt.Chart(alt.InlineData(values=[{"ratio": 1}]))
        .mark_rule(stroke="var(--muted)", strokeDash=[3, 3])
        .encode(y="ratio:Q")
    )
    lines = base.mark_line(strokeWidth=1.4, opacity=0.6).encode(x=x, y=y, color=paint, detail="task:N")
    dots = base.mark_circle(size=34, opacity=1).encode(x=x, y=y, color=paint)
    svg = to_svg(f"Calibration {title.lower()}", alt.layer(right, lines, dots).properties(width=WIDTH, height=HEIGHT))
    return f'<div class="chart">{svg}</div>{legend(drawn)}'
