"""What the authors write: topic, language, media, length, and a quality that nobody sees.

Quality is the author's plus a smaller part of the post's own, so that an author's past says most of it and the
engagement with the post itself the rest.
"""

from dataclasses import dataclass

import numpy as np

from tml.simulator.clock import DAY, HOUR, diurnal, hour_of_day
from tml.simulator.config import SimulatorConfig
from tml.simulator.population import Population
from tml.simulator.sampling import Floats, Integers, draw_in_rows

HEAD_START_DAYS = 2
"""Posts begin this long before the first impression, so that the first feeds are not empty."""


@dataclass(frozen=True)
class Posts:
    """Posts in order of creation; the index is the id."""

    author: Integers
    created_at: Integers  # microseconds since the start, increasing
    topic: Integers
    language: Integers
    media: Integers
    length: Integers  # characters
    quality: Floats


def draw_posts(config: SimulatorConfig, population: Population, rng: np.random.Generator) -> Posts:
    """Draw all posts of the time."""
    count = config.posts
    created_at = _times(config, rng)
    share = population.posting_rate[population.authors][None, :]
    author = population.authors[draw_in_rows(share, np.zeros(count, dtype=np.int64), rng)]
    topic = draw_in_rows(population.interests**2, author, rng)
    in_second = rng.random(count) < 0.2
    language = np.where(in_second, population.second_language[author], population.language[author])
    video = population.video_share[author]
    media = draw_in_rows(
        np.array([[0.6, 0.4, 0.0], [0.0, 0.0, 1.0]]), (rng.random(count) < video).astype(np.int64), rng
    )
    length = np.clip(rng.lognormal(np.log(110), 0.6, count), 5, 1_000).astype(np.int64)
    quality = population.quality[author] + rng.normal(0, 0.2, count)
    return Posts(author, created_at, topic, language, media, length, quality)


def _times(config: SimulatorConfig, rng: np.random.Generator) -> Integers:
    first = -HEAD_START_DAYS * DAY
    hours = np.arange(first, config.days * DAY, HOUR, dtype=np.int64)
    share = diurnal(hour_of_day(hours, config.start))[None, :]
    hour = hours[draw_in_rows(share, np.zeros(config.posts, dtype=np.int64), rng)]
    return np.sort(hour + rng.integers(0, HOUR, config.posts))
