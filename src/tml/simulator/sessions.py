"""Who opens the app when, and for how many posts.

In each hour a user comes at most once, with a probability that follows the user's activity and the time of day.
The number of posts is 1 plus a Poisson number with a Gamma-distributed mean: most sessions short, some long.
"""

from dataclasses import dataclass

import numpy as np

from tml.simulator.clock import HOUR, SECOND, diurnal, hour_of_day
from tml.simulator.config import SimulatorConfig
from tml.simulator.population import Population
from tml.simulator.sampling import Floats, Integers, expand

MAX_POSTS_PER_SESSION = 300


@dataclass(frozen=True)
class Sessions:
    """Sessions that start in one hour, at most one a user."""

    user: Integers  # (sessions,)
    start: Integers  # (sessions,), microseconds since the start of the log
    size: Integers  # (sessions,), posts wanted


def draw_sessions(
    config: SimulatorConfig, population: Population, hour_start: int, share: float, rng: np.random.Generator
) -> Sessions:
    """Draw the sessions of the hour that begins at `hour_start`; `share` of them, for a pilot."""
    hour = hour_of_day(np.array([hour_start + HOUR // 2]), config.start)
    chance = population.sessions_per_day / 24 * diurnal(hour - population.chronotype_hours)
    user = np.flatnonzero(rng.random(config.users) < share * np.minimum(chance, 0.95))
    start = np.sort(hour_start + rng.integers(0, HOUR, len(user)))
    user = rng.permutation(user)
    mean = rng.gamma(2.0, (config.posts_per_session - 1) / 2, len(user))
    return Sessions(user, start, np.minimum(1 + rng.poisson(mean), MAX_POSTS_PER_SESSION))


def serving_times(start: Integers, shown: Integers, rng: np.random.Generator) -> Integers:
    """When each post is shown: the first at the start, each next after 1 s and a Gamma-distributed dwell time.

    Args:
        start: (sessions,)
        shown: (sessions,), posts shown in each.

    Returns:
        (posts shown in all,), session after session.
    """
    session, position = expand(shown)
    dwell: Floats = 1.0 + rng.gamma(1.2, 5.0, len(session))
    dwell[position == 0] = 0.0
    elapsed = np.cumsum((dwell * SECOND).astype(np.int64))
    before = np.concatenate([[0], elapsed])[np.cumsum(shown) - shown]
    served_at: Integers = start[session] + elapsed - before[session]
    return served_at
