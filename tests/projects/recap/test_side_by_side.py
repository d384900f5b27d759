"""Towers side by side against one after the other."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tml.projects.home.recap import model as model_module
from tml.projects.home.recap import side_by_side
from tml.projects.home.recap.config import InputShapes, MlpConfig, ModelConfig
from tml.projects.home.recap.mlp import MLP
from tml.projects.home.recap.model import HeavyRanker, RankerLoss
from tml.projects.home.recap.side_by_side import can_join, joined_logits

NORM = {"affine": True, "momentum": 0.1}


def tower(**changes: Any) -> MLP:
    return MLP(MlpConfig(**{"layer_sizes": (12, 6, 1), "batch_norm": NORM, **changes}), 10)


def autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """First layers and factors in float64."""

    def linears(inputs: torch.Tensor, layers: list[nn.Linear]) -> torch.Tensor:
        return torch.cat([F.linear(inputs, layer.weight, layer.bias) for layer in layers], dim=1)

    monkeypatch.setattr(side_by_side, "linears", linears)
    monkeypatch.setattr(side_by_side, "copy_of", lambda weight: weight.detach())
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor)


@pytest.mark.parametrize("norm", [NORM, {"affine": False, "momentum": 0.3}, None])
@pytest.mark.parametrize("sizes", [(12, 1), (12, 6, 1), (12, 6, 7, 1)])
@pytest.mark.usefixtures("exact")
def test_logits_gradients_and_statistics_are_those_of_towers_by_themselves(
    norm: dict[str, Any] | None, sizes: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    towers = [tower(layer_sizes=sizes, batch_norm=norm).double() for _ in range(3)]
    inputs = torch.randn(37, 10, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(37, 3, dtype=torch.float64)
    tensors = [inputs, *(parameter for t in towers for parameter in t.parameters())]
    found = []
    for compute in (lambda: joined_logits(towers, inputs), lambda: torch.cat([t(inputs) for t in towers], dim=1)):
        for module in (module for t in towers for module in t.modules() if isinstance(module, nn.BatchNorm1d)):
            module.reset_running_stats()
        logits = compute()
        buffers = [buffer.clone() for t in towers for buffer in t.buffers()]
        found.append([logits, *torch.autograd.grad((logits * weight).sum(), tensors), *buffers])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_dropout_drops_its_share_scales_the_rest_and_draws_by_torchs_generator() -> None:
    torch.manual_seed(0)
    inputs = torch.rand(1000, 600) + 0.5
    given = inputs.clone().requires_grad_()
    outputs = side_by_side._Activation.apply(given * 1, [0.0, 0.3])  # type: ignore[no-untyped-call]
    (gradient,) = torch.autograd.grad(outputs.sum(), given)
    whole, dropped = outputs.detach().chunk(2, dim=1)
    torch.testing.assert_close(whole, inputs[:, :300], rtol=0, atol=0)
    kept = dropped != 0
    assert abs(kept.double().mean() - 0.7) < 0.004  # five deviations
    torch.testing.assert_close(dropped[kept], inputs[:, 300:][kept] / 0.7, rtol=1e-4, atol=0)
    torch.testing.assert_close(gradient, outputs.detach() / inputs)
    torch.manual_seed(0)
    torch.rand(1000, 600)
    again = side_by_side._Activation.apply(inputs.clone(), [0.0, 0.3])  # type: ignore[no-untyped-call]
    torch.testing.assert_close(again, outputs.detach(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("towers", "joined"),
    [
        ([tower(), tower(dropout={"rate": 0.1})], True),
        ([tower(), tower(layer_sizes=(12, 7, 1))], False),
        ([tower(), tower(batch_norm=None)], False),
        ([tower(layer_sizes=(1,))], False),
        ([tower(final_activation=True)], False),
        ([tower(layer_sizes=(12, 6))], False),
        ([tower(), nn.Linear(10, 1)], False),
        ([tower().eval()], False),
    ],
)
def test_which_towers_are_joined(towers: list[nn.Module], joined: bool) -> None:
    inputs = torch.zeros(4, 10)
    assert not can_join(towers, inputs)
    with autocast():
        assert can_join(towers, inputs) is joined


def test_a_ranker_in_bfloat16_learns_the_same_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = InputShapes(continuous=30, binary=2, tasks=("a", "b", "c"))
    mlp = {"mlp_config": {"layer_sizes": (32, 16, 1), "batch_norm": NORM}}
    config = ModelConfig(
        backbone={"mlp_config": {"layer_sizes": (64,), "final_activation": True}}, tasks=dict.fromkeys("abc", mlp)
    )
    objective = RankerLoss(HeavyRanker(config, shapes, torch.Generator().manual_seed(0)))
    torch.manual_seed(1)
    batch = {"continuous": torch.randn(200, 30), "binary": torch.randint(0, 2, (200, 2)).float()}
    batch |= {task: torch.randint(0, 2, (200,)).float() for task in shapes.tasks}
    found = []
    for joined in (True, False):
        monkeypatch.setattr(model_module, "can_join", lambda *_, joined=joined: joined)
        with autocast():
            loss, outputs = objective(batch)
        parameters = [p for name, p in objective.named_parameters() if "layers.0.bias" not in name]
        # The bias before a batch norm has no gradient but that of rounding.
        found.append([outputs["logits"], *torch.autograd.grad(loss, parameters, allow_unused=True)])
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).norm() <= 0.03 * theirs.norm()
