"""Spark makes the files that DuckDB makes, to the byte."""

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tml.core.errors import DataError, UserError
from tml.core.files import read_json
from tml.data.config import HistoryConfig, ImpressionsConfig, LogConfig, TaskConfig
from tml.data.examples import VECTORS, Schema, vector_values
from tml.data.log import open_log
from tml.features.build import build_examples
from tml.features.config import AggregateConfig, FeaturesConfig, SplitConfig
from tml.pipeline import run_job
from tml.run_config import RunConfig
from tml.simulator.config import SimulatorConfig

HAS_SPARK = bool(importlib.util.find_spec("pyspark") and importlib.util.find_spec("sqlglot") and shutil.which("java"))
needs_spark = pytest.mark.skipif(not HAS_SPARK, reason="PySpark, SQLGlot or Java is not installed")
# One core, and a JVM that starts quickly rather than runs quickly: a test is many small jobs.
SETTINGS = {
    "spark.master": "local[1]",
    "spark.driver.host": "localhost",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    "spark.sql.shuffle.partitions": 2,
    "spark.sql.adaptive.enabled": False,
    "spark.sql.codegen.wholeStage": False,
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
}
START = datetime(2026, 1, 1, tzinfo=UTC)
USERS, POSTS = [f"u{i}" for i in range(6)], [f"p{i}" for i in range(8)]


@pytest.fixture(scope="module")
def spark() -> Iterator[None]:
    """One application for all tests: what the engine finds running it neither starts nor stops."""
    from tml.features.spark.session import open_session

    with open_session(SETTINGS):
        yield


def assert_same_files(ours: Path, theirs: Path) -> None:
    names = [str(path.relative_to(theirs)) for path in theirs.rglob("*") if path.is_file()]
    names.sort(key=lambda name: name.endswith(".json"))
    assert set(names) == {str(path.relative_to(ours)) for path in ours.rglob("*") if path.is_file()}
    for name in names:
        if (ours / name).read_bytes() != (theirs / name).read_bytes():
            raise AssertionError(f"{name} differs: {difference(ours / name, theirs / name)}")


def difference(ours: Path, theirs: Path) -> object:
    """What of a file of examples is not the same."""
    if ours.suffix == ".json":
        found, expected = read_json(ours), read_json(theirs)
        return {key: (found[key], expected[key]) for key in expected if found[key] != expected[key]}
    tables = pq.read_table(ours), pq.read_table(theirs)
    if tables[0].schema != tables[1].schema:
        return tables[0].schema, tables[1].schema
    differing = [name for name in tables[0].column_names if not tables[0][name].equals(tables[1][name])]
    vectors = {name: [vector_values(table[name]) for table in tables] for name in differing if name in VECTORS}
    places = {name: np.flatnonzero((found != expected).any(axis=0)) for name, (found, expected) in vectors.items()}
    return differing, {
        name: (found, vectors[name][0][:, found], vectors[name][1][:, found]) for name, found in places.items()
    }


def build_both(
    config: LogConfig, tasks: dict[str, TaskConfig], features: FeaturesConfig, split: SplitConfig, folder: Path
) -> Schema:
    """Make the examples of a log with both engines, and see that they are the same."""
    for engine in ("duckdb", "spark"):
        chosen = features.model_copy(update={"engine": engine, "spark": SETTINGS})
        with open_log(config) as log:
            schema = build_examples(log, tasks, chosen, split, folder / engine, seed=3, fingerprint="")
    assert_same_files(folder / "spark", folder / "duckdb")
    assert [path.name for path in folder.glob(".*")] == [], "something of Spark's is left"
    return schema


