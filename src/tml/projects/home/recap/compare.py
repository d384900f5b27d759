"""Two models on the same held-out examples: differences with intervals and p-values.

Both see the same draws of viewers (`tml.metrics.bootstrap`), so what is common to both falls out of the difference:
which days, which viewers, which lucky labels. A difference whose interval is clear of zero is one that other viewers
would be expected to show, too.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.markup import escape
from rich.table import Table

from tml.metrics.binary import BinaryMetrics
from tml.metrics.bootstrap import BinaryBootstrap, interval, p_value
from tml.projects.home.recap.names import UNDEFINED, short_name
from tml.projects.home.recap.pairing import Pairs
from tml.projects.home.recap.tables import plain_table

Floats = npt.NDArray[np.float64]

ByTask = Mapping[str, npt.ArrayLike]

COMPARED_METRICS = ("auc", "rce")
OURS, THEIRS = "ours", "theirs"


class Comparison:
    """Collects what two models say of the same examples.

    Args:
        tasks: to compare.
        draws, seed: of the bootstrap.
    """

    def __init__(self, tasks: Sequence[str], draws: int, seed: int) -> None:
        self.tasks = tuple(tasks)
        self.exact = {task: {name: BinaryMetrics() for name in (OURS, THEIRS)} for task in tasks}
        self.drawn = {task: BinaryBootstrap((OURS, THEIRS), draws, seed) for task in tasks}

    def update(self, viewers: npt.ArrayLike, labels: ByTask, ours: ByTask, theirs: ByTask) -> None:
        """Add a batch: viewers, and by task labels and what the two say, (batch,) each."""
        for task in self.tasks:
            said = {OURS: ours[task], THEIRS: theirs[task]}
            for name, probabilities in said.items():
                self.exact[task][name].update(labels[task], probabilities)
            self.drawn[task].update(viewers, labels[task], said)

    def merge(self, other: "Comparison") -> None:
        """Add what another rank has collected."""
        for task in self.tasks:
            self.drawn[task].merge(other.drawn[task])
            for name, metrics in self.exact[task].items():
                metrics.merge(other.exact[task][name])

    def figures(self, confidence: float) -> dict[str, Any]:
        """By task the examples, and by metric the difference; see `compare`."""
        found = {}
        for task in self.tasks:
            results = {name: metrics.compute() for name, metrics in self.exact[task].items()}
            values = {name: self.drawn[task].values(name) for name in results}
            metrics = {
                metric: _difference(
                    getattr(results[OURS], metric),
                    getattr(results[THEIRS], metric),
                    values[OURS][metric] - values[THEIRS][metric],
                    confidence,
                )
                for metric in COMPARED_METRICS
            }
            found[task] = {"examples": results[OURS].examples, "positives": results[OURS].positives, **metrics}
        return found


def compare(
    predictions: Path, tasks: Sequence[str], against: str, draws: int, confidence: float, seed: int
) -> dict[str, Any]:
    """The ranker of a run against another model, task by task; arguments and errors as in `pairing.Pairs`.

    Returns:
        How many examples the two have and have in common, whether they say the same of all of them, and for each task
        the examples, and by metric `ours`, `theirs`, `difference`, `low`, `high` (of the difference) and `p`; None
        where one class is missing.
    """
    comparison = Comparison(tasks, draws, seed)
    pairs = Pairs(predictions, tasks, against)
    for viewers, labels, ours, theirs in pairs:
        comparison.update(viewers, labels, ours, theirs)
    found = comparison.figures(confidence)
    examples = {"ours": pairs.examples, "theirs": pairs.of_the_other, "common": pairs.common}
    about = {"against": against, "examples": examples, "same": pairs.is_same}
    return {**about, "draws": draws, "confidence": confidence, "tasks": found}


def _difference(ours: float | None, theirs: float | None, draws: Floats, confidence: float) -> dict[str, Any] | None:
    between = interval(draws, confidence)
    if ours is None or theirs is None or between is None:
        return None
    return {
        "ours": ours,
        "theirs": theirs,
        "difference": ours - theirs,
        "low": between.low,
        "high": between.high,
        "p": p_value(ours - theirs, between.deviation),
    }


def comparison_table(comparison: Mapping[str, Any], other: str) -> Table:
    """Differences by task, with intervals; what is clear of zero in bold."""
    percent = f"{100 * comparison['confidence']:g}%"
    caption = f"bootstrap over viewers, {comparison['draws']:,} paired draws; {percent} intervals"
    examples = comparison["examples"]
    if examples["common"] < max(examples["ours"], examples["theirs"]):
        caption += (
            f"\nof the {examples['common']:,} examples that both have, of {examples['ours']:,} of the ranker's and "
            f"{examples['theirs']:,} of the other's"
        )
    if comparison["same"]:
        caption += "\nthe two say the same of every example"
    table = plain_table(f"The ranker against {other}", caption)
    table.add_column("task")
    table.add_column("positives", justify="right")
    for name in ("AUC", "RCE"):
        table.add_column(name, justify="right")
        table.add_column(f"{escape(other)}", justify="right", style="dim")
        table.add_column("difference", justify="right")
        table.add_column("p", justify="right")
    for task, values in comparison["tasks"].items():
        cells = []
        for metric, digits in (("auc", 4), ("rce", 2)):
            one = values[metric]
            if one is None:
                cells += [UNDEFINED] * 4
                continue
            text = f"{one['difference']:+.{digits}f} ({one['low']:+.{digits}f} to {one['high']:+.{digits}f})"
            clear = one["low"] > 0 or one["high"] < 0
            cells += [f"{one['ours']:.{digits}f}", f"{one['theirs']:.{digits}f}", f"[bold]{text}[/]" if clear else text]
            cells.append("<0.001" if one["p"] < 0.001 else f"{one['p']:.3f}")
        table.add_row(escape(short_name(task)), f"{values['positives']:,}", *cells)
    return table
