"""Charts as inline SVG: drawn by Vega-Lite once, here, so that the page needs no script and no network.

Colours are the page's CSS variables, which Vega hands through; so charts follow the light and the dark theme.
"""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import numpy.typing as npt
import vl_convert

from tml.metrics.curves import Reliability

FONT = "Helvetica Neue, Arial, sans-serif"
MOST_POINTS = 400
"""Longer series are thinned to this many points: no screen shows more."""

CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": FONT,
    "aria": False,
    "padding": 4,
    "view": {"stroke": "transparent"},
    "axis": {
        "domain": False,
        "ticks": False,
        "gridColor": "var(--line)",
        "labelColor": "var(--muted)",
        "labelFontSize": 10,
        "labelPadding": 5,
        "tickCount": 4,
        "titleColor": "var(--muted)",
        "titleFontSize": 10,
        "titleFontWeight": "normal",
        "titlePadding": 7,
    },
}


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        name: what the line is.
        x, y: (points,) its points, in order.
        color: a CSS colour.
        dashed: for what is a bound or a reference.
        marked: with a dot at each point, for series of few points.
    """

    name: str
    x: Sequence[float] | npt.NDArray[np.float64]
    y: Sequence[float] | npt.NDArray[np.float64]
    color: str
    dashed: bool = False
    marked: bool = False


@dataclass(frozen=True)
class Axis:
    """One axis of a chart.

    Attributes:
        title: what it measures.
        domain: its range, if that is not to follow the data.
        format: how labels are written, in d3's language.
        scale: Vega-Lite's name of the scale.
        ticks: where the labels are, if that is not to follow the range.
    """

    title: str
    domain: tuple[float, float] | None = None
    format: str = "~g"
    scale: str = "linear"
    ticks: tuple[float, ...] | None = None

    def encoding(self, channel: type[Any], field: str) -> Any:
        """The axis as a Vega-Lite channel; none starts at 0 unless it is told to."""
        scale: dict[str, Any] = {"zero": False, "nice": True, "type": self.scale}
        if self.domain:
            scale |= {"domain": list(self.domain), "nice": False}
        axis: dict[str, Any] = {"labelExpr": f"format(datum.value, '{self.format}')"}
        if self.ticks:
            axis["values"] = list(self.ticks)
        return channel(f"{field}:Q", title=self.title, scale=alt.Scale(**scale), axis=alt.Axis(**axis))


def line_chart(title: str, series: Sequence[Series], x: Axis, y: Axis, width: int, height: int) -> str:
    """Lines over one pair of axes. The title is for those who do not see it; show one in the page.

    Example:
        >>> line = Series("loss", [0, 1], [0.7, 0.3], "var(--ranker)")
        >>> line_chart("Loss", [line], Axis("step"), Axis("loss"), 200, 100)[:4]
        '<svg'
    """
    layers = []
    for one in series:
        data = alt.InlineData(values=[{"x": float(a), "y": float(b)} for a, b in zip(*_thinned(one), strict=True)])
        mark: dict[str, Any] = {"stroke": one.color, "strokeWidth": 1.8, "strokeJoin": "round", "interpolate": "linear"}
        if one.dashed:
            mark |= {"strokeDash": [4, 3], "strokeWidth": 1.4}
        if one.marked:
            mark["point"] = {"fill": one.color, "stroke": "transparent", "size": 18}
        layers.append(
            alt.Chart(data).mark_line(**mark).encode(x=x.encoding(alt.X, "x"), y=y.encoding(alt.Y, "y"), order="x:Q")
        )
    return to_svg(title, alt.layer(*layers).properties(width=width, height=height))


def reliability_chart(title: str, curve: Reliability, width: int, height: int) -> str:
    """Observed against predicted rate, with the 95% interval (Wilson 1927) of what each bin's examples can tell.

    Both axes run by square roots, which gives the many small probabilities of rare engagements room and keeps the
    diagonal straight.
    """
    low, high = wilson_interval(curve.observed, curve.examples)
    rows = [
        {"predicted": float(p), "observed": float(o), "low": float(lo), "high": float(hi)}
        for p, o, lo, hi in zip(curve.predicted, curve.observed, low, high, strict=True)
    ]
    end = max(1e-6, *(max(row["predicted"], row["high"]) for row in rows)) * 1.04
    base = alt.Chart(alt.InlineData(values=rows))
    # On a scale of square roots these three are evenly spread.
    largest = _round_below(end)
    ticks = (0.0, largest / 4, largest)
    x = Axis("predicted", (0, end), "~p", "sqrt", ticks).encoding(alt.X, "predicted")
    y = Axis("observed", (0, end), "~p", "sqrt", ticks)
    corners = [{"predicted": 0.0, "observed": 0.0}, {"predicted": end, "observed": end}]
    diagonal = (
        alt.Chart(alt.InlineData(values=corners))
        .mark_line(stroke="var(--faint)", strokeDash=[3, 3], strokeWidth=1)
        .encode(x=x, y=y.encoding(alt.Y, "observed"))
    )
    intervals = base.mark_rule(stroke="var(--ranker)", opacity=0.45).encode(
        x=x, y=y.encoding(alt.Y, "low"), y2=alt.Y2("high:Q")
    )
    points = base.mark_circle(fill="var(--ranker)", size=26, opacity=1).encode(x=x, y=y.encoding(alt.Y, "observed"))
    return to_svg(title, alt.layer(diagonal, intervals, points).properties(width=width, height=height))


def _round_below(value: float) -> float:
    """The largest of 1, 2, 4 and 8 times a power of ten that is not above a value."""
    power = 10.0 ** np.floor(np.log10(value))
    return float(max(digit * power for digit in (1, 2, 4, 8) if digit * power <= value * (1 + 1e-9)))


def wilson_interval(
    rate: npt.NDArray[np.float64], examples: npt.NDArray[np.float64], z: float = 1.96
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The interval of a true rate, given the observed one; right also where that is 0 or 1."""
    weight = 1 + z**2 / examples
    middle = (rate + z**2 / (2 * examples)) / weight
    half = z * np.sqrt(rate * (1 - rate) / examples + z**2 / (4 * examples**2)) / weight
    return np.clip(middle - half, 0, None), np.clip(middle + half, None, 1)


