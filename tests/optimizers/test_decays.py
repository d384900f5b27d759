"""Schedules that decay: exact values by fractions, decimals and radicals, torch's own schedulers, and properties."""

import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    PolynomialLR,
    SequentialLR,
    StepLR,
)

from tml.core.config import parse_config
from tml.core.errors import ConfigError
from tml.optimizers.decays import Exponential, InverseSquareRoot, Polynomial, Schedule, WarmUpStableDecay
from tml.optimizers.schedules import LearningRate, LinearRampToConstant, LinearRampToCosine

HUGE = 10**9
rates = st.floats(1e-8, 10, allow_nan=False)
shares = st.floats(0, 1, allow_nan=False)
powers = st.floats(0.05, 8, allow_nan=False)


def exactly(schedule: Schedule, step: int, expected: Fraction | Decimal | float) -> None:
    """The value is the expected one, but for the roundings of a few operations."""
    assert schedule.at(step) == pytest.approx(float(expected), rel=4e-15, abs=1e-300)


def ramped(rate: float, ramp: int, step: int) -> Fraction:
    return Fraction(rate) * step / ramp


@pytest.mark.parametrize("step", [0, 1, 399, 400, 401, 799, 800, 801, 1600, HUGE])
def test_inverse_square_root(step: int) -> None:
    schedule = InverseSquareRoot(learning_rate=0.002, num_ramp_steps=400)
    with localcontext(prec=40):
        exactly(
            schedule, step, ramped(0.002, 400, step) if step < 400 else Decimal("0.002") * (400 / Decimal(step)).sqrt()
        )
    assert schedule.at(400) == 0.002
    assert schedule.at(1600) == 0.001


