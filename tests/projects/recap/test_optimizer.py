"""`build_optimizer` against torch.optim: equal to it bit for bit, resumed as if never stopped, wrong configs refused.

The reference is torch's fused Adam, which on the CPU rounds otherwise than its plain one by the last bit.
"""

import copy
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tml.core.config import parse_config
from tml.core.errors import ConfigError, DataError
from tml.core.training import TrainState
from tml.optimizers.config import OptimizerConfig
from tml.projects.home.recap.optimizer import RecapOptimizerConfig, RecommendationAlgorithm, build_optimizer
from tml.projects.home.recap.optimizer.config import PUBLISHED_TOWER_RATES

FAVORITED = "recap.engagement.is_favorited"
REPLIED = "recap.engagement.is_replied"
BY_AUTHOR = "recap.engagement.is_replied_reply_engaged_by_author"
TASKS = (FAVORITED, REPLIED, BY_AUTHOR)


class Ranker(nn.Module):
    def __init__(self, tasks: Iterable[str] = TASKS, seed: int = 0, table: bool = False) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.table = nn.Embedding(7, 5) if table else None
        self.backbone = nn.Sequential(nn.Linear(5, 9), nn.ReLU())
        self.towers = nn.ModuleDict({task.replace(".", "/"): nn.Linear(9, 1) for task in tasks})

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        if self.table is not None:
            batch = batch + self.table(torch.arange(len(batch)) % 7)
        hidden = self.backbone(batch)
        return torch.stack([(tower(hidden) - 1).square().mean() for tower in self.towers.values()]).mean()


def batch(step: int) -> torch.Tensor:
    return torch.randn(8, 5, generator=torch.Generator().manual_seed(step))


def advance(model: nn.Module, optimizer: Any, schedulers: Iterable[Any], steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        model(batch(step)).backward()
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()


def assert_equal(model: nn.Module, other: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, other.get_parameter(name)), name


def ramp(rate: float, steps: int) -> dict[str, Any]:
    return {"linear_ramp_to_constant": {"learning_rate": rate, "num_ramp_steps": steps}}


TREE: dict[str, Any] = {
    "adam": {"beta_1": 0.95},
    "multi_task_learning_rates": {
        "backbone_learning_rate": ramp(1e-2, 10),
        "tower_learning_rates": {FAVORITED: ramp(8e-2, 50), REPLIED: {"constant": 1e-2}, BY_AUTHOR: ramp(1e-3, 5)},
    },
    "single_task_learning_rate": None,
}


def config(**rates: Any) -> RecapOptimizerConfig:
    tree = copy.deepcopy(TREE)
    tree["multi_task_learning_rates"].update(rates)
    return parse_config(RecapOptimizerConfig, tree, "ranker.yaml")


def test_a_single_constant_rate_is_torchs_adam() -> None:
    model = Ranker([FAVORITED])
    other = copy.deepcopy(model)
    single = RecapOptimizerConfig(single_task_learning_rate={"constant": 0.01})
    optimizer, scheduler = build_optimizer(model, single)
    reference = torch.optim.Adam(other.parameters(), lr=0.01, betas=(0.9, 0.999), eps=1e-7, fused=True)
    plain_model = copy.deepcopy(model)
    plain = torch.optim.Adam(plain_model.parameters(), lr=0.01, eps=1e-7)
    advance(model, optimizer, [scheduler], range(50))
    advance(other, reference, [], range(50))
    advance(plain_model, plain, [], range(50))
    assert_equal(model, other)
    for parameter, plain_parameter in zip(model.parameters(), plain_model.parameters(), strict=True):
        torch.testing.assert_close(parameter, plain_parameter, rtol=1e-5, atol=1e-6)


def test_without_the_fused_kernel_it_is_torchs_default_adam_bit_for_bit() -> None:
    model = Ranker([FAVORITED])
    other = copy.deepcopy(model)
    single = RecapOptimizerConfig(adam={"epsilon": 1e-8, "fused": False}, single_task_learning_rate=0.01)
    optimizer, scheduler = build_optimizer(model, single)
    assert not any(group["fused"] for group in optimizer.param_groups)
    advance(model, optimizer, [scheduler], range(50))
    advance(other, torch.optim.Adam(other.parameters(), lr=0.01), [], range(50))
    assert_equal(model, other)


def test_one_tower_at_the_backbones_rate_is_torchs_adam() -> None:
    model = Ranker([FAVORITED])
    other = copy.deepcopy(model)
    rate = {"constant": 0.01}
    optimizer, scheduler = build_optimizer(
        model, config(backbone_learning_rate=rate, tower_learning_rates={FAVORITED: rate})
    )
    reference = torch.optim.Adam(other.parameters(), lr=0.01, betas=(0.95, 0.999), eps=1e-7, fused=True)
    advance(model, optimizer, [scheduler], range(50))
    advance(other, reference, [], range(50))
    assert_equal(model, other)


def test_towers_are_adams_of_their_own() -> None:
    model = Ranker()
    other = copy.deepcopy(model)
    optimizer, scheduler = build_optimizer(model, config())

    rates = {
        "backbone": lambda t: min(1e-2, 1e-2 * t / 10),
        FAVORITED: lambda t: min(8e-2, 8e-2 * t / 50),
        REPLIED: lambda _: 1e-2,
        BY_AUTHOR: lambda t: min(1e-3, 1e-3 * t / 5),
    }
    adams, schedulers = [], []
    for name, rate in rates.items():
        module = other.backbone if name == "backbone" else other.towers[name.replace(".", "/")]
        adams.append(torch.optim.Adam(module.parameters(), lr=1.0, betas=(0.95, 0.999), eps=1e-7, fused=True))
        schedulers.append(torch.optim.lr_scheduler.LambdaLR(adams[-1], rate))
    advance(model, optimizer, [scheduler], range(60))
    for step in range(60):
        other.zero_grad()
        other(batch(step)).backward()
        for adam, schedule in zip(adams, schedulers, strict=True):
            adam.step()
            schedule.step()
    assert_equal(model, other)
    assert dict(zip([g["name"] for g in optimizer.param_groups], scheduler.get_last_lr(), strict=True)) == {
        name: rate(60) for name, rate in rates.items()
    }


def test_one_fused_adam_holds_all_groups() -> None:
    optimizer, scheduler = build_optimizer(Ranker(), config())
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler)
    (adam,) = optimizer.parts
    assert type(adam) is torch.optim.Adam
    assert [group["name"] for group in adam.param_groups] == ["backbone", *TASKS]
    assert all(group["fused"] for group in adam.param_groups)


