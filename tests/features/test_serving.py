"""What a request gets is, to the bit, what the example dataset has for the same impressions."""

import dataclasses
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tml.core.errors import DataError
from tml.data.config import LogConfig, TaskConfig
from tml.data.examples import Schema, vector_values
from tml.data.log import open_log
from tml.data.shards import read_part
from tml.features.build import build_examples
from tml.features.config import FeaturesConfig, SplitConfig
from tml.features.resolve import DEFAULT_KEYS
from tml.features.serving import open_features

TASKS = {"is_favorited": TaskConfig(engagement="favorited"), "is_replied": TaskConfig(engagement="replied")}
FEATURES = FeaturesConfig(
    keys=(*DEFAULT_KEYS, ("position",), ("user_id", "impressions.position")),
    windows=("30m", "1d", "all"),
    statistics=("count", "rate", "decayed", "since"),
    half_lives=("2h",),
    ages=("users.signed_up_at",),
    discrete=("posts.topic", "users.language", "impressions.position"),
    continuous=("posts.length", "impressions.position"),
    chunk_rows=1000,
)
COLUMNS = ["user_id", "post_id", "served_at", "position"]
VECTORS = ("continuous", "binary", "discrete")


@pytest.fixture(scope="module")
def examples(simulated: LogConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving") / "examples"
    with open_log(simulated) as log:
        build_examples(log, TASKS, FEATURES, SplitConfig(), folder, seed=0, fingerprint="")
    return folder


def assert_same_bytes(vectors: object, table: pa.Table) -> None:
    for name in VECTORS:
        stored = np.ascontiguousarray(vector_values(table[name]))
        computed = getattr(vectors, name)
        assert (computed.dtype, computed.shape) == (stored.dtype, stored.shape)
        different = [j for j in range(stored.shape[1]) if computed[:, j].tobytes() != stored[:, j].tobytes()]
        assert not different, (name, different)


def test_a_request_gets_the_bytes_of_the_examples(simulated: LogConfig, examples: Path) -> None:
    table = pa.concat_tables(read_part(examples, "validation"))
    with open_log(simulated) as log, open_features(log, Schema.read(examples)) as features:
        assert_same_bytes(features.compute(table.select(COLUMNS)), table)
        # Neither the size of a request nor the order of its candidates matters.
        shuffled = table.take(np.random.default_rng(0).permutation(len(table))[:37])
        assert_same_bytes(features.compute(shuffled.select(COLUMNS)), shuffled)
        one = table.slice(5, 1)
        assert_same_bytes(features.compute(one.select(COLUMNS)), one)


def test_a_log_that_ends_now_gives_the_same_bytes(simulated: LogConfig, examples: Path, tmp_path: Path) -> None:
    table = pa.concat_tables(read_part(examples, "validation"))
    now = table["served_at"][len(table) // 2].as_py()
    asked = table.filter(pc.equal(table["served_at"], pa.scalar(now, table["served_at"].type)))
    cut_log(simulated.path, tmp_path / "log", now)
    with open_log(LogConfig(path=tmp_path / "log")) as log, open_features(log, Schema.read(examples)) as features:
        assert log.end < now
        assert_same_bytes(features.compute(asked.select(COLUMNS)), asked)


def cut_log(source: Path, target: Path, now: datetime) -> None:
    """Copy a log as it was just before `now`; the posts of its feed are there, their engagements not yet."""
    target.mkdir()
    times = {"impressions": "served_at", "engagements": "engaged_at", "follows": "followed_at"}
    for name in ("impressions", "engagements", "follows", "posts", "users"):
        table = pq.read_table(source / f"{name}.parquet")
        if name in times:
            until = pa.scalar(now, pa.timestamp("us")).cast(pa.timestamp("us", tz="UTC"))
            table = table.filter(pc.less(table[times[name]], until))
        pq.write_table(table, target / f"{name}.parquet")


def test_a_viewer_and_a_post_that_nobody_knows_have_no_past(simulated: LogConfig, examples: Path) -> None:
    schema = Schema.read(examples)
    with open_log(simulated) as log, open_features(log, schema) as features:
        now = log.end
        candidates = pa.table(
            {"user_id": [10**9], "post_id": [10**9], "served_at": pa.array([now], pa.timestamp("us")), "position": [0]}
        )
        continuous = dict(zip(schema.continuous, features.compute(candidates).continuous[0], strict=True))
        known = {name.split(".")[0] for name, value in continuous.items() if value and ".count." in name}
        assert known == {"position"}, "what is told of a position alone is the same for everyone"
        unknown = {name: value for name, value in continuous.items() if not name.startswith("position.")}
        assert all(value == 0 for name, value in unknown.items() if ".count." in name or ".decayed." in name)
        assert all(value == -1 for name, value in unknown.items() if ".since." in name)
        engaged, shown = log.connection.execute(
            "SELECT (SELECT count(*) FROM engagements WHERE type = 'favorited' AND engaged_at < ?), "
            "(SELECT count(*) FROM impressions WHERE served_at < ?)",
            [now, now],
        ).fetchall()[0]
        assert continuous["user_author.favorited.rate.1d"] == np.float32((engaged + 1) / (shown + 50))


def test_what_a_request_gets_wrong_is_one_sentence(simulated: LogConfig, examples: Path) -> None:
    schema = Schema.read(examples)
    table = pa.concat_tables(read_part(examples, "validation")).select(COLUMNS).slice(0, 3)
    with open_log(simulated) as log, open_features(log, schema) as features:
        with pytest.raises(DataError, match=r"candidates: no column position, needed are user_id, .*found are"):
            features.compute(table.drop_columns(["position"]))
        texts = table.set_column(0, "user_id", table["user_id"].cast(pa.string()))
        with pytest.raises(DataError, match=r"column user_id: found type string, allowed is the log's, BIGINT"):
            features.compute(texts)
        numbers = table.set_column(2, "served_at", table["served_at"].cast(pa.int64()))
        with pytest.raises(DataError, match=r"column served_at: found type int64, allowed are timestamps"):
            features.compute(numbers)
        with (
            pytest.raises(DataError, match="nothing about how the features are made"),
            open_features(log, dataclasses.replace(schema, features={})),
        ):
            pass


def test_a_value_that_cannot_be_is_one_sentence_and_the_next_request_is_answered(
    simulated: LogConfig, examples: Path
) -> None:
    schema, stored = Schema.read(examples), read_part(examples, "validation")
    three = pa.concat_tables(stored).slice(0, 3)
    table = three.select(COLUMNS)
    now = table["served_at"].type
    wrong = {
        ("user_id", r"column user_id: found no value"): pa.nulls(3, table["user_id"].type),
        ("post_id", r"column post_id: found no value"): pa.nulls(3, table["post_id"].type),
        ("served_at", r"column served_at: found no value"): pa.array([None, datetime(2026, 1, 2), None], now),
        ("served_at", r"served_at: found -631152000000000 us .*allowed are the years 1990 to 2100"): pa.array(
            [datetime(1950, 1, 1)] * 3, now
        ),
        ("served_at", r"found 4611686018427387904 s since 1970"): pa.array([2**62] * 3, pa.timestamp("s")),
        ("user_id", r"cannot hold \(.*9223372036854775809"): pa.array([2**63 + 1] * 3, pa.uint64()),
        ("position", r"cannot hold \(Could not convert string 'top'"): pa.array(["top"] * 3),
    }
    with open_log(simulated) as log, open_features(log, schema) as features:
        for (column, sentence), values in wrong.items():
            with pytest.raises(DataError, match=sentence):
                features.compute(table.set_column(COLUMNS.index(column), column, values))
        assert_same_bytes(features.compute(table), three)
        assert len(features.compute(table.slice(0, 0)).continuous) == 0


def test_times_of_any_unit_and_zone_are_read_as_the_logs_are(simulated: LogConfig, examples: Path) -> None:
    schema = Schema.read(examples)
    stored = pa.concat_tables(read_part(examples, "validation")).slice(0, 5)
    table = stored.select(COLUMNS)
    micros = pc.cast(table["served_at"], pa.int64())
    # Nanoseconds are rounded to whole microseconds, as DuckDB does when it opens a log.
    nanos = pc.cast(pc.add(pc.multiply(micros, 1000), 499), pa.timestamp("ns"))
    zoned = pc.cast(table["served_at"], pa.timestamp("us", tz="America/New_York"))
    with open_log(simulated) as log, open_features(log, schema) as features:
        for times in (nanos, zoned):
            assert_same_bytes(features.compute(table.set_column(2, "served_at", times)), stored)


def test_a_place_in_the_feed_may_be_one_that_the_logs_type_is_too_small_for(folder: Path, tmp_path: Path) -> None:
    now = datetime(2026, 1, 1)
    shown = {"user_id": [1, 1], "post_id": [1, 1], "served_at": [now, now.replace(hour=9)]}
    places = pa.array([3, 4], pa.uint8())
    pq.write_table(pa.table({**shown, "position": places, "slot": places}), folder / "impressions.parquet")
    pq.write_table(pa.table({"post_id": [1], "author_id": [2]}), folder / "posts.parquet")
    engaged = {"user_id": [1], "post_id": [1], "type": ["favorited"], "engaged_at": [now]}
    pq.write_table(pa.table(engaged), folder / "engagements.parquet")
    config = FeaturesConfig(continuous=("impressions.slot",), discrete=("impressions.slot",), vocabulary_minimum=1)
    tasks = {"is_favorited": TASKS["is_favorited"]}
    with open_log(LogConfig(path=folder)) as log:
        schema = build_examples(log, tasks, config, SplitConfig(train_start=0.0), tmp_path / "ex", 0, "")
        asked = {"user_id": [1, 1], "post_id": [1, 1], "served_at": [now, now], "position": [400, 3], "slot": [400, 3]}
        with open_features(log, schema) as features:
            vectors = features.compute(pa.table(asked))
    continuous = dict(zip(schema.continuous, vectors.continuous.T.tolist(), strict=True))
    assert continuous["position"] == continuous["impressions.slot"] == [400, 3]
    assert vectors.discrete[:, -1].tolist() == [0, 1]