@pytest.mark.parametrize("staircase", [False, True])
@pytest.mark.parametrize("step", [0, 1, 9, 10, 11, 13, 14, 15, 18, 49, 50, 51, HUGE])
def test_exponential(step: int, staircase: bool) -> None:
    schedule = Exponential(
        learning_rate=0.3,
        decay_rate=0.75,
        decay_steps=4,
        staircase=staircase,
        num_ramp_steps=10,
        final_learning_rate=0.017,
    )
    if step < 10:
        exactly(schedule, step, ramped(0.3, 10, step))
        return
    with localcontext(prec=40):
        past = Decimal((step - 10) // 4) if staircase else Decimal(step - 10) / 4
        decayed = Decimal("0.3") * Decimal("0.75") ** past
    exactly(schedule, step, max(decayed, Decimal("0.017")))
    # 0.3·0.75^9.98 = 0.017, so the floor is reached on the way to 0.75^10.
    assert (schedule.at(step) == 0.017) == (step >= 50)
    assert schedule.at(10) == 0.3


def test_an_exponential_without_ramp_begins_at_the_rate_and_halves() -> None:
    schedule = Exponential(learning_rate=0.5, decay_rate=0.5, decay_steps=100)
    assert [schedule.at(step) for step in (0, 100, 200, 1000)] == [0.5, 0.25, 0.125, 0.5**11]
    assert 0.25 < schedule.at(50) < 0.5
    stairs = Exponential(learning_rate=0.5, decay_rate=0.5, decay_steps=100, staircase=True)
    assert [stairs.at(step) for step in (0, 1, 99, 100, 101, 199, 200)] == [0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125]


@pytest.mark.parametrize("power", [1, 2, 3])
@pytest.mark.parametrize("step", [0, 1, 9, 10, 11, 60, 108, 109, 110, 111, HUGE])
def test_polynomial(step: int, power: int) -> None:
    schedule = Polynomial(
        learning_rate=0.3, final_learning_rate=0.01, power=power, num_ramp_steps=10, final_num_steps=110
    )
    rate, final = Fraction(0.3), Fraction(0.01)
    progress = min(Fraction(step - 10, 100), Fraction(1))
    exactly(schedule, step, ramped(0.3, 10, step) if step < 10 else final + (rate - final) * (1 - progress) ** power)
    assert (schedule.at(10), schedule.at(110), schedule.at(111)) == (0.3, 0.01, 0.01)


# ½(1 + cos) of multiples of 15 degrees, by radicals.
COSINES = (
    1,
    (math.sqrt(6) + math.sqrt(2)) / 4,
    math.sqrt(3) / 2,
    math.sqrt(2) / 2,
    0.5,
    (math.sqrt(6) - math.sqrt(2)) / 4,
    0,
)


def cosine_share(progress: Fraction) -> float:
    twelfths = int(progress * 12)
    cosine = COSINES[twelfths] if twelfths <= 6 else -COSINES[12 - twelfths]
    return (1 + cosine) / 2


SHARES: dict[str, Callable[[Fraction], Any]] = {
    "linear": lambda progress: 1 - progress,
    "cosine": cosine_share,
    "square_root": lambda progress: 1 - math.sqrt(progress),
}


@pytest.mark.parametrize("decay", SHARES)
@pytest.mark.parametrize("step", [0, 1, 9, 10, 11, 39, 40, 41, 46, 51, 52, 53, HUGE])
def test_warm_up_stable_decay(step: int, decay: Any) -> None:
    schedule = WarmUpStableDecay(
        learning_rate=0.3,
        final_learning_rate=0.01,
        num_ramp_steps=10,
        decay_from_step=40,
        final_num_steps=52,
        decay=decay,
    )
    progress = min(max(Fraction(step - 40, 12), Fraction(0)), Fraction(1))
    decayed = 0.01 + (Fraction(0.3) - Fraction(0.01)) * SHARES[decay](progress)
    exactly(schedule, step, ramped(0.3, 10, step) if step < 10 else decayed)
    assert [schedule.at(known) for known in (10, 39, 40, 52, 53)] == [0.3, 0.3, 0.3, 0.01, 0.01]


def test_warm_up_stable_decay_is_linear_by_default_and_may_have_no_stable_part() -> None:
    schedule = WarmUpStableDecay(learning_rate=1, num_ramp_steps=4, decay_from_step=4, final_num_steps=8)
    assert [schedule.at(step) for step in range(10)] == [0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25, 0, 0]


def of_torch(make: Callable[[torch.optim.Optimizer], LRScheduler], rate: float, steps: int) -> list[float]:
    """The rates that a scheduler of torch sets for the first steps."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)
    scheduler = make(optimizer)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def one_after_the_other(ramp: int, second: Callable[[Any], LRScheduler]) -> Callable[[Any], LRScheduler]:
    return lambda optimizer: SequentialLR(
        optimizer, [LambdaLR(optimizer, lambda step: step / ramp), second(optimizer)], [ramp]
    )


def exponential(**fields: Any) -> Exponential:
    return Exponential(learning_rate=0.1, **fields)


@pytest.mark.parametrize(
    ("schedule", "make"),
    [
        (exponential(decay_rate=0.97, decay_steps=1), lambda o: ExponentialLR(o, 0.97)),
        (exponential(decay_rate=0.5, decay_steps=7, staircase=True), lambda o: StepLR(o, 7, 0.5)),
        (
            exponential(decay_rate=0.9, decay_steps=1, num_ramp_steps=12),
            one_after_the_other(12, lambda o: ExponentialLR(o, 0.9)),
        ),
        (Polynomial(learning_rate=0.1, final_num_steps=60), lambda o: PolynomialLR(o, 60)),
        (Polynomial(learning_rate=0.1, power=2.5, final_num_steps=60), lambda o: PolynomialLR(o, 60, 2.5)),
        (
            Polynomial(learning_rate=0.1, power=0.5, num_ramp_steps=20, final_num_steps=60),
            one_after_the_other(20, lambda o: PolynomialLR(o, 40, 0.5)),
        ),
        (
            Polynomial(learning_rate=0.1, final_learning_rate=0.025, final_num_steps=60),
            lambda o: LinearLR(o, 1, 0.25, 60),
        ),
        (
            InverseSquareRoot(learning_rate=0.1, num_ramp_steps=16),
            lambda o: LambdaLR(o, lambda step: min(step * 16**-1, step**-0.5 * 4 if step else 0)),
        ),
        (
            WarmUpStableDecay(learning_rate=0.1, num_ramp_steps=0, decay_from_step=20, final_num_steps=60),
            lambda o: SequentialLR(o, [LambdaLR(o, lambda _: 1.0), PolynomialLR(o, 40)], [20]),
        ),
        (
            WarmUpStableDecay(
                learning_rate=0.1, num_ramp_steps=30, decay_from_step=30, final_num_steps=101, decay="cosine"
            ),
            one_after_the_other(30, lambda o: CosineAnnealingLR(o, 71)),
        ),
    ],
)
def test_as_torch_has_it(schedule: Schedule, make: Callable[[Any], LRScheduler]) -> None:
    expected = of_torch(make, 0.1, 100)
    # torch goes from each rate to the next, and gathers roundings on the way.
    assert [schedule.at(step) for step in range(100)] == pytest.approx(expected, rel=1e-9, abs=1e-15)


def cosine_of(rate: float, final: float, ramp: int, fall: int) -> LinearRampToCosine:
    return LinearRampToCosine(
        learning_rate=rate, final_learning_rate=final, num_ramp_steps=ramp, final_num_steps=ramp + fall
    )


@st.composite
def falling(draw: st.DrawFn, least: int = 1, most: int = 10**7, power: Any = powers) -> LearningRate:
    """Any schedule that rises and then falls or stays, with parts of `least` to `most` steps."""
    length = st.integers(least, most)
    rate, ramp = draw(rates), draw(length)
    final = rate * draw(shares)
    decay = Exponential(
        learning_rate=rate,
        decay_rate=draw(st.floats(0.01, 1)),
        decay_steps=draw(length),
        staircase=least == 1 and draw(st.booleans()),
        num_ramp_steps=ramp,
        final_learning_rate=final,
    )
    polynomial = Polynomial(
        learning_rate=rate,
        final_learning_rate=final,
        power=draw(power),
        num_ramp_steps=ramp,
        final_num_steps=ramp + draw(length),
    )
    stable = ramp + draw(length)
    warm_up = WarmUpStableDecay(
        learning_rate=rate,
        final_learning_rate=final,
        num_ramp_steps=ramp,
        decay_from_step=stable,
        final_num_steps=stable + draw(length),
        decay=draw(st.sampled_from(["linear", "cosine", "square_root"])),
    )
    kinds = {
        "linear_ramp_to_constant": LinearRampToConstant(learning_rate=rate, num_ramp_steps=ramp),
        "linear_ramp_to_cosine": cosine_of(rate, final, ramp, draw(length)),
        "inverse_square_root": InverseSquareRoot(learning_rate=rate, num_ramp_steps=ramp),
        "exponential": decay,
        "polynomial": polynomial,
        "warm_up_stable_decay": warm_up,
    }
    name = draw(st.sampled_from(sorted(kinds)))
    return LearningRate.model_validate({name: kinds[name]})


def shape_of(rate: LearningRate) -> Any:
    return next(value for _, value in rate if value is not None)


@given(falling(), st.integers(0, 10**8), st.integers(0, 10**6))
def test_it_rises_to_the_rate_and_then_never_again(rate: LearningRate, step: int, more: int) -> None:
    peak, ramp = shape_of(rate).learning_rate, rate.joints[0]
    assert rate.at(ramp) == peak
    if step + more <= ramp:
        assert rate.at(step) <= rate.at(step + more) <= peak
    if step >= ramp:
        assert rate.at(step + more) <= rate.at(step) * (1 + 1e-14) <= peak * (1 + 2e-14)


@given(falling())
def test_the_last_value_is_the_configured_one_and_stays(rate: LearningRate) -> None:
    shape = shape_of(rate)
    final = getattr(shape, "final_learning_rate", 0.0)
    for step in (0, 1, rate.horizon, HUGE, 10**12):
        value = rate.at(step)
        assert math.isfinite(value)
        assert 0 <= value <= shape.learning_rate * (1 + 1e-14)
        if step >= rate.joints[0]:
            assert value >= final * (1 - 1e-14)
    if isinstance(shape, LinearRampToCosine | Polynomial | WarmUpStableDecay):
        assert rate.at(shape.final_num_steps) == rate.at(shape.final_num_steps + 1) == final
        assert rate.horizon == shape.final_num_steps


@given(falling(least=10**8, most=10**9, power=st.floats(0.5, 8)))
def test_there_is_no_jump_where_parts_meet(rate: LearningRate) -> None:
    # Parts are so long that one step changes little: most at the start of a square root, by 1e-4 of the way.
    peak = shape_of(rate).learning_rate
    for joint in rate.joints:
        assert rate.at(joint - 1) == pytest.approx(rate.at(joint), abs=2e-4 * peak)
        assert rate.at(joint + 1) == pytest.approx(rate.at(joint), abs=2e-4 * peak)


@given(
    st.floats(1e-6, 1),
    st.floats(1e-4, 1),
    st.floats(1e-3, 0.999),
    st.integers(1, 1000),
    st.integers(0, 1000),
    st.booleans(),
)
def test_an_exponential_is_at_its_floor_at_the_horizon_and_not_before(
    rate: float, share: float, decay_rate: float, decay_steps: int, ramp: int, staircase: bool
) -> None:
    floor = rate * share
    schedule = Exponential(
        learning_rate=rate,
        decay_rate=decay_rate,
        decay_steps=decay_steps,
        staircase=staircase,
        num_ramp_steps=ramp,
        final_learning_rate=floor,
    )
    assert schedule.at(schedule.horizon) == pytest.approx(floor, rel=1e-12)
    earlier = schedule.horizon - 2 * (decay_steps if staircase else 1)
    if earlier > ramp:
        assert schedule.at(earlier) > floor


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        (
            InverseSquareRoot(learning_rate=1e-3, num_ramp_steps=4000),
            "ramp over 4,000 steps to 0.001, then falling as 1/√step",
        ),
        (exponential(decay_rate=0.96, decay_steps=1000), "0.1, then times 0.96 every 1,000 steps"),
        (
            exponential(decay_rate=0.5, decay_steps=1, staircase=True, num_ramp_steps=20, final_learning_rate=1e-5),
            "ramp over 20 steps to 0.1, then times 0.5 every step in stairs, never under 1e-05",
        ),
        (Polynomial(learning_rate=0.1, final_num_steps=9000), "0.1, linear to 0 at step 9,000"),
        (
            Polynomial(learning_rate=0.1, power=2, num_ramp_steps=10, final_num_steps=90),
            "ramp over 10 steps to 0.1, polynomial of power 2 to 0 at step 90",
        ),
        (
            WarmUpStableDecay(
                learning_rate=1, num_ramp_steps=1000, decay_from_step=8000, final_num_steps=10_000, decay="square_root"
            ),
            "ramp over 1,000 steps to 1, constant to step 8,000, square root to 0 at step 10,000",
        ),
    ],
)
def test_a_schedule_says_what_it_is_in_one_line(schedule: Schedule, said: str) -> None:
    assert str(schedule) == said


WARM_UP = {"learning_rate": 1, "num_ramp_steps": 5, "decay_from_step": 8, "final_num_steps": 9}
EXPONENTIAL = {"learning_rate": 0.1, "decay_rate": 0.5, "decay_steps": 1}
POLYNOMIAL = {"learning_rate": 0.1, "final_num_steps": 5}


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"inverse_square_root": {"learning_rate": 1, "num_ramp_steps": 0}}, "num_ramp_steps: found 0"),
        ({"exponential": EXPONENTIAL | {"decay_rate": 0}}, "decay_rate: found 0: .* greater than 0"),
        ({"exponential": EXPONENTIAL | {"decay_rate": 1.01}}, "decay_rate: found 1.01: .* less than or equal to 1"),
        ({"exponential": EXPONENTIAL | {"decay_steps": 0}}, "decay_steps: found 0"),
        (
            {"exponential": EXPONENTIAL | {"final_learning_rate": 0.2}},
            "final_learning_rate: found 0.2, allowed is at most learning_rate, 0.1",
        ),
        ({"polynomial": POLYNOMIAL | {"power": 0}}, "power: found 0: .* greater than 0"),
        ({"polynomial": POLYNOMIAL | {"num_ramp_steps": 5}}, "found 5, allowed is more than num_ramp_steps, 5"),
        (
            {"warm_up_stable_decay": WARM_UP | {"decay_from_step": 4}},
            "decay_from_step: found 4, allowed is at least num_ramp_steps, 5",
        ),
        (
            {"warm_up_stable_decay": WARM_UP | {"final_num_steps": 8}},
            "final_num_steps: found 8, allowed is more than decay_from_step, 8",
        ),
        ({"warm_up_stable_decay": WARM_UP | {"decay": "sqrt"}}, "found 'sqrt': .*'linear', 'cosine' or 'square_root'"),
    ],
)
def test_refused(tree: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_config(LearningRate, tree, "x.yaml")
