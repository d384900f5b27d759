"""Weight decay: who is left out, and that it follows its schedule as torch's AdamW would."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tml.core.errors import ConfigError
from tml.optimizers.builders import build
from tml.optimizers.config import OptimizerConfig
from tml.optimizers.weight_decay import without_decay


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(6, 3)
        self.first = nn.Linear(3, 4)
        self.norm = nn.LayerNorm(4)
        self.second = nn.Linear(4, 1)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, seed: int) -> torch.Tensor:
        rows = torch.randint(6, (8,), generator=torch.Generator().manual_seed(seed))
        return (self.scale * self.second(self.norm(self.first(self.table(rows))))).square().mean()


def config(**settings: Any) -> OptimizerConfig:
    return OptimizerConfig.model_validate({"adamw": {}, "learning_rate": {"constant": 0.01}, **settings})


@pytest.mark.parametrize(
    ("exceptions", "left_out"),
    [
        ((), set()),
        (("biases",), {"first.bias", "second.bias", "scale"}),
        (("norms",), {"norm.weight", "norm.bias"}),
        (("embeddings", "first"), {"table.weight", "first.weight", "first.bias"}),
        (("second.weight",), {"second.weight"}),
    ],
)
def test_exceptions(exceptions: tuple[str, ...], left_out: set[str]) -> None:
    model = Model()
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert {names[p] for p in without_decay(model, exceptions) if p is not None} == left_out


def test_an_exception_that_is_not_there_is_refused() -> None:
    model = Model()
    model.norm.requires_grad_(False)
    for name in ("sec", "second.weights", "norm"):
        with pytest.raises(ConfigError, match=f"no_weight_decay: found '{name}', .* allowed are biases, norms, emb"):
            without_decay(model, [name])


def test_decay_with_a_schedule_is_torchs_adamw() -> None:
    model = Model()
    other = copy.deepcopy(model)
    ramp = {"linear_ramp_to_constant": {"learning_rate": 0.3, "num_ramp_steps": 20}}
    optimizer, scheduler = build(model, {"all": config(weight_decay=ramp)}, {}, "all")
    assert [(group["name"], len(group["params"])) for group in optimizer.param_groups] == [("all", 5), ("all", 3)]
    matrices = [other.table.weight, other.first.weight, other.second.weight]
    vectors = [other.first.bias, other.norm.weight, other.norm.bias, other.second.bias, other.scale]
    reference = torch.optim.AdamW(
        [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}], lr=0.01, eps=1e-7, fused=True
    )
    for step in range(40):
        optimizer.zero_grad()
        model(step).backward()
        optimizer.step()
        scheduler.step()
        reference.zero_grad()
        other(step).backward()
        reference.param_groups[0]["weight_decay"] = min(0.3, 0.3 * step / 20)
        reference.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, other.get_parameter(name)), name
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.3]
    assert "0.3 (A)" in rendered(optimizer)


def rendered(optimizer: Any) -> str:
    from rich.console import Console

    console = Console(width=120)
    with console.capture() as capture:
        console.print(optimizer)
    return capture.get()


def test_without_decay_a_group_is_whole() -> None:
    optimizer, _ = build(Model(), {"all": config()}, {}, "all")
    assert len(optimizer.param_groups) == 1
    assert "weight decay" not in rendered(optimizer)


def test_tables_with_sparse_gradients_have_none() -> None:
    model = nn.ModuleDict({"table": nn.Embedding(4, 2, sparse=True), "dense": nn.Linear(2, 2)})
    with pytest.raises(ConfigError, match=r"weight_decay of all: found table\.weight, a table with sparse gradients"):
        build(model, {"all": config(weight_decay={"constant": 0.1})}, {}, "all")
    build(model, {"all": config(weight_decay={"constant": 0.1}, no_weight_decay=["embeddings"])}, {}, "all")
