"""The ranker's figures by segment: how well each kind of viewer, author and post is predicted."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.markup import escape
from rich.table import Table

from tml.core.errors import DataError
from tml.metrics.binary import BinaryMetrics
from tml.projects.home.recap.names import UNDEFINED, short_name
from tml.projects.home.recap.segments import Segment
from tml.projects.home.recap.tables import plain_table

SEGMENT_METRICS = ("auc", "rce", "calibration")
ROWS_AT_A_TIME = 262_144


def evaluate_segments(predictions: Path, tasks: Sequence[str], segments: Sequence[Segment]) -> dict[str, Any]:
    """By segment, bucket and task: `examples`, `positives` and the metrics, None where one class is missing.

    Args:
        predictions: `recap/predictions.parquet`, whose rows are those of the segments.
        tasks: what to evaluate.
        segments: how to cut.
    """
    file = pq.ParquetFile(predictions)
    metrics = [{task: [BinaryMetrics() for _ in segment.labels] for task in tasks} for segment in segments]
    first = 0
    for batch in file.iter_batches(
        ROWS_AT_A_TIME, columns=[f"{k}/{task}" for task in tasks for k in ("label", "ranker")]
    ):
        table = pa.Table.from_batches([batch])
        for segment, of_task in zip(segments, metrics, strict=True):
            bucket = segment.bucket[first : first + len(table)]
            if len(bucket) != len(table):
                raise DataError(f"{predictions}: made of other examples; run `tml recap evaluate` again")
            for task, collectors in of_task.items():
                labels, said = table[f"label/{task}"].to_numpy(), table[f"ranker/{task}"].to_numpy()
                for number in np.unique(bucket[bucket >= 0]):
                    rows = bucket == number
                    collectors[number].update(labels[rows], said[rows])
        first += len(table)
    return {
        segment.name: {
            label: {task: _figures(of_task[task][number]) for task in tasks}
            for number, label in enumerate(segment.labels)
        }
        for segment, of_task in zip(segments, metrics, strict=True)
    }


def _figures(metrics: BinaryMetrics) -> dict[str, Any]:
    result = metrics.compute()
    return {name: getattr(result, name) for name in ("examples", "positives", *SEGMENT_METRICS)}


def segment_table(name: str, buckets: Mapping[str, Mapping[str, Any]]) -> Table:
    """One segment: a row a bucket; AUC and calibration of each task."""
    table = plain_table(f"By {escape(name)}: AUC and mean predicted over mean observed", space=0)
    table.add_column("bucket", overflow="fold")
    table.add_column("examples", justify="right")
    for task in next(iter(buckets.values())):
        table.add_column(f"{escape(short_name(task))}\nAUC", justify="right", overflow="fold")
        table.add_column("cali-\nbration", justify="right", style="dim")
    for label, tasks in buckets.items():
        cells = []
        for values in tasks.values():
            for metric, digits in (("auc", 3), ("calibration", 2)):
                cells.append(UNDEFINED if values[metric] is None else f"{values[metric]:.{digits}f}")
        examples = max(values["examples"] for values in tasks.values())
        table.add_row(escape(label), f"{examples:,}", *cells)
    return table