def wide_log(folder: Path) -> LogConfig:
    """Ties in time, repeated rows, ids as text, and what is missing, of a kind or written in a way of its own."""
    random = np.random.default_rng(5)

    def moments(rows: int) -> list[datetime]:
        # Two days in which few moments are one engagement's alone, and eight that have every day of the week.
        quarters = np.where(random.random(rows) < 0.7, random.integers(0, 120, rows), random.integers(0, 768, rows))
        return [START + timedelta(minutes=15 * int(quarter)) for quarter in quarters]

    def who(rows: int) -> dict[str, list[Any]]:
        return {"user_id": random.choice(USERS, rows).tolist(), "post_id": random.choice(POSTS, rows).tolist()}

    served = moments(300)
    delays = [[None, 0, 0, 20, 60, 200][i] for i in random.integers(0, 6, 300)]
    seen = [None if d is None else (t + timedelta(minutes=d)).isoformat() for t, d in zip(served, delays, strict=True)]
    impressions = {**who(300), "served_at": served, "impressed_at": seen, "tab": random.integers(0, 3, 300).tolist()}
    kinds = ["like", "it's", "impression", "other"]
    engaged = {**who(400), "type": random.choice(kinds, 400, p=[0.5, 0.3, 0.1, 0.1]).tolist()}
    engaged["engaged_at"] = moments(400)
    tables = {
        "impressions": pa.concat_tables([pa.table(impressions), pa.table(impressions).slice(0, 40)]),
        "engagements": pa.table(engaged),
        "history": pa.table({**who(40), "type": random.choice(["like", "impression"], 40).tolist()}),
        "follows": pa.table(
            {
                "user_id": random.choice(USERS, 40).tolist(),
                "followed_id": random.choice(USERS, 40).tolist(),
                "followed_at": [None if i % 5 == 0 else t for i, t in enumerate(moments(40))],
            }
        ),
        # The last post and the last user are in no table of their own.
        "posts": pa.table(
            {
                "post_id": POSTS[:-1],
                "author_id": [*(USERS[i % 4] for i in range(6)), None],
                "topic": ["a", "b", "ä", None, "a", "b", "a"],
                "created_at": [None if i == 2 else START + timedelta(seconds=0.7 * i) for i in range(7)],
                "score": [0.1, 1e20, 10.0, None, -2.5e-7, 0.1, 1 / 3],
                "is `pinned`, so.rt of": [True, False, None, True, False, True, True],
            }
        ),
        "users": pa.table(
            {
                "user_id": USERS[:-1],
                "language": ["en", "de", None, "en", "fr"],
                "signed_up_at": ["2025-12-01", "2025-12-31 12:00:00.25", None, "2026-01-03T01:00:00", "2024-02-29"],
            }
        ),
    }
    folder.mkdir()
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
    return LogConfig(path=folder, history=HistoryConfig(ended_at=START - timedelta(hours=1)))


@needs_spark
@pytest.mark.usefixtures("spark")
def test_all_that_a_log_may_have_is_the_same_to_the_byte(tmp_path: Path) -> None:
    tasks = {
        "is_like": TaskConfig(engagement="like", window_hours=6, negative_sampling_rate=0.5),
        "is_its": TaskConfig(engagement="it's"),
    }
    every = ("count", "rate", "decayed", "since")
    features = FeaturesConfig(
        aggregates=(
            AggregateConfig(keys=(("user_id",), ("topic", "users.language")), statistics=every),
            AggregateConfig(keys=(("tab",), ("user_id", "impressions.tab")), statistics=("count", "since")),
            AggregateConfig(keys=(("author_id", "score"),), statistics=("rate", "since"), engagements=("it's",)),
        ),
        windows=("30m", "3h", "all"),
        half_lives=("45m", "1w"),
        smoothing=2.5,
        ages=("users.signed_up_at",),
        continuous=("posts.score", "impressions.tab"),
        binary=("posts.is `pinned`, so.rt of",),
        discrete=("posts.topic", "posts.score", "posts.is `pinned`, so.rt of", "users.language", "impressions.tab"),
        vocabulary_minimum=1,
        chunk_rows=64,
    )
    # Between training and validation lie rows that are no examples.
    split = SplitConfig(train_start=0.1, train_end=0.5, validation_start=0.6)
    schema = build_both(wide_log(tmp_path / "log"), tasks, features, split, tmp_path)
    assert schema.parts["train"].rows > 64, "one chunk proves little"
    words = {column.name: column.vocabulary for column in schema.discrete}
    assert "1e+20" in words["posts.score"]
    deviation = dict(zip(schema.continuous, schema.statistics["deviation"], strict=True))
    assert all(value > 0 for name, value in deviation.items() if not name.endswith("other.since.all"))


