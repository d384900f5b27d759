"""Configs: what is read, what is refused, and the sentence that says so."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import Field

from tml.core.config import BaseConfig, UtcDatetime, fingerprint, load_config, one_of, to_yaml
from tml.core.errors import ConfigError


class Rate(BaseConfig):
    steps: int = Field(3, gt=0)
    constant: float | None = one_of("rate")
    ramp: float | None = one_of("rate")


class Job(BaseConfig):
    rate: Rate = Rate(constant=1.0)
    named: dict[str, Rate] = Field(default_factory=dict)
    weights: dict[str, float] = Field(default_factory=dict)
    several: tuple[Rate, ...] = ()
    start: UtcDatetime | None = None


def load(tmp_path: Path, text: str, *overrides: str) -> Job:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return load_config(Job, path, overrides)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("rate: {steps: 0, constant: 1}", ["rate.steps", "found 0", "greater than 0"]),
        ("rate: {step: 1, constant: 1}", ["rate.step", "unknown", "constant, ramp, steps", "did you mean steps"]),
        ("named: {a.b: {constant: 1, z: 3}}", ["named.a.b.z", "unknown", "constant, ramp, steps"]),
        ("several: [{constant: 1, ramp: 2}]", ["several.0", "exactly one of constant, ramp", "constant and ramp"]),
        ("rate: {}", ["rate", "exactly one of constant, ramp", "none"]),
        ("weights: {a: hello}", ["weights.a", "'hello'", "number"]),
        ("weights: {a: .nan}", ["weights.a", "finite"]),
        ("rate: {steps: yes, constant: 1}", ["rate.steps", "found True", "allowed is a number"]),
        ("rate: {ramp: no}", ["rate.ramp", "found False", "allowed is a number"]),
        ("weights: {a: 1, b: on}", ["weights", "found True for b, allowed is a number"]),
        ("rate: [", ["line 1", "not valid YAML"]),
        ("start: 1\nstart: 2", ["line 2", "'start' twice"]),
        ("- 1", ["list", "mapping"]),
        ("weights: {a: '${TML_NOT_THERE}'}", ["weights.a", "TML_NOT_THERE", "not in the environment"]),
    ],
)
def test_a_wrong_config_gives_one_sentence_with_file_field_value_and_what_is_allowed(
    tmp_path: Path, text: str, parts: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, text)
    message = str(error.value)
    assert "\n" not in message
    for part in ["job.yaml", *parts]:
        assert part in message


def test_anchors_merges_nulls_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TML_TEST_RATE", "0.5")
    text = """
named:
  a: &a {constant: "${TML_TEST_RATE}", ramp: null, steps: null}
  b: {<<: *a, steps: 7}
"""
    job = load(tmp_path, text)
    assert job.named["a"] == Rate(constant=0.5)
    assert job.named["b"] == Rate(constant=0.5, steps=7)


def test_overrides_apply_in_order_and_keep_dotted_task_names_whole(tmp_path: Path) -> None:
    text = "several: [{constant: 1}, {constant: 2}]\nnamed: {x: {constant: 1}}"
    job = load(
        tmp_path,
        text,
        "weights.recap.engagement.is_replied=1e1",
        "several.1.constant=5",
        "rate.steps=4",
        "rate={constant: 2}",
        "start=2022-05-05T00:00:00+08:00",
        "named.x.steps=8",
        "named.recap.is_new.constant=2",
    )
    assert job.named == {"x": Rate(constant=1.0, steps=8), "recap.is_new": Rate(constant=2.0)}
    assert job.weights == {"recap.engagement.is_replied": 10.0}
    assert [rate.constant for rate in job.several] == [1.0, 5.0]
    assert job.rate == Rate(constant=2.0)
    assert job.start == datetime(2022, 5, 4, 16, tzinfo=UTC)


def test_an_override_of_one_field_does_not_reach_another_through_an_anchor(tmp_path: Path) -> None:
    job = load(tmp_path, "named: {a: &a {constant: 1}, b: *a}", "rate.constant=3", "named={a: {constant: 9}}")
    assert job.named == {"a": Rate(constant=9.0)}


@pytest.mark.parametrize(
    ("override", "part"), [("x", "FIELD.SUBFIELD=VALUE"), ("nope=1", "unknown"), ("several.7.constant=1", "positions")]
)
def test_a_wrong_override_is_named(tmp_path: Path, override: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        load(tmp_path, "several: [{constant: 1}]", override)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: no such config file"):
        load_config(Job, tmp_path / "gone.yaml")


def test_yaml_round_trip_and_fingerprint(tmp_path: Path) -> None:
    job = Job(named={"a": Rate(ramp=2)}, start=datetime(2022, 5, 5))
    assert load(tmp_path, to_yaml(job)) == job
    assert fingerprint(job) == fingerprint(load(tmp_path, to_yaml(job)))
    assert fingerprint(job) != fingerprint(Job())
