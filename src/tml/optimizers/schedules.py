"""Learning-rate schedules: pure functions of t, the number of finished steps, so the first step has t = 0.

    linear_ramp_to_constant   lr·t/ramp, then lr
    linear_ramp_to_cosine     lr·t/ramp, then final + (lr - final)·½(1 + cos(π(t - ramp)/(final_num_steps - ramp)))
                              until t = final_num_steps, then final
    piecewise_constant        values[number of boundaries ≤ t]

These and `constant` are those of the published Heavy Ranker; `decays` has the others. At the end of a ramp and of a
cosine the value is the configured number itself, not one rounded nearby.
"""

import math
from bisect import bisect_right
from itertools import pairwise
from typing import Any, Self

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from tml.core.config import BaseConfig, one_of
from tml.optimizers.decays import (
    Exponential,
    InverseSquareRoot,
    Polynomial,
    RampToFinal,
    Schedule,
    WarmUpStableDecay,
    ramp,
    rise,
)


class LinearRampToConstant(Schedule):
    """From 0 up to `learning_rate` over `num_ramp_steps` steps, and from there on constant."""

    learning_rate: NonNegativeFloat
    num_ramp_steps: PositiveInt

    def at(self, step: int) -> float:
        """The rate after `step` finished steps."""
        return ramp(self.learning_rate, self.num_ramp_steps, step)

    @property
    def joints(self) -> tuple[int, ...]:
        """The ramp's end."""
        return (self.num_ramp_steps,)

    def __str__(self) -> str:
        return rise(self.learning_rate, self.num_ramp_steps)


class LinearRampToCosine(RampToFinal):
    """From 0 up to `learning_rate`, then along half a cosine to `final_learning_rate` at step `final_num_steps`."""

    num_ramp_steps: PositiveInt

    def left(self, done: int, steps: int) -> float:
        """Half a cosine."""
        return 0.5 * (1.0 + math.cos(math.pi * (done / steps)))

    def __str__(self) -> str:
        start = rise(self.learning_rate, self.num_ramp_steps)
        return f"{start}, cosine to {self.final_learning_rate:g} at step {self.final_num_steps:,}"


class PiecewiseConstant(Schedule):
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

    @property
    def joints(self) -> tuple[int, ...]:
        """The boundaries."""
        return self.learning_rate_boundaries

    def __str__(self) -> str:
        changes = zip(self.learning_rate_values[1:], self.learning_rate_boundaries, strict=True)
        return ", ".join([f"{self.learning_rate_values[0]:g}", *(f"{v:g} from step {b:,}" for v, b in changes)])


class LearningRate(BaseConfig):
    """Exactly one schedule of a learning rate, and also of other values that change with the step, such as a weight
    decay. A bare number is that number at every step.

    Example:
        >>> rate = LearningRate(linear_ramp_to_constant={"learning_rate": 0.1, "num_ramp_steps": 10})
        >>> rate.at(0), rate.at(5), rate.at(10)
        (0.0, 0.05, 0.1)
        >>> LearningRate.model_validate(0.001).at(7)
        0.001
    """

    constant: NonNegativeFloat | None = one_of("learning_rate")
    linear_ramp_to_constant: LinearRampToConstant | None = one_of("learning_rate")
    linear_ramp_to_cosine: LinearRampToCosine | None = one_of("learning_rate")
    piecewise_constant: PiecewiseConstant | None = one_of("learning_rate")
    inverse_square_root: InverseSquareRoot | None = one_of("learning_rate")
    exponential: Exponential | None = one_of("learning_rate")
    polynomial: Polynomial | None = one_of("learning_rate")
    warm_up_stable_decay: WarmUpStableDecay | None = one_of("learning_rate")

    @model_validator(mode="before")
    @classmethod
    def _number_is_constant(cls, values: Any) -> Any:
        # A text as well, since YAML reads 1e-3 as one.
        return {"constant": values} if isinstance(values, int | float | str) else values

    def at(self, step: int) -> float:
        """The rate after `step` finished steps; `step` is 0 or more."""
        if self.constant is not None:
            return self.constant
        return self._schedule().at(step)

    @property
    def joints(self) -> tuple[int, ...]:
        """The steps at which one part of the shape ends and the next begins, in order; a constant has none."""
        return () if self.constant is not None else self._schedule().joints

    @property
    def horizon(self) -> int:
        """The step after which nothing changes, 0 for a constant.

        An inverse square root never ends, an exponential hardly ever: theirs is a number of steps that shows the shape.
        """
        return 0 if self.constant is not None else self._schedule().horizon

    def __str__(self) -> str:
        return "constant" if self.constant is not None else str(self._schedule())

    def _schedule(self) -> Schedule:
        schedule = (
            self.linear_ramp_to_constant
            or self.linear_ramp_to_cosine
            or self.piecewise_constant
            or self.inverse_square_root
            or self.exponential
            or self.polynomial
            or self.warm_up_stable_decay
        )
        assert schedule is not None  # exactly one is set
        return schedule
