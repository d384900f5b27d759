"""Schedules against golden values at their boundaries, and properties that hold for all of them."""

import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tml.core.config import BaseConfig, parse_config
from tml.core.errors import ConfigError
from tml.optimizers.schedules import LearningRate, LinearRampToConstant, LinearRampToCosine, PiecewiseConstant

rates = st.floats(1e-8, 10, allow_nan=False)
steps = st.integers(0, 10_000_000)
HUGE = 10**9


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.0), (1, 8e-4 / 5000), (4999, 8e-4 * 4999 / 5000), (5000, 8e-4), (5001, 8e-4), (10**9, 8e-4)],
)
def test_ramp_to_constant(step: int, rate: float) -> None:
    assert LinearRampToConstant(learning_rate=8e-4, num_ramp_steps=5000).at(step) == rate


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.0),
        (1, 0.3 / 10),
        (9, 0.3 * 9 / 10),
        (10, 0.3),
        (11, 0.01 + 0.29 * 0.5 * (1 + math.cos(math.pi / 100))),
        (60, 0.155),
        (109, 0.01 + 0.29 * 0.5 * (1 + math.cos(math.pi * 0.99))),
        (110, 0.01),
        (111, 0.01),
    ],
)
def test_ramp_to_cosine(step: int, rate: float) -> None:
    schedule = LinearRampToCosine(learning_rate=0.3, final_learning_rate=0.01, num_ramp_steps=10, final_num_steps=110)
    exact = step in (0, 1, 9, 10, 110, 111)
    assert schedule.at(step) == (rate if exact else pytest.approx(rate, rel=1e-14))


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 0.1), (1, 0.1), (99, 0.1), (100, 0.01), (101, 0.01), (499, 0.01), (500, 0.001), (501, 0.001)]
)
def test_piecewise_constant(step: int, rate: float) -> None:
    schedule = PiecewiseConstant(learning_rate_boundaries=[100, 500], learning_rate_values=[0.1, 0.01, 0.001])
    assert schedule.at(step) == rate


@given(rates, st.integers(1, 1_000_000), steps)
def test_a_ramp_never_falls_and_ends_at_the_very_rate(rate: float, ramp: int, step: int) -> None:
    schedule = LinearRampToConstant(learning_rate=rate, num_ramp_steps=ramp)
    assert schedule.at(ramp) == rate
    assert schedule.at(step) <= schedule.at(step + 1) <= rate
    exact = min(Fraction(rate), Fraction(rate) * step / ramp)
    assert schedule.at(step) == pytest.approx(float(exact), rel=1e-15)


@given(rates, rates, st.integers(1, 1000), st.integers(1, 1000), steps)
def test_a_cosine_stays_between_its_ends(rate: float, final: float, ramp: int, fall: int, step: int) -> None:
    schedule = LinearRampToCosine(
        learning_rate=rate, final_learning_rate=final, num_ramp_steps=ramp, final_num_steps=ramp + fall
    )
    assert schedule.at(ramp) == rate
    assert schedule.at(ramp + fall) == final
    low, high = sorted((rate, final))
    inside = schedule.at(ramp + step % (fall + 1))
    assert low * (1 - 1e-14) <= inside <= high * (1 + 1e-14)


