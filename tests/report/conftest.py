"""A run folder as the pipeline leaves one, with made-up content."""

import json
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tml.projects.home.recap.combine import combination_weights, rank_sessions, write_timelines
from tml.projects.home.recap.evaluate import evaluate_predictions, write_evaluation

RATES = {
    "recap.engagement.is_favorited": 0.12,
    "recap.engagement.is_retweeted": 0.03,
    "recap.engagement.is_replied": 0.02,
    "recap.engagement.is_profile_clicked_and_profile_engaged": 0.02,
    "recap.engagement.is_video_playback_50": 0.2,
    "recap.engagement.is_replied_reply_engaged_by_author": 0.004,
    "recap.engagement.is_good_clicked_convo_desc_favorited_or_replied": 0.03,
    "recap.engagement.is_good_clicked_convo_desc_v2": 0.05,
    "recap.engagement.is_negative_feedback_v2": 0.005,
    "recap.engagement.is_report_tweet_clicked": 0.0,
}


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def make_predictions(rates, sessions, oracle, seed=0) -> pa.Table:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(3, 30, sessions)
    n = int(sizes.sum())
    session = np.repeat(np.arange(sessions), sizes)
    start = int(datetime(2024, 5, 13, tzinfo=UTC).timestamp() * 1e6)
    served = start + session * (2 * 86_400_000_000 // sessions)
    columns = {
        "impression_id": np.arange(n),
        "session_id": session,
        "user_id": session % 700,
        "post_id": rng.integers(0, 5000, n),
        "author_id": rng.integers(0, 900, n),
        "served_at": pa.array(served, pa.timestamp("us", "UTC")),
        "created_at": pa.array(served - (rng.exponential(8, n) * 3.6e9).astype(int), pa.timestamp("us", "UTC")),
        "position": pa.array(np.concatenate([np.arange(size) for size in sizes]), pa.int16()),
    }
    for task, rate in rates.items():
        signal = rng.normal(size=n)
        shift = np.log(rate / (1 - rate)) - 0.9 if rate else -12
        truth = sigmoid(shift + 1.5 * signal)
        label = (rng.random(n) < truth).astype(np.float32) if rate else np.zeros(n, np.float32)
        label[rng.random(n) < 0.02] = np.nan
        columns[f"label/{task}"] = label
        columns[f"ranker/{task}"] = sigmoid(shift + 1.4 * signal + 0.35 * rng.normal(size=n)).astype(np.float32)
        columns[f"logistic_regression/{task}"] = sigmoid(shift + 0.9 * signal + 0.7 * rng.normal(size=n)).astype("f4")
        columns[f"base_rate/{task}"] = np.full(n, max(rate, 1e-6), np.float32)
        if oracle:
            columns[f"oracle/{task}"] = truth.astype(np.float32)
    return pa.table(columns)


def recap_metrics(tasks, steps=1600):
    for step in range(100, steps + 1, 100):
        done = step / steps
        rate = 2e-3 * min(step / 80, 1) * (0.5 + 0.5 * np.cos(np.pi * done))
        yield {
            "step": step,
            "seconds": 55.0 * done,
            "train/loss": 0.11 + 0.1 * np.exp(-6 * done),
            "train/examples_per_second": 29_000.0,
            **{f"learning_rate/{task}": float(rate) for task in tasks},
            "learning_rate/backbone": float(rate) / 2,
            "gradient_norm": 0.3,
        }
        if step % 200 == 0:
            yield {
                "step": step,
                "validation/loss": 0.115 + 0.09 * np.exp(-6 * done),
                **{
                    f"validation/rce/{task}": None if i == 9 else 24 - 60 * np.exp(-8 * done)
                    for i, task in enumerate(tasks)
                },
                **{f"validation/auc/{task}": 0.8 for task in tasks},
            }


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def fill(run, rates=None, sessions=120, oracle=True, twhin=True):
    """Fill the folder `run` and return it."""
    rates = RATES if rates is None else rates
    tasks = list(rates)
    weights = combination_weights(tasks)
    predictions = make_predictions(rates, sessions, oracle)
    (run / "recap").mkdir(parents=True)
    pq.write_table(predictions, run / "recap" / "predictions.parquet")
    write_evaluation(evaluate_predictions(predictions, tasks, weights), run / "evaluation.json")
    write_timelines(rank_sessions(predictions, tasks, weights), run / "timelines.parquet")
    write_lines(run / "recap" / "metrics.jsonl", recap_metrics(tasks))
    if twhin:
        edges = [
            {"step": s, "train/loss": 0.69 * 0.9 ** (s / 50), "learning_rate/model": 0.01} for s in range(50, 501, 50)
        ]
        write_lines(run / "twhin" / "metrics.jsonl", edges)
    backbone = {"mask_net_config": {"mask_blocks": 4}, "mlp_config": None}
    (run / "config.yaml").write_text(yaml.safe_dump({"seed": 0, "recap": {"model": {"backbone": backbone}}}))
    (run / "examples").mkdir()
    parts = {"train": {"start": "2024-04-29T00:00:00+00:00", "end": "2024-05-13T00:00:00+00:00", "rows": 212310}}
    (run / "examples" / "schema.json").write_text(json.dumps({"parts": parts}))
    return run


@pytest.fixture(scope="session")
def full_run(tmp_path_factory):
    """A run with everything: ten tasks of which one has no positives, an oracle, TwHIN."""
    return fill(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="session")
def make_run():
    """`fill`, for runs that lack something."""
    return fill
