"""Features and labels against a slow reference on random small logs, ties in time included; and nothing leaks."""

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from features import logs
from features.logs import AUTHOR, ENGAGEMENT, IMPRESSION, START, rows, with_anchors, write_log
from reference import features as reference
from tml.data.config import LogConfig, TaskConfig
from tml.data.examples import Schema, vector_values
from tml.data.log import open_log
from tml.data.shards import read_part
from tml.features.build import build_examples
from tml.features.config import AggregateConfig, FeaturesConfig, SplitConfig, duration, window_length

TASKS = {"is_like": TaskConfig(engagement="like"), "is_reply": TaskConfig(engagement="reply", window_hours=2)}
KEYS = {
    "user": ["user_id"],
    "author": ["author_id"],
    "post": ["post_id"],
    "topic": ["topic"],
    "language": ["language"],
    "users_language": ["users.language"],
    "user_author": ["user_id", "author_id"],
    "user_topic": ["user_id", "topic"],
    "author_topic": ["author_id", "topic"],
    "user_topic_users_language": ["user_id", "topic", "users.language"],
    "tab": ["tab"],
    "user_author_impressions_tab": ["user_id", "author_id", "impressions.tab"],
}
FEATURES = FeaturesConfig(
    keys=list(KEYS.values()),
    windows=("30m", "3h", "all"),
    statistics=("count", "rate", "decayed", "since"),
    half_lives=("45m", "1w"),
    smoothing=2.5,
    ages=("users.signed_up_at",),
    discrete=("posts.topic", "users.language"),
    chunk_rows=7,
    vocabulary_minimum=1,
)


def build(
    config: LogConfig, out: Path, split: SplitConfig, features: FeaturesConfig = FEATURES
) -> tuple[Schema, pa.Table]:
    with open_log(config) as log:
        schema = build_examples(log, TASKS, features, split, out, seed=0, fingerprint="")
    return schema, pa.concat_tables([*read_part(out, "train"), *read_part(out, "validation")])


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to shrink a log that is small anyway would take minutes
)
@given(logs.impressions, logs.engagements, logs.histories, logs.follows)
def test_every_feature_and_label_is_what_the_slow_reference_says(
    tmp_path_factory: pytest.TempPathFactory, served: Any, engaged: Any, before: Any, followed: Any
) -> None:
    tables = with_anchors(served, engaged)
    tables |= {"history": rows(logs.BEFORE, before), "follows": rows(logs.FOLLOW, followed)}
    folder = tmp_path_factory.mktemp("log")
    split = SplitConfig(train_start=0.0, validation_start=(START + timedelta(hours=19)).replace(tzinfo=UTC))
    schema, table = build(write_log(folder / "log", tables), folder / "examples", split)

    events = reference.events(tables["impressions"], tables["engagements"], tables["history"])
    events = [{**event, **columns_of(event["user_id"], event["post_id"])} for event in events]
    for event in events:
        event["tab"] = event["impressions.tab"] = tab_of(event, tables["impressions"])
    continuous = {name: vector_values(table["continuous"])[:, place] for place, name in enumerate(schema.continuous)}
    binary = dict(zip(schema.binary, vector_values(table["binary"]).T, strict=True))
    examples = table.select(["user_id", "post_id", "served_at", "position", *TASKS]).to_pylist()
    for row, example in enumerate(examples):
        for name, value in expected_aggregates(example, events).items():
            close = pytest.approx(value, rel=3e-6, abs=1e-9) if ".decayed." in name else np.float32(value)
            assert continuous[name][row] == close, (name, example)
        for name, value in expected_others(example, tables["follows"]).items():
            found = {**continuous, **binary}[name][row]
            assert found == pytest.approx(float(value), rel=1e-6, abs=1e-6), (name, example)
        for task, spec in TASKS.items():
            window = None if spec.window_hours is None else timedelta(hours=spec.window_hours)
            label = reference.label(example, tables["impressions"], tables["engagements"], spec.engagement, window)
            assert example[task] == label
    # Nothing is written that the reference has not looked at.
    names = {*expected_aggregates(examples[0], events), *expected_others(examples[0], tables["follows"])}
    assert names == {*schema.continuous, *schema.binary}


def tab_of(event: dict[str, Any], impressions: list[dict[str, Any]]) -> str | None:
    """That of the latest impression of the post to the person, at or before what happened."""
    same = [row for row in impressions if all(row[key] == event[key] for key in ("user_id", "post_id"))]
    times = [row["served_at"] for row in same if row["served_at"] <= event["at"]]
    return logs.tab_of(event["user_id"], event["post_id"], max(times)) if times else None


def columns_of(user: int, post: int) -> dict[str, Any]:
    """What a key may be made of."""
    return {
        "user_id": user,
        "post_id": post,
        "author_id": AUTHOR[post],
        "topic": logs.TOPIC[post],
        "language": logs.POST_LANGUAGE[post],
        "users.language": logs.USER_LANGUAGE[user],
    }


def expected_aggregates(example: dict[str, Any], events: list[dict[str, Any]]) -> dict[str, float]:
    now, values = example["served_at"], columns_of(example["user_id"], example["post_id"])
    values["tab"] = values["impressions.tab"] = logs.tab_of(example["user_id"], example["post_id"], now)
    priors = {kind: reference.everyone(events, kind, now) for kind in ("like", "reply")}
    expected: dict[str, float] = {}
    for key, columns in KEYS.items():
        known = {c: values[c] for c in columns}
        before = [] if None in known.values() else reference.of_key(events, known, now)
        for kind in ("impression", "like", "reply"):
            for text in ("30m", "3h", "all"):
                window = window_length(text)
                expected[f"{key}.{kind}.count.{text}"] = reference.count(before, kind, now, window)
                if kind != "impression":
                    rate = reference.rate(before, kind, now, window, priors[kind], 2.5)
                    expected[f"{key}.{kind}.rate.{text}"] = rate
            for text in ("45m", "1w"):
                expected[f"{key}.{kind}.decayed.{text}"] = reference.decayed(before, kind, now, duration(text))
            expected[f"{key}.{kind}.since.all"] = reference.since(before, kind, now)
    return expected


