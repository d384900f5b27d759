"""The `optimizer` section of a ranker's config, and the rates that Twitter published for the Heavy Ranker.

A like is a thousand times as frequent as a report, so each tower learns at a rate of its own, and the backbone at
another, all by Adam.
"""

from collections.abc import Collection

from tml.core.config import BaseConfig, one_of
from tml.optimizers.config import AdamConfig
from tml.optimizers.schedules import LearningRate, LinearRampToConstant


class MultiTaskLearningRates(BaseConfig):
    """A learning rate for every tower, by task name, and one for all that is not in a tower."""

    backbone_learning_rate: LearningRate | None = None
    """May be left out only where the model has nothing to train outside its towers."""
    tower_learning_rates: dict[str, LearningRate]


class RecapOptimizerConfig(BaseConfig):
    """Adam with exactly one way to set learning rates: by tower, or one for the whole model.

    Example:
        >>> config = RecapOptimizerConfig(single_task_learning_rate={"constant": 0.001})
        >>> config.adam.beta_2
        0.999
    """

    adam: AdamConfig = AdamConfig()
    multi_task_learning_rates: MultiTaskLearningRates | None = one_of("learning_rates")
    single_task_learning_rate: LearningRate | None = one_of("learning_rates")


# Rate and ramp steps, as published for the Heavy Ranker in 2023.
PUBLISHED_BACKBONE_RATE = (1e-4, 1_000)
PUBLISHED_TOWER_RATES = {
    "recap.engagement.is_favorited": (8e-4, 5_000),
    "recap.engagement.is_good_clicked_convo_desc_favorited_or_replied": (1e-4, 2_000),
    "recap.engagement.is_good_clicked_convo_desc_v2": (2e-4, 1_000),
    "recap.engagement.is_negative_feedback_v2": (5e-4, 5_000),
    "recap.engagement.is_profile_clicked_and_profile_engaged": (3e-4, 1_000),
    "recap.engagement.is_replied": (1e-3, 1_000),
    "recap.engagement.is_replied_reply_engaged_by_author": (1e-4, 1_000),
    "recap.engagement.is_report_tweet_clicked": (1e-4, 3_000),
    "recap.engagement.is_retweeted": (1e-4, 1_000),
    "recap.engagement.is_video_playback_50": (3e-3, 1_000),
}
PUBLISHED_ADAM = AdamConfig(beta_1=0.95)

# About the median of the published towers, for tasks that were not published.
OTHER_TOWER_RATE = (3e-4, 1_000)
# Adam's usual rate, for a model without towers.
SINGLE_RATE = 1e-3


def default_config(tasks: Collection[str]) -> RecapOptimizerConfig:
    """The published rates for the tasks that were published, a middling one for others; without tasks one rate."""
    if not tasks:
        return RecapOptimizerConfig(single_task_learning_rate=LearningRate(constant=SINGLE_RATE))
    rates = MultiTaskLearningRates(
        backbone_learning_rate=_ramp(*PUBLISHED_BACKBONE_RATE),
        tower_learning_rates={t: _ramp(*PUBLISHED_TOWER_RATES.get(t, OTHER_TOWER_RATE)) for t in tasks},
    )
    return RecapOptimizerConfig(adam=PUBLISHED_ADAM, multi_task_learning_rates=rates)


def _ramp(learning_rate: float, num_ramp_steps: int) -> LearningRate:
    ramp = LinearRampToConstant(learning_rate=learning_rate, num_ramp_steps=num_ramp_steps)
    return LearningRate(linear_ramp_to_constant=ramp)
