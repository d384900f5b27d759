"""The report's pictures: how each task is predicted, and how the training went."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import pyarrow as pa

from tml.metrics.binary import examples_that_count
from tml.metrics.curves import reliability, roc_curve
from tml.projects.home.recap.names import plain_name, short_name
from tml.report.charts import Axis, Series, line_chart, reliability_chart
from tml.report.run_files import Metrics, RunFiles
from tml.report.style import MODEL_COLORS, SERIES_COLORS
from tml.report.tables import MODEL_NAMES, legend, models_of, number

SMALL, WIDE, LOW = 156, 466, 230
"""Width and height of the small pictures, and of the others, in CSS pixels: as they stand on a wide screen."""

DRAWN_MODELS = ("logistic_regression", "oracle", "ranker")
"""The last is drawn on top."""


def points(metrics: Metrics, key: str) -> tuple[list[float], list[float]]:
    """The steps and values of a key, where it has one."""
    found = [(line["step"], line[key]) for line in metrics if line.get(key) is not None]
    return [step for step, _ in found], [value for _, value in found]


def task_cards(files: RunFiles) -> str:
    """A card a task: ROC, reliability, and RCE over the training, as far as the files are there."""
    present = models_of(files.evaluation)
    lines = [(MODEL_NAMES[m], MODEL_COLORS[m], m == "oracle") for m in reversed(DRAWN_MODELS) if m in present]
    cards = "".join(_task_card(files, task) for task in files.tasks)
    return f'{legend(lines)}<div class="columns">{cards}</div>'


def _task_card(files: RunFiles, task: str) -> str:
    values = files.evaluation["tasks"][task]
    ranker = values["models"]["ranker"]
    rate = values["positives"] / max(values["examples"], 1)
    figures = "".join(
        f"<span>{name} <b>{text}</b></span>"
        for name, text in (
            ("AUC", number(ranker["auc"], 3) + _span(values, "auc", 3)),
            ("RCE", number(ranker["rce"], 1) + _span(values, "rce", 1)),
            ("calibration", number(ranker["calibration"], 2)),
            ("base rate", f"{100 * rate:.3g}%"),
        )
    )
    if ranker["auc"] is None:
        body = (
            f"<p>{values['positives']:,} of {values['examples']:,} held-out examples are positive: nothing to draw.</p>"
        )
    else:
        body = f'<div class="minis">{_roc(files, task)}{_reliability(files, task)}{_rce(files, task)}</div>'
    name = f'<h3 title="{escape(short_name(task))}">{escape(plain_name(task).capitalize())}</h3>'
    return f'<article class="card">{name}<div class="figures">{figures}</div>{body}</article>'


def _span(values: Mapping[str, Any], metric: str, digits: int) -> str:
    """The interval of a figure, where there is one."""
    one = values.get("intervals", {}).get(metric)
    return "" if one is None else f" <small>{number(one['low'], digits)} to {number(one['high'], digits)}</small>"


def _roc(files: RunFiles, task: str) -> str:
    table = files.predictions
    if table is None or f"label/{task}" not in table.column_names:
        return ""
    series = []
    for model in DRAWN_MODELS:
        if f"{model}/{task}" in table.column_names:
            curve = roc_curve(_examples(table, task, model), points=100)
            if curve is not None:
                series.append(
                    Series(
                        model,
                        curve.false_positive_rate,
                        curve.true_positive_rate,
                        MODEL_COLORS[model],
                        dashed=model == "oracle",
                    )
                )
    unit = (0.0, 1.0)
    x, y = (Axis(f"{side} positive rate", unit, ticks=(0.0, 0.5, 1.0)) for side in ("false", "true"))
    return _figure("ROC", line_chart(f"ROC of {plain_name(task)}", series, x, y, SMALL, SMALL))


def _reliability(files: RunFiles, task: str) -> str:
    table = files.predictions
    if table is None or f"ranker/{task}" not in table.column_names:
        return ""
    curve = reliability(_examples(table, task, "ranker"))
    return _figure("Reliability", reliability_chart(f"Reliability of {plain_name(task)}", curve, SMALL, SMALL))


def _rce(files: RunFiles, task: str) -> str:
    steps, values = points(files.recap_metrics, f"validation/rce/{task}")
    if len(steps) < 2:
        return ""
    models = files.evaluation["tasks"][task]["models"]
    series = [
        Series(model, [0.0, steps[-1]], [models[model]["rce"]] * 2, MODEL_COLORS[model], dashed=model == "oracle")
        for model in ("logistic_regression", "oracle")
        if models.get(model, {}).get("rce") is not None
    ]
    series.append(Series("ranker", steps, values, MODEL_COLORS["ranker"], marked=len(steps) <= 20))
    # The first steps may be far below 0, and would press all that follows flat.
    top = max(max(one.y) for one in series)
    low = max(min(min(one.y) for one in series), min(0.0, -0.5 * top) if top > 0 else -100.0)
    series[-1] = _from(series[-1], low)
    x, y = Axis("step", (0.0, steps[-1]), "~s"), Axis("RCE in %", (low, top + 0.05 * (top - low or 1)))
    return _figure("RCE in training", line_chart(f"RCE of {plain_name(task)}", series, x, y, SMALL, SMALL))


def _from(series: Series, low: float) -> Series:
    """The series without its points below `low`."""
    kept = [(x, y) for x, y in zip(series.x, series.y, strict=True) if y >= low]
    return Series(series.name, [x for x, _ in kept], [y for _, y in kept], series.color, marked=series.marked)


def _examples(table: pa.Table, task: str, model: str) -> Any:
    return examples_that_count(table[f"label/{task}"].to_numpy(), table[f"{model}/{task}"].to_numpy())


def _figure(caption: str, svg: str) -> str:
    return f"<figure><figcaption>{caption}</figcaption>{svg}</figure>"


def training_cards(files: RunFiles) -> str:
    """Losses, learning rates and speed of the ranker's training, and TwHIN's losses; empty without metrics."""
    cards = [
        _curves("Loss of the ranker", "Mean over the tasks.", files.recap_metrics, LOSSES, "cross-entropy"),
        _learning_rates(files),
        _curves("Loss of TwHIN", "Observed edges against corrupted ones.", files.twhin_metrics, LOSSES, "loss"),
        _curves("Held-out edges", "Before TwHIN's vectors go to the ranker.", files.twhin_metrics, EDGES, ""),
    ]
    found = "".join(card for card in cards if card)
    return f'<div class="columns">{found}</div>' if found else ""


LOSSES = (("train/loss", "training"), ("validation/loss", "held out"))
EDGES = (("validation/auc", "AUC"), ("validation/mrr", "mean reciprocal rank"))


def _curves(title: str, about: str, metrics: Metrics, keys: Sequence[tuple[str, str]], y: str) -> str:
    series = []
    for (key, name), color in zip(keys, SERIES_COLORS, strict=False):
        steps, values = points(metrics, key)
        if len(steps) > 1:
            series.append(Series(name, steps, values, color, marked=len(steps) <= 20))
    return _line_card(title, about, series, Axis(y))


def _learning_rates(files: RunFiles) -> str:
    """One line a schedule; groups that share one share the line."""
    prefix = "learning_rate/"
    metrics = files.recap_metrics
    groups = sorted({key for line in metrics for key in line if key.startswith(prefix)})
    shared: dict[tuple[tuple[float, ...], tuple[float, ...]], list[str]] = {}
    for key in groups:
        steps, values = points(metrics, key)
        if len(steps) > 1:
            shared.setdefault((tuple(steps), tuple(values)), []).append(key.removeprefix(prefix))
    series = [
        Series(_joined(names, files.tasks), steps, values, SERIES_COLORS[number % len(SERIES_COLORS)])
        for number, ((steps, values), names) in enumerate(shared.items())
    ]
    return _line_card("Learning rates", "By parameter group.", series, Axis("learning rate"))


def _joined(groups: Sequence[str], tasks: Sequence[str]) -> str:
    """The groups of one schedule in a few words."""
    towers = [group for group in groups if group in tasks]
    names = [group for group in groups if group not in tasks]
    names += [f"{len(towers)} towers"] if len(towers) > 2 else [plain_name(tower) for tower in towers]
    return " and ".join(names)


def _line_card(title: str, about: str, series: Sequence[Series], y: Axis) -> str:
    if not series:
        return ""
    svg = line_chart(title, series, Axis("step", format="~s"), y, WIDE, LOW)
    lines = legend([(one.name, one.color, one.dashed) for one in series])
    return f'<article class="card"><h3>{title}</h3><p>{about}</p><div class="chart">{svg}</div>{lines}</article>'
