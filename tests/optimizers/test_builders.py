"""The general builder: several algorithms and sparse tables under one state, equal to torch.optim's own."""

import copy
import re
from typing import Any

import pytest
import torch
from torch import nn

from tml.core.errors import ConfigError, DataError
from tml.optimizers.builders import build
from tml.optimizers.config import OptimizerConfig
from tml.optimizers.grouped import GroupedOptimizer, groups_table


def config(algorithm: str, rate: float = 0.05, **settings: Any) -> OptimizerConfig:
    return OptimizerConfig.model_validate({algorithm: settings, "learning_rate": {"constant": rate}})


class Graph(nn.Module):
    """Node tables with sparse gradients and one dense translation a relation."""

    def __init__(self, reverse: bool = False) -> None:
        super().__init__()
        made = {name: nn.Embedding(20, 4, sparse=True) for name in ("users", "posts", "ads")}
        self.tables = nn.ModuleDict(dict(reversed(made.items())) if reverse else made)
        self.translations = nn.Parameter(torch.zeros(2, 4))

    def forward(self, seed: int) -> torch.Tensor:
        rows = torch.randint(20, (3, 8), generator=torch.Generator().manual_seed(seed))
        users, posts, ads = (self.tables[n](r) for n, r in zip(("users", "posts", "ads"), rows, strict=True))
        return ((users + self.translations[0]) * posts).sum() + ((users + self.translations[1]) * ads).sum().sin()


CONFIGS = {
    "tables.users": config("sgd", 0.01),
    "tables.posts": config("adagrad"),
    "tables.ads": config("adam"),
    "translations": config("adam", 0.02),
}


def make(seed: int = 0, reverse: bool = False) -> tuple[Graph, GroupedOptimizer, Any]:
    torch.manual_seed(seed)
    model = Graph(reverse)
    return model, *build(model, CONFIGS)


def run(model: Graph, optimizer: GroupedOptimizer, scheduler: Any, seeds: range) -> None:
    for seed in seeds:
        optimizer.zero_grad()
        model(seed).backward()
        optimizer.step()
        scheduler.step()


def test_sparse_tables_learn_as_with_optimizers_of_their_own() -> None:
    model, optimizer, scheduler = make()
    other = copy.deepcopy(model)
    tables = other.tables
    separate = [
        torch.optim.SGD(tables["users"].parameters(), lr=0.01),
        torch.optim.Adagrad(tables["posts"].parameters(), lr=0.05),
        torch.optim.SparseAdam(tables["ads"].parameters(), lr=0.05, eps=1e-7),
        torch.optim.Adam([other.translations], lr=0.02, eps=1e-7, fused=True),
    ]
    run(model, optimizer, scheduler, range(20))
    for seed in range(20):
        other.zero_grad()
        other(seed).backward()
        with torch.sparse.check_sparse_tensor_invariants(enable=False):
            for part in separate:
                part.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, other.get_parameter(name)), name


def test_state_goes_by_name_into_a_model_of_another_order() -> None:
    model, optimizer, scheduler = make()
    run(model, optimizer, scheduler, range(7))
    state = copy.deepcopy({"model": model.state_dict(), "o": optimizer.state_dict(), "s": scheduler.state_dict()})
    run(model, optimizer, scheduler, range(7, 15))

    other, other_optimizer, other_scheduler = make(seed=1, reverse=True)
    other.load_state_dict(state["model"])
    other_optimizer.load_state_dict(state["o"])
    other_scheduler.load_state_dict(state["s"])
    run(other, other_optimizer, other_scheduler, range(7, 15))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, other.get_parameter(name)), name


def test_state_of_another_model_is_refused_with_the_names() -> None:
    _, optimizer, _ = make()
    state = optimizer.state_dict()
    state["state"]["gone"] = state["state"].pop("translations")
    with pytest.raises(DataError, match="missing translations; left over gone"):
        optimizer.load_state_dict(state)
    model, optimizer, scheduler = make()
    run(model, optimizer, scheduler, range(1))
    state = optimizer.state_dict()
    state["state"]["translations"]["exp_avg"] = torch.zeros(3)
    with pytest.raises(DataError, match=r"exp_avg of translations: found shape \(3,\), needed is \(2, 4\)"):
        optimizer.load_state_dict(state)


def test_a_loaded_state_is_a_copy() -> None:
    model, optimizer, scheduler = make()
    run(model, optimizer, scheduler, range(1))
    saved = optimizer.state_dict()
    _, other, _ = make()
    other.load_state_dict(saved)
    for _, name, parameter, _ in other._named():
        for key, value in other.state[parameter].items():
            assert not isinstance(value, torch.Tensor) or value is not saved["state"][name][key]


def test_groups_of_one_algorithm_share_one_optimizer() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2), "c": nn.Linear(2, 2)})
    optimizer, _ = build(model, {"a": config("adam", 0.1), "b": config("adam", 0.2), "c": config("adam", beta_1=0.5)})
    assert [[group["name"] for group in part.param_groups] for part in optimizer.parts] == [["a", "b"], ["c"]]
    assert all(group["fused"] for group in optimizer.param_groups)


def test_a_closure_gives_loss_and_gradients() -> None:
    model = nn.Linear(2, 1)
    optimizer, _ = build(model, {"all": config("sgd")}, {}, rest="all")
    before = model.bias.item()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(torch.zeros(1, 2)).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert optimizer.step(closure).item() == pytest.approx(before)
    assert model.bias.item() == pytest.approx(before - 0.05)


def test_refusals() -> None:
    model = Graph()
    with pytest.raises(ConfigError, match=r"learning rates for tables\.nobody, which the model lacks"):
        build(model, {**CONFIGS, "tables.nobody": config("sgd")})
    with pytest.raises(ConfigError, match="no learning rate for the parameters translations, only for tables"):
        build(model, {"tables": config("sgd")})
    with pytest.raises(ConfigError, match="rest: no learning rate, but there are the parameters translations"):
        build(model, {"tables": config("sgd")}, rest="rest")
    with pytest.raises(ConfigError, match=r"sgd\.momentum of tables: found 0\.9"):
        build(model, {"tables": config("sgd", momentum=0.9), "translations": config("sgd")})
    with pytest.raises(ConfigError, match="no trainable parameters"):
        build(model.requires_grad_(False), CONFIGS)


def test_the_table_shows_every_group() -> None:
    from rich.console import Console

    _, optimizer, _ = make()
    console = Console(width=120)
    with console.capture() as capture:
        console.print(groups_table(optimizer))
    lines = [line for line in capture.get().splitlines() if "constant" in line]
    assert len(lines) == 4
    assert re.split(r"\s{2,}", lines[3].strip()) == [
        "translations",
        "8",
        "1",
        "Adam (fused)",
        "0.02",
        "constant",
    ]
