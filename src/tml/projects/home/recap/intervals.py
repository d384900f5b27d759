"""Intervals of a run's own figures: a bootstrap over viewers of each task's metrics and of the orders."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tml.metrics.bootstrap import BinaryBootstrap, interval, multiplicities, p_value, viewer_keys
from tml.metrics.ranking import mean_at_top_by_group, ndcg_by_group
from tml.projects.home.recap.combine import columns_of, ranking_columns, score, weighted_engagement

Floats = npt.NDArray[np.float64]

ROWS_AT_A_TIME = 262_144


def task_intervals(
    predictions: Path, tasks: Sequence[str], draws: int, confidence: float, seed: int
) -> dict[str, dict[str, Any]]:
    """By task and metric `low`, `high` and `deviation` of the ranker; None where too few draws have both classes."""
    drawn = {task: BinaryBootstrap(["ranker"], draws, seed) for task in tasks}
    columns = ["user_id", *(f"{kind}/{task}" for task in tasks for kind in ("label", "ranker"))]
    for batch in pq.ParquetFile(predictions).iter_batches(ROWS_AT_A_TIME, columns=columns):
        table = pa.Table.from_batches([batch])
        viewers = table["user_id"].to_numpy()
        for task in tasks:
            said = {"ranker": table[f"ranker/{task}"].to_numpy()}
            drawn[task].update(viewers, table[f"label/{task}"].to_numpy(), said)
    return {
        task: {name: _plain(values, confidence) for name, values in bootstrap.values("ranker").items()}
        for task, bootstrap in drawn.items()
    }


def _plain(draws: Floats, confidence: float) -> dict[str, float] | None:
    found = interval(draws, confidence)
    return None if found is None else asdict(found)


def order_intervals(
    predictions: pa.Table, weights: Mapping[str, float], k: int, draws: int, confidence: float, seed: int
) -> dict[str, dict[str, Any] | None]:
    """The ranker's order less that which was served, by `ndcg` and `weighted_engagement_at_k`: difference, `low`,
    `high` and `p`."""
    session = predictions["session_id"].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    keys = viewer_keys(predictions["user_id"].to_numpy())
    worth = weighted_engagement(columns_of(predictions, "label", weights), weights)
    scores = score(ranking_columns(predictions, list(weights)), weights)
    served = -predictions["position"].to_numpy().astype(np.float64)
    found = {}
    for name, (ours, items), (theirs, _) in (
        ("ndcg", ndcg_by_group(session, scores, worth), ndcg_by_group(session, served, worth)),
        (
            f"weighted_engagement_at_{k}",
            mean_at_top_by_group(session, scores, worth, k),
            mean_at_top_by_group(session, served, worth, k),
        ),
    ):
        found[name] = _mean_interval(ours - theirs, keys[items], draws, confidence, seed)
    return found


def _mean_interval(
    values: Floats, keys: npt.NDArray[np.uint64], draws: int, confidence: float, seed: int
) -> dict[str, Any] | None:
    """The mean of values that belong to viewers."""
    unique, inverse = np.unique(keys, return_inverse=True)
    if len(unique) < 2:
        return None  # of one viewer alone no draw tells anything
    sums, counts = np.bincount(inverse, values, len(unique)), np.bincount(inverse, minlength=len(unique))
    totals = np.zeros((2, draws))
    for first in range(0, len(unique), ROWS_AT_A_TIME // 32):
        rows = slice(first, first + ROWS_AT_A_TIME // 32)
        totals += np.stack([sums[rows], counts[rows]]) @ multiplicities(unique[rows], draws, seed).astype(np.float64)
    with np.errstate(invalid="ignore"):
        between = interval(totals[0] / totals[1], confidence)
    if between is None:
        return None
    difference = float(values.mean())
    p = p_value(difference, between.deviation)
    return {"difference": difference, "low": between.low, "high": between.high, "p": p}
