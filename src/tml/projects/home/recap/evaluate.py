"""How good the ranker is on held-out examples: its probabilities task by task, and the order that they give.

Probabilities are compared with the base rate's and a logistic regression's, which say what the ranker is worth, and,
where the log was simulated, with the oracle's: the true probabilities, which no model can beat but by luck.

The order of each session is compared with the order that was served, with the oracle's, and with a random one, whose
figures are the exact expectation over all orders. Its worth is the weighted engagement that really happened; a session
holds only what was served in it, so this compares orders of the same posts. The oracle's probabilities, unlike the
ranker's, are those at the place where each post was served, so its order knows something that no ranking may use.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from rich.markup import escape
from rich.table import Table

from tml.core.errors import DataError
from tml.core.files import write_json
from tml.metrics.binary import binary_result, examples_that_count
from tml.metrics.ranking import grouped_auc, mean_at_top, ndcg
from tml.projects.home.recap.combine import columns_of, ranking_columns, score, weighted_engagement
from tml.projects.home.recap.names import UNDEFINED, age, percent, plain_name, short_name
from tml.projects.home.recap.tables import plain_table

MODELS = ("ranker", "lightgbm", "logistic_regression", "popularity", "base_rate", "oracle")
"""What may have predicted, in the order of tables; only the ranker must be there."""

COMPARED = (("lightgbm", "trees"), ("logistic_regression", "LR"), ("oracle", "oracle"))
"""Whose figures stand beside the ranker's, and what they are called there."""

METRICS = ("auc", "pr_auc", "rce", "calibration", "grouped_auc", "log_loss", "ne", "ece")

Floats = npt.NDArray[np.float64]


def evaluate_predictions(
    predictions: pa.Table,
    tasks: Sequence[str],
    weights: Mapping[str, float],
    k: int = 5,
) -> dict[str, Any]:
    """The content of `evaluation.json`.

    Args:
        predictions: the columns of `recap/predictions.parquet`.
        tasks: what to evaluate.
        weights: combination weight of each task.
        k: the weighted engagement is taken over the first k posts of each session.

    Raises:
        DataError: no examples, or a column that is missing.
    """
    if not len(predictions):
        raise DataError("predictions: found no held-out examples, needed is at least one")
    weights = {task: weights[task] for task in tasks}
    return {
        "examples": len(predictions),
        "tasks": {task: _evaluate_task(predictions, task) for task in tasks},
        "ranking": _evaluate_ranking(predictions, weights, k),
        "weights": weights,
    }


def write_evaluation(evaluation: dict[str, Any], path: Path) -> None:
    """Write `evaluation.json`, whole or not at all."""
    write_json(path, evaluation)


def _evaluate_task(predictions: pa.Table, task: str) -> dict[str, Any]:
    labels = columns_of(predictions, "label", [task])[task]
    present = [m for m in MODELS if m == "ranker" or f"{m}/{task}" in predictions.column_names]
    viewers = _numbers(predictions["user_id"])
    results = {}
    for model in present:
        said = columns_of(predictions, model, [task])[task]
        results[model] = asdict(binary_result(examples_that_count(labels, said)))
        results[model]["grouped_auc"] = grouped_auc(viewers, said, labels)
    counts = {name: results["ranker"][name] for name in ("positives", "examples")}
    return {**counts, "models": {m: {name: result[name] for name in METRICS} for m, result in results.items()}}


def _evaluate_ranking(predictions: pa.Table, weights: Mapping[str, float], k: int) -> dict[str, Any]:
    sessions = _numbers(predictions["session_id"])
    worth = weighted_engagement(columns_of(predictions, "label", weights), weights)
    scores = {
        "ranker": score(ranking_columns(predictions, list(weights)), weights),
        "served": -predictions["position"].to_numpy().astype(np.float64),
        # Equal scores stand for all orders alike.
        "random": np.zeros(len(predictions)),
    }
    if all(f"oracle/{task}" in predictions.column_names for task in weights):
        scores["oracle"] = score(columns_of(predictions, "oracle", weights), weights)
    orders = {
        name: {
            "ndcg": ndcg(sessions, values, worth),
            f"ndcg_at_{k}": ndcg(sessions, values, worth, k),
            f"weighted_engagement_at_{k}": mean_at_top(sessions, values, worth, k),
        }
        for name, values in scores.items()
    }
    return {"sessions": int(sessions.max()) + 1, "k": k, "orders": orders}