@given(st.lists(st.integers(0, 1000), unique=True), st.data(), st.integers(0, 1100))
def test_piecewise_counts_the_boundaries(boundaries: list[int], data: st.DataObject, step: int) -> None:
    size = len(boundaries) + 1
    values = data.draw(st.lists(rates, min_size=size, max_size=size))
    schedule = PiecewiseConstant(learning_rate_boundaries=sorted(boundaries), learning_rate_values=values)
    assert schedule.at(step) == values[sum(boundary <= step for boundary in boundaries)]


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({}, "exactly one of constant, linear_ramp_to_constant"),
        (
            {"constant": 1.0, "piecewise_constant": {"learning_rate_boundaries": [], "learning_rate_values": [1]}},
            "exact",
        ),
        ({"constant": -1.0}, "greater than or equal to 0"),
        ({"linear_ramp_to_constant": {"learning_rate": 1, "num_ramp_steps": 0}}, "num_ramp_steps: found 0"),
        (
            {
                "linear_ramp_to_cosine": {
                    "learning_rate": 1,
                    "final_learning_rate": 0,
                    "num_ramp_steps": 5,
                    "final_num_steps": 5,
                }
            },
            "found 5, allowed is more than num_ramp_steps, 5",
        ),
        ({"piecewise_constant": {"learning_rate_boundaries": [5, 5], "learning_rate_values": [1, 2, 3]}}, "increasing"),
        ({"piecewise_constant": {"learning_rate_boundaries": [5], "learning_rate_values": [1]}}, "one more than"),
    ],
)
def test_refused(tree: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_config(LearningRate, tree, "rate.yaml")


def test_explicit_nulls_are_absent() -> None:
    tree = {
        "constant": None,
        "linear_ramp_to_constant": {"learning_rate": 1e-4, "num_ramp_steps": 1000},
        "linear_ramp_to_cosine": None,
        "piecewise_constant": None,
    }
    assert LearningRate.model_validate(tree).at(500) == 5e-5
    assert LearningRate(constant=0.25).at(7) == 0.25


def test_a_schedule_is_not_changed_after_it_is_made() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        LinearRampToConstant(learning_rate=1, num_ramp_steps=1).num_ramp_steps = 2  # type: ignore[misc]


class Group(BaseConfig):
    learning_rate: LearningRate


@pytest.mark.parametrize(("given_as", "value"), [(0.001, 0.001), (0, 0.0), (2, 2.0), ("1e-3", 0.001)])
def test_a_bare_number_is_a_constant(given_as: Any, value: float) -> None:
    # The text is what YAML makes of 1e-3.
    rate = parse_config(Group, {"learning_rate": given_as}, "x.yaml").learning_rate
    assert rate == LearningRate(constant=value)
    assert rate.at(0) == rate.at(HUGE) == value


@pytest.mark.parametrize(
    ("bare", "said"),
    [
        (True, "learning_rate.constant: found True: allowed is a number"),
        ({"constant": False}, "learning_rate.constant: found False: allowed is a number"),
        ({"linear_ramp_to_constant": {"learning_rate": True, "num_ramp_steps": 5}}, "found True: allowed is a number"),
        ({"linear_ramp_to_constant": {"learning_rate": 1, "num_ramp_steps": True}}, "found True: allowed is a number"),
        (
            {"piecewise_constant": {"learning_rate_boundaries": [3], "learning_rate_values": [0.1, True]}},
            r"found \[0.1, True\]: allowed is a number",
        ),
        (-1, "greater than or equal to 0"),
        (math.nan, "finite"),
        ("fast", "'fast': input should be a valid number"),
        ([0.1], "found .0.1.: input should be"),
    ],
)
def test_what_is_no_number_is_no_constant(bare: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_config(Group, {"learning_rate": bare}, "x.yaml")


@pytest.mark.parametrize(
    ("tree", "joints", "horizon"),
    [
        (0.1, (), 0),
        ({"linear_ramp_to_constant": {"learning_rate": 1, "num_ramp_steps": 5}}, (5,), 5),
        ({"piecewise_constant": {"learning_rate_boundaries": [], "learning_rate_values": [1]}}, (), 0),
        ({"piecewise_constant": {"learning_rate_boundaries": [3, 9], "learning_rate_values": [1, 2, 3]}}, (3, 9), 9),
        ({"inverse_square_root": {"learning_rate": 1, "num_ramp_steps": 50}}, (50,), 500),
        ({"exponential": {"learning_rate": 1, "decay_rate": 1, "decay_steps": 9, "num_ramp_steps": 4}}, (4,), 4),
        # A hundredth is two times a tenth.
        ({"exponential": {"learning_rate": 1, "decay_rate": 0.1, "decay_steps": 9, "num_ramp_steps": 4}}, (4,), 22),
        ({"exponential": {"learning_rate": 0, "decay_rate": 0.1, "decay_steps": 9}}, (0,), 0),
    ],
)
def test_horizon_and_joints(tree: Any, joints: tuple[int, ...], horizon: int) -> None:
    rate = LearningRate.model_validate(tree)
    assert (rate.joints, rate.horizon) == (joints, horizon)