def test_only_a_step_counts_as_a_step() -> None:
    """Preparing the optimizer's state must not shift Adam's bias correction."""
    model = Ranker()
    optimizer, scheduler = build_optimizer(model, config())
    optimizer.load_state_dict(optimizer.state_dict())
    assert all("step" not in state for state in optimizer.state_dict()["state"].values())
    assert scheduler.state_dict()["step"] == 0
    advance(model, optimizer, [scheduler], range(1))
    assert {state["step"].item() for state in optimizer.state_dict()["state"].values()} == {1.0}
    assert scheduler.state_dict()["step"] == 1


def test_saved_and_loaded_is_uninterrupted(tmp_path: Path) -> None:
    model = Ranker(table=True)
    embeddings = OptimizerConfig(adagrad={}, learning_rate=ramp(0.1, 30))
    optimizer, scheduler = build_optimizer(model, config(), embeddings)
    advance(model, optimizer, [scheduler], range(13))
    state = [model.state_dict(), optimizer.state_dict(), scheduler.state_dict()]
    torch.save(state, tmp_path / "state.pt")
    advance(model, optimizer, [scheduler], range(13, 40))

    # Towers made in another order, other initial values.
    other = Ranker(reversed(TASKS), seed=1, table=True)
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    other.load_state_dict(loaded[0])
    optimizer, scheduler = build_optimizer(other, config(), embeddings)
    optimizer.load_state_dict(loaded[1])
    scheduler.load_state_dict(loaded[2])
    assert scheduler.get_last_lr()[0] == 1e-2
    advance(Sorted(other), optimizer, [scheduler], range(13, 40))
    assert_equal(model, other)


class Sorted(nn.Module):
    """Sums the towers' losses in the order of TASKS, since another order rounds otherwise."""

    def __init__(self, model: Ranker) -> None:
        super().__init__()
        model.towers = nn.ModuleDict({k: model.towers[k] for k in (task.replace(".", "/") for task in TASKS)})
        self.model = model

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.model(batch)


