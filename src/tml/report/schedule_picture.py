"""A plan of learning rates as a picture: PNG or SVG to put somewhere, or a page with the picture and its table.

Every line ends in a label of its own, so that no colour has to be looked up in a legend. Labels are moved apart where
lines end together.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import vl_convert

from tml.core.errors import UserError
from tml.core.files import whole_file
from tml.projects.home.recap.names import plain_name
from tml.report.charts import to_svg
from tml.report.page import document
from tml.report.schedule import Line, Plan, Scale, described, rate_text
from tml.report.style import CSS, SERIES_COLORS

FORMATS = (".png", ".svg", ".html")
WIDTH, LEAST_HEIGHT = 620, 340
"""The plot inside the axes, in CSS pixels."""
LABEL_HEIGHT, SHORT_LABEL_HEIGHT, LABEL_GAP = 34, 22, 40
"""Room for a label with the schedule in words, for one without, and between the plot and the labels; in CSS pixels."""
LONGEST_LABEL = 52
"""Characters of a label; a longer one says how many groups there are after the first."""
SHARPNESS = 2.0
"""Pixels of a PNG for each CSS pixel."""

LEFT = 'style="text-align:left;padding-left:40px;white-space:normal;min-width:260px"'
"""Of a table's column of words; columns of figures stand to the right."""

LIGHT = dict(re.findall(r"--([\w-]+): (#\w+)", CSS[: CSS.index("@media")]))
"""The light theme's colours by name, for pictures that bring no style sheet."""


def require_format(path: Path) -> None:
    """Refuse a file name whose ending is none of `FORMATS`.

    Raises:
        UserError: it is another.
    """
    if path.suffix.lower() not in FORMATS:
        found = f"found {path.suffix}" if path.suffix else "found no ending"
        raise UserError(f"{path}: {found}, allowed are {', '.join(FORMATS)}")


