"""What features an example has, and which part of the log becomes examples."""

import itertools
import re
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from tml.core.config import BaseConfig, UtcDatetime

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_LONGEST = timedelta(days=36_525)


def _is_duration(value: str) -> bool:
    # Eight digits of any unit still fit what a timedelta can hold.
    return re.fullmatch(r"[1-9]\d{0,7}[smhdw]", value) is not None and duration(value) <= _LONGEST


def _check_duration(value: str) -> str:
    if not _is_duration(value):
        raise ValueError(
            "allowed is a whole number of seconds, minutes, hours, days or weeks, as 90s, 30m, 12h, 3d or 2w"
        )
    return value


def _check_window(value: str) -> str:
    if value != "all" and not _is_duration(value):
        raise ValueError(
            "allowed is a whole number of seconds, minutes, hours, days or weeks, as 90s, 30m, 12h, 3d or 2w, or all"
        )
    return value


Duration = Annotated[str, AfterValidator(_check_duration)]
"""A length of time: `90s`, `30m`, `12h`, `3d`, `2w`."""
Window = Annotated[str, AfterValidator(_check_window)]
"""A length of time before an impression: `30m`, `12h`, `3d`, or `all`."""
Key = Annotated[tuple[str, ...], Field(min_length=1)]
"""The columns that a key is made of, as `[user_id, author_id]`."""
Statistic = Literal["count", "rate", "decayed", "since"]
"""What is told of the engagements of a key; `tml.features.statistics` has the formulas."""
GraphFeature = Literal["follows_author", "mutual_follow", "common_follows"]


def duration(text: str) -> timedelta:
    """The length of a duration."""
    return timedelta(**{_UNITS[text[-1]]: int(text[:-1])})


def window_length(window: str) -> timedelta | None:
    """The length of a window; None for `all`."""
    return None if window == "all" else duration(window)


class AggregateConfig(BaseConfig):
    """Keys, each with engagements, windows and statistics. What is left at null is as the features say for all.

    Attributes:
        keys: columns of posts, users or impressions, one list a key.
        engagements: the engagement types; impressions are counted beside them.
        windows: how far back `count` and `rate` look.
        statistics: any of `count`, `rate`, `decayed` and `since`.
        half_lives: of `decayed`.
    """

    keys: tuple[Key, ...] | None = Field(None, min_length=1)
    engagements: tuple[str, ...] | None = None
    windows: tuple[Window, ...] | None = Field(None, min_length=1)
    statistics: tuple[Statistic, ...] | None = Field(None, min_length=1)
    half_lives: tuple[Duration, ...] | None = Field(None, min_length=1)


class SequenceConfig(BaseConfig):
    """What a viewer was shown last, post by post, and what became of it.

    Attributes:
        length: how many posts back.
        engagements: which engagements are told of each post; null is those of the tasks.
    """

    length: int = Field(30, ge=1, le=1000)
    engagements: tuple[str, ...] | None = Field(None, min_length=1, max_length=16)


class FeaturesConfig(BaseConfig):
    """The features of an example. What is left at null is taken from what the log has.

    Attributes:
        keys: what is counted for: columns of posts, users or impressions, one list a key; `users.language` where
            several have the column. By default user, author, post, user and author, topic, user and topic, as far as
            the log has them.
        engagements: the engagement types that are counted; by default those of the tasks.
        windows: how far back is counted; by default 30m, 3d and 50d, and `all` where the log has a history.
        statistics: any of `count`, `rate`, `decayed` and `since`. By default `count` and `rate`, and where the windows
            are left at null, too, `count` alone for those of 30m and 3d.
        half_lives: after this long, `decayed` counts half.
        smoothing: a rate is (engagements + smoothing · rate of everyone so far) / (impressions + smoothing).
        aggregates: several products in place of the one of the fields above, which then fill what one leaves out.
        graph: what follows tell of viewer and author; by default all of it where the log has follows.
        ages: columns with a time, as `users.created_at`: seconds from it to the impression.
        continuous, binary, discrete: static columns as `posts.length` or `users.language`.
        sequence: what the viewer was shown last, as an input of its own; null is none.
        vocabulary_minimum: a discrete value that occurs less often in training is read as unknown.
        chunk_rows: impressions computed at a time, which bounds the memory.
        engine: what computes them, `duckdb` on one machine or `spark`; the numbers are the same.
        spark: Spark's own settings, as `{spark.master: "spark://host:7077"}`.
    """

    keys: tuple[Key, ...] | None = None
    engagements: tuple[str, ...] | None = None
    windows: tuple[Window, ...] | None = Field(None, min_length=1)
    statistics: tuple[Statistic, ...] | None = Field(None, min_length=1)
    half_lives: tuple[Duration, ...] = Field(("1d",), min_length=1)
    smoothing: float = Field(10.0, gt=0)
    aggregates: tuple[AggregateConfig, ...] | None = None
    graph: tuple[GraphFeature, ...] | None = None
    ages: tuple[str, ...] = ()
    continuous: tuple[str, ...] | None = None
    binary: tuple[str, ...] = ()
    discrete: tuple[str, ...] | None = None
    sequence: SequenceConfig | None = None
    vocabulary_minimum: int = Field(5, ge=1)
    chunk_rows: int = Field(262_144, ge=1)
    engine: Literal["duckdb", "spark"] = "duckdb"
    spark: dict[str, str | int | bool] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _sequence_has_an_engine(self) -> Self:
        if self.sequence is not None and self.engine == "spark":
            raise ValueError("sequence: found one with engine spark, allowed is engine duckdb there")
        return self

    def definitions(self) -> dict[str, Any]:
        """What the features are, whichever engine computes them, as plain values."""
        return self.model_dump(mode="json", exclude={"engine", "spark"})


def _check_instant(value: datetime | float) -> datetime | float:
    if isinstance(value, float) and not 0 <= value <= 1:
        raise ValueError("allowed is a time, or a share of the log's span from 0 to 1")
    return value


Instant = Annotated[UtcDatetime | float, AfterValidator(_check_instant)]
"""A time (UTC without an offset), or a share of the log's span: 0 its first impression, 1 its last."""


class SplitConfig(BaseConfig):
    """The log in time: history, then training, then validation.

    Attributes:
        train_start: what came before is history: it feeds the aggregates and TwHIN's graph, but gives no examples.
        train_end: the end of training, exclusive; by default the start of validation.
        validation_start: the start of the held-out part.
        validation_end: its end, exclusive; by default the end of the log.
    """

    train_start: Instant = 0.25
    train_end: Instant | None = None
    validation_start: Instant = 0.8
    validation_end: Instant | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        given = [self.train_start, self.train_end, self.validation_start, self.validation_end]
        for kind in (float, datetime):
            same = [value for value in given if isinstance(value, kind)]
            if any(later < earlier for earlier, later in itertools.pairwise(same)):  # type: ignore[operator]
                raise ValueError(
                    "train_start, train_end, validation_start, validation_end must follow each other in time"
                )
        return self


def resolve(instant: datetime | float, start: datetime, end: datetime) -> datetime:
    """The instant as a time in UTC without an offset, given the log's first and last impression."""
    if isinstance(instant, datetime):
        return instant.replace(tzinfo=None)
    return start + instant * (end - start)
