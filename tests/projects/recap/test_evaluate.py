"""The evaluation of predictions against scikit-learn and loops, and the tables made of it."""

import io
import itertools
import json

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console
from sklearn.metrics import average_precision_score, ndcg_score, roc_auc_score

from tml.core.errors import DataError
from tml.projects.home.recap.combine import combination_weights, rank_sessions
from tml.projects.home.recap.evaluate import (
    evaluate_predictions,
    evaluation_table,
    interesting_session,
    ranking_table,
    timeline_table,
    write_evaluation,
)
from tml.projects.home.recap.names import UNDEFINED

TASKS = ["recap.engagement.is_favorited", "recap.engagement.is_replied", "recap.engagement.is_report_tweet_clicked"]
WEIGHTS = combination_weights(TASKS)


def predictions(oracle: bool = True, sessions: int = 60) -> pa.Table:
    rng = np.random.default_rng(3)
    sizes = rng.integers(2, 8, sessions)
    n = int(sizes.sum())
    session = np.repeat(np.arange(sessions), sizes)
    truth = {task: rng.random(n) ** power for task, power in zip(TASKS, (1, 3, 4), strict=True)}
    labels = {task: (rng.random(n) < p).astype(np.float32) for task, p in truth.items()}
    labels[TASKS[0]][:10] = np.nan
    labels[TASKS[2]][:] = 0
    columns = {
        "impression_id": np.arange(n),
        "session_id": session,
        "user_id": session % 11,
        "post_id": np.arange(n) % 50,
        "author_id": [f"[author]{i % 5}" for i in range(n)],
        "served_at": pa.array(session * 3_600_000_000 + 10**15, pa.timestamp("us", "UTC")),
        "created_at": pa.array(10**15 - np.arange(n) * 60_000_000, pa.timestamp("us", "UTC")),
        "position": np.concatenate([np.arange(size) for size in sizes]),
        **{f"label/{task}": column for task, column in labels.items()},
        **{f"ranker/{task}": (0.8 * p + 0.1 * rng.random(n)).astype(np.float32) for task, p in truth.items()},
        **{f"logistic_regression/{task}": (0.5 * p + 0.1).astype(np.float32) for task, p in truth.items()},
        **{f"base_rate/{task}": np.full(n, 0.3, np.float32) for task in TASKS},
    }
    if oracle:
        columns |= {f"oracle/{task}": p.astype(np.float32) for task, p in truth.items()}
    return pa.table(columns)


def test_tasks_agree_with_scikit_learn():
    table = predictions()
    evaluation = evaluate_predictions(table, TASKS, WEIGHTS)
    assert evaluation["examples"] == len(table)
    assert evaluation["weights"] == WEIGHTS
    for task, model in itertools.product(TASKS[:2], ("ranker", "logistic_regression", "base_rate", "oracle")):
        y, p = (table[f"{kind}/{task}"].to_numpy() for kind in ("label", model))
        y, p = y[~np.isnan(y)], p[~np.isnan(y)].astype(float)
        found = evaluation["tasks"][task]["models"][model]
        assert found["auc"] == pytest.approx(roc_auc_score(y, p))
        assert found["pr_auc"] == pytest.approx(average_precision_score(y, p))
        assert found["calibration"] == pytest.approx(p.mean() / y.mean())
        assert evaluation["tasks"][task]["positives"] == y.sum()
        assert evaluation["tasks"][task]["examples"] == len(y)


def test_a_task_without_positives_is_undefined():
    evaluation = evaluate_predictions(predictions(), TASKS, WEIGHTS)
    assert evaluation["tasks"][TASKS[2]]["positives"] == 0
    defined = {name for name, value in evaluation["tasks"][TASKS[2]]["models"]["ranker"].items() if value is not None}
    assert defined <= {"log_loss", "ece"}


