"""The `optimizer` section of a ranker's config, and the rates that Twitter published for the Heavy Ranker.

A like is a thousand times as frequent as a report, so each tower learns at a rate of its own, and the backbone at
another; as published, all by Adam.
"""

from collections.abc import Collection
from typing import Any

from pydantic import Field, model_validator

from tml.core.config import BaseConfig, one_of
from tml.optimizers.config import ALGORITHMS, AdamConfig, AverageConfig, GroupConfig, OptimizerConfig
from tml.optimizers.schedules import LearningRate, LinearRampToConstant


class MultiTaskLearningRates(BaseConfig):
    """A learning rate for every tower, by task name, and one for all that is not in a tower."""

    backbone_learning_rate: LearningRate | None = None
    """May be left out only where the model has nothing to train outside its towers."""
    tower_learning_rates: dict[str, LearningRate]


class RecapOptimizerConfig(GroupConfig):
    """One algorithm for all, Adam by default, and exactly one way to set rates: by tower, or one for the whole model.

    Attributes:
        weight_decay, no_weight_decay: of every group that has none of its own.
        clip_gradient_norm: where the norm of the whole gradient is larger, it is scaled down to this.
        groups: what single groups have of their own: algorithm, weight decay, a limit for the group's own gradient. By
            task name, `backbone`, or `model` with a single rate.
        average: keeps averaged weights, which evaluation and export then use.

    Example:
        >>> config = RecapOptimizerConfig(
        ...     single_task_learning_rate={"constant": 0.001}, groups={"model": {"adamw": {}, "weight_decay": 0.01}}
        ... )
        >>> config.adam.beta_2
        0.999
    """

    multi_task_learning_rates: MultiTaskLearningRates | None = one_of("learning_rates")
    single_task_learning_rate: LearningRate | None = one_of("learning_rates")
    groups: dict[str, GroupConfig] = Field(default_factory=dict)
    average: AverageConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _adam_by_default(cls, values: Any) -> Any:
        if isinstance(values, dict) and all(values.get(name) is None for name in ALGORITHMS):
            return {**values, "adam": {}}
        return values

    def of_group(self, group: str, learning_rate: LearningRate) -> OptimizerConfig:
        """All that a group needs, given its rate."""
        shared = {"learning_rate": learning_rate, **self.chosen}
        shared |= {name: v for name in ("weight_decay", "no_weight_decay") if (v := getattr(self, name)) is not None}
        return OptimizerConfig(**shared).but(self.groups.get(group, GroupConfig()))


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