def _numbers(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Number ids from 0, in order of appearance; they may be integers or strings."""
    indices = column.combine_chunks().dictionary_encode().indices
    numbers: npt.NDArray[np.int64] = indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return numbers


def _number(value: float | None, digits: int) -> str:
    return UNDEFINED if value is None else f"{value:,.{digits}f}"


def evaluation_table(evaluation: Mapping[str, Any]) -> Table:
    """A table of the tasks: what the ranker reaches, beside the logistic regression and, if there, the oracle."""
    present = {model for task in evaluation["tasks"].values() for model in task["models"]}
    # Ten columns of figures leave little of a terminal of 80 characters to the names.
    table = plain_table(f"Held-out examples: {evaluation['examples']:,}", space=0)
    table.add_column("task", overflow="fold")
    for name in ("positives", "AUC", "PR\nAUC", "RCE", "cali-\nbration"):
        table.add_column(name, justify="right")
    compared = [(m, label) for m, label in COMPARED if m in present]
    for _, label in compared:
        table.add_column(f"{label}\nAUC", justify="right", style="dim")
        table.add_column(f"{label}\nRCE", justify="right", style="dim")
    for task, values in evaluation["tasks"].items():
        ranker = values["models"]["ranker"]
        cells = [_number(ranker[metric], digits) for metric, digits in zip(METRICS, (3, 3, 1, 2), strict=False)]
        for model, _ in compared:
            other = values["models"].get(model, {})
            cells += [_number(other.get("auc"), 3), _number(other.get("rce"), 1)]
        table.add_row(escape(short_name(task)), f"{values['positives']:,}", *cells)
    return table


def ranking_table(evaluation: Mapping[str, Any]) -> Table:
    """A table of the orders: NDCG and the weighted engagement among the first k posts."""
    ranking = evaluation["ranking"]
    at_k = f"weighted_engagement_at_{ranking['k']}"
    table = plain_table(f"Order of {ranking['sessions']:,} held-out sessions")
    table.add_column("order")
    table.add_column("NDCG", justify="right")
    table.add_column(f"weighted engagement in the top {ranking['k']}", justify="right")
    for name, values in ranking["orders"].items():
        style = "bold" if name == "ranker" else None
        table.add_row(name, _number(values["ndcg"], 3), _number(values[at_k], 3), style=style)
    return table


def interesting_session(timelines: pa.Table, tasks: Iterable[str], limit: int = 10) -> Any:
    """The session to show: as many posts as will be shown, then the most kinds of engagement, then the most engaged
    posts; of equal ones the first in the table.

    Raises:
        DataError: no sessions.
    """
    if not len(timelines):
        raise DataError("timelines: found no sessions, needed is at least one")
    session = _numbers(timelines["session_id"])
    engaged = np.stack([labels > 0 for labels in columns_of(timelines, "label", tasks).values()])
    posts = np.bincount(session)
    kinds = np.stack([np.bincount(session, row) > 0 for row in engaged]).sum(axis=0)
    engaged_posts = np.bincount(session, engaged.any(axis=0))
    best = np.lexsort((np.arange(len(posts)), -engaged_posts, -kinds, -np.minimum(posts, limit)))[0]
    return timelines["session_id"][int(np.flatnonzero(session == best)[0])].as_py()


def session_rows(timelines: pa.Table, session_id: Any, limit: int = 10) -> list[dict[str, Any]]:
    """The first `limit` ranks of a session, a dictionary a row.

    Raises:
        DataError: a session that is not in the table.
    """
    rows = timelines.filter(pc.equal(timelines["session_id"], session_id)).sort_by("rank").slice(0, limit).to_pylist()
    if not rows:
        raise DataError(f"session {session_id}: not in the timelines, which hold held-out sessions only")
    return list(rows)


def likeliest(row: Mapping[str, Any], tasks: Iterable[str], count: int = 3) -> list[tuple[str, float, bool]]:
    """The likeliest engagements of a row of `timelines.parquet`: task, probability, and whether it happened."""
    ordered = sorted(tasks, key=lambda task: -row[f"probability/{task}"])
    return [(task, row[f"probability/{task}"], row[f"label/{task}"] == 1) for task in ordered[:count]]


def _engagement(task: str, probability: float, happened: bool) -> str:
    text = escape(f"{plain_name(task)} {percent(probability)}")
    return f"[green]{text} ✓[/]" if happened else text


def timeline_table(timelines: pa.Table, session_id: Any, tasks: Sequence[str], limit: int = 10) -> Table:
    """One session as it is ranked; a tick marks what the viewer really did.

    Args:
        timelines: the columns of `timelines.parquet`.
        session_id: which; None picks an interesting one.
        tasks: whose probabilities to show.
        limit: how many ranks.
    """
    chosen = interesting_session(timelines, tasks, limit) if session_id is None else session_id
    rows = session_rows(timelines, chosen, limit)
    title = escape(f"Timeline of user {rows[0]['user_id']}, session {chosen}")
    table = plain_table(title, caption="✓ the viewer did")
    for name in ("rank", "score", "author", "age"):
        table.add_column(name, justify="right")
    table.add_column("likeliest engagements")
    for row in rows:
        ahead = [_engagement(*engagement) for engagement in likeliest(row, tasks)]
        cells = (str(row["rank"]), f"{row['score']:.3f}", escape(str(row["author_id"])), age(row["age_seconds"]))
        table.add_row(*cells, ", ".join(ahead))
    return table