def expected_others(example: dict[str, Any], follows: list[dict[str, Any]]) -> dict[str, float]:
    user, post, now = example["user_id"], example["post_id"], example["served_at"]
    author, signed_up = AUTHOR[post], logs.SIGNED_UP[user]
    hours = (now - datetime(1970, 1, 1)).total_seconds() / 3600
    follows_author = reference.follows(follows, user, author, now)
    return {
        "age_seconds": max((now - START).total_seconds() - 420 * post, 0),
        "position": example["position"],
        "hour_sine": math.sin(2 * math.pi * hours / 24),
        "hour_cosine": math.cos(2 * math.pi * hours / 24),
        "week_sine": math.sin(2 * math.pi * hours / 168),
        "week_cosine": math.cos(2 * math.pi * hours / 168),
        "users.signed_up_at.age": (now - signed_up).total_seconds() if signed_up else 0,
        "posts.length": 10.5 * post,
        "common_follows": reference.common_follows(follows, user, author, now),
        "follows_author": follows_author,
        "mutual_follow": follows_author and reference.follows(follows, author, user, now),
    }


def test_a_planted_future_moves_no_feature(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    served = [
        (int(u), int(p), START + timedelta(minutes=int(m))) for u, p, m in random.integers(0, [4, 5, 600], (80, 3))
    ]
    impressions = rows(IMPRESSION, list(dict.fromkeys(served)))
    liked = [(u, p, kind, t + timedelta(seconds=30)) for u, p, t in served[::2] for kind in ("like", "reply")]
    followed = [(u, v, START + timedelta(minutes=150 * (u + v))) for u in range(4) for v in range(4)]
    split = SplitConfig(train_start=0.0, validation_start=0.8)
    tables = {"impressions": impressions, "engagements": rows(ENGAGEMENT, liked), "follows": []}
    cut = START + timedelta(minutes=300)
    early = [follow for follow in followed if follow[2] < cut]
    _, before = build(
        write_log(tmp_path / "a", {**tables, "follows": rows(logs.FOLLOW, early)}), tmp_path / "ea", split
    )
    future = [(u, p, "like", cut + timedelta(minutes=i)) for i in range(40) for u in logs.USERS for p in logs.POSTS]
    planted = {
        "engagements": rows(ENGAGEMENT, liked + future),
        "follows": rows(logs.FOLLOW, [*early, *((u, v, cut) for u in range(4) for v in range(4))]),
    }
    _, after = build(write_log(tmp_path / "b", {**tables, **planted}), tmp_path / "eb", split)

    at = np.array(before["served_at"].to_pylist())
    for vector in ("continuous", "binary", "discrete"):
        old, new = vector_values(before[vector]), vector_values(after[vector])
        # Strictly before: what happens at the very moment of an impression is not yet known either.
        np.testing.assert_array_equal(old[at <= cut], new[at <= cut])
    for vector in ("continuous", "binary"):
        old, new = vector_values(before[vector]), vector_values(after[vector])
        assert (old[at > cut] != new[at > cut]).any(), "the planted future is seen by nobody, the test proves nothing"


def test_an_example_does_not_see_its_own_label(tmp_path: Path) -> None:
    # One person, one post, shown once and liked at once: every count is still 0.
    impressions = rows(IMPRESSION, [(0, 0, START), (1, 1, START + timedelta(hours=9))])
    engagements = rows(ENGAGEMENT, [(0, 0, "like", START), (0, 0, "reply", START)])
    log = write_log(tmp_path / "log", {"impressions": impressions, "engagements": engagements})
    schema, table = build(log, tmp_path / "ex", SplitConfig(train_start=0.0))
    first = vector_values(table["continuous"])[0]
    counts = [value for name, value in zip(schema.continuous, first, strict=True) if ".count." in name]
    assert table["is_like"].to_pylist() == [1.0, 0.0]
    assert counts == [0.0] * len(counts)


def test_chunks_and_the_order_of_blocks_change_nothing_but_the_order_of_columns(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    served = {
        (int(u), int(p), START + timedelta(minutes=int(m))) for u, p, m in random.integers(0, [4, 5, 60], (90, 3))
    }
    liked = {(u, p, kind, t + timedelta(minutes=1)) for u, p, t in list(served)[::2] for kind in ("like", "reply")}
    log = write_log(
        tmp_path / "log",
        {"impressions": rows(IMPRESSION, sorted(served)), "engagements": rows(ENGAGEMENT, sorted(liked))},
    )
    split = SplitConfig(train_start=0.0)
    whole, table = build(log, tmp_path / "whole", split, FEATURES.model_copy(update={"chunk_rows": 1000}))
    blocks = tuple(
        AggregateConfig(keys=(key,), statistics=(statistic,), engagements=("like",))
        for statistic in ("since", "rate", "count")
        for key in (["user_id"], ["user_id", "author_id"])
    )
    some, part = build(log, tmp_path / "some", split, FEATURES.model_copy(update={"aggregates": blocks}))
    places = [whole.continuous.index(name) for name in some.continuous]
    np.testing.assert_array_equal(vector_values(part["continuous"]), vector_values(table["continuous"])[:, places])
    assert "user_author.like.rate.3h" in some.continuous
    assert not any("reply" in name or "decayed" in name for name in some.continuous)