def write_picture(plan: Plan, path: Path) -> None:
    """Write the picture of a plan, in the format that the file's ending says.

    Raises:
        UserError: an ending that is none of `FORMATS`, or a file that cannot be written.
    """
    require_format(path)
    kind = path.suffix.lower()
    content = page(plan).encode() if kind == ".html" else painted(picture(plan, alone=True)).encode()
    if kind == ".png":
        content = vl_convert.svg_to_png(content.decode(), scale=SHARPNESS)
    try:
        with whole_file(path) as partial:
            partial.write_bytes(content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def page(plan: Plan) -> str:
    """One HTML file with the picture and the table."""
    headings = "".join(f'<th scope="col">{name}</th>' for name in ("Group", "Start", "Peak", "End"))
    body = (
        f'<header><div class="eyebrow">Learning rates</div><h1>{escape(plan.name)}</h1>'
        f'<p class="lede">{escape(plan.about[:1].upper() + plan.about[1:])}.</p></header>'
        # A narrow screen scrolls the picture sideways rather than shrinking its labels to nothing.
        '<div class="card"><div class="scroll"><div style="min-width:720px">'
        f"{picture(plan, alone=False)}</div></div></div>"
        f'<div class="card scroll"><table><thead><tr>{headings}<th scope="col" {LEFT}>Schedule</th></tr></thead>'
        f"<tbody>{''.join(_row(plan, line) for line in plan.lines)}</tbody></table></div>"
    )
    return document(f"{plan.name}: learning rates", body)


def _row(plan: Plan, line: Line) -> str:
    rates = "".join(f"<td>{rate_text(rate)}</td>" for rate in (line.start, line.peak, line.end))
    words = f'<td class="other" {LEFT}>{escape(described(line.schedule))}</td>'
    name = f'<th scope="row" style="vertical-align:middle">{escape(plan.names(line))}</th>'
    return f"<tr>{name}{rates}{words}</tr>"


def painted(svg: str) -> str:
    """An SVG element as a file of its own: the light theme's colours, and a size."""
    sized = re.sub(r'viewBox="0 0 ([\d.]+) ([\d.]+)" style="[^"]*"', r'width="\1" height="\2" \g<0>', svg, count=1)
    return re.sub(r"var\(--([\w-]+)\)", lambda name: LIGHT.get(name[1], name[0]), sized)


def picture(plan: Plan, alone: bool) -> str:
    """The rates over the steps as an SVG element; with title and all in words where no table stands beside it."""
    size = LABEL_HEIGHT if alone else SHORT_LABEL_HEIGHT
    height = max(LEAST_HEIGHT, size * len(plan.lines))
    scale = _roomy(plan.scale)
    curves = [_points(plan, line) for line in plan.lines]
    ends = [height * (1 - scale.share(line.end)) for line in plan.lines]
    # Where lines end together, the one that was higher on the way stands above.
    means = [float(np.mean([scale.share(rate) for _, rate in curve])) for curve in curves]
    order = sorted(range(len(curves)), key=lambda number: (round(ends[number]), -means[number]))
    middles = spread([ends[number] for number in order], size, height)
    labels: list[dict[str, Any]] = []
    layers: list[Any] = []
    for number, middle in zip(order, middles, strict=True):
        color = SERIES_COLORS[number % len(SERIES_COLORS)]
        # The highest is drawn last.
        layers.insert(0, _curve(curves[number], color, scale, plan.steps))
        labels.append(_label(plan, plan.lines[number], color, ends[number], middle))
    both = alt.layer(alt.layer(*layers), _labels(labels, alone)).resolve_scale(x="independent", y="independent")
    chart = both.properties(width=WIDTH, height=height)
    if alone:
        chart = chart.properties(title=_title(plan), background="var(--card)", padding=24)
    else:
        # The page's font may be wider than the one that the labels are measured in.
        chart = chart.properties(padding={"left": 4, "top": 4, "bottom": 4, "right": 52})
    return to_svg(f"{plan.title}: {plan.about}", chart, fit=False)


def _title(plan: Plan) -> alt.TitleParams:
    return alt.TitleParams(
        plan.title,
        subtitle=plan.about,
        anchor="start",
        frame="bounds",
        offset=20,
        color="var(--ink)",
        fontSize=18,
        subtitleColor="var(--muted)",
        subtitleFontSize=12.5,
        subtitlePadding=6,
    )


def _roomy(scale: Scale) -> Scale:
    """The scale with room above the highest line; of nothing but zeros one up to 1."""
    return replace(scale, high=scale.high * (1.3 if scale.log else 1.06) or 1.0)


def _points(plan: Plan, line: Line) -> list[tuple[int, float]]:
    """Steps and rates to draw a line through: one a pixel, and each side of every joint."""
    steps = {plan.steps * pixel // WIDTH for pixel in range(WIDTH + 1)} | {1, plan.steps}
    steps |= {step for joint in line.schedule.joints for step in (joint - 1, joint)}
    all_points = [(step, line.schedule.at(step)) for step in sorted(steps) if 0 <= step <= plan.steps]
    runs = [list(run) for _, run in groupby(all_points, key=lambda point: point[1])]
    return [point for run in runs for point in (run[:1] if len(run) == 1 else [run[0], run[-1]])]


def _curve(points: Sequence[tuple[int, float]], color: str, scale: Scale, steps: int) -> Any:
    # A logarithmic scale has no 0: what is below it leaves the plot at the bottom.
    lowest = scale.low / 1000 if scale.log else 0.0
    data = alt.InlineData(values=[{"step": float(step), "rate": max(rate, lowest)} for step, rate in points])
    text: dict[str, Any] = {"labelFontSize": 11.5, "titleFontSize": 12, "titlePadding": 12}
    x = alt.X(
        "step:Q",
        title="finished steps",
        scale=alt.Scale(domain=[0, float(steps)], nice=False),
        axis=alt.Axis(labelExpr="format(datum.value, ',d')", tickCount=min(6, steps), grid=False, **text),
    )
    y = alt.Y(
        "rate:Q",
        title=f"learning rate{' (logarithmic)' * scale.log}",
        scale=alt.Scale(domain=[scale.low, scale.high], nice=False, type="log" if scale.log else "linear"),
        axis=alt.Axis(labelExpr="format(datum.value, '~g')", **_ticks(scale), **text),
    )
    mark: dict[str, Any] = {"stroke": color, "strokeWidth": 2.2, "strokeJoin": "round", "clip": True}
    return alt.Chart(data).mark_line(**mark).encode(x=x, y=y, order="step:Q")


def _ticks(scale: Scale) -> dict[str, Any]:
    """1 and 3 times the powers of ten of a logarithmic scale, or the powers alone where there are many."""
    if not scale.log:
        return {}
    first, last = math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high))
    digits = (1, 3) if last - first <= 4 else (1,)
    ticks = [digit * 10.0**power for power in range(first, last + 1) for digit in digits]
    shown = [tick for tick in ticks if scale.low * 0.999 <= tick <= scale.high]
    return {"values": shown, "tickCount": len(shown), "labelOverlap": False}


