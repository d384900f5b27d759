from typing import Any

import numpy as np
import pytest

from tml.simulator.clock import HOUR
from tml.simulator.config import FeedConfig, SimulatorConfig
from tml.simulator.feed import WINDOW, Feed
from tml.simulator.sessions import Sessions
from tml.simulator.world import POPULAR_KINDS, draw_world, run_hours

SHOWN_AT = 30 * HOUR


def world_of(feed: FeedConfig, **fields: Any) -> Any:
    config = SimulatorConfig(users=200, posts=4000, days=3, follows_per_user=60, feed=feed, **fields)
    return draw_world(config, np.random.SeedSequence(5))


def serve(world: Any, engagement: np.ndarray, size: int = 10) -> tuple[Sessions, Any]:
    users = np.arange(200)
    sessions = Sessions(users, SHOWN_AT + users * 1_000_000, np.full(200, size))
    feed = Feed(world.config, world.population, world.graph, world.posts)
    return sessions, feed.serve(sessions, SHOWN_AT, engagement, np.random.default_rng(6))


def test_shares_of_the_sources() -> None:
    world = world_of(FeedConfig(followed=0.7, popular=0.0, explored=0.3))
    sessions, chosen = serve(world, np.zeros(4000))
    user, author = sessions.user[chosen.session], world.posts.author[chosen.post]
    followed = world.graph.follows(user, author, sessions.start[chosen.session])
    # Exploration finds followed authors too: never less than the share, but not much more.
    assert 0.65 < followed.mean() < 0.85
    assert (np.bincount(chosen.session) == 10).all()


def test_popular_posts_are_shown_by_their_engagement() -> None:
    world = world_of(FeedConfig(followed=0.0, popular=0.5, explored=0.5), languages=1)
    recent = int(np.searchsorted(world.posts.created_at, SHOWN_AT)) - 10
    engagement = np.zeros(4000)
    engagement[recent] = 1e6
    _, chosen = serve(world, engagement)
    assert (np.bincount(chosen.session[chosen.post == recent], minlength=200) == 1).mean() > 0.95
    _, without = serve(world, np.zeros(4000))
    assert (without.post == recent).mean() < 0.02


def test_only_recent_posts_that_exist_and_none_twice_even_later() -> None:
    world = world_of(FeedConfig())
    sessions, chosen = serve(world, np.zeros(4000))
    created = world.posts.created_at[chosen.post]
    start = sessions.start[chosen.session]
    assert (created < start).all()
    assert (created >= start - WINDOW).all()
    feed = Feed(world.config, world.population, world.graph, world.posts)
    pairs = []
    for hour in range(30, 36):
        again = Sessions(sessions.user, sessions.start + (hour - 30) * HOUR, sessions.size)
        shown = feed.serve(again, hour * HOUR, np.zeros(4000), np.random.default_rng(hour))
        pairs.append(again.user[shown.session] * 4000 + shown.post)
    assert len(np.unique(np.concatenate(pairs))) == sum(map(len, pairs))


def test_popularity_is_the_engagement_before_the_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    world = world_of(FeedConfig(), sessions_per_user_and_day=3)
    seen: list[tuple[int, np.ndarray]] = []
    original = Feed.serve

    def spy(self: Feed, sessions: Any, hour_start: int, engagement: np.ndarray, rng: Any) -> Any:
        seen.append((hour_start, engagement.copy()))
        return original(self, sessions, hour_start, engagement, rng)

    monkeypatch.setattr(Feed, "serve", spy)
    hours = list(run_hours(world, np.full(10, -2.0), np.random.default_rng(7)))
    popular = [np.isin(hour.kind, POPULAR_KINDS) for hour in hours]
    post = np.concatenate([hour.shown.post[hour.engaged[p]] for hour, p in zip(hours, popular, strict=True)])
    at = np.concatenate([hour.engaged_at[p] for hour, p in zip(hours, popular, strict=True)])
    assert len(at) > 100
    for hour_start, engagement in seen:
        np.testing.assert_array_equal(engagement, np.bincount(post[at < hour_start], minlength=4000))
