"""The simulated hours, one after the other: sessions, what they are shown, what happens.

Popularity is causal: the posts of an hour are chosen by the engagement that had happened when it began.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tml.simulator.clock import DAY, HOUR
from tml.simulator.config import SimulatorConfig
from tml.simulator.delays import draw_delays
from tml.simulator.drivers import Impressions, measure_drivers
from tml.simulator.engagement import FAVORITED, REPLIED, RETWEETED, draw_engagements, scores
from tml.simulator.feed import Feed
from tml.simulator.network import FollowGraph, draw_follows
from tml.simulator.population import Population, draw_population
from tml.simulator.posts import Posts, draw_posts
from tml.simulator.sampling import Floats, Integers
from tml.simulator.sessions import draw_sessions, serving_times
from tml.simulator.vocabulary import VIDEO

POPULAR_KINDS = (FAVORITED, RETWEETED, REPLIED)


@dataclass(frozen=True)
class World:
    """A network before anybody looks at it."""

    config: SimulatorConfig
    population: Population
    graph: FollowGraph
    posts: Posts


@dataclass(frozen=True)
class Hour:
    """What was shown in sessions that began in one hour, sorted by session and position, and what came of it."""

    shown: Impressions
    session: Integers  # (impressions,), from 0 in each hour
    scores: Floats  # (impressions, types), logits without intercepts
    video: NDArray[np.bool_]  # (impressions,)
    engaged: Integers  # (engagements,), the impression in this hour
    kind: Integers  # (engagements,)
    engaged_at: Integers  # (engagements,), microseconds since the start


def draw_world(config: SimulatorConfig, seed: np.random.SeedSequence) -> World:
    """Draw users, follows and posts."""
    for_users, for_follows, for_posts = (np.random.default_rng(part) for part in seed.spawn(3))
    population = draw_population(config, for_users)
    return World(
        config, population, draw_follows(config, population, for_follows), draw_posts(config, population, for_posts)
    )


def run_hours(world: World, intercepts: Floats, rng: np.random.Generator, share: float = 1.0) -> Iterator[Hour]:
    """Let the time pass.

    Args:
        intercepts: (types,)
        share: the share of all sessions that take place; engagement is then scaled up where popularity is measured.
    """
    config, posts = world.config, world.posts
    feed = Feed(config, world.population, world.graph, posts)
    engagement = np.zeros(len(posts.author))
    later_post, later_at = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    for hour_start in range(0, config.days * DAY, HOUR):
        due = later_at < hour_start
        np.add.at(engagement, later_post[due], 1 / share)
        hour = _one_hour(world, feed, hour_start, engagement, intercepts, rng, share)
        popular = np.isin(hour.kind, POPULAR_KINDS)
        later_post = np.concatenate([later_post[~due], hour.shown.post[hour.engaged[popular]]])
        later_at = np.concatenate([later_at[~due], hour.engaged_at[popular]])
        yield hour


def _one_hour(
    world: World,
    feed: Feed,
    hour_start: int,
    engagement: Floats,
    intercepts: Floats,
    rng: np.random.Generator,
    share: float,
) -> Hour:
    population, posts = world.population, world.posts
    sessions = draw_sessions(world.config, population, hour_start, share, rng)
    chosen = feed.serve(sessions, hour_start, engagement, rng)
    count = np.bincount(chosen.session, minlength=len(sessions.user))
    position = np.arange(len(chosen.session)) - np.searchsorted(chosen.session, chosen.session)
    user = sessions.user[chosen.session]
    served_at = serving_times(sessions.start, count, rng)
    shown = Impressions(user, chosen.post, served_at, position)
    drivers = measure_drivers(shown, population, world.graph, posts, world.config.start)
    score = scores(drivers, population.kind_propensity[user])
    video = posts.media[chosen.post] == VIDEO
    happened = draw_engagements(score + intercepts, video, rng)
    engaged, kind, delay = draw_delays(happened, rng)
    return Hour(shown, chosen.session, score, video, engaged, kind, served_at[engaged] + delay)
