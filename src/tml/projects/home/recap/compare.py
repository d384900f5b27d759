"""Two models on the same held-out examples: differences with intervals and p-values.

Both see the same draws of viewers (`tml.metrics.bootstrap`), so what is common to both falls out of the difference:
which days, which viewers, which lucky labels. A difference whose interval is clear of zero is one that other viewers
would be expected to show, too.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.markup import escape
from rich.table import Table

from tml.core.errors import DataError, MissingStage
from tml.metrics.binary import BinaryMetrics
from tml.metrics.bootstrap import BinaryBootstrap, interval, p_value
from tml.projects.home.recap.names import UNDEFINED, short_name
from tml.projects.home.recap.tables import plain_table

Floats = npt.NDArray[np.float64]

COMPARED_METRICS = ("auc", "rce")
OURS, THEIRS = "ours", "theirs"
ROWS_AT_A_TIME = 262_144


def paired_columns(
    predictions: Path, tasks: Sequence[str], against: str
) -> Iterable[tuple[npt.NDArray[Any], dict[str, Floats], dict[str, Floats], dict[str, Floats]]]:
    """Batches of viewers, and by task labels, the ranker's probabilities and the other's.

    Args:
        predictions: `recap/predictions.parquet` of a run.
        tasks: to compare.
        against: a model of the same file, as `lightgbm`, or the folder of another run.

    Raises:
        MissingStage: there are no predictions, of this run or of the other.
        DataError: the other is no model of the file and no run, or judged on none of the same examples.
    """
    if not predictions.is_file():
        raise MissingStage(f"{predictions}: no such predictions; `tml recap evaluate` makes them")
    file = pq.ParquetFile(predictions)
    names = file.schema_arrow.names
    models = list(dict.fromkeys(name.partition("/")[0] for name in names if "/" in name))
    models = [name for name in models if name not in ("label", "first", "ranker")]
    other: pa.Table | None = None
    if against not in models:
        path = Path(against) / "recap" / "predictions.parquet"
        if not path.is_file():
            raise DataError(
                f"--against {against}: found neither a model nor a run with predictions, allowed are "
                f"{', '.join(models)} and the folder of a run that was evaluated"
            )
        found = pq.ParquetFile(path).schema_arrow.names
        missing = [task for task in tasks if f"ranker/{task}" not in found]
        if missing:
            raise DataError(f"{path}: found no predictions of {', '.join(missing)}, needed is each task of this run")
        other = pq.read_table(path, columns=["impression_id", *(f"ranker/{task}" for task in tasks)])
    columns = ["impression_id", "user_id", *(f"{kind}/{task}" for task in tasks for kind in ("label", "ranker"))]
    columns += [f"{against}/{task}" for task in tasks if other is None]
    common = 0
    for batch in file.iter_batches(ROWS_AT_A_TIME, columns=columns):
        table = pa.Table.from_batches([batch])
        theirs, prefix = table, against
        if other is not None:
            at = pc.index_in(table["impression_id"], value_set=other["impression_id"].combine_chunks())
            table, theirs, prefix = table.filter(at.is_valid()), other.take(at.drop_null()), "ranker"
        common += len(table)
        values = [
            {task: t[f"{kind}/{task}"].to_numpy().astype(np.float64) for task in tasks}
            for t, kind in ((table, "label"), (table, "ranker"), (theirs, prefix))
        ]
        yield table["user_id"].to_numpy(), values[0], values[1], values[2]
    if not common:
        raise DataError(f"--against {against}: judged on none of this run's examples, needed is the same log and split")


def compare(
    predictions: Path, tasks: Sequence[str], against: str, draws: int, confidence: float, seed: int
) -> dict[str, Any]:
    """The ranker of a run against another model, task by task; arguments as in `paired_columns`.

    Returns:
        For each task the examples, and by metric `ours`, `theirs`, `difference`, `low`, `high` (of the difference) and
        `p`; None where one class is missing.
    """
    exact = {task: {name: BinaryMetrics() for name in (OURS, THEIRS)} for task in tasks}
    drawn = {task: BinaryBootstrap((OURS, THEIRS), draws, seed) for task in tasks}
    for viewers, labels, ours, theirs in paired_columns(predictions, tasks, against):
        for task in tasks:
            said = {OURS: ours[task], THEIRS: theirs[task]}
            for name, probabilities in said.items():
                exact[task][name].update(labels[task], probabilities)
            drawn[task].update(viewers, labels[task], said)
    found = {}
    for task in tasks:
        results = {name: metrics.compute() for name, metrics in exact[task].items()}
        values = {name: drawn[task].values(name) for name in results}
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
    return {"against": against, "draws": draws, "confidence": confidence, "tasks": found}


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
