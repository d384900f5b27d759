"""Where an engagement log lies and how its own names and units map to the contract's.

impressions   user_id, post_id, served_at; optional impression_id, position, session_id, impressed_at, any columns,
              inline labels
engagements   user_id, post_id, type, engaged_at; only where labels are not inline
posts         post_id, author_id; optional created_at, topic, any columns
users         user_id, any columns                                                      (the table is optional)
follows       user_id, followed_id; optional followed_at                                (the table is optional)
history       user_id, post_id, type: what happened before the log, without times       (the table is optional)
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from tml.core.config import BaseConfig, UtcDatetime

CONFIG = "log.yaml"
"""The config of a job on a log, where the log's folder has one."""

MINUTES_A_CENTURY = 100 * 365.25 * 24 * 60
"""What is longer is a slip, and the sum with a time may be none."""

TimeUnit = Literal["s", "ms", "us"]
OnError = Literal["stop", "skip"]


class TableConfig(BaseConfig):
    """One table of a log.

    Attributes:
        file: file, folder or glob, relative to the log's path; by default whatever there is named like the table:
            `posts.parquet`, `posts.csv.gz`, `posts/*.jsonl`.
        columns: the contract's name of a column → the log's own name for it.
        time_unit: the unit of times that are numbers, counted from 1970; timestamps and ISO text need none.
    """

    file: str | None = None
    columns: dict[str, str] = Field(default_factory=dict)
    time_unit: TimeUnit | None = None


class ImpressionsConfig(TableConfig):
    """The impressions, where labels may be inline.

    An inline label becomes an engagement of the type of its column's name. It has no time of its own: it is taken to
    have happened `label_delay_minutes` after its impression. Features of later impressions know of it from then on.

    Attributes:
        labels: the columns that say (0 or 1) what followed.
        label_delay_minutes: how long after an impression its labels are known.
    """

    labels: tuple[str, ...] = ()
    label_delay_minutes: float = Field(0.0, ge=0, le=MINUTES_A_CENTURY)


class HistoryConfig(TableConfig):
    """Interactions from before the log, without times: they count as having happened at `ended_at`.

    Attributes:
        ended_at: the time by which all of them had happened; not later than the first impression.
        relations: the history's own type → an engagement type of the log, or `impression`. What is not named keeps
            its own name.
    """

    ended_at: UtcDatetime
    relations: dict[str, str] = Field(default_factory=dict)


class LogConfig(BaseConfig):
    """An engagement log: a folder of tables, each Parquet, CSV or JSON lines, plain or compressed.

    Attributes:
        path: the folder, relative to the working directory.
        session_gap_minutes: where impressions carry no session_id, a viewer's session ends after a pause this long.
        on_error: what is done about a value or a file that cannot be used: `stop` with a sentence that names it, or
            `skip` the row or the file, and count it.
        truth: true probabilities by impression (a Parquet file with impression_id and a column an engagement type),
            relative to the path; a simulator knows them.
    """

    path: Path
    impressions: ImpressionsConfig = ImpressionsConfig()
    engagements: TableConfig = TableConfig()
    posts: TableConfig = TableConfig()
    users: TableConfig = TableConfig()
    follows: TableConfig = TableConfig()
    history: HistoryConfig | None = None
    session_gap_minutes: float = Field(30.0, gt=0, le=MINUTES_A_CENTURY)
    on_error: OnError = "stop"
    truth: str | None = None


class TaskConfig(BaseConfig):
    """One engagement to predict.

    Attributes:
        engagement: the engagement type in the log whose occurrence is the label 1.
        window_hours: an engagement later than this after the impression does not count; None counts all.
        negative_sampling_rate: the share of negatives that training keeps for this task; probabilities are corrected
            for it after the model, exactly once.
    """

    engagement: str
    window_hours: float | None = Field(None, gt=0, le=MINUTES_A_CENTURY / 60)
    negative_sampling_rate: float = Field(1.0, gt=0, le=1)


PUBLISHED_PREFIX = "recap.engagement.is_"

PUBLISHED_ENGAGEMENTS = (
    "favorited",
    "retweeted",
    "replied",
    "profile_clicked_and_profile_engaged",
    "video_playback_50",
    "replied_reply_engaged_by_author",
    "good_clicked_convo_desc_favorited_or_replied",
    "good_clicked_convo_desc_v2",
    "negative_feedback_v2",
    "report_tweet_clicked",
)
"""The ten published engagement types, in the published order."""


def published_tasks() -> dict[str, TaskConfig]:
    """The ten published tasks under their published label names."""
    return {f"{PUBLISHED_PREFIX}{name}": TaskConfig(engagement=name) for name in PUBLISHED_ENGAGEMENTS}
