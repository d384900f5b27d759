"""Charts: they show their data, carry a title, and promise no more than they draw."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from scipy.stats import binomtest

from tml.metrics.binary import examples_that_count
from tml.metrics.curves import reliability
from tml.report.charts import MOST_POINTS, Axis, Series, line_chart, reliability_chart, wilson_interval


def lines(svg: str) -> list[str]:
    """The paths of the lines, by their colour attribute."""
    return re.findall(r'<path d="([^"]+)"[^>]*stroke="var\(--ranker\)"', svg)


def test_a_line_goes_through_its_points():
    series = [Series("loss", [0, 5, 10], [1.0, 0.0, 0.5], "var(--ranker)")]
    unit = (0.0, 1.0)
    svg = line_chart("Loss & <more>", series, Axis("step", (0.0, 10.0)), Axis("loss", unit), 300, 200)
    (path,) = lines(svg)
    x, y = np.array(re.findall(r"([\d.]+),([\d.]+)", path), float).T
    # Upwards is negative in SVG.
    np.testing.assert_allclose((x - x[0]) / (x[-1] - x[0]), [0, 0.5, 1], atol=1e-3)
    np.testing.assert_allclose((y - y[0]) / (y[1] - y[0]), [0, 1, 0.5], atol=1e-3)
    assert "<title>Loss &amp; &lt;more&gt;</title>" in svg
    assert 'role="img"' in svg
    assert ElementTree.fromstring(svg).attrib["viewBox"] == "0 0 300 200"


def test_small_labels_keep_their_digits():
    svg = line_chart(
        "Rate", [Series("a", [0, 1], [0.0, 0.0012], "red")], Axis("step"), Axis("rate", ticks=(0.0, 0.0012)), 300, 200
    )
    assert ">0.0012</text>" in svg


def test_a_long_series_is_thinned_and_keeps_its_end():
    n = 10 * MOST_POINTS + 3
    svg = line_chart("x", [Series("a", range(n), range(n), "var(--ranker)")], Axis("x"), Axis("y"), 300, 200)
    (path,) = lines(svg)
    assert 2 <= path.count(",") <= MOST_POINTS
    short = line_chart("x", [Series("a", [0, n - 1], [0, n - 1], "var(--ranker)")], Axis("x"), Axis("y"), 300, 200)
    assert lines(short)[0].split("L")[-1] == path.split("L")[-1]


@pytest.mark.parametrize(("positives", "examples"), [(0, 40), (3, 40), (40, 40), (117, 1000)])
def test_wilson_interval_agrees_with_scipy(positives, examples):
    expected = binomtest(positives, examples).proportion_ci(0.95, method="wilson")
    low, high = wilson_interval(np.array([positives / examples]), np.array([float(examples)]))
    assert low[0] == pytest.approx(expected.low, abs=1e-4)
    assert high[0] == pytest.approx(expected.high, abs=1e-4)


@pytest.mark.parametrize("rate", [0.5, 1e-3, 1e-6])
def test_reliability_of_any_rate_has_a_dot_for_every_bin(rate):
    rng = np.random.default_rng(0)
    p = rate * 2 * rng.random(500)
    curve = reliability(examples_that_count(rng.random(500) < p, p))
    svg = reliability_chart("Reliability", curve, 160, 160)
    assert len(re.findall(r'<path [^>]*fill="var\(--ranker\)"', svg)) == len(curve.predicted) == 10


def test_one_bin_at_zero_is_drawn():
    curve = reliability(examples_that_count([0, 1], [0.0, 0.0]))
    assert "<svg" in reliability_chart("Reliability", curve, 160, 160)
