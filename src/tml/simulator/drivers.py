"""What makes a viewer engage with a post: one number per impression and driver.

Interests, quality and media work only where the viewer can read the post, and good quality counts for more on a topic
the viewer cares about; posts grow old at their topic's own pace, and not along a line. These products are what a
model that adds its features up cannot follow.
"""

from dataclasses import dataclass
from datetime import datetime

import numpy as np

from tml.simulator.clock import HOUR, hour_of_day
from tml.simulator.network import FollowGraph
from tml.simulator.population import Population
from tml.simulator.posts import Posts
from tml.simulator.sampling import Floats, Integers

DRIVERS: tuple[str, ...] = (
    "propensity",  # the viewer's, to engage at all
    "affinity",  # viewer's interest in the topic, -0.5 to 0.5, readable posts only
    "quality",  # readable posts only
    "affinity_quality",
    "followed",  # 1 where the viewer follows the author
    "followed_affinity",
    "freshness",  # 1 when new, 0.5 after the topic's half-life
    "stale",  # 1 beyond a day
    "position",  # log(1 + position), 0 at the top
    "foreign",  # 1 where the viewer does not read the language
    "media_preference",  # the viewer's for this kind of media, readable posts only
    "evening",  # cosine of the time of day, 1 at 21 h
    "conversational",  # how much the author's posts ask for an answer, readable posts only
    "length",  # log of characters over 110
    "responsiveness",  # how readily the author reacts to replies
)

READABLE_OF_FOREIGN = 0.15
"""How much of interests, quality and media still counts in a language that the viewer does not read."""


@dataclass(frozen=True)
class Impressions:
    """Posts shown to users, at a time and position; arrays of one length."""

    user: Integers
    post: Integers
    served_at: Integers  # microseconds since the start of the log
    position: Integers  # from 0


def measure_drivers(
    shown: Impressions, population: Population, graph: FollowGraph, posts: Posts, start: datetime
) -> Floats:
    """The drivers of each impression.

    Args:
        start: the time at which `served_at` is 0.

    Returns:
        (impressions, drivers), columns as in `DRIVERS`.
    """
    user, post = shown.user, shown.post
    author, topic, language, media = (x[post] for x in (posts.author, posts.topic, posts.language, posts.media))
    foreign = (language != population.language[user]) & (language != population.second_language[user])
    readable = np.where(foreign, READABLE_OF_FOREIGN, 1.0)
    affinity = readable * (population.interests[user, topic] - 0.5)
    quality = readable * posts.quality[post]
    followed = graph.follows(user, author, shown.served_at).astype(np.float64)
    age_hours = (shown.served_at - posts.created_at[post]) / HOUR
    hour = hour_of_day(shown.served_at, start)
    columns = {
        "propensity": population.propensity[user],
        "affinity": affinity,
        "quality": quality,
        "affinity_quality": affinity * posts.quality[post],
        "followed": followed,
        "followed_affinity": followed * affinity,
        "freshness": np.exp2(-age_hours / population.topic_half_life_hours[topic]),
        "stale": (age_hours > 24).astype(np.float64),
        "position": np.log1p(shown.position),
        "foreign": foreign.astype(np.float64),
        "media_preference": readable * population.media_preference[user, media],
        "evening": np.cos(2 * np.pi / 24 * (hour - 21)),
        "conversational": readable * population.conversational[author],
        "length": np.log(posts.length[post] / 110),
        "responsiveness": population.responsiveness[author],
    }
    return np.stack([columns[name] for name in DRIVERS], axis=1)
