import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from tml.core.config import parse_config
from tml.core.errors import ConfigError
from tml.simulator import simulate as simulate_module
from tml.simulator.calibration import RATES
from tml.simulator.config import SimulatorConfig
from tml.simulator.drivers import READABLE_OF_FOREIGN
from tml.simulator.simulate import simulate
from tml.simulator.vocabulary import ENGAGEMENT_TYPES

CONFIG = SimulatorConfig(users=600, posts=5000, days=5, follows_per_user=12)
TABLES = ("impressions", "engagements", "posts", "users", "follows")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulated") / "log"
    simulate(CONFIG, out, seed=11)
    return out


@pytest.fixture(scope="module")
def database(log: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    for table in TABLES:
        connection.execute(f"CREATE VIEW {table} AS SELECT * FROM '{log / table}.parquet'")
    for table in ("probabilities", "users", "posts", "topics"):
        connection.execute(f"CREATE VIEW true_{table} AS SELECT * FROM '{log / 'truth' / table}.parquet'")
    yield connection
    connection.close()


def number(database: duckdb.DuckDBPyConnection, query: str) -> Any:
    return database.execute(query).fetchall()[0][0]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_seed_same_bytes_and_other_seed_other_bytes(tmp_path: Path) -> None:
    config = SimulatorConfig(users=60, posts=600, days=2)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        simulate(config, tmp_path / name, seed)
    first, same, other = (digests(tmp_path / name) for name in "abc")
    assert len(first) == 10
    assert first == same
    assert first.keys() == other.keys()
    different = {name for name in first if first[name] != other[name]}
    assert {f"{table}.parquet" for table in TABLES} | {"truth/probabilities.parquet"} <= different


def test_columns_of_the_canonical_log(database: duckdb.DuckDBPyConnection) -> None:
    def schema(table: str) -> dict[str, str]:
        return {name: kind for name, kind, *_ in database.execute(f"DESCRIBE {table}").fetchall()}

    assert schema("impressions") == {
        "impression_id": "BIGINT",
        "user_id": "BIGINT",
        "post_id": "BIGINT",
        "served_at": "TIMESTAMP WITH TIME ZONE",
        "position": "SMALLINT",
        "session_id": "BIGINT",
    }
    assert schema("engagements") == {
        "user_id": "BIGINT",
        "post_id": "BIGINT",
        "type": "VARCHAR",
        "engaged_at": "TIMESTAMP WITH TIME ZONE",
    }
    assert list(schema("posts")) == ["post_id", "author_id", "created_at", "topic", "language", "media", "length"]
    assert list(schema("users")) == ["user_id", "language", "signed_up_at"]
    assert list(schema("follows")) == ["user_id", "followed_id", "followed_at"]
    assert schema("true_probabilities") == {"impression_id": "BIGINT", **dict.fromkeys(ENGAGEMENT_TYPES, "FLOAT")}


def test_size_is_as_asked_for(database: duckdb.DuckDBPyConnection) -> None:
    wanted = CONFIG.users * CONFIG.days * CONFIG.sessions_per_user_and_day * CONFIG.posts_per_session
    assert 0.9 * wanted < number(database, "SELECT count(*) FROM impressions") < 1.1 * wanted
    assert number(database, "SELECT count(*) FROM users") == CONFIG.users
    assert number(database, "SELECT count(*) FROM posts") == CONFIG.posts
    assert number(database, "SELECT count(DISTINCT author_id) FROM posts") <= CONFIG.authors * CONFIG.users


def test_impressions_are_in_order_of_time_and_sessions_whole(database: duckdb.DuckDBPyConnection) -> None:
    ids = database.execute("SELECT impression_id FROM impressions ORDER BY served_at, impression_id").fetchnumpy()
    np.testing.assert_array_equal(ids["impression_id"], np.arange(len(ids["impression_id"])))
    sessions = """
        SELECT session_id, count(*) AS posts, count(DISTINCT post_id) AS different, count(DISTINCT user_id) AS users,
            min(position) AS low, max(position) AS high, min(served_at) AS start,
            bool_and(later) AS in_order, max(served_at) < start + INTERVAL 1 HOUR AS brief
        FROM (SELECT *, coalesce(served_at > lag(served_at) OVER in_session, TRUE) AS later FROM impressions
              WINDOW in_session AS (PARTITION BY session_id ORDER BY position))
        GROUP BY session_id ORDER BY session_id"""
    wrong = "posts != different OR users != 1 OR low != 0 OR high + 1 != posts OR NOT in_order OR NOT brief"
    assert number(database, f"SELECT count(*) FROM ({sessions}) WHERE {wrong}") == 0
    starts = database.execute(f"SELECT session_id, start FROM ({sessions})").fetchnumpy()
    np.testing.assert_array_equal(starts["session_id"], np.arange(len(starts["session_id"])))
    assert (np.diff(starts["start"]).astype(int) >= 0).all()
    assert number(database, "SELECT count(*) - count(DISTINCT (user_id, post_id)) FROM impressions") == 0


def test_references_and_times(database: duckdb.DuckDBPyConnection) -> None:
    start = CONFIG.start.timestamp()
    end = start + 86400 * CONFIG.days
    for child, column, parent, key in (
        ("impressions", "user_id", "users", "user_id"),
        ("impressions", "post_id", "posts", "post_id"),
        ("posts", "author_id", "users", "user_id"),
        ("follows", "user_id", "users", "user_id"),
        ("follows", "followed_id", "users", "user_id"),
        ("engagements", "(user_id, post_id)", "impressions", "(user_id, post_id)"),
    ):
        assert number(database, f"SELECT count(*) FROM {child} WHERE {column} NOT IN (SELECT {key} FROM {parent})") == 0
    joined = "impressions JOIN posts USING (post_id)"
    assert number(database, f"SELECT count(*) FROM {joined} WHERE created_at >= served_at") == 0
    engaged = "engagements JOIN impressions USING (user_id, post_id)"
    assert number(database, f"SELECT count(*) FROM {engaged} WHERE engaged_at <= served_at") == 0
    assert number(database, f"SELECT count(*) FROM {engaged} WHERE engaged_at > served_at + INTERVAL 2 DAY") == 0
    assert number(database, "SELECT epoch(min(served_at)) FROM impressions") >= start
    assert number(database, "SELECT epoch(max(served_at)) FROM impressions") < end + 3600
    assert number(database, "SELECT epoch(min(created_at)) FROM posts") < start
    assert number(database, "SELECT epoch(max(created_at)) FROM posts") < end
    assert number(database, "SELECT count(*) - count(DISTINCT (user_id, post_id, type)) FROM engagements") == 0


def test_follows_are_mostly_old_and_some_happen_meanwhile(database: duckdb.DuckDBPyConnection) -> None:
    count = number(database, "SELECT count(*) FROM follows")
    during = number(database, f"SELECT count(*) FROM follows WHERE followed_at >= '{CONFIG.start}'")
    assert abs(during - CONFIG.follows_during * count) < 5 * math.sqrt(CONFIG.follows_during * count)
    assert (
        number(database, "SELECT epoch(max(followed_at)) FROM follows") < CONFIG.start.timestamp() + 86400 * CONFIG.days
    )
    assert number(database, "SELECT count(*) FROM follows WHERE user_id = followed_id") == 0
    assert number(database, "SELECT count(*) - count(DISTINCT (user_id, followed_id)) FROM follows") == 0
    early = "follows JOIN users USING (user_id) WHERE followed_at < signed_up_at"
    assert number(database, f"SELECT count(*) FROM {early}") == 0
    assert 0.75 * CONFIG.follows_per_user < count / CONFIG.users < 1.05 * CONFIG.follows_per_user


def test_activity_and_followers_have_heavy_tails(database: duckdb.DuckDBPyConnection) -> None:
    for query in (
        "SELECT count(*) AS n FROM impressions GROUP BY user_id",
        "SELECT count(*) AS n FROM follows GROUP BY followed_id",
        "SELECT count(*) AS n FROM posts GROUP BY author_id",
    ):
        counts = np.sort(database.execute(query).fetchnumpy()["n"])
        assert counts[-len(counts) // 10 :].sum() > 0.2 * counts.sum()
        assert counts[-1] > 3 * np.median(counts)


def test_dependent_engagements(database: duckdb.DuckDBPyConnection) -> None:
    def without(inner: str, outer: str) -> str:
        return f"""SELECT count(*) FROM engagements AS a LEFT JOIN engagements AS b
            ON a.user_id = b.user_id AND a.post_id = b.post_id AND b.type = '{outer}'
            WHERE a.type = '{inner}' AND (b.type IS NULL OR b.engaged_at >= a.engaged_at)"""

    assert number(database, without("replied_reply_engaged_by_author", "replied")) == 0
    good = "good_clicked_convo_desc_favorited_or_replied"
    assert number(database, without(good, "good_clicked_convo_desc_v2")) == 0
    of_media = "SELECT DISTINCT media FROM engagements JOIN posts USING (post_id) WHERE type = 'video_playback_50'"
    assert database.execute(of_media).fetchall() == [("video",)]
    impossible = "impressions JOIN posts USING (post_id) JOIN true_probabilities USING (impression_id)"
    assert number(database, f"SELECT max(video_playback_50) FROM {impossible} WHERE media != 'video'") == 0


def labels_and_truth(database: duckdb.DuckDBPyConnection, kind: str) -> tuple[np.ndarray, np.ndarray]:
    query = f"""SELECT (e.type IS NOT NULL)::DOUBLE AS label, t.{kind}::DOUBLE AS truth
        FROM impressions AS i JOIN true_probabilities AS t USING (impression_id)
        LEFT JOIN engagements AS e ON e.user_id = i.user_id AND e.post_id = i.post_id AND e.type = '{kind}'"""
    columns = database.execute(query).fetchnumpy()
    return np.asarray(columns["label"]), np.asarray(columns["truth"])


@pytest.mark.parametrize("kind", ENGAGEMENT_TYPES)
def test_labels_happen_as_often_as_the_truth_says(database: duckdb.DuckDBPyConnection, kind: str) -> None:
    label, truth = labels_and_truth(database, kind)
    assert ((truth >= 0) & (truth < 1)).all()
    for part in np.array_split(np.argsort(truth), 5):
        bound = 4.5 * math.sqrt((truth[part] * (1 - truth[part])).sum()) + 1
        assert abs(label[part].sum() - truth[part].sum()) < bound


@pytest.mark.parametrize("kind", ENGAGEMENT_TYPES)
def test_rates_are_the_intended_ones(database: duckdb.DuckDBPyConnection, kind: str) -> None:
    shown = "impressions JOIN posts USING (post_id) JOIN true_probabilities USING (impression_id)"
    where = "WHERE media = 'video'" if kind == "video_playback_50" else ""
    assert number(database, f"SELECT avg({kind}) FROM {shown} {where}") == pytest.approx(RATES[kind], rel=0.15)


def test_probability_of_a_like_recomputed_from_the_tables(database: duckdb.DuckDBPyConnection, log: Path) -> None:
    model = json.loads((log / "truth" / "model.json").read_text())
    weight = {driver: kinds["favorited"] for driver, kinds in model["coefficients"].items()}
    topics = {name: i for i, (name,) in enumerate(database.execute("SELECT topic FROM true_topics").fetchall())}
    rows = database.execute("""
        SELECT i.position, epoch(i.served_at) AS seconds, p.* EXCLUDE (created_at),
            t.quality AS post_quality, u.language AS own, v.*, h.half_life_hours,
            coalesce(f.followed_at < i.served_at, FALSE) AS followed, a.conversational AS author_conversational,
            epoch(i.served_at) - epoch(p.created_at) AS age_seconds, q.favorited
        FROM impressions AS i JOIN posts AS p USING (post_id) JOIN true_posts AS t USING (post_id)
        JOIN users AS u USING (user_id) JOIN true_users AS v USING (user_id) JOIN true_topics AS h USING (topic)
        JOIN true_users AS a ON a.user_id = p.author_id JOIN true_probabilities AS q USING (impression_id)
        LEFT JOIN follows AS f ON f.user_id = i.user_id AND f.followed_id = p.author_id
        WHERE impression_id % 97 = 0""")
    names = [column[0] for column in rows.description]
    for values in rows.fetchall():
        row = dict(zip(names, values, strict=True))
        foreign = row["language"] not in (row["own"], row["second_language"])
        readable = READABLE_OF_FOREIGN if foreign else 1.0
        affinity = readable * (row["interests"][topics[row["topic"]]] - 0.5)
        hours = row["seconds"] % 86400 / 3600
        drivers = {
            "propensity": row["propensity"],
            "affinity": affinity,
            "quality": readable * row["post_quality"],
            "affinity_quality": affinity * row["post_quality"],
            "followed": row["followed"],
            "followed_affinity": row["followed"] * affinity,
            "freshness": 0.5 ** (row["age_seconds"] / 3600 / row["half_life_hours"]),
            "stale": row["age_seconds"] > 86400,
            "position": math.log(1 + row["position"]),
            "foreign": foreign,
            "media_preference": readable * row[f"preference_{row['media']}"],
            "evening": math.cos(2 * math.pi * (hours - 21) / 24),
            "conversational": readable * row["author_conversational"],
            "length": math.log(row["length"] / 110),
        }
        logit = model["intercepts"]["favorited"] + row["propensity_favorited"]
        logit += sum(weight[name] * value for name, value in drivers.items())
        assert row["favorited"] == pytest.approx(1 / (1 + math.exp(-logit)), rel=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"users": 2, "posts": 1, "days": 1},
        {"users": 20, "posts": 50, "days": 2},
        {"users": 30, "posts": 200, "days": 1, "topics": 1, "communities": 1, "languages": 1, "authors": 1.0},
        {"users": 30, "posts": 300, "days": 1, "feed": {"followed": 0, "popular": 0, "explored": 1}},
        {"users": 30, "posts": 300, "days": 1, "posts_per_session": 1, "follows_during": 1, "communities": 40},
    ],
)
def test_extreme_sizes_work(tmp_path: Path, fields: dict[str, Any]) -> None:
    config = SimulatorConfig.model_validate(fields)
    simulate(config, tmp_path / "log", seed=3)
    count = number(duckdb.connect(), f"SELECT count(DISTINCT post_id) FROM '{tmp_path}/log/impressions.parquet'")
    assert count <= config.posts
    assert number(duckdb.connect(), f"SELECT count(*) FROM '{tmp_path}/log/posts.parquet'") == config.posts


def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SimulatorConfig(users=20, posts=100, days=1)
    simulate(config, tmp_path / "log", seed=1)
    before = digests(tmp_path / "log")

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(simulate_module, "write_truth", fail)
    with pytest.raises(OSError, match="disk full"):
        simulate(config, tmp_path / "log", seed=2)
    assert digests(tmp_path / "log") == before
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"users": 1}, "users: found 1"),
        ({"days": 0}, "days: found 0"),
        ({"languages": 99}, "languages: found 99"),
        ({"follows_during": 1.5}, "follows_during: found 1.5"),
        ({"feed": {"followed": 0.9}}, "must sum to 1, found 1.4"),
        ({"start": "1900-01-01"}, "allowed is 1980-01-01 to"),
        ({"user": 5}, "did you mean users"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(SimulatorConfig, fields, "simulator.yaml")


def test_a_negative_seed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="seed: found -1"):
        simulate(SimulatorConfig(), tmp_path / "log", seed=-1)
    assert list(tmp_path.iterdir()) == []
