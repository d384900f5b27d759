"""The size and shape of the simulated network.

The number of impressions follows from it: about `users · days · sessions_per_user_and_day · posts_per_session`.
How often each kind of engagement happens does not depend on the size (see `calibration.py`).
"""

from datetime import UTC, datetime, timedelta
from typing import Self

from pydantic import Field, model_validator

from tml.core.config import BaseConfig, UtcDatetime
from tml.simulator.vocabulary import LANGUAGES


class FeedConfig(BaseConfig):
    """Where the posts of a session come from: shares that sum to 1."""

    followed: float = Field(default=0.5, ge=0, le=1, description="recent posts of followed accounts")
    popular: float = Field(default=0.3, ge=0, le=1, description="posts by their engagement so far")
    explored: float = Field(default=0.2, gt=0, le=1, description="any recent post, uniformly")

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        total = self.followed + self.popular + self.explored
        if abs(total - 1) > 1e-6:
            raise ValueError(f"followed, popular and explored must sum to 1, found {total:g}")
        return self


class SimulatorConfig(BaseConfig):
    """A simulated social network; the seed is given beside it.

    Example:
        >>> SimulatorConfig(users=100, posts=1000, days=3).start.isoformat()
        '2026-01-05T00:00:00+00:00'
    """

    users: int = Field(default=3_000, ge=2, le=10_000_000, description="number of users, authors among them")
    posts: int = Field(default=20_000, ge=1, le=1_000_000_000, description="number of posts, evenly over the time")
    days: int = Field(default=14, ge=1, le=3_650, description="days of impressions; posts begin 2 days earlier")
    start: UtcDatetime = Field(default=datetime(2026, 1, 5, tzinfo=UTC), description="first day's beginning")
    sessions_per_user_and_day: float = Field(default=0.8, gt=0, le=8, description="mean; heavy-tailed over users")
    posts_per_session: float = Field(default=12.0, ge=1, le=100, description="mean number of posts shown a session")
    authors: float = Field(default=0.15, gt=0, le=1, description="share of the users who write posts")
    follows_per_user: float = Field(default=30.0, gt=0, le=5_000, description="mean number of followed accounts, about")
    follows_during: float = Field(
        default=0.15, ge=0, le=1, description="share of follows that happen in the days shown"
    )
    topics: int = Field(default=12, ge=1, le=1_000, description="number of topics; each post is about one")
    communities: int = Field(default=8, ge=1, le=1_000, description="number of groups of users with like interests")
    languages: int = Field(default=4, ge=1, le=len(LANGUAGES), description="number of languages, the first most common")
    feed: FeedConfig = Field(default=FeedConfig(), description="the policy that chose what was shown")

    @model_validator(mode="after")
    def _years_are_written_with_four_digits(self) -> Self:
        earliest, latest = datetime(1980, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
        if not earliest <= self.start <= latest - timedelta(days=self.days):
            raise ValueError(f"start: found {self.start.date()}, allowed is 1980-01-01 to 2200-01-01 less the days")
        return self
