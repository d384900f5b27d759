"""How likely each engagement is, and drawing them.

The score of a kind is linear in the drivers d plus the viewer's own tendency t to the kind, and for eight kinds
p = sigmoid(intercept + w·d + t) is the probability of the label. Two happen only within another:

    P(reply engaged by author) = P(reply) · P(author engages | reply)
    P(good click)              = P(click) · (P(like or reply) · g₁ + (1 - P(like or reply)) · g₀)

where g₁ and g₀ are the probabilities of going on in the conversation for who liked or replied and who did not. A video
is played only where there is one. So every label has a marginal probability in closed form, given all that is latent:
what the best possible model would predict.
"""

import numpy as np
from numpy.typing import NDArray

from tml.simulator.drivers import DRIVERS
from tml.simulator.sampling import Floats
from tml.simulator.vocabulary import ENGAGEMENT_TYPES

FAVORITED, RETWEETED, REPLIED, PROFILE, VIDEO_PLAYBACK, REPLY_ENGAGED, GOOD_CLICK, CLICK, NEGATIVE, REPORT = range(
    len(ENGAGEMENT_TYPES)
)

COEFFICIENTS: dict[str, tuple[float, ...]] = {
    # like, retweet, reply, profile, video, reply engaged, good click, click, negative, report: as ENGAGEMENT_TYPES
    "propensity": (1.2, 1.1, 1.1, 1.0, 1.0, 0.0, 0.4, 1.1, 0.3, 0.3),
    "affinity": (0.9, 1.0, 0.9, 0.8, 0.6, 0.4, 0.6, 0.9, -1.2, -1.0),
    "quality": (0.8, 0.8, 0.5, 0.6, 0.8, 0.0, 0.3, 0.5, -0.9, -1.0),
    "affinity_quality": (1.2, 1.2, 1.1, 1.1, 1.0, 0.0, 0.3, 1.1, -0.9, -0.6),
    "followed": (0.6, 0.5, 1.0, -0.6, 0.2, 0.8, 0.2, 0.3, -1.2, -1.5),
    "followed_affinity": (-0.5, -0.4, -0.4, 0.0, -0.3, 0.0, 0.0, -0.4, 0.6, 0.0),
    "freshness": (0.8, 1.2, 1.2, 0.3, 0.3, 0.8, 0.4, 0.9, -0.2, 0.0),
    "stale": (-0.5, -0.6, -0.6, -0.1, -0.1, -0.5, -0.2, -0.4, 0.3, 0.0),
    "position": (-0.3, -0.3, -0.3, -0.3, -0.35, 0.0, 0.0, -0.3, -0.2, -0.2),
    "foreign": (-1.5, -1.5, -1.8, -1.2, -0.9, 0.0, -0.6, -1.4, 1.8, 0.8),
    "media_preference": (0.8, 0.8, 0.6, 0.7, 1.0, 0.0, 0.0, 0.6, -0.5, -0.2),
    "evening": (0.12, 0.08, 0.12, 0.05, 0.15, 0.0, 0.05, 0.1, 0.1, 0.0),
    "conversational": (0.1, -0.1, 1.2, 0.2, 0.0, 0.3, 0.6, 1.0, 0.2, 0.2),
    "length": (0.0, 0.1, 0.2, 0.0, -0.2, 0.0, 0.3, 0.4, 0.1, 0.0),
    "responsiveness": (0.0, 0.0, 0.2, 0.0, 0.0, 1.2, 0.1, 0.1, 0.0, 0.0),
}
"""Weight of each driver for each kind; of the two that happen within another, the weight given that one."""

GOOD_CLICK_OF_ENGAGED = 1.5
"""Added to the score of a good click where the viewer liked or replied to the post itself."""


def sigmoid(logits: Floats) -> Floats:
    """1 / (1 + exp(-x)), any shape."""
    # Clipped, since exp(710) overflows.
    probabilities: Floats = 1.0 / (1.0 + np.exp(-np.clip(logits, -500, 500)))
    return probabilities


def scores(drivers: Floats, kind_propensity: Floats) -> Floats:
    """Logits without intercepts.

    Args:
        drivers: (impressions, drivers).
        kind_propensity: (impressions, types), the viewers'.

    Returns:
        (impressions, types)
    """
    weights = np.array([COEFFICIENTS[name] for name in DRIVERS])
    # einsum, not a BLAS product: its bits do not depend on the number of threads.
    linear: Floats = np.einsum("nd,dk->nk", drivers, weights)
    return linear + kind_propensity


def marginal_probabilities(logits: Floats, video: NDArray[np.bool_]) -> Floats:
    """The probability of each label.

    Args:
        logits: (impressions, types), intercepts included.
        video: (impressions,), whether the post has a video.

    Returns:
        (impressions, types)
    """
    p = sigmoid(logits)
    truth = p.copy()
    truth[:, VIDEO_PLAYBACK] *= video
    truth[:, REPLY_ENGAGED] *= p[:, REPLIED]
    engaged = 1 - (1 - p[:, FAVORITED]) * (1 - p[:, REPLIED])
    good_of_engaged = sigmoid(logits[:, GOOD_CLICK] + GOOD_CLICK_OF_ENGAGED)
    truth[:, GOOD_CLICK] = p[:, CLICK] * (engaged * good_of_engaged + (1 - engaged) * p[:, GOOD_CLICK])
    return truth


def draw_engagements(logits: Floats, video: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Draw what happened: (impressions, types), with the probabilities of `marginal_probabilities`."""
    uniform = rng.random(logits.shape)
    happened: NDArray[np.bool_] = uniform < sigmoid(logits)
    happened[:, VIDEO_PLAYBACK] &= video
    happened[:, REPLY_ENGAGED] &= happened[:, REPLIED]
    engaged = happened[:, FAVORITED] | happened[:, REPLIED]
    going_on = uniform[:, GOOD_CLICK] < sigmoid(logits[:, GOOD_CLICK] + GOOD_CLICK_OF_ENGAGED * engaged)
    happened[:, GOOD_CLICK] = happened[:, CLICK] & going_on
    return happened
