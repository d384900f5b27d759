import itertools
import math

import numpy as np

from tml.simulator.delays import draw_delays
from tml.simulator.drivers import DRIVERS
from tml.simulator.engagement import (
    CLICK,
    COEFFICIENTS,
    FAVORITED,
    GOOD_CLICK,
    GOOD_CLICK_OF_ENGAGED,
    REPLIED,
    REPLY_ENGAGED,
    VIDEO_PLAYBACK,
    draw_engagements,
    marginal_probabilities,
    scores,
)
from tml.simulator.vocabulary import ENGAGEMENT_TYPES


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_scores_are_a_weighted_sum() -> None:
    rng = np.random.default_rng(0)
    drivers, own = rng.normal(size=(7, len(DRIVERS))), rng.normal(size=(7, 10))
    for n, k in itertools.product(range(7), range(10)):
        expected = own[n, k] + sum(drivers[n, d] * COEFFICIENTS[name][k] for d, name in enumerate(DRIVERS))
        assert math.isclose(scores(drivers, own)[n, k], expected, abs_tol=1e-12)


def test_marginal_probabilities_are_the_sum_over_all_outcomes() -> None:
    logits = np.random.default_rng(1).normal(-0.5, 1.5, (5, len(ENGAGEMENT_TYPES)))
    video = np.array([True, False, True, False, True])
    truth = marginal_probabilities(logits, video)
    for row, has_video, found in zip(logits, video, truth, strict=True):
        expected = [sigmoid(x) for x in row]
        expected[VIDEO_PLAYBACK] *= has_video
        expected[REPLY_ENGAGED] = expected[GOOD_CLICK] = 0.0
        for like, reply, click in itertools.product([0, 1], repeat=3):
            chance = math.prod(
                sigmoid(row[k]) if happened else 1 - sigmoid(row[k])
                for k, happened in ((FAVORITED, like), (REPLIED, reply), (CLICK, click))
            )
            expected[REPLY_ENGAGED] += chance * reply * sigmoid(row[REPLY_ENGAGED])
            further = row[GOOD_CLICK] + GOOD_CLICK_OF_ENGAGED * (like or reply)
            expected[GOOD_CLICK] += chance * click * sigmoid(further)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_draws_have_the_marginal_probabilities() -> None:
    count = 200_000
    logits = np.tile(np.random.default_rng(2).normal(-1, 1, (1, 10)), (count, 1))
    video = np.ones(count, dtype=np.bool_)
    truth = marginal_probabilities(logits[:1], video[:1])[0]
    drawn = draw_engagements(logits, video, np.random.default_rng(3)).mean(axis=0)
    assert (np.abs(drawn - truth) < 5 * np.sqrt(truth * (1 - truth) / count)).all()


def test_what_happens_within_another_comes_later() -> None:
    happened = np.ones((1000, 10), dtype=np.bool_)
    happened[::2, [REPLY_ENGAGED, GOOD_CLICK]] = False
    impression, kind, delay = draw_delays(happened, np.random.default_rng(4))
    assert len(delay) == happened.sum()
    assert delay.min() >= 200_000
    at = np.zeros(happened.shape, dtype=np.int64)
    at[impression, kind] = delay
    assert (at[1::2, REPLY_ENGAGED] > at[1::2, REPLIED]).all()
    assert (at[1::2, GOOD_CLICK] > at[1::2, CLICK]).all()
    assert np.median(at[:, FAVORITED]) < 10e6
    assert 20 * 60e6 < np.median(at[1::2, REPLY_ENGAGED]) < 90 * 60e6