def to_svg(title: str, chart: alt.Chart | alt.LayerChart | alt.FacetChart | alt.HConcatChart, fit: bool = True) -> str:
    """The chart as an SVG element that scales down with its container and carries a title for screen readers.

    Width and height are those of the whole picture, so that pictures beside each other line up; without `fit` they are
    those of the plot inside the axes.
    """
    autosize = {"type": "fit" if fit else "pad", "contains": "padding"}
    svg: str = vl_convert.vegalite_to_svg({**chart.to_dict(validate=False), "config": CONFIG, "autosize": autosize})
    size = re.search(r'width="([\d.]+)" height="[\d.]+" (viewBox="[^"]*")', svg)
    assert size is not None
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size[2]} style="max-width:{size[1]}px" role="img" '
        f'aria-label="{html.escape(title)}"><title>{html.escape(title)}</title>'
    )
    body = svg[svg.index(">") + 1 :]
    # Vega's own roles and labels would make a screen reader walk through every grid line.
    body = re.sub(r' (?:aria-[a-z]+|role|class|pointer-events)="[^"]*"', "", body)
    return opening + re.sub(r' (?:d|transform)="[^"]*"', _with_two_decimals, body)


def _with_two_decimals(attribute: re.Match[str]) -> str:
    """Hundredths of a pixel are fine enough, and half the size."""
    return re.sub(r"(\.\d{2})\d+", r"\1", attribute[0])


def _thinned(series: Series) -> tuple[Sequence[float], Sequence[float]]:
    step = -(-len(series.x) // MOST_POINTS)
    if step <= 1:
        return list(series.x), list(series.y)
    # Counted from the end, so that the last value is always shown.
    return list(series.x)[::-step][::-1], list(series.y)[::-step][::-1]
