"""How long after the impression each engagement comes.

Delays are log-normal around a median of each kind: seconds for a like, minutes for a reply, an hour or so for the
author's reaction to it. What happens within another engagement comes after that one. No step takes more than a day.
"""

import numpy as np
from numpy.typing import NDArray

from tml.simulator.clock import DAY, SECOND
from tml.simulator.engagement import CLICK, GOOD_CLICK, REPLIED, REPLY_ENGAGED
from tml.simulator.sampling import Integers

MEDIAN_SECONDS = (6.0, 10.0, 75.0, 12.0, 15.0, 2_400.0, 45.0, 4.0, 6.0, 20.0)
"""By kind; a reply's reaction counts from the reply, a good click from the click."""
SIGMA = (0.6, 0.6, 0.9, 0.7, 0.4, 1.2, 0.8, 0.5, 0.6, 0.6)


def draw_delays(happened: NDArray[np.bool_], rng: np.random.Generator) -> tuple[Integers, Integers, Integers]:
    """Draw the delays of what happened.

    Args:
        happened: (impressions, types)

    Returns:
        impression, type and delay in microseconds (at least 0.2 s) of each engagement, by impression, then type.
    """
    impression, kind = np.nonzero(happened)
    seconds = np.array(MEDIAN_SECONDS)[kind] * np.exp(np.array(SIGMA)[kind] * rng.standard_normal(len(kind)))
    own = np.clip(seconds * SECOND, 0.2 * SECOND, DAY).astype(np.int64)
    delay = np.zeros(happened.shape, dtype=np.int64)
    delay[impression, kind] = own
    delay[:, REPLY_ENGAGED] += delay[:, REPLIED]
    delay[:, GOOD_CLICK] += delay[:, CLICK]
    return impression, kind, delay[impression, kind]
