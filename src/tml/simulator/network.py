"""Who follows whom, and since when.

A user picks a topic by interest, then an author in proportion to popularity, to the author's own interest in the
topic, and to a shared language. Most follows are older than the log; some happen during it, so that a feature that
does not look at `followed_at` sees the future.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tml.simulator.clock import DAY
from tml.simulator.config import SimulatorConfig
from tml.simulator.population import Population
from tml.simulator.sampling import Integers, draw_in_rows

OTHER_LANGUAGE = 0.04
"""How attractive an author is to readers of another language, relatively."""
ROUNDS = 6
"""A draw that falls on an account followed already is made again, at most so often."""


@dataclass(frozen=True)
class FollowGraph:
    """Follow edges sorted by follower, then followed; the edges of user u are `first[u]` to `first[u + 1]`."""

    user: Integers  # (edges,)
    followed: Integers  # (edges,)
    followed_at: Integers  # (edges,), microseconds since the start, negative before it
    key: Integers  # (edges,), increasing: user · users + followed
    first: Integers  # (users + 1,)

    def follows(self, user: Integers, author: Integers, at: Integers) -> NDArray[np.bool_]:
        """Whether each user followed each author before the time."""
        if not len(self.user):
            return np.zeros(len(user), dtype=np.bool_)
        users = len(self.first) - 1
        wanted = user * users + author
        edge = np.minimum(np.searchsorted(self.key, wanted), len(self.key) - 1)
        since: NDArray[np.bool_] = (self.key[edge] == wanted) & (self.followed_at[edge] < at)
        return since


def draw_follows(config: SimulatorConfig, population: Population, rng: np.random.Generator) -> FollowGraph:
    """Draw the follow graph; nobody follows themselves or the same account twice."""
    users, authors = config.users, population.authors
    wanted = rng.lognormal(0, 0.8, users)
    count = np.rint(wanted * config.follows_per_user / wanted.mean()).astype(np.int64)
    count = np.clip(count, 1, len(authors) - population.is_author)
    attraction = _attraction(config, population)
    key = np.zeros(0, dtype=np.int64)
    for _ in range(ROUNDS):
        missing = count - np.bincount(key // users, minlength=users)
        user = np.repeat(np.arange(users), missing)
        topic = draw_in_rows(population.interests**2, user, rng)
        author = authors[draw_in_rows(attraction, topic * config.languages + population.language[user], rng)]
        key = np.union1d(key, (user * users + author)[user != author])
    user, author = key // users, key % users
    age = np.minimum(population.account_age_days[user], population.account_age_days[author]) * DAY
    before = -(rng.random(len(user)) * age)
    during = rng.random(len(user)) * config.days * DAY
    followed_at = np.where(rng.random(len(user)) < config.follows_during, during, before).astype(np.int64)
    return FollowGraph(user, author, followed_at, key, np.searchsorted(user, np.arange(users + 1)))


def _attraction(config: SimulatorConfig, population: Population) -> NDArray[np.float64]:
    """(topics · languages, authors): how attractive each author is to who looks for the topic in the language."""
    authors = population.authors
    about = (population.interests[authors] ** 2 * population.popularity[authors, None]).T
    same = population.language[authors][None, :] == np.arange(config.languages)[:, None]
    attraction = about[:, None, :] * np.where(same, 1.0, OTHER_LANGUAGE)[None, :, :]
    return attraction.reshape(config.topics * config.languages, len(authors))