@needs_spark
@pytest.mark.usefixtures("spark")
def test_inline_labels_are_the_same(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    log = tmp_path / "log"
    log.mkdir()
    impressions = {
        "user_id": random.integers(0, 3, 60),
        "post_id": random.integers(0, 4, 60),
        "served_at": [START + timedelta(hours=int(h)) for h in random.integers(0, 20, 60)],
        "liked": random.integers(0, 2, 60),
        "tab": range(60),
        "day": random.integers(0, 2, 60),
    }
    pq.write_table(pa.table(impressions), log / "impressions.parquet")
    pq.write_table(pa.table({"post_id": range(4), "author_id": [7, 7, 8, 9]}), log / "posts.parquet")
    config = LogConfig(path=log, impressions=ImpressionsConfig(labels=("liked",)))
    features = FeaturesConfig(keys=(("author_id",), ("author_id", "day")), windows=("3h",))
    build_both(config, {"is_liked": TaskConfig(engagement="liked")}, features, SplitConfig(train_start=0.0), tmp_path)


@needs_spark
@pytest.mark.usefixtures("spark")
def test_the_stage_makes_the_same_files_and_the_same_mark(tmp_path: Path) -> None:
    job = RunConfig(
        simulator=SimulatorConfig(users=60, posts=200, days=3),
        tasks={name: TaskConfig(engagement=name) for name in ("favorited", "replied")},
        features=FeaturesConfig(keys=(("user_id", "author_id"), ("topic",)), chunk_rows=500),
    )
    on_spark = job.features.model_copy(update={"engine": "spark", "spark": SETTINGS})
    for name, features in {"duckdb": job.features, "spark": on_spark}.items():
        for stage in ("simulate", "features"):
            run_job(job.model_copy(update={"features": features}), tmp_path / name, stage)
    assert_same_files(tmp_path / "spark" / "examples", tmp_path / "duckdb" / "examples")
    marks = [read_json(tmp_path / name / ".stages" / "features.json")["fingerprint"] for name in ("spark", "duckdb")]
    assert marks[0] == marks[1], "what one engine made is made anew for the other"


@needs_spark
@pytest.mark.usefixtures("spark")
def test_what_spark_cannot_do_is_one_sentence(tmp_path: Path) -> None:
    from tml.features.spark.database import Database
    from tml.features.spark.session import open_session

    def broken(query: str) -> None:
        with open_session({}) as session:
            Database(session, tmp_path).execute(query)

    with pytest.raises(
        DataError, match=r"features\.engine: Spark failed: \[TABLE_OR_VIEW_NOT_FOUND\].*`nowhere`[^\n]*$"
    ):
        broken("SELECT * FROM nowhere")
    with pytest.raises(DataError, match=r"features\.engine: Spark failed: .*\[CAST_INVALID_INPUT\][^\n]*$"):
        broken("CREATE TABLE x AS SELECT CAST('a' AS DOUBLE) AS y")


def test_what_is_not_installed_is_one_sentence(simulated: LogConfig, tmp_path: Path, monkeypatch: Any) -> None:
    def build() -> None:
        with open_log(simulated) as log:
            features = FeaturesConfig(engine="spark")
            tasks = {"is_favorited": TaskConfig(engagement="favorited")}
            build_examples(log, tasks, features, SplitConfig(), tmp_path / "examples", seed=0, fingerprint="")

    with monkeypatch.context() as patch:
        for name in [name for name in sys.modules if name.startswith("tml.features.spark.")]:
            patch.delitem(sys.modules, name)
        patch.setitem(sys.modules, "pyspark.sql", None)
        with pytest.raises(UserError, match=r"found spark without .*, which comes with `pip install 'tml\[spark\]'`"):
            build()
    if importlib.util.find_spec("pyspark") and importlib.util.find_spec("sqlglot"):
        monkeypatch.setenv("PATH", "")
        monkeypatch.delenv("JAVA_HOME", raising=False)
        with pytest.raises(UserError, match=r"found spark without Java.*apt-get install default-jre-headless"):
            build()
