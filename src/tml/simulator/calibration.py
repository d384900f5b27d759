"""Intercepts that make each engagement as frequent as it should be, for every size and seed.

The mean probability of a label grows with its intercept, so bisection finds the intercept on a sample of impressions.
Which posts are shown depends on engagement and so on the intercepts: a pilot of a part of the sessions is run, solved,
and run again with the solution.
"""

import numpy as np

from tml.core.progress import track
from tml.simulator.engagement import GOOD_CLICK, REPLY_ENGAGED, VIDEO_PLAYBACK, marginal_probabilities
from tml.simulator.sampling import Floats
from tml.simulator.vocabulary import ENGAGEMENT_TYPES
from tml.simulator.world import Hour, World, run_hours

RATES: dict[str, float] = {
    "favorited": 0.08,
    "retweeted": 0.015,
    "replied": 0.02,
    "profile_clicked_and_profile_engaged": 0.015,
    "video_playback_50": 0.25,
    "replied_reply_engaged_by_author": 0.005,
    "good_clicked_convo_desc_favorited_or_replied": 0.015,
    "good_clicked_convo_desc_v2": 0.04,
    "negative_feedback_v2": 0.007,
    "report_tweet_clicked": 0.001,
}
"""Mean of each label over impressions; of video playback, over impressions of posts with a video."""

PILOT_IMPRESSIONS = 50_000
"""The pilot is the share of the sessions that shows about so many posts."""
BISECTIONS = 32
SEARCHED = (-40.0, 40.0)


def calibrate(world: World, seed: np.random.SeedSequence) -> Floats:
    """Find the intercepts: (types,)."""
    config = world.config
    expected = config.users * config.days * config.sessions_per_user_and_day * config.posts_per_session
    share = min(1.0, PILOT_IMPRESSIONS / expected)
    rates = np.array([RATES[kind] for kind in ENGAGEMENT_TYPES])
    intercepts: Floats = np.log(rates / (1 - rates))
    for part in seed.spawn(2):
        pilot = run_hours(world, intercepts, np.random.default_rng(part), share)
        hours = list(track(pilot, "calibrate", 24 * config.days, "hours"))
        if any(len(hour.video) for hour in hours):
            intercepts = solve_intercepts(hours)
    return intercepts


def solve_intercepts(hours: list[Hour]) -> Floats:
    """The intercepts that give each label its rate on the impressions of these hours: (types,)."""
    scores = np.concatenate([hour.scores for hour in hours])
    video = np.concatenate([hour.video for hour in hours])
    rates = np.array([RATES[kind] for kind in ENGAGEMENT_TYPES])
    # Rounded up to one video, so that a log without any still ends the search somewhere.
    rates[VIDEO_PLAYBACK] *= max(video.mean(), 1 / len(video))
    intercepts = np.zeros(len(rates))
    within = np.isin(np.arange(len(rates)), (REPLY_ENGAGED, GOOD_CLICK))
    # What happens within another engagement is solved second: it needs that one's intercept.
    for solved in (~within, within):
        low, high = (np.where(solved, bound, intercepts) for bound in SEARCHED)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            too_rare = marginal_probabilities(scores + middle, video).mean(axis=0) < rates
            low, high = np.where(too_rare & solved, middle, low), np.where(~too_rare & solved, middle, high)
        intercepts = (low + high) / 2
    return intercepts