def test_embeddings_learn_in_their_own_way() -> None:
    model = Ranker(table=True)
    other = copy.deepcopy(model)
    embeddings = OptimizerConfig(adagrad={}, learning_rate={"constant": 0.5})
    optimizer, scheduler = build_optimizer(model, config(), embeddings)
    assert other.table is not None
    adagrad = torch.optim.Adagrad(other.table.parameters(), lr=0.5, fused=True)
    rest, rest_scheduler = build_optimizer(other, config())
    assert rest.param_groups[0]["param_names"][0] == "table.weight"
    other_rest = {id(other.table.weight)}
    rest.param_groups[0]["params"] = [p for p in rest.param_groups[0]["params"] if id(p) not in other_rest]
    advance(model, optimizer, [scheduler], range(10))
    for step in range(10):
        other.zero_grad()
        other(batch(step)).backward()
        adagrad.step()
        rest.step()
        rest_scheduler.step()
    assert_equal(model, other)
    with pytest.raises(ConfigError, match="the model has no embedding tables"):
        build_optimizer(Ranker(), config(), embeddings)


def test_refusals_name_what_is_wrong() -> None:
    model = Ranker([FAVORITED, BY_AUTHOR])
    with pytest.raises(ConfigError, match=f"found {REPLIED}, but the model has towers for {FAVORITED}, {BY_AUTHOR}"):
        build_optimizer(model, config())
    with pytest.raises(ConfigError, match=f"no rate for {BY_AUTHOR}, which the model has"):
        build_optimizer(model, config(tower_learning_rates={FAVORITED: {"constant": 1}}))
    with pytest.raises(
        ConfigError, match=r"backbone: no learning rate, but there are the parameters backbone\.0\.weight"
    ):
        build_optimizer(Ranker(), config(backbone_learning_rate=None))
    with pytest.raises(ConfigError, match="but the model has no towers"):
        build_optimizer(nn.Linear(1, 1), config())
    with pytest.raises(ConfigError, match="towers: found backbone"):
        build_optimizer(Ranker(["backbone"]))
    shared = Ranker()
    first, second, _ = shared.towers.values()
    first.weight = second.weight
    with pytest.raises(ConfigError, match=f"found in {FAVORITED} and {REPLIED}, allowed is one group"):
        build_optimizer(shared, config())
    with pytest.raises(ConfigError, match="exactly one of multi_task_learning_rates, single_task_learning_rate"):
        parse_config(RecapOptimizerConfig, {**TREE, "single_task_learning_rate": {"constant": 1}}, "ranker.yaml")


def test_groups_have_settings_of_their_own() -> None:
    tree = copy.deepcopy(TREE) | {
        "weight_decay": {"constant": 0.1},
        "clip_gradient_norm": 5.0,
        "average": {"decay": 0.99},
        "groups": {
            "backbone": {"muon": {}, "clip_gradient_norm": 1.0},
            REPLIED: {"sgd": {"momentum": 0.5}, "weight_decay": {"constant": 0.0}},
        },
    }
    optimizer, _ = build_optimizer(Ranker(), parse_config(RecapOptimizerConfig, tree, "ranker.yaml"))
    found = {
        (type(part).__name__, group["name"], tuple(group["param_names"])): (
            group["weight_decay"],
            group["clip_gradient_norm"],
        )
        for part in optimizer.parts
        for group in part.param_groups
    }
    tower = {task: f"towers.{task.replace('.', '/')}" for task in TASKS}
    assert found == {
        ("Muon", "backbone", ("backbone.0.weight",)): (0.1, 1.0),
        ("AdamW", "backbone", ("backbone.0.bias",)): (0.0, 1.0),
        ("Adam", FAVORITED, (f"{tower[FAVORITED]}.weight",)): (0.1, None),
        ("Adam", FAVORITED, (f"{tower[FAVORITED]}.bias",)): (0.0, None),
        ("SGD", REPLIED, (f"{tower[REPLIED]}.weight", f"{tower[REPLIED]}.bias")): (0.0, None),
        ("Adam", BY_AUTHOR, (f"{tower[BY_AUTHOR]}.weight",)): (0.1, None),
        ("Adam", BY_AUTHOR, (f"{tower[BY_AUTHOR]}.bias",)): (0.0, None),
    }
    adam = next(part for part in optimizer.parts if type(part) is torch.optim.Adam)
    assert adam.defaults["betas"] == (0.95, 0.999)
    assert (optimizer.clip_gradient_norm, optimizer.average.decay) == (5.0, 0.99)  # type: ignore[union-attr]
    wrong = parse_config(RecapOptimizerConfig, TREE | {"groups": {"is_replied": {}}}, "ranker.yaml")
    with pytest.raises(ConfigError, match=f"groups: found is_replied, allowed are backbone, {FAVORITED}"):
        build_optimizer(Ranker(), wrong)


