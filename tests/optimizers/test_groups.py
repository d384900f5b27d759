"""Groups: total, disjoint, by whole path components, and the same through every wrapper."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tml.core.errors import ConfigError
from tml.optimizers.groups import assign_groups, find_tables, find_towers, require_same_tasks, trainable_parameters

REPLIED = "recap.engagement.is_replied"
BY_AUTHOR = "recap.engagement.is_replied_reply_engaged_by_author"

components = st.sampled_from(["a", "ab", "abc", "b", "towers", "0", "weight"])
paths = st.lists(components, min_size=1, max_size=4).map(".".join)


class Ranker(nn.Module):
    def __init__(self, *tasks: str) -> None:
        super().__init__()
        self.backbone = nn.Linear(3, 2)
        self.towers = nn.ModuleDict({task.replace(".", "/"): nn.Linear(2, 1) for task in tasks})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.backbone(x)
        return torch.cat([tower(hidden) for tower in self.towers.values()], dim=1)


class Loss(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x).square().mean()


@pytest.fixture
def process_group() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def group_names(model: nn.Module) -> dict[str, list[str]]:
    modules = {path: task for task, path in find_towers(model).items()}
    return assign_groups(trainable_parameters(model).values(), modules, rest="backbone")


@given(st.lists(paths, unique=True), st.dictionaries(paths, st.sampled_from("xyz")))
def test_every_parameter_is_in_exactly_one_group(names: list[str], modules: dict[str, str]) -> None:
    groups = assign_groups([[name] for name in names], modules, rest="rest")
    assert sorted(name for members in groups.values() for name in members) == sorted(names)
    for group, members in groups.items():
        for name in members:
            # Reference: the longest module whose path and a dot, or whose whole path, starts the name.
            around = [path for path in modules if f"{name}.".startswith(f"{path}.")]
            assert group == (modules[max(around, key=len)] if around else "rest")


def test_a_task_that_only_resembles_another_has_its_own_tower() -> None:
    groups = group_names(Ranker(REPLIED, BY_AUTHOR))
    assert groups == {
        "backbone": ["backbone.weight", "backbone.bias"],
        REPLIED: ["towers.recap/engagement/is_replied.weight", "towers.recap/engagement/is_replied.bias"],
        BY_AUTHOR: [
            "towers.recap/engagement/is_replied_reply_engaged_by_author.weight",
            "towers.recap/engagement/is_replied_reply_engaged_by_author.bias",
        ],
    }


def test_frozen_is_left_out_and_shared_counts_once() -> None:
    model = Ranker("a", "b")
    model.backbone.bias.requires_grad_(False)
    model.again = model.backbone  # type: ignore[assignment]
    model.alias = model.towers["a"]
    groups = group_names(model)
    assert groups["backbone"] == ["backbone.weight"]
    assert groups["a"] == ["towers.a.weight", "towers.a.bias"]
    assert len(trainable_parameters(model)) == 5


def test_a_parameter_in_two_towers_is_refused() -> None:
    model = Ranker("a", "b")
    model.towers["b"].weight = model.towers["a"].weight
    with pytest.raises(ConfigError, match=r"towers\.a\.weight: found in a and b"):
        group_names(model)


def test_a_parameter_without_group_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no learning rate for the parameters b\.weight, only for a"):
        assign_groups([["a.weight"], ["b.weight"]], {"a": "a"})


def test_tasks_must_be_the_same() -> None:
    with pytest.raises(ConfigError, match="found is_replied, but the model has towers for is_replied_by_author"):
        require_same_tasks(["is_replied"], ["is_replied_by_author"])
    with pytest.raises(ConfigError, match="no rate for b, which"):
        require_same_tasks(["a"], ["a", "b"])
    with pytest.raises(ConfigError, match="found a, but the model has no towers"):
        require_same_tasks(["a"], [])


def compiled(module: nn.Module) -> nn.Module:
    wrapped: nn.Module = torch.compile(module, backend="eager")  # type: ignore[assignment]
    return wrapped


@pytest.mark.usefixtures("process_group")
def test_wrappers_change_nothing() -> None:
    model = Ranker(REPLIED, BY_AUTHOR)
    bare = group_names(model)
    assert group_names(compiled(model)) == bare
    assert group_names(nn.parallel.DistributedDataParallel(model)) == bare
    assert group_names(compiled(nn.parallel.DistributedDataParallel(model))) == bare
    in_a_loss = {group: [f"model.{name}" for name in names] for group, names in bare.items()}
    assert group_names(Loss(compiled(model))) == in_a_loss
    model.towers = compiled(model.towers)  # type: ignore[assignment]
    model.backbone = compiled(model.backbone)  # type: ignore[assignment]
    assert group_names(model) == bare


def test_the_outermost_towers_count() -> None:
    model = Ranker("a")
    model.towers["a"] = Ranker("inner")
    assert find_towers(model) == {"a": "towers.a"}
    with pytest.raises(ConfigError, match=r"several sets of towers, 0\.towers and 1\.towers"):
        find_towers(nn.ModuleList([Ranker("a"), Ranker("b")]))
    assert find_towers(nn.Linear(1, 1)) == {}


def test_tables() -> None:
    model = nn.ModuleDict({"users": nn.Embedding(3, 2), "bags": nn.EmbeddingBag(3, 2), "dense": nn.Linear(1, 1)})
    assert list(find_tables(model)) == ["users", "bags"]


def test_the_empty_path_is_the_model() -> None:
    names = [["weight"], ["a.weight"]]
    assert assign_groups(names, {"": "all"}) == {"all": ["weight", "a.weight"]}
    assert assign_groups(names, {"": "all", "a": "inner"}) == {"all": ["weight"], "inner": ["a.weight"]}
