"""The timeline score and the order made of it, against plain loops."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tml.core.errors import ConfigError, DataError
from tml.projects.home.recap.combine import (
    PUBLISHED_WEIGHTS,
    combination_weights,
    rank_sessions,
    score,
    weighted_engagement,
    write_timelines,
)

TASKS = ["recap.engagement.is_favorited", "recap.engagement.is_report_tweet_clicked", "is_click"]


def predictions(sessions: int = 40, ids=int) -> pa.Table:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 9, sessions)
    session = np.repeat(rng.permutation(sessions), sizes)
    position = np.concatenate([np.arange(size) for size in sizes])
    n = len(session)
    served = datetime(2024, 5, 4, tzinfo=UTC)
    return pa.table(
        {
            "impression_id": [ids(i) for i in rng.permutation(n)],
            "session_id": [ids(i) for i in session],
            "user_id": [ids(i // 3) for i in session],
            "post_id": [ids(i) for i in range(n)],
            "author_id": [ids(i % 7) for i in range(n)],
            "served_at": pa.array([served + timedelta(seconds=int(i)) for i in session], pa.timestamp("us", "UTC")),
            "created_at": pa.array([served - timedelta(hours=int(i)) for i in position], pa.timestamp("us", "UTC")),
            "position": pa.array(position, pa.int16()),
            # Rounded, so that scores tie.
            **{f"ranker/{task}": np.round(rng.random(n), 1).astype(np.float32) for task in TASKS},
            **{f"label/{task}": (rng.random(n) < 0.3).astype(np.float32) for task in TASKS},
        }
    )


@pytest.mark.parametrize("ids", [int, "{:03d}".format])
def test_rank_sessions_agrees_with_sorting_each_session(ids):
    table = predictions(ids=ids)
    weights = combination_weights(TASKS)
    expected = []
    for row in table.to_pylist():
        value = sum(weight * np.float64(row[f"ranker/{task}"]) for task, weight in weights.items())
        expected.append((row["session_id"], -value, row["position"], row["impression_id"], row))
    expected.sort(key=lambda row: row[:4])
    found = rank_sessions(table, TASKS, weights).to_pylist()
    assert [row["impression_id"] for row in found] == [row[3] for row in expected]
    ranks: dict = {}
    for row, (session, negative_score, position, _, source) in zip(found, expected, strict=True):
        ranks[session] = ranks.get(session, 0) + 1
        assert (row["rank"], row["served_position"]) == (ranks[session], position)
        assert row["score"] == pytest.approx(-negative_score, abs=1e-12)
        assert row["age_seconds"] == (source["served_at"] - source["created_at"]).total_seconds()
        assert all(row[f"probability/{task}"] == source[f"ranker/{task}"] for task in TASKS)
        assert all(row[name] == source[name] for name in ("user_id", "post_id", "author_id", f"label/{TASKS[0]}"))


def test_the_score_is_that_of_a_post_that_stands_first():
    table = predictions()
    first = {task: np.random.default_rng(9).random(len(table)).astype(np.float32) for task in TASKS}
    for task, column in first.items():
        table = table.append_column(f"first/{task}", pa.array(column))
    found = rank_sessions(table, TASKS, combination_weights(TASKS)).sort_by("impression_id")
    source = table.sort_by("impression_id")
    for task in TASKS:
        assert found[f"probability/{task}"].equals(source[f"first/{task}"])
    expected = score({task: source[f"first/{task}"].to_numpy() for task in TASKS}, combination_weights(TASKS))
    np.testing.assert_allclose(found["score"].to_numpy(), expected)


def test_a_post_without_a_date_has_no_age():
    table = predictions(2)
    table = table.set_column(
        table.column_names.index("created_at"), "created_at", pa.nulls(len(table), pa.timestamp("us", "UTC"))
    )
    assert rank_sessions(table, TASKS, combination_weights(TASKS))["age_seconds"].null_count == len(table)


def test_no_impressions_give_an_empty_timeline():
    assert len(rank_sessions(predictions(3).slice(0, 0), TASKS, combination_weights(TASKS))) == 0


def test_weights_are_the_published_ones_unless_overridden():
    assert len(PUBLISHED_WEIGHTS) == 10
    assert combination_weights(TASKS) == {TASKS[0]: 0.5, TASKS[1]: -369.0, "is_click": 1.0}
    assert combination_weights(TASKS, {TASKS[0]: 3})[TASKS[0]] == 3.0


def test_overrides_are_checked():
    with pytest.raises(ConfigError, match=r"weights: found is_clik, allowed are the tasks recap.*, is_click"):
        combination_weights(TASKS, {"is_clik": 1.0})
    with pytest.raises(ConfigError, match=r"weights\.is_click: found inf"):
        combination_weights(TASKS, {"is_click": float("inf")})


def test_score_and_engagement_by_name():
    weights = {"a": 2.0, "b": -1.0}
    assert score({"b": [1.0, 0.0], "c": [9.0, 9.0], "a": [0.5, 0.25]}, weights).tolist() == [0.0, 0.5]
    assert weighted_engagement({"a": [1, np.nan], "b": [np.nan, 1]}, weights).tolist() == [2.0, -1.0]
    with pytest.raises(DataError, match="no probabilities of b"):
        score({"a": [1.0]}, weights)
    with pytest.raises(DataError, match="no column ranker/nope"):
        rank_sessions(predictions(2), ["nope"], {"nope": 1.0})


def test_written_and_read_back(tmp_path):
    timelines = rank_sessions(predictions(), TASKS, combination_weights(TASKS))
    write_timelines(timelines, tmp_path / "timelines.parquet")
    assert pq.read_table(tmp_path / "timelines.parquet").equals(timelines)
