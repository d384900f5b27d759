"""Learning-rate schedules: pure functions of t, the number of finished steps, so the first step has t = 0.

    linear_ramp_to_constant   lr·t/ramp, then lr
    linear_ramp_to_cosine     lr·t/ramp, then final + (lr - final)·½(1 + cos(π(t - ramp)/(final_num_steps - ramp)))
                              until t = final_num_steps, then final
    piecewise_constant        values[number of boundaries ≤ t]

The four are those of the published Heavy Ranker. At the end of a ramp and of a cosine the value is the configured
number itself, not one rounded nearby.
"""

import math
from bisect import bisect_right
from itertools import pairwise
from typing import Self

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from tml.core.config import BaseConfig, one_of


class LinearRampToConstant(BaseConfig):
    """From 0 up to `learning_rate` over `num_ramp_steps` steps, and from there on constant."""

    learning_rate: NonNegativeFloat
    num_ramp_steps: PositiveInt

    def at(self, step: int) -> float:
        """The rate after `step` finished steps."""
        return _ramp(self.learning_rate, self.num_ramp_steps, step)

    def __str__(self) -> str:
        return f"ramp over {self.num_ramp_steps:,} steps to {self.learning_rate:g}"


class LinearRampToCosine(BaseConfig):
    """From 0 up to `learning_rate`, then along half a cosine to `final_learning_rate` at step `final_num_steps`."""

    learning_rate: NonNegativeFloat
    final_learning_rate: NonNegativeFloat
    num_ramp_steps: PositiveInt
    final_num_steps: PositiveInt

    @model_validator(mode="after")
    def _final_after_ramp(self) -> Self:
        if self.final_num_steps <= self.num_ramp_steps:
            final, ramp = self.final_num_steps, self.num_ramp_steps
            raise ValueError(f"final_num_steps: found {final}, allowed is more than num_ramp_steps, {ramp}")
        return self

    def at(self, step: int) -> float:
        """The rate after `step` finished steps."""
        if step <= self.num_ramp_steps:
            return _ramp(self.learning_rate, self.num_ramp_steps, step)
        if step >= self.final_num_steps:
            return self.final_learning_rate
        progress = (step - self.num_ramp_steps) / (self.final_num_steps - self.num_ramp_steps)
        fall = self.learning_rate - self.final_learning_rate
        return self.final_learning_rate + fall * 0.5 * (1.0 + math.cos(math.pi * progress))

    def __str__(self) -> str:
        ramp = f"ramp over {self.num_ramp_steps:,} steps to {self.learning_rate:g}"
        return f"{ramp}, cosine to {self.final_learning_rate:g} at step {self.final_num_steps:,}"


class PiecewiseConstant(BaseConfig):
    """`learning_rate_values[i]` until step `learning_rate_boundaries[i]`, the last value after the last boundary."""

    learning_rate_boundaries: tuple[NonNegativeInt, ...]
    learning_rate_values: tuple[NonNegativeFloat, ...]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        boundaries, values = self.learning_rate_boundaries, self.learning_rate_values
        if any(later <= earlier for earlier, later in pairwise(boundaries)):
            raise ValueError(f"learning_rate_boundaries: found {list(boundaries)}, allowed are increasing steps")
        if len(values) != len(boundaries) + 1:
            found, needed = len(values), len(boundaries) + 1
            raise ValueError(f"learning_rate_values: found {found}, allowed is one more than boundaries, {needed}")
        return self

    def at(self, step: int) -> float:
        """The rate after `step` finished steps."""
        return self.learning_rate_values[bisect_right(self.learning_rate_boundaries, step)]

    def __str__(self) -> str:
        changes = zip(self.learning_rate_values[1:], self.learning_rate_boundaries, strict=True)
        return ", ".join([f"{self.learning_rate_values[0]:g}", *(f"{v:g} from step {b:,}" for v, b in changes)])


class LearningRate(BaseConfig):
    """Exactly one schedule.

    Example:
        >>> rate = LearningRate(linear_ramp_to_constant={"learning_rate": 0.1, "num_ramp_steps": 10})
        >>> rate.at(0), rate.at(5), rate.at(10)
        (0.0, 0.05, 0.1)
    """

    constant: NonNegativeFloat | None = one_of("learning_rate")
    linear_ramp_to_constant: LinearRampToConstant | None = one_of("learning_rate")
    linear_ramp_to_cosine: LinearRampToCosine | None = one_of("learning_rate")
    piecewise_constant: PiecewiseConstant | None = one_of("learning_rate")

    def at(self, step: int) -> float:
        """The rate after `step` finished steps; `step` is 0 or more."""
        if self.constant is not None:
            return self.constant
        return self._schedule().at(step)

    def __str__(self) -> str:
        return "constant" if self.constant is not None else str(self._schedule())

    def _schedule(self) -> LinearRampToConstant | LinearRampToCosine | PiecewiseConstant:
        schedule = self.linear_ramp_to_constant or self.linear_ramp_to_cosine or self.piecewise_constant
        assert schedule is not None  # exactly one is set
        return schedule


def _ramp(rate: float, ramp_steps: int, step: int) -> float:
    # rate * ramp / ramp can be off by one rounding, so the end of the ramp is not computed.
    return rate if step >= ramp_steps else min(rate, rate * step / ramp_steps)
