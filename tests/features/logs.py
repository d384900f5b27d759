"""Random small logs for the tests of features, and their example datasets."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from tml.data.config import HistoryConfig, LogConfig

START = datetime(2026, 1, 1)
USERS, POSTS = range(4), range(5)
AUTHOR = {post: post % 2 for post in POSTS}
TOPIC = {post: "ab"[post % 2] if post < 4 else None for post in POSTS}
POST_LANGUAGE = {post: "en" if post % 3 else "de" for post in POSTS}
USER_LANGUAGE = {user: ["en", "de", "en", None][user] for user in USERS}
SIGNED_UP = {user: START - timedelta(days=user) if user else None for user in USERS}

IMPRESSION = ("user_id", "post_id", "served_at")


def tab_of(user: int, post: int, served_at: datetime) -> str | None:
    """What impressions tell of themselves, as a column that a key may be made of."""
    return (None, "home", "search")[(user + post + served_at.minute // 15) % 3]


ENGAGEMENT = ("user_id", "post_id", "type", "engaged_at")
BEFORE = ("user_id", "post_id", "type")
FOLLOW = ("user_id", "followed_id", "followed_at")

# Few people, posts and moments, so that ties and repeated impressions are the rule.
_moment = st.integers(0, 40).map(lambda quarters: START + timedelta(minutes=15 * quarters))
_user, _post = st.sampled_from(USERS), st.sampled_from(POSTS)
impressions = st.lists(st.tuples(_user, _post, _moment), min_size=2, max_size=30, unique=True)
engagements = st.lists(st.tuples(_user, _post, st.sampled_from(["like", "reply"]), _moment), max_size=30, unique=True)
histories = st.lists(st.tuples(_user, _post, st.sampled_from(["impression", "like"])), max_size=8, unique=True)
follows = st.lists(st.tuples(_user, _user, st.none() | _moment), max_size=12, unique=True)

STAMP = pa.timestamp("us", tz="UTC")
_TYPES = {
    **dict.fromkeys(("user_id", "post_id", "followed_id", "author_id"), pa.int64()),
    **dict.fromkeys(("type", "topic", "language", "tab"), pa.string()),
    **dict.fromkeys(("served_at", "engaged_at", "impressed_at", "followed_at", "created_at", "signed_up_at"), STAMP),
}


def rows(names: tuple[str, ...], values: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
    """Tuples as rows."""
    return [dict(zip(names, value, strict=True)) for value in values]


def write_log(folder: Path, tables: dict[str, list[dict[str, Any]]]) -> LogConfig:
    """Write tables as a log, with posts and users, and give its config."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {"impressions": IMPRESSION, "engagements": ENGAGEMENT, "history": BEFORE, "follows": FOLLOW}
    posts = [
        {
            "post_id": post,
            "author_id": AUTHOR[post],
            "topic": TOPIC[post],
            "language": POST_LANGUAGE[post],
            "created_at": START + timedelta(minutes=7 * post),
            "length": 10.5 * post if post else None,
        }
        for post in POSTS
    ]
    users = [{"user_id": u, "language": USER_LANGUAGE[u], "signed_up_at": SIGNED_UP[u]} for u in USERS]
    tables = {
        **tables,
        "impressions": [{**row, "tab": tab_of(*map(row.get, IMPRESSION))} for row in tables["impressions"]],
    }
    for name, content in {"posts": posts, "users": users, **tables}.items():
        columns = list(dict.fromkeys([*names.get(name, ()), *(key for row in content for key in row)]))
        schema = pa.schema([(column, _TYPES.get(column, pa.float64())) for column in columns])
        pq.write_table(pa.Table.from_pylist(content, schema), folder / f"{name}.parquet")
    ended_at = START.replace(tzinfo=UTC) - timedelta(hours=1)
    return LogConfig(path=folder, history=HistoryConfig(ended_at=ended_at) if "history" in tables else None)


def with_anchors(served: list[Any], engaged: list[Any]) -> dict[str, list[dict[str, Any]]]:
    """Impressions and engagements, and two of each that make the log one that can be split and trained on."""
    first, last = START - timedelta(minutes=1), START + timedelta(hours=20)
    soon = first + timedelta(seconds=1)
    return {
        "impressions": rows(IMPRESSION, [*served, (0, 0, first), (1, 1, last)]),
        "engagements": rows(ENGAGEMENT, [*engaged, (0, 0, "like", soon), (0, 0, "reply", soon)]),
    }