RESUME = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from test_optimizer import Ranker, advance, full_config
from tml.projects.home.recap.optimizer import build_optimizer

model = Ranker(seed=1, table=True)
optimizer, scheduler = build_optimizer(model, *full_config())
saved = torch.load(sys.argv[2], weights_only=True)
for part, state in zip((model, optimizer, scheduler), saved):
    part.load_state_dict(state)
advance(model, optimizer, [scheduler], range(13, 40))
torch.save([model.state_dict(), optimizer.state_dict(), scheduler.state_dict()], sys.argv[2])
"""


def full_config() -> tuple[RecapOptimizerConfig, OptimizerConfig]:
    """Every kind of state: Adam, Muon, AdamW, momentum, row-wise sums, averages, a decay that follows the step."""
    tree = copy.deepcopy(TREE) | {
        "weight_decay": ramp(0.1, 30),
        "clip_gradient_norm": 0.5,
        "average": {"decay": 0.9},
        "groups": {"backbone": {"muon": {}}, REPLIED: {"sgd": {"momentum": 0.5}}},
    }
    embeddings = OptimizerConfig(rowwise_adagrad={}, learning_rate=ramp(0.1, 30))
    return parse_config(RecapOptimizerConfig, tree, "ranker.yaml"), embeddings


def test_loaded_in_a_fresh_process_is_uninterrupted(tmp_path: Path) -> None:
    model = Ranker(table=True)
    optimizer, scheduler = build_optimizer(model, *full_config())
    advance(model, optimizer, [scheduler], range(13))
    path = tmp_path / "state.pt"
    torch.save([model.state_dict(), optimizer.state_dict(), scheduler.state_dict()], path)
    command = [sys.executable, "-W", "error", "-c", RESUME, str(Path(__file__).parent), str(path)]
    subprocess.run(command, check=True)
    advance(model, optimizer, [scheduler], range(13, 40))
    resumed = torch.load(path, weights_only=True)
    for name, value in model.state_dict().items():
        assert torch.equal(value, resumed[0][name]), name
    state = optimizer.state_dict()
    for name, kept in state["state"].items():
        for key, value in kept.items():
            assert torch.equal(value, resumed[1]["state"][name][key]), (name, key)
    for name, value in state["average"]["averages"].items():
        assert torch.equal(value, resumed[1]["average"]["averages"][name]), name
    assert scheduler.state_dict() == resumed[2]


def test_configs_may_be_plain_mappings() -> None:
    optimizer, _ = build_optimizer(Ranker(table=True), TREE, {"adagrad": {}, "learning_rate": 0.1})
    assert [group["name"] for group in optimizer.param_groups] == ["backbone", *TASKS, "embeddings"]
    with pytest.raises(ConfigError, match=r"optimizer_config: .*beta_3"):
        build_optimizer(Ranker(), {**TREE, "adam": {"beta_3": 1}})
    with pytest.raises(ConfigError, match=r"emb_optimizer_config: .*exactly one of adam, adamw"):
        build_optimizer(Ranker(table=True), TREE, {"learning_rate": 0.1})


def test_a_list_of_towers_is_refused() -> None:
    model = Ranker()
    model.towers = nn.ModuleList(model.towers.values())  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="towers: found a ModuleList, allowed is a ModuleDict"):
        build_optimizer(model)


def test_what_is_no_state_is_refused() -> None:
    optimizer, scheduler = build_optimizer(Ranker(), config())
    with pytest.raises(DataError, match="not a state of the optimizer: found nothing, needed is `state`"):
        optimizer.load_state_dict({})
    with pytest.raises(DataError, match="not a state of the scheduler: found state, average, needed is `step`"):
        scheduler.load_state_dict(optimizer.state_dict())


def test_no_backbone_needs_no_rate() -> None:
    model = Ranker()
    model.backbone.requires_grad_(False)
    optimizer, _ = build_optimizer(model, config(backbone_learning_rate=None))
    assert [group["name"] for group in optimizer.param_groups] == list(TASKS)


def test_default_rates_are_the_published_ones() -> None:
    optimizer, scheduler = build_optimizer(Ranker([*PUBLISHED_TOWER_RATES, "is_click"]))
    rates = {group["name"]: group["schedule"] for group in optimizer.param_groups}
    assert rates["backbone"].at(1_000) == 1e-4
    assert rates[FAVORITED].at(4_999) == 8e-4 * 4_999 / 5_000
    assert rates["recap.engagement.is_video_playback_50"].at(1_000) == 3e-3
    assert rates["is_click"].at(1_000) == 3e-4
    assert len(rates) == 12
    assert scheduler.get_last_lr() == [0.0] * 12
    single, _ = build_optimizer(nn.Linear(2, 1))
    assert [(group["name"], group["lr"]) for group in single.param_groups] == [("model", 1e-3)]


class Algorithm(Ranker):
    def __init__(self) -> None:
        super().__init__(table=True)
        self.passes = 0

    def training_batches(self) -> Iterable[torch.Tensor]:
        self.passes += 1
        return (batch(step) for step in range(6))


def test_an_algorithm_trains_itself() -> None:
    algorithm = Algorithm()
    assert isinstance(algorithm, RecommendationAlgorithm)
    other = copy.deepcopy(algorithm)
    result = build_optimizer(algorithm).train()
    assert result.step == 6
    optimizer, scheduler = build_optimizer(other)
    advance(other, optimizer, [scheduler], range(6))
    assert_equal(algorithm, other)


def test_train_takes_batches_steps_and_callbacks() -> None:
    algorithm = Algorithm()
    built = build_optimizer(algorithm, config())
    seen: list[tuple[int, Any]] = []

    def callback(state: TrainState, measured: Mapping[str, float]) -> None:
        seen.append((state.step, measured.get("train/loss")))

    result = built.train(steps=15, callbacks=[callback])
    assert algorithm.passes == 3
    assert [step for step, _ in seen] == list(range(1, 16))
    assert seen[-1][1] == result.metrics["train/loss"]
    built.train([batch(0), batch(1)])
    assert built.scheduler.state_dict()["step"] == 17
    assert build_optimizer(Ranker()).train([batch(0)] * 6, accumulate_batches=2).step == 3
    with pytest.raises(DataError, match="ended after step 1, but num_steps is 2"):
        built.train(iter([batch(0)]), steps=2)
    with pytest.raises(ConfigError, match=r"give train\(batches=...\) or Ranker a training_batches\(\) method"):
        build_optimizer(Ranker()).train()


def test_norms_of_the_last_gradient_are_measured_however_training_ends() -> None:
    by_steps = build_optimizer(Ranker(), config()).train([batch(0), batch(1)], steps=2)
    by_batches = build_optimizer(Ranker(), config()).train([batch(0), batch(1)])
    norms = {key: value for key, value in by_steps.metrics.items() if key.startswith("gradient_norm")}
    assert norms.keys() == {"gradient_norm", "gradient_norm/backbone", *(f"gradient_norm/{task}" for task in TASKS)}
    assert norms.items() <= by_batches.metrics.items()


@pytest.mark.parametrize("number", [0, -1, 2.5, True, "3"])
def test_train_refuses_what_is_no_number_of_steps(number: Any) -> None:
    built = build_optimizer(Ranker(), config())
    for name in ("steps", "accumulate_batches"):
        with pytest.raises(ConfigError, match=f"^{name}: found {number!r}, allowed is a whole number of at least 1$"):
            built.train([batch(0)], **{name: number})


def test_a_model_that_is_a_table_has_the_embeddings_rate() -> None:
    embeddings = OptimizerConfig.model_validate({"rowwise_adagrad": {}, "learning_rate": 0.5})
    optimizer, _ = build_optimizer(nn.Embedding(3, 2), emb_optimizer_config=embeddings)
    assert [(group["name"], group["lr"]) for group in optimizer.param_groups] == [("embeddings", 0.5)]


def test_wrapped_models() -> None:
    compiled: Any = torch.compile(Ranker(), backend="eager")
    optimizer, _ = build_optimizer(compiled, config())
    assert optimizer.state_dict()["state"].keys() == build_optimizer(Ranker(), config())[0].state_dict()["state"].keys()


def test_importing_does_not_touch_the_random_state() -> None:
    code = (
        "import torch; torch.manual_seed(0); before = torch.get_rng_state();"
        "from tml.projects.home.recap.optimizer.optimizer import build_optimizer;"
        "assert torch.equal(before, torch.get_rng_state())"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
