"""What features an example has, and which part of the log becomes examples."""

import itertools
import re
from datetime import datetime, timedelta
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from tml.core.config import BaseConfig, UtcDatetime

_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def _check_window(value: str) -> str:
    if value != "all" and not re.fullmatch(r"[1-9]\d*[mhd]", value):
        raise ValueError("allowed is a whole number of minutes, hours or days, as 30m, 12h or 3d, or all")
    return value


Window = Annotated[str, AfterValidator(_check_window)]
"""A length of time before an impression: `30m`, `12h`, `3d`, or `all`."""


def window_length(window: str) -> timedelta | None:
    """The length of a window; None for `all`."""
    return None if window == "all" else timedelta(**{_UNITS[window[-1]]: int(window[:-1])})


class FeaturesConfig(BaseConfig):
    """The features of an example. What is left at null is taken from what the log has.

    Attributes:
        keys: what counts and rates are kept for: columns of impressions, posts or users, one list a key. By default
            user, author, post, user and author, topic, user and topic, as far as the log has them.
        engagements: the engagement types that are counted; by default those of the tasks.
        windows: how far back is counted.
        smoothing: a rate is (engagements + smoothing · rate of everyone so far) / (impressions + smoothing).
        continuous, binary, discrete: static columns as `posts.length` or `users.language`.
        vocabulary_minimum: a discrete value that occurs less often in training is read as unknown.
        chunk_rows: impressions computed at a time, which bounds the memory.
    """

    keys: tuple[tuple[str, ...], ...] | None = None
    engagements: tuple[str, ...] | None = None
    windows: tuple[Window, ...] = Field(("1d", "all"), min_length=1)
    smoothing: float = Field(10.0, gt=0)
    continuous: tuple[str, ...] | None = None
    binary: tuple[str, ...] = ()
    discrete: tuple[str, ...] | None = None
    vocabulary_minimum: int = Field(5, ge=1)
    chunk_rows: int = Field(200_000, ge=1)


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
