"""Labels stay with their row or go to the latest impression, in time, and seen; negatives are left out by share."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from features import logs
from features.logs import with_anchors, write_log
from reference import features as reference
from tml.core.errors import DataError
from tml.data.config import ImpressionsConfig, LogConfig, TaskConfig
from tml.data.examples import vector_values
from tml.data.log import open_log
from tml.data.shards import read_part
from tml.features.build import build_examples
from tml.features.config import FeaturesConfig, SplitConfig
from tml.features.labels import create_labels, sample_negatives, select_labels
from tml.features.resolve import resolve_features

NOON = datetime(2026, 1, 1, 12)
# The same post to the same person twice at one moment, apart in another column.
TWICE = [{"user_id": 1, "post_id": 1, "served_at": NOON, "tab": tab, "liked": tab == 2} for tab in (1, 2, 3)]


def labels(config: LogConfig) -> list[tuple[int, float]]:
    with open_log(config) as log:
        create_labels(log, {"is_liked": TaskConfig(engagement="liked")})
        return log.connection.execute("SELECT * FROM labels ORDER BY row").fetchall()


def test_an_inline_label_belongs_to_its_own_row(folder: Path) -> None:
    pq.write_table(pa.Table.from_pylist(TWICE), folder / "impressions.parquet")
    pq.write_table(pa.Table.from_pylist([{"post_id": 1, "author_id": 2}]), folder / "posts.parquet")
    assert labels(LogConfig(path=folder, impressions=ImpressionsConfig(labels=("liked",)))) == [(1, 1.0)]


def test_an_engagement_goes_to_the_last_of_impressions_at_one_moment(folder: Path) -> None:
    pq.write_table(pa.Table.from_pylist(TWICE), folder / "impressions.parquet")
    pq.write_table(pa.Table.from_pylist([{"post_id": 1, "author_id": 2}]), folder / "posts.parquet")
    engaged = [{"user_id": 1, "post_id": 1, "type": "liked", "engaged_at": NOON}]
    pq.write_table(pa.Table.from_pylist(engaged), folder / "engagements.parquet")
    assert labels(LogConfig(path=folder)) == [(2, 1.0)]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(logs.impressions, logs.engagements, st.data())
def test_rectified_labels_are_what_the_slow_reference_says(
    tmp_path_factory: pytest.TempPathFactory, served: Any, engaged: Any, data: st.DataObject
) -> None:
    tables = with_anchors(served, engaged)
    # Seen before, at, soon after, long after the serving, or never.
    delays = st.none() | st.sampled_from([-15, 0, 30, 120, 121, 600])
    for impression in tables["impressions"]:
        delay = data.draw(delays)
        seen = None if delay is None else impression["served_at"] + timedelta(minutes=delay)
        impression["impressed_at"] = seen
    tasks = {
        "is_like": TaskConfig(engagement="like"),
        "is_reply": TaskConfig(engagement="reply", window_hours=2),
    }
    with open_log(write_log(tmp_path_factory.mktemp("log") / "log", tables)) as log:
        create_labels(log, tasks)
        found = log.connection.execute(select_labels(tasks, 0, log.rows - 1)).fetchall()
        rows = log.connection.execute("SELECT user_id, post_id, served_at FROM impressions ORDER BY row").fetchall()
    impressed = {(i["user_id"], i["post_id"], i["served_at"]): i for i in tables["impressions"]}
    for row, values in zip(rows, found, strict=True):
        for value, task in zip(values, tasks.values(), strict=True):
            window = None if task.window_hours is None else timedelta(hours=task.window_hours)
            args = (tables["impressions"], tables["engagements"], task.engagement, window)
            assert value == reference.label(impressed[row], *args), row


def test_negatives_are_left_out_by_their_share_and_positives_never() -> None:
    values = pa.array(np.tile([1, 0, 0, 0, 0], 4000).astype(np.float32))
    table = pa.table({"rare": values, "all": values})
    tasks = {"rare": TaskConfig(engagement="x", negative_sampling_rate=0.25), "all": TaskConfig(engagement="x")}
    sampled = sample_negatives(table, tasks, seed=3, first=0)
    rare = sampled["rare"].to_numpy()
    assert sampled["all"].equals(table["all"])
    assert (rare == 1).sum() == 4000
    # Four standard deviations of 16,000 draws around a quarter.
    assert (rare == 0).sum() == pytest.approx(4000, abs=4 * (16_000 * 0.25 * 0.75) ** 0.5)
    assert np.isnan(rare).sum() == 16_000 - (rare == 0).sum()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(logs.impressions, st.data(), st.sampled_from([0, 15, 100]))
def test_an_inline_label_counts_and_is_known_only_after_its_delay(
    tmp_path_factory: pytest.TempPathFactory, served: Any, data: st.DataObject, minutes: int
) -> None:
    served.append((0, 0, logs.START - timedelta(minutes=1)))
    liked = [data.draw(st.booleans()) for _ in served[:-1]] + [True]
    shown = [{**i, "liked": float(like)} for i, like in zip(logs.rows(logs.IMPRESSION, served), liked, strict=True)]
    path = tmp_path_factory.mktemp("inline")
    plain = write_log(path / "log", {"impressions": shown})
    impressions = ImpressionsConfig(labels=("liked",), label_delay_minutes=minutes)
    # A window shorter than the delay takes no label away: the delay says when it is known, not when it happened.
    tasks = {"is_liked": TaskConfig(engagement="liked", window_hours=0.1)}
    features = FeaturesConfig(keys=(("user_id",), ("post_id",)), windows=("1h", "all"), statistics=("count", "rate"))
    split = SplitConfig(train_start=0.0, validation_start=1.0)
    config = plain.model_copy(update={"impressions": impressions})
    with open_log(config) as log:
        schema = build_examples(log, tasks, features, split, path / "examples", seed=0, fingerprint="")
    parts = [table for part in ("train", "validation") for table in read_part(path / "examples", part)]
    table = pa.concat_tables(parts)
    values = vector_values(table["continuous"])
    of = {(i["user_id"], i["post_id"], i["served_at"]): i for i in shown}
    asked = table.select(["user_id", "post_id", "served_at", "is_liked"]).to_pylist()
    assert len(asked) == len(shown)
    for row, example in enumerate(asked):
        assert example.pop("is_liked") == of[tuple(example.values())]["liked"]
        now = example["served_at"]
        known = [i for i in shown if i["liked"] and i["served_at"] + timedelta(minutes=minutes) < now]
        for key in ("user", "post"):
            own = [i for i in known if i[f"{key}_id"] == example[f"{key}_id"]]
            late = now - timedelta(hours=1)
            recent = [i for i in own if i["served_at"] + timedelta(minutes=minutes) >= late]
            for window, expected in {"all": own, "1h": recent}.items():
                place = schema.continuous.index(f"{key}.liked.count.{window}")
                assert values[row, place] == len(expected), example


def test_a_window_is_told_to_the_millisecond_and_too_long_a_one_is_refused(folder: Path) -> None:
    pq.write_table(
        pa.Table.from_pylist([{**row, "served_at": NOON} for row in TWICE[:1]]), folder / "impressions.parquet"
    )
    pq.write_table(pa.Table.from_pylist([{"post_id": 1, "author_id": 2}]), folder / "posts.parquet")
    engaged = [{"user_id": 1, "post_id": 1, "type": "liked", "engaged_at": NOON + timedelta(milliseconds=900)}]
    pq.write_table(pa.Table.from_pylist(engaged), folder / "engagements.parquet")
    for seconds, label in ((0.899, 0.0), (0.9, 1.0)):
        with open_log(LogConfig(path=folder)) as log:
            create_labels(log, {"is_liked": TaskConfig(engagement="liked", window_hours=seconds / 3600)})
            assert log.connection.execute("SELECT * FROM labels").fetchall() == [(0, label)]
    with pytest.raises(ValidationError, match="window_hours"):
        TaskConfig(engagement="liked", window_hours=1e12)


@pytest.mark.parametrize("label", ["liked", "saved"])
def test_a_label_is_no_input_even_where_it_never_happened(folder: Path, label: str) -> None:
    impressions = [{**row, "saved": 0} for row in TWICE]
    pq.write_table(pa.Table.from_pylist(impressions), folder / "impressions.parquet")
    pq.write_table(pa.Table.from_pylist([{"post_id": 1, "author_id": 2}]), folder / "posts.parquet")
    config = LogConfig(path=folder, impressions=ImpressionsConfig(labels=("liked", "saved")))
    features = FeaturesConfig(continuous=(f"impressions.{label}",))
    with open_log(config) as log, pytest.raises(DataError, match=f"'impressions.{label}', which is known only after"):
        resolve_features(log, {"is_liked": TaskConfig(engagement="liked")}, features)
