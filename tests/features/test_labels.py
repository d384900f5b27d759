"""Labels that are columns of the impressions stay with their row; those of a table go to the latest impression."""

from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tml.data.config import ImpressionsConfig, LogConfig, TaskConfig
from tml.data.log import open_log
from tml.features.labels import create_labels

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