def test_orders_agree_with_loops():
    table = predictions()
    evaluation = evaluate_predictions(table, TASKS, WEIGHTS, k=3)
    ranking = evaluation["ranking"]
    assert (ranking["sessions"], ranking["k"]) == (60, 3)
    frame = {name: table[name].to_numpy() for name in table.column_names if name != "author_id"}
    worth = sum(WEIGHTS[task] * np.nan_to_num(frame[f"label/{task}"].astype(float)) for task in TASKS)
    for order in ("ranker", "served", "oracle"):
        ndcgs, means = [], []
        for session in range(60):
            rows = np.flatnonzero(frame["session_id"] == session)
            served = -frame["position"][rows]
            scores = served if order == "served" else sum(WEIGHTS[t] * frame[f"{order}/{t}"][rows] for t in TASKS)
            means.append(worth[rows][np.argsort(-scores)][:3].mean())
            gains = np.maximum(worth[rows], 0)
            if gains.any():
                ndcgs.append(ndcg_score([gains], [scores]))
        assert ranking["orders"][order]["ndcg"] == pytest.approx(np.mean(ndcgs))
        assert ranking["orders"][order]["weighted_engagement_at_3"] == pytest.approx(np.mean(means))
    sizes = np.bincount(frame["session_id"])
    random_mean = np.mean(np.bincount(frame["session_id"], worth) / sizes)
    assert ranking["orders"]["random"]["weighted_engagement_at_3"] == pytest.approx(random_mean)


def test_what_is_not_there_is_left_out():
    table = predictions(oracle=False).drop_columns([f"logistic_regression/{task}" for task in TASKS])
    evaluation = evaluate_predictions(table, TASKS, WEIGHTS)
    assert list(evaluation["tasks"][TASKS[0]]["models"]) == ["ranker", "base_rate"]
    assert list(evaluation["ranking"]["orders"]) == ["ranker", "served", "random"]
    text = shown(evaluation_table(evaluation))
    assert "oracle" not in text
    assert "LR" not in text


def test_same_input_same_file_and_plain_json(tmp_path):
    for name in ("a", "b"):
        write_evaluation(evaluate_predictions(predictions(), TASKS, WEIGHTS), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert json.loads((tmp_path / "a").read_text()) == evaluate_predictions(predictions(), TASKS, WEIGHTS)


def test_no_examples_and_missing_columns_are_refused():
    with pytest.raises(DataError, match="found no held-out examples"):
        evaluate_predictions(predictions().slice(0, 0), TASKS, WEIGHTS)
    with pytest.raises(DataError, match="no column label/is_click"):
        evaluate_predictions(predictions(), ["is_click"], {"is_click": 1.0})


def shown(table, width: int = 140) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()


def test_evaluation_table_shows_the_figures():
    evaluation = evaluate_predictions(predictions(), TASKS, WEIGHTS)
    text = shown(evaluation_table(evaluation))
    line = next(line for line in text.splitlines() if "is_favorited" in line)
    models = evaluation["tasks"][TASKS[0]]["models"]
    cells = line.split()
    assert cells == [
        "is_favorited",
        str(evaluation["tasks"][TASKS[0]]["positives"]),
        *(f"{models['ranker'][name]:.{digits}f}" for name, digits in (("auc", 3), ("pr_auc", 3), ("rce", 1))),
        f"{models['ranker']['calibration']:.2f}",
        *(
            f"{models[m][name]:.{d}f}"
            for m in ("logistic_regression", "oracle")
            for name, d in (("auc", 3), ("rce", 1))
        ),
    ]
    assert "recap.engagement." not in text
    assert next(line for line in text.splitlines() if "is_report" in line).count(UNDEFINED) == 8


def test_ranking_table_shows_every_order():
    text = shown(ranking_table(evaluate_predictions(predictions(), TASKS, WEIGHTS)))
    assert all(order in text for order in ("ranker", "served", "random", "oracle"))
    assert "top 5" in text


def test_timeline_table_shows_the_session_in_order():
    timelines = rank_sessions(predictions(), TASKS, WEIGHTS)
    text = shown(timeline_table(timelines, 7, TASKS, limit=3))
    rows = timelines.to_pylist()
    first = next(row for row in rows if row["session_id"] == 7)
    assert "session 7" in text
    assert f"{first['score']:.3f}" in text
    assert str(first["author_id"]) in text
    assert "favorite" in text
    assert "%" in text
    with pytest.raises(DataError, match="session 999: not in the timelines"):
        timeline_table(timelines, 999, TASKS)


def test_the_interesting_session_is_full_and_engaged():
    timelines = rank_sessions(predictions(), TASKS, WEIGHTS)
    chosen = interesting_session(timelines, TASKS, limit=5)
    rows = [row for row in timelines.to_pylist() if row["session_id"] == chosen]
    assert len(rows) >= 5
    assert all(any(row[f"label/{task}"] == 1 for row in rows) for task in TASKS[:2])
    assert interesting_session(timelines, TASKS, limit=5) == chosen
    assert f"session {chosen}" in shown(timeline_table(timelines, None, TASKS, limit=5))
