"""Small logs and graphs to learn from."""

from datetime import UTC, datetime, timedelta

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from tml.projects.twhin.config import RelationConfig, TwhinConfig
from tml.projects.twhin.graph import Graph, Relation

START = datetime(2024, 1, 1, tzinfo=UTC)


def _log(follows=(), engagements=(), posts=(), history=None):
    """A connection with the canonical views; times are hours after START."""

    def times(hours):
        return pa.array([START + timedelta(hours=float(hour)) for hour in hours], pa.timestamp("us", "UTC"))

    def columns(rows, names):
        return dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else {name: [] for name in names}

    connection = duckdb.connect()
    follow = columns(follows, ("user_id", "followed_id", "hour"))
    connection.register("follows", pa.table({**_ids(follow), "followed_at": times(follow["hour"])}))
    engaged = columns(engagements, ("user_id", "post_id", "type", "hour"))
    table = {**_ids(engaged), "type": pa.array(engaged["type"], pa.string()), "engaged_at": times(engaged["hour"])}
    connection.register("engagements", pa.table(table))
    connection.register("posts", pa.table(_ids(columns(posts, ("post_id", "author_id")))))
    if history is not None:
        past = columns(history, ("user_id", "post_id", "type"))
        connection.register("history", pa.table({**_ids(past), "type": pa.array(past["type"], pa.string())}))
    return connection


def _ids(columns):
    return {name: pa.array(values) for name, values in columns.items() if name.endswith("_id")}


def _community_log(users=120, authors=80, communities=4, follows=2400, seed=0):
    """Users follow and like inside their community; some authors are far more popular than others.

    Returns the rows for `make_log`: follows, engagements, posts. Author a has the id 1000 + a, its one post 5000 + a.
    """
    rng = np.random.default_rng(seed)
    popularity = rng.lognormal(0, 1, authors)
    probability = popularity * np.where(
        np.arange(users)[:, None] % communities == np.arange(authors) % communities, 8, 1
    )
    drawn = rng.choice(users * authors, 2 * follows, p=(probability / probability.sum()).reshape(-1))
    user, author = (drawn // authors).tolist(), (drawn % authors).tolist()
    hours = rng.uniform(0, 100, len(drawn)).tolist()
    follow_rows = [(u, 1000 + a, h) for u, a, h in zip(user[:follows], author, hours, strict=False)]
    like_rows = [(u, 5000 + a, "favorited", h) for u, a, h in list(zip(user, author, hours, strict=True))[follows:]]
    return follow_rows, like_rows, [(5000 + a, 1000 + a) for a in range(authors)]


FOLLOW = RelationConfig(name="follow", source="follows")
FAVORITED = RelationConfig(name="favorited", source="engagements", type="favorited")


@pytest.fixture
def make_log():
    """Makes a connection with the canonical views from rows of follows, engagements, posts and history."""
    return _log


@pytest.fixture
def community_rows():
    """Rows of follows, engagements and posts for `make_log`, with communities to find."""
    return _community_log()


@pytest.fixture
def start():
    """The time that the hours of a log's rows are counted from."""
    return START


@pytest.fixture
def two_relations():
    """Follows and favorites, both from users to authors."""
    return TwhinConfig(relations=(FOLLOW, FAVORITED), embedding_dim=8)


@pytest.fixture
def graph():
    """20 users, 15 authors and 30 posts; three relations, of which two join users to authors."""
    rng = np.random.default_rng(0)
    relations = (
        Relation("follow", "user", "author"),
        Relation("like", "user", "post"),
        Relation("reply", "user", "author"),
    )
    rel = np.repeat([0, 1, 2], [90, 70, 13])
    rhs = rng.integers(0, np.array([15, 30, 15])[rel])
    vocabularies = {"user": pa.array(range(20)), "author": pa.array(range(15)), "post": pa.array(range(30))}
    return Graph(relations, vocabularies, rng.integers(0, 20, len(rel)), rel, rhs)
