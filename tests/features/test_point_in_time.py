"""Features and labels against a slow reference on random small logs, ties in time included; and nothing leaks."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reference import features as reference
from tml.data.config import HistoryConfig, LogConfig, TaskConfig
from tml.data.examples import Schema, vector_values
from tml.data.log import open_log
from tml.data.shards import read_part
from tml.features.build import build_examples
from tml.features.config import FeaturesConfig, SplitConfig, window_length

START = datetime(2026, 1, 1)
TASKS = {"is_like": TaskConfig(engagement="like"), "is_reply": TaskConfig(engagement="reply", window_hours=2)}
FEATURES = FeaturesConfig(windows=("30m", "3h", "all"), smoothing=2.5, chunk_rows=7, vocabulary_minimum=1)

# Few people, posts and moments, so that ties and repeated impressions are the rule.
moment = st.integers(0, 40).map(lambda minutes: START + timedelta(minutes=15 * minutes))
impression = st.tuples(st.integers(0, 3), st.integers(0, 4), moment)
engagement = st.tuples(st.integers(0, 3), st.integers(0, 4), st.sampled_from(["like", "reply"]), moment)


def rows(names: tuple[str, ...], values: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
    return [dict(zip(names, value, strict=True)) for value in values]


def write_log(
    folder: Path,
    impressions: list[dict[str, Any]],
    engagements: list[dict[str, Any]],
    history: list[dict[str, Any]] | None = None,
) -> LogConfig:
    folder.mkdir(parents=True, exist_ok=True)
    stamp = pa.timestamp("us", tz="UTC")
    pq.write_table(
        pa.Table.from_pylist(
            impressions, pa.schema([("user_id", pa.int64()), ("post_id", pa.int64()), ("served_at", stamp)])
        ),
        folder / "impressions.parquet",
    )
    kinds = [("user_id", pa.int64()), ("post_id", pa.int64()), ("type", pa.string())]
    pq.write_table(
        pa.Table.from_pylist(engagements, pa.schema([*kinds, ("engaged_at", stamp)])), folder / "engagements.parquet"
    )
    posts = [{"post_id": i, "author_id": 100 + i % 2, "topic": "ab"[i % 2] if i < 4 else None} for i in range(5)]
    pq.write_table(pa.Table.from_pylist(posts), folder / "posts.parquet")
    if history is None:
        return LogConfig(path=folder)
    pq.write_table(pa.Table.from_pylist(history, pa.schema(kinds)), folder / "history.parquet")
    return LogConfig(path=folder, history=HistoryConfig(ended_at=START.replace(tzinfo=UTC) - timedelta(hours=1)))


def build(config: LogConfig, out: Path, split: SplitConfig) -> tuple[Schema, pa.Table]:
    with open_log(config) as log:
        schema = build_examples(log, TASKS, FEATURES, split, out, seed=0, fingerprint="")
    return schema, pa.concat_tables([*read_part(out, "train"), *read_part(out, "validation")])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(impression, min_size=2, max_size=30, unique=True),
    st.lists(engagement, max_size=30, unique=True),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.sampled_from(["impression", "like"])), max_size=8),
)
def test_every_feature_and_label_is_what_the_slow_reference_says(
    tmp_path_factory: pytest.TempPathFactory, served: Any, engaged: Any, before: Any
) -> None:
    # Two impressions and two engagements that make the log one that can be split and trained on.
    first, last = START - timedelta(minutes=1), START + timedelta(hours=20)
    impressions = rows(("user_id", "post_id", "served_at"), [*served, (0, 0, first), (1, 1, last)])
    extra = [(0, 0, "like", first + timedelta(seconds=1)), (0, 0, "reply", first + timedelta(seconds=1))]
    engagements = rows(("user_id", "post_id", "type", "engaged_at"), [*engaged, *extra])
    history = rows(("user_id", "post_id", "type"), list(dict.fromkeys(before)))
    folder = tmp_path_factory.mktemp("log")
    config = write_log(folder / "log", impressions, engagements, history)
    split = SplitConfig(train_start=0.0, validation_start=(START + timedelta(hours=19)).replace(tzinfo=UTC))
    schema, table = build(config, folder / "examples", split)

    author = {i: 100 + i % 2 for i in range(5)}
    topic = {i: "ab"[i % 2] if i < 4 else None for i in range(5)}
    events = reference.events(impressions, engagements, history)
    for event in events:
        event |= {"author_id": author[event["post_id"]], "topic": topic[event["post_id"]]}
    continuous = vector_values(table["continuous"])
    offset = schema.continuous.index("user.impression.count.30m")
    names = schema.continuous[offset:]
    for row, example in enumerate(table.select(["user_id", "post_id", "served_at", *TASKS]).to_pylist()):
        now = example["served_at"]
        values = {**example, "author_id": author[example["post_id"]], "topic": topic[example["post_id"]]}
        for number, name in enumerate(names):
            key, kind, statistic, window = name.split(".")
            columns = {c: values[c] for c in _columns(key)}
            args = (events, columns, kind, now, window_length(window))
            if None in columns.values():
                expected = reference.rate([*events], {"user_id": -1}, *args[2:], 2.5) if statistic == "rate" else 0
            else:
                expected = reference.rate(*args, 2.5) if statistic == "rate" else reference.count(*args)
            assert continuous[row, offset + number] == np.float32(expected), (name, example)
        for task, spec in TASKS.items():
            window = None if spec.window_hours is None else timedelta(hours=spec.window_hours)
            assert example[task] == reference.label(example, impressions, engagements, spec.engagement, window)


def _columns(key: str) -> list[str]:
    return [part if part == "topic" else f"{part}_id" for part in key.split("_")]


def test_a_planted_future_engagement_moves_no_feature(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    served = [
        (int(u), int(p), START + timedelta(minutes=int(m))) for u, p, m in random.integers(0, [4, 5, 600], (80, 3))
    ]
    impressions = rows(("user_id", "post_id", "served_at"), list(dict.fromkeys(served)))
    liked = [(u, p, kind, t + timedelta(seconds=30)) for u, p, t in served[::2] for kind in ("like", "reply")]
    names = ("user_id", "post_id", "type", "engaged_at")
    split = SplitConfig(train_start=0.0, validation_start=0.8)
    _, before = build(write_log(tmp_path / "a", impressions, rows(names, liked)), tmp_path / "ea", split)
    cut = START + timedelta(minutes=300)
    future = [
        (u, p, kind, cut + timedelta(minutes=i))
        for i in range(40)
        for u in range(4)
        for p in range(5)
        for kind in ("like",)
    ]
    _, after = build(write_log(tmp_path / "b", impressions, rows(names, liked + future)), tmp_path / "eb", split)

    at = np.array([time.replace(tzinfo=None) for time in before["served_at"].to_pylist()])
    for vector in ("continuous", "binary", "discrete"):
        old, new = vector_values(before[vector]), vector_values(after[vector])
        # Strictly before: an engagement at the very moment of an impression is not yet known either.
        np.testing.assert_array_equal(old[at <= cut], new[at <= cut])
    old, new = vector_values(before["continuous"]), vector_values(after["continuous"])
    assert (old[at > cut] != new[at > cut]).any(), "the planted engagements are seen by nobody, the test proves nothing"


def test_an_example_does_not_see_its_own_label(tmp_path: Path) -> None:
    # One person, one post, shown once and liked at once: every count is still 0.
    impressions = rows(("user_id", "post_id", "served_at"), [(0, 0, START), (1, 1, START + timedelta(hours=9))])
    names = ("user_id", "post_id", "type", "engaged_at")
    engagements = rows(names, [(0, 0, "like", START), (0, 0, "reply", START)])
    schema, table = build(
        write_log(tmp_path / "log", impressions, engagements), tmp_path / "ex", SplitConfig(train_start=0.0)
    )
    first = vector_values(table["continuous"])[0]
    counts = [value for name, value in zip(schema.continuous, first, strict=True) if ".count." in name]
    assert table["is_like"].to_pylist() == [1.0, 0.0]
    assert counts == [0.0] * len(counts)
