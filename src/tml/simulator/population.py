"""Users and authors with what nobody sees of them: interests, activity, propensities, quality.

A community is a distribution over topics with a few at its core; a user belongs to one mainly and to a second a
little, so that interests have low rank and can be learnt from others' behaviour. Activity, authors' popularity and
their rate of posting are log-normal: most with little, few with much. What a user tends to do (overall and per kind
of engagement) and how good an author is stay as they are for the whole time, so that history predicts.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tml.simulator.config import SimulatorConfig
from tml.simulator.sampling import Floats, Integers, draw_in_rows
from tml.simulator.vocabulary import ENGAGEMENT_TYPES, MEDIA, VIDEO

CORE_TOPICS = (1.0, 0.8, 0.6)
MAX_SESSIONS_PER_DAY = 16.0


@dataclass(frozen=True)
class Population:
    """Everything that is true of users, by index; authors' traits are 0 for those who never write."""

    interests: Floats  # (users, topics), the user's favourite topic is 1
    language: Integers  # (users,)
    second_language: Integers  # (users,), equal to `language` for who reads only one
    account_age_days: Floats  # (users,), at the start
    sessions_per_day: Floats  # (users,)
    chronotype_hours: Floats  # (users,), how much later than usual in the day
    propensity: Floats  # (users,), to engage at all
    kind_propensity: Floats  # (users, types)
    media_preference: Floats  # (users, media)
    is_author: NDArray[np.bool_]  # (users,)
    quality: Floats  # (users,), of an author's posts on the mean
    popularity: Floats  # (users,), how likely an author is to be followed, relatively
    posting_rate: Floats  # (users,), relatively
    conversational: Floats  # (users,), how much an author's posts ask for an answer
    responsiveness: Floats  # (users,), how readily an author reacts to replies
    video_share: Floats  # (users,), of an author's posts
    topic_half_life_hours: Floats  # (topics,), how fast posts on a topic grow old
    authors: Integers  # (authors,) indices of the authors


def draw_population(config: SimulatorConfig, rng: np.random.Generator) -> Population:
    """Draw the users of a network."""
    users = config.users
    language, second_language = _languages(config, rng)
    preference = rng.normal(0, [0.1, 0.2, 0.8], (users, len(MEDIA)))
    kind_propensity = rng.normal(0, 0.25, (users, len(ENGAGEMENT_TYPES)))
    # Who likes videos also watches them: the trait shows in what can be counted.
    kind_propensity[:, ENGAGEMENT_TYPES.index("video_playback_50")] += 0.5 * preference[:, VIDEO]
    authors = np.sort(rng.permutation(users)[: max(1, round(config.authors * users))])
    is_author = np.zeros(users, dtype=np.bool_)
    is_author[authors] = True
    quality = is_author * rng.normal(0, 0.8, users)
    return Population(
        interests=_interests(config, rng),
        language=language,
        second_language=second_language,
        account_age_days=np.clip(rng.lognormal(np.log(700), 0.8, users), 10, 5_000),
        sessions_per_day=_heavy_tailed(config.sessions_per_user_and_day, 0.9, MAX_SESSIONS_PER_DAY, users, rng),
        chronotype_hours=rng.normal(0, 2, users),
        propensity=rng.normal(0, 1.0, users),
        kind_propensity=kind_propensity,
        media_preference=preference,
        is_author=is_author,
        quality=quality,
        popularity=is_author * rng.lognormal(0, 1.1, users) * np.exp(0.5 * quality),
        posting_rate=is_author * rng.lognormal(0, 0.9, users),
        conversational=is_author * rng.normal(0, 0.6, users),
        responsiveness=is_author * rng.normal(0, 1.0, users),
        video_share=is_author * rng.beta(1.2, 2.8, users),
        topic_half_life_hours=np.exp(rng.uniform(np.log(2), np.log(30), config.topics)),
        authors=authors,
    )


def _interests(config: SimulatorConfig, rng: np.random.Generator) -> Floats:
    users, topics, communities = config.users, config.topics, config.communities
    taste = np.full((communities, topics), 0.03)
    core = rng.permuted(np.tile(np.arange(topics), (communities, 1)), axis=1)[:, : len(CORE_TOPICS)]
    np.put_along_axis(taste, core, np.tile(CORE_TOPICS[: core.shape[1]], (communities, 1)), axis=1)
    size = rng.dirichlet(np.full(communities, 8.0))[None, :]
    main, second = (draw_in_rows(size, np.zeros(users, dtype=np.int64), rng) for _ in range(2))
    share = rng.uniform(0.0, 0.3, (users, 1))
    interests: Floats = ((1 - share) * taste[main] + share * taste[second]) * rng.gamma(40, 1 / 40, (users, topics))
    interests /= interests.max(axis=1, keepdims=True)
    return interests


def _languages(config: SimulatorConfig, rng: np.random.Generator) -> tuple[Integers, Integers]:
    """First and second languages; the k-th language has a share proportional to 1/k (Zipf)."""
    share = 1 / np.arange(1, config.languages + 1)[None, :]
    rows = np.zeros(config.users, dtype=np.int64)
    first, other = (draw_in_rows(share, rows, rng) for _ in range(2))
    return first, np.where(rng.random(config.users) < 0.1, other, first)


def _heavy_tailed(mean: float, sigma: float, most: float, size: int, rng: np.random.Generator) -> Floats:
    values = rng.lognormal(0, sigma, size)
    scaled: Floats = np.minimum(values * mean / values.mean(), most)
    return scaled
