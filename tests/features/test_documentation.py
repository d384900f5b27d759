"""The SQL of docs/features.md gives what the engine gives."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from features import logs
from features.logs import START, rows, write_log
from features.test_point_in_time import FEATURES, build
from tml.data.config import LogConfig
from tml.data.examples import vector_values
from tml.data.log import open_log
from tml.features.config import SplitConfig

PAGE = Path(__file__).parents[2] / "docs" / "features.md"
NAMES = {
    *("user_author.like.count.3h", "topic.like.rate.3h", "user.like.decayed.45m", "post.impression.since.all"),
    *("follows_author", "common_follows", "age_seconds", "hour_sine", "week_cosine"),
}


@pytest.fixture
def log(tmp_path: Path) -> LogConfig:
    random = np.random.default_rng(2)

    def minutes(most: int) -> timedelta:
        return timedelta(minutes=int(random.integers(0, most)))

    served = {(int(u), int(p), START + minutes(400)) for u, p in random.integers(0, [4, 5], (150, 2))}
    liked = {(u, p, "like", t + minutes(3)) for u, p, t in sorted(served)[::2]}
    replied = {(u, p, "reply", t) for u, p, _, t in sorted(liked)[::3]}
    followed = {(int(u), int(v), START + minutes(400)) for u, v in random.integers(0, 4, (14, 2))}
    tables = {
        "impressions": rows(logs.IMPRESSION, sorted(served)),
        "engagements": rows(logs.ENGAGEMENT, sorted(liked | replied)),
        "follows": rows(logs.FOLLOW, [*sorted(followed), (1, 2, None), (0, 2, None)]),
    }
    return write_log(tmp_path / "log", tables)


def test_the_sql_of_the_page_is_what_is_computed(log: LogConfig, tmp_path: Path) -> None:
    blocks = dict(re.findall(r"```sql\n-- (\S+)\n(.*?)```", PAGE.read_text(), flags=re.DOTALL))
    assert set(blocks) == NAMES
    schema, table = build(log, tmp_path / "examples", SplitConfig(train_start=0.0), FEATURES)
    computed = columns(table, "continuous", schema.continuous) | columns(table, "binary", schema.binary)
    with open_log(log) as opened:
        for name, sql in blocks.items():
            expected = ask(opened.connection, sql)
            assert len(set(expected)) > 1, f"{name} is the same everywhere, the test proves nothing"
            assert computed[name].tolist() == pytest.approx(expected, rel=1e-6, abs=1e-6), name


def columns(table: pa.Table, vector: str, names: list[str]) -> dict[str, Any]:
    return dict(zip(names, vector_values(table[vector]).T, strict=True))


def ask(connection: duckdb.DuckDBPyConnection, sql: str) -> list[float]:
    """The value of a block for every impression; `events` is the view that the page speaks of."""
    events = (
        "SELECT happened_at, type, user_id, post_id, author_id, topic FROM ("
        "SELECT served_at AS happened_at, 'impression' AS type, user_id, post_id FROM impressions UNION ALL "
        "SELECT engaged_at, type, user_id, post_id FROM engagements) JOIN posts USING (post_id)"
    )
    impressions = "(FROM impressions JOIN posts USING (post_id))"
    query = f"WITH events AS ({events}) SELECT ({sql}) FROM {impressions} i ORDER BY i.row"
    return [float(value) for (value,) in connection.execute(query).fetchall()]
