"""A comparison of two models as a picture: each task's difference with its interval, AUC and RCE side by side."""

import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from tml.core.files import whole_file, write_text
from tml.projects.home.recap.names import plain_name
from tml.report.charts import to_svg
from tml.report.page import document
from tml.report.style import CSS

WIDTH, ROW = 300, 34
SHARPNESS = 2.0
PANELS = (("auc", "difference of AUC", "+.3f"), ("rce", "difference of RCE, in percent points", "+.1f"))


def comparison_chart(comparison: Mapping[str, Any], other: str) -> str:
    """The picture as SVG."""
    panels = [_panel(comparison["tasks"], metric, title, form) for metric, title, form in PANELS]
    about = f"Differences between the ranker and {other}, by task, with intervals"
    return to_svg(about, alt.hconcat(*panels, spacing=28), fit=False)


def _panel(tasks: Mapping[str, Any], metric: str, title: str, form: str) -> Any:
    rows = [
        {"task": plain_name(task), "clear": one["low"] > 0 or one["high"] < 0, **one}
        for task, values in tasks.items()
        if (one := values[metric]) is not None
    ]
    order = [plain_name(task) for task in tasks]
    base = alt.Chart(alt.InlineData(values=rows))
    y = alt.Y("task:N", sort=order, title=None, axis=alt.Axis(grid=False))
    axis = alt.Axis(labelExpr=f"format(datum.value, '{form}')")
    x = alt.X("difference:Q", title=title, axis=axis, scale=alt.Scale(zero=True, nice=True))
    color = alt.condition("datum.clear", alt.value("var(--ranker)"), alt.value("var(--faint)"))
    zero = (
        alt.Chart(alt.InlineData(values=[{"difference": 0}]))
        .mark_rule(stroke="var(--muted)", strokeDash=[3, 3])
        .encode(x="difference:Q")
    )
    spans = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=title), x2="high:Q", y=y, stroke=color)
    points = base.mark_circle(size=60, opacity=1).encode(x=x, y=y, fill=color)
    return alt.layer(zero, spans, points).properties(width=WIDTH, height=ROW * max(1, len(order)))


def write_comparison_picture(comparison: Mapping[str, Any], other: str, path: Path) -> None:
    """Write the picture as `.png` or as a page, `.html`."""
    svg = comparison_chart(comparison, other)
    if path.suffix == ".html":
        about = (
            f"Above zero the ranker is better. Lines are {100 * comparison['confidence']:g}% intervals of a paired "
            f"bootstrap over viewers ({comparison['draws']:,} draws); grey ones are not clear of zero."
        )
        body = f'<h1>The ranker against {escape(other)}</h1><p class="about">{about}</p>'
        write_text(path, document(f"The ranker against {other}", f'{body}<div class="card">{svg}</div>'))
        return
    light = dict(re.findall(r"(--[\w-]+): (#\w+)", CSS.partition("@media")[0]))
    plain = re.sub(r"var\((--[\w-]+)\)", lambda name: light[name[1]], svg)
    box = re.search(r'viewBox="([-\d.]+) ([-\d.]+) ([\d.]+) ([\d.]+)"', plain)
    assert box is not None
    left, top, width, height = (float(number) for number in box.groups())
    paper = f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="#ffffff"/>'
    start = plain.index("</title>") + len("</title>")
    sized = plain[:start].replace("<svg ", f'<svg width="{width}" height="{height}" ', 1)
    with whole_file(path) as partial:
        partial.write_bytes(vl_convert.svg_to_png(sized + paper + plain[start:], scale=SHARPNESS))
