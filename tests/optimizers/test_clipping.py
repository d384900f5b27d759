"""Clipping, of each group and of the whole, against torch's own and by hand."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from tml.optimizers.builders import build
from tml.optimizers.config import OptimizerConfig
from tml.optimizers.grouped import GroupedOptimizer


def config(clip: float | None = None) -> OptimizerConfig:
    return OptimizerConfig.model_validate({"sgd": {}, "learning_rate": {"constant": 1.0}, "clip_gradient_norm": clip})


def make(whole: float | None = None, **clips: float) -> tuple[nn.ModuleDict, GroupedOptimizer]:
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(3, 2), "b": nn.Linear(3, 2), "table": nn.Embedding(4, 2, sparse=True)})
    configs = {name: config(clips.get(name)) for name in model}
    return model, build(model, configs, clip_gradient_norm=whole)[0]


def backward(model: Any) -> None:
    x = torch.arange(6.0).reshape(2, 3)
    rows = model["table"](torch.tensor([1, 1]))
    (model["a"](x).sum() + 3 * (model["b"](x) * rows).sum()).backward()


def norm(parameters: Any) -> float:
    return float(torch.cat([p.grad.to_dense().flatten() for p in parameters]).norm())


def test_the_whole_gradient_as_torch_clips_it() -> None:
    model, optimizer = make(whole=0.5)
    other, _ = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    backward(model)
    backward(other)
    other.table.weight.grad = other.table.weight.grad.to_dense()  # type: ignore[union-attr, operator]
    whole = torch.nn.utils.clip_grad_norm_(other.parameters(), 0.5)
    assert math.hypot(*optimizer.gradient_norms().values()) == pytest.approx(float(whole))
    optimizer.step()
    for name, parameter in other.named_parameters():
        moved = before[name] - model.state_dict()[name]
        torch.testing.assert_close(moved, parameter.grad, rtol=1e-4, atol=1e-6)


def test_a_group_is_clipped_alone() -> None:
    model, optimizer = make(b=2.0, a=1e6)
    backward(model)
    norms = {name: norm(module.parameters()) for name, module in model.items()}
    assert optimizer.gradient_norms() == {name: pytest.approx(value) for name, value in norms.items()}
    optimizer.step()
    after = {name: norm(module.parameters()) for name, module in model.items()}
    assert norms["b"] > 2.0
    assert after == {"a": norms["a"], "b": pytest.approx(2.0), "table": norms["table"]}


def test_groups_first_then_the_whole() -> None:
    model, optimizer = make(whole=1.0, b=2.0)
    backward(model)
    norms = {name: norm(module.parameters()) for name, module in model.items()} | {"b": 2.0}
    optimizer.step()
    scale = 1.0 / math.hypot(*norms.values())
    after = {name: norm(module.parameters()) for name, module in model.items()}
    assert after == {name: pytest.approx(value * scale) for name, value in norms.items()}


def test_norms_are_measured_anew_after_each_step() -> None:
    model, optimizer = make(whole=1e-3)
    backward(model)
    first = optimizer.gradient_norms()
    optimizer.zero_grad()
    assert optimizer.gradient_norms() == {"a": 0.0, "b": 0.0, "table": 0.0}
    optimizer.step()
    backward(model)
    assert optimizer.gradient_norms()["a"] == pytest.approx(first["a"])


@pytest.mark.parametrize("way", ["another gradient", "closure", "scaled"])
def test_a_gradient_that_was_looked_at_may_change(way: str) -> None:
    model, optimizer = make(whole=0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    backward(model)
    optimizer.gradient_norms(for_step=way == "closure")
    if way == "another gradient":
        model.zero_grad()
        (1e3 * model["a"](torch.ones(3))).sum().backward()
        optimizer.step()
    elif way == "scaled":
        model["a"].weight.grad.mul_(1e3)
        optimizer.step()
    else:

        def closure() -> None:
            model.zero_grad()
            (1e3 * model["a"](torch.ones(3))).sum().backward()

        optimizer.step(closure)
    moved = [(before[name] - value).flatten() for name, value in model.state_dict().items()]
    assert float(torch.cat(moved).norm()) == pytest.approx(0.5, rel=1e-4)


def test_without_limits_nothing_is_measured() -> None:
    assert not make()[1].clips
    assert make(a=1.0)[1].clips
    assert make(whole=1.0)[1].clips
