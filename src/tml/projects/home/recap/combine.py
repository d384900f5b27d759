"""From the probabilities of ten engagements to one order: the timeline score.

    score = Σ over tasks of weight(task) · probability(task)

that is, the expected worth of showing the post, when an engagement of a kind is worth its weight. The published weights
(5 April 2023) stand in `PUBLISHED_WEIGHTS`: a reply that the author answers is worth 150 likes, a report costs 738.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tml.core.errors import ConfigError, DataError
from tml.core.files import whole_file

Floats = npt.NDArray[np.float64]

PUBLISHED_WEIGHTS: Mapping[str, float] = MappingProxyType(
    {
        "recap.engagement.is_favorited": 0.5,
        "recap.engagement.is_retweeted": 1.0,
        "recap.engagement.is_replied": 13.5,
        "recap.engagement.is_profile_clicked_and_profile_engaged": 12.0,
        "recap.engagement.is_video_playback_50": 0.005,
        "recap.engagement.is_replied_reply_engaged_by_author": 75.0,
        "recap.engagement.is_good_clicked_convo_desc_favorited_or_replied": 11.0,
        "recap.engagement.is_good_clicked_convo_desc_v2": 10.0,
        "recap.engagement.is_negative_feedback_v2": -74.0,
        "recap.engagement.is_report_tweet_clicked": -369.0,
    }
)
"""Combination weight of each published task."""

UNPUBLISHED_WEIGHT = 1.0
"""Weight of a task that has no published one, such as `is_click`."""

COPIED_COLUMNS = ("impression_id", "post_id", "author_id", "served_at")


def combination_weights(tasks: Sequence[str], overrides: Mapping[str, float] | None = None) -> dict[str, float]:
    """The weight of each task: the override, else the published one, else 1.

    Raises:
        ConfigError: an override for a task that is not among `tasks`, or one that is not finite.

    Example:
        >>> combination_weights(["recap.engagement.is_replied", "is_click"], {"is_click": 2.0})
        {'recap.engagement.is_replied': 13.5, 'is_click': 2.0}
    """
    overrides = overrides or {}
    unknown = [task for task in overrides if task not in tasks]
    if unknown:
        raise ConfigError(f"weights: found {', '.join(unknown)}, allowed are the tasks {', '.join(tasks)}")
    weights = {task: float(overrides.get(task, PUBLISHED_WEIGHTS.get(task, UNPUBLISHED_WEIGHT))) for task in tasks}
    for task, weight in weights.items():
        if not np.isfinite(weight):
            raise ConfigError(f"weights.{task}: found {weight}, allowed are finite numbers")
    return weights


def score(probabilities: Mapping[str, npt.ArrayLike], weights: Mapping[str, float]) -> Floats:
    """The timeline score of each example.

    Args:
        probabilities: by task, (examples,) each.
        weights: by task; the tasks to sum over.

    Returns:
        (examples,) float64.

    Example:
        >>> score({"is_like": [0.5, 0.1], "is_hate": [0.0, 0.1]}, {"is_like": 1.0, "is_hate": -2.0}).tolist()
        [0.5, -0.1]
    """
    missing = [task for task in weights if task not in probabilities]
    if missing or not weights:
        raise DataError(f"score: found no probabilities of {', '.join(missing) or 'any task'}, needed for each weight")
    terms = [weight * np.asarray(probabilities[task], np.float64) for task, weight in weights.items()]
    total: Floats = np.sum(terms, axis=0)
    return total


def weighted_engagement(labels: Mapping[str, npt.ArrayLike], weights: Mapping[str, float]) -> Floats:
    """What really happened, in the score's unit: (examples,) float64. A label that does not count (NaN) adds nothing.

    Example:
        >>> weighted_engagement({"is_like": [1, float("nan")]}, {"is_like": 0.5}).tolist()
        [0.5, 0.0]
    """
    return score({task: np.nan_to_num(np.asarray(column, np.float64)) for task, column in labels.items()}, weights)


def columns_of(table: pa.Table, kind: str, tasks: Iterable[str]) -> dict[str, Floats]:
    """The float64 columns `kind/task` of a predictions table, by task.

    Raises:
        DataError: a column that the table lacks.
    """
    missing = [f"{kind}/{task}" for task in tasks if f"{kind}/{task}" not in table.column_names]
    if missing:
        raise DataError(
            f"predictions: found no column {', '.join(missing)}; the table has {', '.join(table.schema.names)}"
        )
    return {task: table[f"{kind}/{task}"].to_numpy().astype(np.float64) for task in tasks}


def ranking_columns(predictions: pa.Table, tasks: Sequence[str]) -> dict[str, Floats]:
    """The ranker's probabilities that an order may be made of.

    These are `first/task`, where the table has them: what the ranker says if the post stood first. Those at the place
    where a post was served know the order that is to be replaced. Without them it is `ranker/task`.
    """
    has_first = all(f"first/{task}" in predictions.column_names for task in tasks)
    return columns_of(predictions, "first" if has_first else "ranker", tasks)


def rank_sessions(predictions: pa.Table, tasks: Sequence[str], weights: Mapping[str, float]) -> pa.Table:
    """Re-rank each session by the timeline score of the ranker.

    Args:
        predictions: one row an impression, with the columns of `recap/predictions.parquet`.
        tasks: whose probabilities (as in `ranking_columns`) and labels to keep.
        weights: of each task.

    Returns:
        The table of `timelines.parquet`: by session, then `rank` from 1. Of equal scores the one served higher comes
        first, then the one with the lower impression id.
    """
    probabilities = ranking_columns(predictions, tasks)
    scores = score(probabilities, {task: weights[task] for task in tasks})
    for task, column in probabilities.items():
        predictions = predictions.append_column(f"probability/{task}", pa.array(column.astype(np.float32)))
    ordered = predictions.append_column("score", pa.array(scores)).sort_by(
        [
            ("session_id", "ascending"),
            ("score", "descending"),
            ("position", "ascending"),
            ("impression_id", "ascending"),
        ]
    )
    sessions = ordered["session_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    starts = np.flatnonzero(np.diff(sessions, prepend=-1))
    rank = np.arange(len(sessions)) - np.repeat(starts, np.diff(starts, append=len(sessions))) + 1
    microseconds = pc.microseconds_between(ordered["created_at"], ordered["served_at"])
    columns = {
        "session_id": ordered["session_id"],
        "user_id": ordered["user_id"],
        "rank": pa.array(rank.astype(np.int32)),
        "score": ordered["score"],
        "served_position": ordered["position"],
        **{name: ordered[name] for name in COPIED_COLUMNS},
        "age_seconds": pc.divide(microseconds.cast(pa.float64()), 1e6),
        **{f"{kind}/{task}": ordered[f"{kind}/{task}"] for kind in ("probability", "label") for task in tasks},
    }
    return pa.table(columns)


def write_timelines(timelines: pa.Table, path: Path) -> None:
    """Write `timelines.parquet`, whole or not at all."""
    with whole_file(path) as partial:
        pq.write_table(timelines, partial)
