"""Schedules that rise along a ramp and then decay, beside the published ones; t is the number of finished steps.

    inverse_square_root    lr·sqrt(ramp/t)    (Vaswani et al. 2017, arXiv 1706.03762)
    exponential            lr·decay_rate^((t - ramp)/decay_steps), never under final; in a staircase the exponent
                           is rounded down
    polynomial             final + (lr - final)·(1 - progress)^power
    warm_up_stable_decay   lr until decay_from_step, then final + (lr - final)·share, where share is
                           1 - progress, ½(1 + cos(π·progress)) or 1 - sqrt(progress)
                           (Hu et al. 2024, arXiv 2404.06395; Hägele et al. 2024, arXiv 2405.18392)

Before that each is lr·t/ramp while t < ramp. Progress goes from 0 where the decay begins to 1 at final_num_steps. At
the end of a ramp and of a decay the value is the configured number itself, not one rounded nearby.
"""

import math
from abc import abstractmethod
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from tml.core.config import BaseConfig

RAMPS_TO_DRAW = 10
FAR_DOWN = 0.01
"""How far to look at a decay that never ends: so many ramps, or down to this part of the rate."""


class Schedule(BaseConfig):
    """A pure function of the number of finished steps."""

    @abstractmethod
    def at(self, step: int) -> float:
        """The rate after `step` finished steps."""

    @property
    @abstractmethod
    def joints(self) -> tuple[int, ...]:
        """The steps at which one part of the shape ends and the next begins, in order.

        Between two of them, before the first and after the last, the rate only falls, only rises or stays.
        """

    @property
    def horizon(self) -> int:
        """The step after which nothing changes; where there is none, a number of steps that shows the shape."""
        return self.joints[-1] if self.joints else 0


class InverseSquareRoot(Schedule):
    """From 0 up to `learning_rate` over `num_ramp_steps` steps, then down with the square root of the step."""

    learning_rate: NonNegativeFloat
    num_ramp_steps: PositiveInt

    def at(self, step: int) -> float:
        """The rate after `step` finished steps."""
        if step <= self.num_ramp_steps:
            return ramp(self.learning_rate, self.num_ramp_steps, step)
        return self.learning_rate * math.sqrt(self.num_ramp_steps / step)

    @property
    def joints(self) -> tuple[int, ...]:
        """The ramp's end."""
        return (self.num_ramp_steps,)

    @property
    def horizon(self) -> int:
        """Ten ramps: by then the rate is a third of what it was."""
        return RAMPS_TO_DRAW * self.num_ramp_steps

    def __str__(self) -> str:
        return f"{rise(self.learning_rate, self.num_ramp_steps)}, then falling as 1/√step"


class Exponential(Schedule):
    """Times `decay_rate` every `decay_steps` steps after the ramp, smoothly or at once, until it is at its floor.

    The floor, `final_learning_rate`, holds for the decay: the ramp starts at 0 all the same.
    """

    learning_rate: NonNegativeFloat
    decay_rate: Annotated[float, Field(gt=0, le=1)]
    decay_steps: PositiveInt
    staircase: bool = False
    """Whether the rate falls at once at the end of every `decay_steps` steps."""
    num_ramp_steps: NonNegativeInt = 0
    final_learning_rate: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _floor_is_below(self) -> Self:
        floor, rate = self.final_learning_rate, self.learning_rate
        if floor > rate:
            raise ValueError(f"final_learning_rate: found {floor:g}, allowed is at most learning_rate, {rate:g}")
        return self

    def at(self, step: int) -> float:
        """The rate after `step` finished steps."""
        if step <= self.num_ramp_steps:
            return ramp(self.learning_rate, self.num_ramp_steps, step)
        past = step - self.num_ramp_steps
        exponent = past // self.decay_steps if self.staircase else past / self.decay_steps
        return max(self.final_learning_rate, self.learning_rate * self.decay_rate**exponent)

    @property
    def joints(self) -> tuple[int, ...]:
        """The ramp's end."""
        return (self.num_ramp_steps,)

    @property
    def horizon(self) -> int:
        """When the floor is reached or, without a floor, a hundredth of the rate."""
        if self.learning_rate == 0 or self.decay_rate == 1:
            return self.num_ramp_steps
        part = self.final_learning_rate / self.learning_rate or FAR_DOWN
        decays = math.log(part) / math.log(self.decay_rate)
        steps = math.ceil(decays) * self.decay_steps if self.staircase else math.ceil(decays * self.decay_steps)
        return self.num_ramp_steps + steps

    def __str__(self) -> str:
        start = rise(self.learning_rate, self.num_ramp_steps)
        every = f"every {self.decay_steps:,} steps" if self.decay_steps > 1 else "every step"
        stairs = " in stairs" if self.staircase else ""
        floor = f", never under {self.final_learning_rate:g}" if self.final_learning_rate else ""
        return f"{start}, then times {self.decay_rate:g} {every}{stairs}{floor}"