def _label(plan: Plan, line: Line, color: str, end: float, middle: float) -> dict[str, Any]:
    name = plan.names(line)
    if len(name) > LONGEST_LABEL and len(line.groups) > 1:
        name = f"{plain_name(line.groups[0])} and {len(line.groups) - 1} more"
    left = WIDTH + LABEL_GAP
    about = described(line.schedule)
    places = {"start": WIDTH + 5, "end": end, "bend": left - 20, "left": left - 8, "text": left}
    return {"name": name, "about": about, "color": color, "middle": middle, **places}


def _labels(labels: Sequence[dict[str, Any]], alone: bool) -> Any:
    base = alt.Chart(alt.InlineData(values=list(labels)))

    def at(channel: Any, field: str) -> Any:
        # Without a scale the numbers are pixels.
        return channel(f"{field}:Q", scale=None, axis=None)

    color = alt.Stroke("color:N", scale=None)
    lines = [
        base.mark_rule(strokeWidth=1, opacity=0.5).encode(
            x=at(alt.X, "start"), y=at(alt.Y, "end"), x2="bend:Q", y2="middle:Q", stroke=color
        ),
        base.mark_rule(strokeWidth=3).encode(x=at(alt.X, "bend"), x2="left:Q", y=at(alt.Y, "middle"), stroke=color),
    ]
    name: dict[str, Any] = {"align": "left", "fontSize": 12.5, "fill": "var(--ink)"}
    name |= {"baseline": "bottom", "dy": 1} if alone else {"baseline": "middle"}
    place = {"x": at(alt.X, "text"), "y": at(alt.Y, "middle")}
    written = [base.mark_text(**name).encode(text="name:N", **place)]
    if alone:
        about: dict[str, Any] = {"align": "left", "baseline": "top", "dy": 3, "fontSize": 10.5, "fill": "var(--muted)"}
        written.append(base.mark_text(**about).encode(text="about:N", **place))
    return alt.layer(*lines, *written)


def spread(wanted: Sequence[float], size: float, room: float) -> list[float]:
    """Middles of labels of one size, as near as can be to where they are wanted, without overlap, within the room.

    Args:
        wanted: where each middle is wanted, in order; all of them fit into the room.

    Example:
        >>> spread([10, 50, 50], size=20, room=100)
        [10.0, 40.0, 60.0]
    """
    # Labels that push each other make a block, which stands where it is best for all of its labels.
    blocks: list[list[float]] = []
    for middle in wanted:
        blocks.append([middle])
        while len(blocks) > 1 and _end(blocks[-2], size, room) > _start(blocks[-1], size, room):
            last = blocks.pop()
            blocks[-1] += last
    return [_start(block, size, room) + size * (i + 0.5) for block in blocks for i in range(len(block))]


def _start(block: Sequence[float], size: float, room: float) -> float:
    best = sum(block) / len(block) - size * len(block) / 2
    return float(min(max(best, 0.0), room - size * len(block)))


def _end(block: Sequence[float], size: float, room: float) -> float:
    return _start(block, size, room) + size * len(block)
