"""The report's figures as HTML: every task in one table, and the orders side by side."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tml.projects.home.recap.names import UNDEFINED, plain_name, short_name
from tml.report.style import MODEL_COLORS

MODEL_NAMES = {
    "ranker": "ranker",
    "lightgbm": "boosted trees",
    "logistic_regression": "logistic regression",
    "popularity": "popularity",
    "base_rate": "base rate",
    "oracle": "oracle",
    "served": "as served",
    "random": "at random",
}

HEADINGS = {
    "ranker": "ranker",
    "lightgbm": "trees",
    "logistic_regression": "LR",
    "popularity": "popular",
    "base_rate": "base",
    "oracle": "oracle",
}

EXPLANATIONS = {
    "AUC": "The chance that an example with the engagement is ranked above one without. 0.5 is a coin toss, 1 perfect.",
    "PR-AUC": "Average precision: how pure the top of the list is. A coin toss reaches the share of positives.",
    "RCE": "Relative cross-entropy: by how many percent the probabilities tell more about what happens than always "
    "predicting the base rate does. 0 is no better than that, below 0 is worse.",
    "Calibration": "Mean predicted over mean observed. 1 is right; 1.2 promises a fifth too much.",
    "LR": "A logistic regression for each task on the same inputs: what the ranker must beat to be worth its cost.",
    "Trees": "Gradient boosted trees (LightGBM) for each task on the same inputs: what most people would use instead.",
    "Oracle": "The simulator's own probabilities: the best that can be known before the dice are thrown. A model beats "
    "it only by luck.",
}

GROUPS: tuple[tuple[str, str, int, tuple[str, ...]], ...] = (
    ("AUC", "auc", 3, ("ranker", "lightgbm", "logistic_regression", "popularity", "oracle")),
    ("PR-AUC", "pr_auc", 3, ("ranker", "oracle")),
    ("RCE", "rce", 1, ("ranker", "lightgbm", "logistic_regression", "base_rate", "oracle")),
    ("Calibration", "calibration", 2, ("ranker",)),
)
"""Heading, metric, digits, and the models that stand under it."""


def number(value: float | None, digits: int) -> str:
    """A figure with a true minus sign; a dash for one that there is not."""
    if value is None:
        return UNDEFINED
    text = f"{value:,.{digits}f}"
    return "0" + text[2:] if float(text.replace(",", "")) == 0 and text.startswith("-") else text.replace("-", "\u2212")


def models_of(evaluation: Mapping[str, Any]) -> set[str]:
    """The models that predicted any task."""
    return {model for task in evaluation["tasks"].values() for model in task["models"]}


def task_table(evaluation: Mapping[str, Any]) -> str:
    """Every task in a row; the best of ranker, logistic regression and base rate in bold, the oracle apart."""
    present = models_of(evaluation)
    groups = [(h, metric, digits, [m for m in models if m in present]) for h, metric, digits, models in GROUPS]
    top = "".join(
        f'<th class="group first" colspan="{len(models)}" scope="colgroup"><span>{_explained(heading)}</span></th>'
        for heading, _, _, models in groups
    )
    below = "".join(
        f'<th class="{"first" if position == 0 else ""}" scope="col">{HEADINGS[model]}</th>'
        for _, _, _, models in groups
        for position, model in enumerate(models)
    )
    rows = "".join(_task_row(task, values, groups) for task, values in evaluation["tasks"].items())
    return (
        '<div class="card scroll"><table><thead>'
        f'<tr><th></th><th></th>{top}</tr><tr><th scope="col">Task</th><th scope="col">Positives</th>{below}</tr>'
        f"</thead><tbody>{rows}</tbody></table></div>"
    )


def _task_row(task: str, values: Mapping[str, Any], groups: Sequence[tuple[str, str, int, list[str]]]) -> str:
    cells = []
    for _, metric, digits, models in groups:
        figures = {model: values["models"].get(model, {}).get(metric) for model in models}
        shown = {model: number(figure, digits) for model, figure in figures.items()}
        rivals = [figure for model, figure in figures.items() if model != "oracle" and figure is not None]
        for position, model in enumerate(models):
            # By what is shown: two figures that look alike are both the best.
            best = len(models) > 1 and model != "oracle" and rivals and shown[model] == number(max(rivals), digits)
            kind = "best" if best else "" if model == "ranker" else "other"
            cells.append(f'<td class="{kind}{" first" if position == 0 else ""}">{shown[model]}</td>')
    name = f"{escape(plain_name(task))}<code>{_breakable(short_name(task))}</code>"
    return f'<tr><th scope="row">{name}</th><td>{values["positives"]:,}</td>{"".join(cells)}</tr>'


def _breakable(name: str) -> str:
    """A name that may go on in the next line after an underscore."""
    return escape(name).replace("_", "_<wbr>")


def _explained(heading: str) -> str:
    return f'<abbr title="{escape(EXPLANATIONS[heading])}">{heading}</abbr>'


def explanations(evaluation: Mapping[str, Any]) -> str:
    """What the headings mean, for those who cannot hover."""
    present = models_of(evaluation)
    absent = {"LR": "logistic_regression", "Trees": "lightgbm", "Oracle": "oracle"}
    items = "".join(
        f"<div><dt>{name}</dt><dd>{escape(text)}</dd></div>"
        for name, text in EXPLANATIONS.items()
        if absent.get(name) is None or absent[name] in present
    )
    return f'<dl class="notes">{items}</dl>'


def order_bars(ranking: Mapping[str, Any], metric: str, digits: int = 3) -> str:
    """One bar an order, best first. Bars start at 0; where a value is negative, they start at the lowest."""
    orders = {name: values[metric] for name, values in ranking["orders"].items() if values[metric] is not None}
    if not orders:
        return '<p class="about">No session has an engagement to order by.</p>'
    low = min(0.0, *orders.values(), 0.0)
    span = max(*orders.values(), 0.0) - low or 1.0
    rows = []
    for name, value in sorted(orders.items(), key=lambda order: -order[1]):
        share = 100 * (value - low) / span
        kind = "ranker" if name == "ranker" else ""
        rows.append(
            f'<dt class="{kind}">{MODEL_NAMES[name]}</dt>'
            f'<div class="track"><i style="width:{share:.1f}%;background:{MODEL_COLORS[name]}"></i></div>'
            f'<dd class="value {kind}" style="margin:0">{number(value, digits)}</dd>'
        )
    return f'<dl class="orders">{"".join(rows)}</dl>'


def legend(entries: Sequence[tuple[str, str, bool]]) -> str:
    """Name, colour and whether dashed, of each line."""
    items = "".join(
        f'<li><i class="{"dashed" if dashed else ""}" style="border-color:{color}"></i>{escape(name)}</li>'
        for name, color, dashed in entries
    )
    return f'<ul class="legend">{items}</ul>'
