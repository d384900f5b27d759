"""Averaged weights: the formula, in and out again, in the state."""

import copy

import pytest
import torch
from torch import nn

from tml.core.errors import DataError
from tml.optimizers.builders import build
from tml.optimizers.config import AverageConfig, OptimizerConfig
from tml.optimizers.grouped import GroupedOptimizer


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        self.table = nn.Embedding(5, 3, sparse=True)

    def forward(self, seed: int) -> torch.Tensor:
        x = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed))
        return self.layers(x + self.table(torch.arange(6) % 5)).square().mean()


def make(decay: float = 0.8) -> tuple[Model, GroupedOptimizer]:
    model = Model()
    config = OptimizerConfig.model_validate({"sgd": {}, "learning_rate": {"constant": 0.1}})
    return model, build(model, {"all": config}, {}, "all", average=AverageConfig(decay=decay))[0]


def run(model: Model, optimizer: GroupedOptimizer, seeds: range) -> list[dict[str, torch.Tensor]]:
    passed = []
    for seed in seeds:
        optimizer.zero_grad()
        model(seed).backward()
        optimizer.step()
        passed.append(copy.deepcopy(model.state_dict()))
    return passed


def test_the_average_is_that_of_the_weights_passed() -> None:
    model, optimizer = make()
    passed = run(model, optimizer, range(30))
    expected = passed[0]
    for n, weights in enumerate(passed[1:], start=1):
        decay = min(0.8, (1 + n) / (10 + n))
        expected = {name: decay * expected[name] + (1 - decay) * weights[name] for name in weights}
    with optimizer.averaged():
        inside = copy.deepcopy(model.state_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(value, passed[-1][name]), name
        of_its_own = name == "table.weight" or not value.is_floating_point()
        torch.testing.assert_close(inside[name], value if of_its_own else expected[name])
    assert not torch.allclose(inside["layers.0.weight"], passed[-1]["layers.0.weight"])


def test_an_error_inside_leaves_the_model_its_own_weights() -> None:
    model, optimizer = make()
    (*_, last) = run(model, optimizer, range(5))
    with pytest.raises(KeyboardInterrupt), optimizer.averaged():
        raise KeyboardInterrupt
    assert all(torch.equal(value, last[name]) for name, value in model.state_dict().items())


def test_before_the_first_step_the_average_is_the_model() -> None:
    model, optimizer = make()
    before = copy.deepcopy(model.state_dict())
    with optimizer.averaged():
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_shared_batch_norm_is_averaged_once() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3))
    model.append(model[0])
    config = OptimizerConfig.model_validate({"sgd": {}, "learning_rate": 0.1})
    optimizer, _ = build(model, {"all": config}, {}, "all", average=AverageConfig(decay=0.8))
    for seed in range(5):
        model(torch.randn(6, 3, generator=torch.Generator().manual_seed(seed))).square().mean().backward()
        optimizer.step()
    before = copy.deepcopy(model.state_dict())
    with optimizer.averaged():
        assert not torch.equal(model[0].running_mean, before["0.running_mean"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_one_inside_another_changes_nothing() -> None:
    model, optimizer = make()
    (*_, last) = run(model, optimizer, range(5))
    with optimizer.averaged():
        averages = copy.deepcopy(model.state_dict())
        with optimizer.averaged():
            assert all(torch.equal(value, averages[name]) for name, value in model.state_dict().items())
        assert all(torch.equal(value, averages[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, last[name]) for name, value in model.state_dict().items())


def test_the_average_of_half_precision_weights_moves() -> None:
    model = nn.Linear(1, 1, bias=False).bfloat16()
    config = OptimizerConfig.model_validate({"sgd": {}, "learning_rate": 0.0})
    optimizer, _ = build(model, {"all": config}, {}, "all", average=AverageConfig(decay=0.999))
    nn.init.constant_(model.weight, 1.0)
    optimizer.step()
    average = optimizer.average
    assert average is not None
    average.updates = 100_000  # far enough for the full decay
    nn.init.constant_(model.weight, 2.0)
    for _ in range(1_000):
        average.update()
    expected = 2.0 - 0.999**1_000
    with optimizer.averaged():
        assert float(model.weight.detach()) == pytest.approx(expected, rel=2**-8)
    other, _ = build(model, {"all": config}, {}, "all", average=AverageConfig(decay=0.999))
    other.load_state_dict(optimizer.state_dict())
    assert other.average is not None
    assert float(other.average.averages["weight"]) == pytest.approx(expected, rel=1e-5)


def test_the_state_goes_on() -> None:
    model, optimizer = make()
    run(model, optimizer, range(4))
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    run(model, optimizer, range(4, 9))
    other, other_optimizer = make()
    other.load_state_dict(state[0])
    other_optimizer.load_state_dict(state[1])
    run(other, other_optimizer, range(4, 9))
    with optimizer.averaged(), other_optimizer.averaged():
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_state_without_or_of_another_model_is_refused() -> None:
    model, optimizer = make()
    run(model, optimizer, range(1))
    state = optimizer.state_dict()
    with pytest.raises(DataError, match="missing the averaged weights"):
        optimizer.load_state_dict({**state, "average": None})
    averages = dict(state["average"]["averages"])
    averages["gone"] = averages.pop("layers.0.bias")
    averages["layers.2.bias"] = torch.zeros(7)
    with pytest.raises(DataError, match=r"missing layers\.0\.bias; left over gone; of another shape layers\.2\.bias"):
        optimizer.load_state_dict({**state, "average": {"updates": 1, "averages": averages}})
    config = OptimizerConfig.model_validate({"sgd": {}, "learning_rate": {"constant": 0.1}})
    without, _ = build(model, {"all": config}, {}, "all")
    with pytest.raises(DataError, match="left over the averaged weights"):
        without.load_state_dict(state)


def test_a_buffer_that_is_replaced_is_averaged_on() -> None:
    model, optimizer = make()
    norm = model.layers[1]
    (first, *rest) = [norm.running_mean.clone()]
    for seed in range(4):
        run(model, optimizer, range(seed, seed + 1))
        norm.running_mean = torch.full((4,), float(seed))  # another tensor, as `.to` makes
        rest.append(norm.running_mean)
    run(model, optimizer, range(4, 5))
    assert norm.running_mean is not first
    assert optimizer.average is not None
    average = optimizer.average.averages["layers.1.running_mean"]
    with optimizer.averaged():
        torch.testing.assert_close(norm.running_mean, average)
    assert average.abs().sum() > 1