class RampToFinal(Schedule):
    """From 0 up to `learning_rate`, then down to `final_learning_rate` at step `final_num_steps`, as `left` says."""

    learning_rate: NonNegativeFloat
    final_learning_rate: NonNegativeFloat
    num_ramp_steps: NonNegativeInt
    final_num_steps: PositiveInt

    @model_validator(mode="after")
    def _final_after_ramp(self) -> Self:
        require_later("final_num_steps", self.final_num_steps, "num_ramp_steps", self.num_ramp_steps)
        return self

    @abstractmethod
    def left(self, done: int, steps: int) -> float:
        """How much of the way down is left, from 1 to 0, when so many of the decay's steps are done."""

    def at(self, step: int) -> float:
        """The rate after `step` finished steps."""
        if step <= self.num_ramp_steps:
            return ramp(self.learning_rate, self.num_ramp_steps, step)
        if step >= self.final_num_steps:
            return self.final_learning_rate
        left = self.left(step - self.num_ramp_steps, self.final_num_steps - self.num_ramp_steps)
        return between(self.learning_rate, self.final_learning_rate, left)

    @property
    def joints(self) -> tuple[int, ...]:
        """The ramp's end and the decay's."""
        return (self.num_ramp_steps, self.final_num_steps)


class Polynomial(RampToFinal):
    """From `learning_rate` to `final_learning_rate` at step `final_num_steps` along a polynomial: by default a line."""

    final_learning_rate: NonNegativeFloat = 0.0
    num_ramp_steps: NonNegativeInt = 0
    power: PositiveFloat = 1.0

    def left(self, done: int, steps: int) -> float:
        """A power of a line."""
        left: float = ((steps - done) / steps) ** self.power
        return left

    def __str__(self) -> str:
        shape = "linear" if self.power == 1 else f"polynomial of power {self.power:g}"
        start = rise(self.learning_rate, self.num_ramp_steps)
        return f"{start}, {shape} to {self.final_learning_rate:g} at step {self.final_num_steps:,}"


class WarmUpStableDecay(Schedule):
    """From 0 up to `learning_rate`, constant until `decay_from_step`, then to `final_learning_rate`."""

    learning_rate: NonNegativeFloat
    final_learning_rate: NonNegativeFloat = 0.0
    num_ramp_steps: NonNegativeInt
    decay_from_step: NonNegativeInt
    final_num_steps: PositiveInt
    decay: Literal["linear", "cosine", "square_root"] = "linear"

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.decay_from_step < self.num_ramp_steps:
            found, least = self.decay_from_step, self.num_ramp_steps
            raise ValueError(f"decay_from_step: found {found}, allowed is at least num_ramp_steps, {least}")
        require_later("final_num_steps", self.final_num_steps, "decay_from_step", self.decay_from_step)
        return self

    def at(self, step: int) -> float:
        """The rate after `step` finished steps."""
        if step <= self.decay_from_step:
            return ramp(self.learning_rate, self.num_ramp_steps, step)
        if step >= self.final_num_steps:
            return self.final_learning_rate
        progress = (step - self.decay_from_step) / (self.final_num_steps - self.decay_from_step)
        if self.decay == "cosine":
            share = 0.5 * (1.0 + math.cos(math.pi * progress))
        else:
            share = 1.0 - (math.sqrt(progress) if self.decay == "square_root" else progress)
        return between(self.learning_rate, self.final_learning_rate, share)

    @property
    def joints(self) -> tuple[int, ...]:
        """The ends of the ramp, of the constant part and of the decay."""
        return (self.num_ramp_steps, self.decay_from_step, self.final_num_steps)

    def __str__(self) -> str:
        start = rise(self.learning_rate, self.num_ramp_steps)
        end = f"{self.decay.replace('_', ' ')} to {self.final_learning_rate:g} at step {self.final_num_steps:,}"
        return f"{start}, constant to step {self.decay_from_step:,}, {end}"


def ramp(rate: float, ramp_steps: int, step: int) -> float:
    """The line from 0 to `rate` at step `ramp_steps`, and from there on `rate`."""
    # rate * ramp / ramp can be off by one rounding, so the end of the ramp is not computed.
    return rate if step >= ramp_steps else min(rate, rate * step / ramp_steps)


def between(rate: float, final: float, share: float) -> float:
    """A share of 1 of the way from `final` to `rate` is `rate`, of 0 `final`."""
    return final + (rate - final) * share


def rise(rate: float, ramp_steps: int) -> str:
    """How a schedule begins, in words."""
    return f"ramp over {ramp_steps:,} steps to {rate:g}" if ramp_steps else f"{rate:g}"


def require_later(name: str, step: int, other: str, other_step: int) -> None:
    """Refuse a step that is not after another one of the schedule."""
    if step <= other_step:
        raise ValueError(f"{name}: found {step}, allowed is more than {other}, {other_step}")
