"""The general builder: several algorithms and sparse tables under one state, equal to torch.optim's own."""

import copy
import pickle
import re
from typing import Any

import pytest
import torch
from torch import nn

from tml.core.config import parse_config
from tml.core.errors import ConfigError, DataError
from tml.optimizers.builders import build
from tml.optimizers.config import AverageConfig, GroupConfig, OptimizerConfig
from tml.optimizers.grouped import GroupedOptimizer
from tml.optimizers.rowwise_adagrad import RowwiseAdagrad
from tml.optimizers.schedules import LearningRate


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
        torch.testing.assert_close(parameter, other.get_parameter(name), rtol=1e-6, atol=1e-7, msg=name)


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


def test_state_of_a_tied_weight_goes_into_a_model_of_another_order() -> None:
    def tied(names: tuple[str, str]) -> nn.ModuleDict:
        layer = nn.Linear(3, 3)
        other = nn.Linear(3, 3, bias=False)
        other.weight = layer.weight
        made = {"first": layer, "second": other}
        return nn.ModuleDict({name: made[name] for name in names})

    model, reverse = tied(("first", "second")), tied(("second", "first"))
    average = AverageConfig()
    optimizer, _ = build(model, {"all": config("adam")}, {}, "all", average=average)
    model["second"](model["first"](torch.ones(2, 3))).sum().backward()
    optimizer.step()
    other, _ = build(reverse, {"all": config("adam")}, {}, "all", average=average)
    other.load_state_dict(optimizer.state_dict())
    moments = [o.state[m["first"].weight]["exp_avg"] for o, m in ((optimizer, model), (other, reverse))]
    assert torch.equal(*moments)


@pytest.mark.parametrize(
    ("of", "into", "message"),
    [
        ("sgd", "adam", r"of weight: found momentum_buffer, but Adam needs exp_avg, exp_avg_sq, step"),
        ("adagrad", "adamw", r"of weight: found step, sum, but AdamW needs exp_avg, exp_avg_sq, step"),
        ("adam", "muon", r"of weight: found exp_avg, exp_avg_sq, step, but Muon needs momentum_buffer"),
        ("adagrad", "rowwise_adagrad", r"of weight: found step, sum, but RowwiseAdagrad needs sum"),
    ],
)
def test_state_of_another_algorithm_is_refused(of: str, into: str, message: str) -> None:
    model = nn.Linear(3, 3, bias=False)
    settings = {"momentum": 0.9} if of == "sgd" else {}
    optimizer, _ = build(model, {"all": config(of, **settings)}, {}, "all")
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    other, _ = build(model, {"all": config(into)}, {}, "all")
    with pytest.raises(DataError, match=message):
        other.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_goes_on_by_itself(clone: Any) -> None:
    model, optimizer, scheduler = make()
    run(model, optimizer, scheduler, range(4))
    other, other_optimizer, other_scheduler = clone((model, optimizer, scheduler))
    before = copy.deepcopy(model.state_dict())
    run(other, other_optimizer, other_scheduler, range(4, 9))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    run(model, optimizer, scheduler, range(4, 9))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, other.get_parameter(name)), name


def test_groups_cannot_be_added_later() -> None:
    _, optimizer, _ = make()
    with pytest.raises(ConfigError, match="add_param_group: groups are those of the config"):
        optimizer.add_param_group({"params": [("more", nn.Parameter(torch.zeros(1)))], "lr": 0.1})


def test_a_loaded_state_is_a_copy() -> None:
    model, optimizer, scheduler = make()
    run(model, optimizer, scheduler, range(1))
    saved = optimizer.state_dict()
    _, other, _ = make()
    other.load_state_dict(saved)
    for name, parameter, _, _ in other._named():
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


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_a_lazy_module_is_refused_until_it_has_seen_a_batch() -> None:
    model = nn.Sequential(nn.LazyLinear(2))
    with pytest.raises(ConfigError, match=r"the parameters 0\.weight, 0\.bias have no shape yet: run a batch"):
        build(model, {"all": config("adamw")}, {}, "all")
    model(torch.zeros(1, 3))
    build(model, {"all": config("adamw")}, {}, "all")


def test_the_table_shows_every_group() -> None:
    from rich.console import Console

    _, optimizer, _ = make()
    console = Console(width=120)
    with console.capture() as capture:
        console.print(optimizer.table())
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


def test_the_table_keeps_long_names_apart_in_a_narrow_terminal() -> None:
    from rich.console import Console

    names = [f"recap/engagement/is_profile_clicked_and_number_[{number}]" for number in range(60)]
    model = nn.ModuleDict({name: nn.Linear(1, 1) for name in names})
    rates = {
        name: {"linear_ramp_to_constant": {"learning_rate": 0.1, "num_ramp_steps": steps}}
        for steps, name in enumerate(names, start=1)
    }
    optimizer, _ = build(model, {n: OptimizerConfig(adam={}, learning_rate=rate) for n, rate in rates.items()})
    console = Console(width=80)
    with console.capture() as capture:
        console.print(optimizer.table())
    lines = capture.get().splitlines()
    column = "".join(line[2:24].strip() for line in lines if not re.match(r"[A-Z]+: ", line))
    assert all(name in column for name in names)
    letters = [line.partition(":")[0] for line in lines if re.match(r"[A-Z]+: ramp", line)]
    assert letters[:2] == ["A", "B"]
    assert letters[25:28] == ["Z", "AA", "AB"]
    assert letters[51:54] == ["AZ", "BA", "BB"]


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(6, 4)
        self.hidden = nn.Linear(4, 5)
        self.out = nn.Linear(5, 1)

    def forward(self, seed: int) -> torch.Tensor:
        rows = torch.randint(6, (9,), generator=torch.Generator().manual_seed(seed))
        return (self.out(self.hidden(self.table(rows)).tanh()) - 1).square().mean()


ADAM: dict[str, Any] = {"lr": 0.05, "betas": (0.8, 0.99), "eps": 1e-6, "fused": True}
OWN_ADAM = {"beta_1": 0.8, "beta_2": 0.99, "epsilon": 1e-6}


@pytest.mark.parametrize(
    ("algorithm", "settings", "reference"),
    [
        ("adam", OWN_ADAM, lambda p: torch.optim.Adam(p, **ADAM, weight_decay=0.1)),
        ("adamw", OWN_ADAM, lambda p: torch.optim.AdamW(p, **ADAM, weight_decay=0.1)),
        ("sgd", {}, lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=0.1, fused=True)),
        (
            "sgd",
            {"momentum": 0.9, "nesterov": True},
            lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1, fused=True),
        ),
        (
            "adagrad",
            {"initial_accumulator_value": 0.1},
            lambda p: torch.optim.Adagrad(p, lr=0.05, initial_accumulator_value=0.1, weight_decay=0.1, fused=True),
        ),
    ],
)
def test_every_algorithm_is_torchs(algorithm: str, settings: dict[str, Any], reference: Any) -> None:
    model = Dense()
    other = copy.deepcopy(model)
    decayed = config(algorithm, **settings).model_copy(
        update={"weight_decay": LearningRate(constant=0.1), "no_weight_decay": ()}
    )
    optimizer, scheduler = build(model, {"all": decayed}, {}, "all")
    torchs = reference(other.parameters())
    for seed in range(50):
        for one, its in ((model, optimizer), (other, torchs)):
            its.zero_grad()
            one(seed).backward()
            its.step()
        scheduler.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, other.get_parameter(name)), name


def test_muon_has_the_matrices_and_adamw_the_rest() -> None:
    model = Dense()
    other = copy.deepcopy(model)
    optimizer, scheduler = build(
        model,
        {"backbone": config("muon", 0.02, others=OWN_ADAM), "table": config("rowwise_adagrad", 0.1)},
        {"table": "table"},
        "backbone",
    )
    named = {type(part).__name__: part.param_groups[0]["param_names"] for part in optimizer.parts}
    assert named == {
        "Muon": ["hidden.weight"],
        "AdamW": ["hidden.bias", "out.weight", "out.bias"],
        "RowwiseAdagrad": ["table.weight"],
    }
    rest = [other.hidden.bias, other.out.weight, other.out.bias]
    parts = [
        torch.optim.Muon([other.hidden.weight], lr=0.02, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, **{**ADAM, "lr": 0.02}, weight_decay=0.0),
        RowwiseAdagrad([other.table.weight], lr=0.1),
    ]
    run(model, optimizer, scheduler, range(20))  # type: ignore[arg-type]
    for seed in range(20):
        other.zero_grad()
        other(seed).backward()
        for part in parts:
            part.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, other.get_parameter(name)), name
    state = optimizer.state_dict()["state"]
    assert {name: sorted(kept) for name, kept in state.items()} == {
        "hidden.weight": ["momentum_buffer"],
        **{name: ["exp_avg", "exp_avg_sq", "step"] for name in ("hidden.bias", "out.weight", "out.bias")},
        "table.weight": ["sum"],
    }
    assert state["table.weight"]["sum"].shape == (6,)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    state["table.weight"]["sum"] = torch.zeros(6, 4)
    with pytest.raises(DataError, match=r"sum of table\.weight: found shape \(6, 4\), needed is \(6,\)"):
        optimizer.load_state_dict({"state": state})


def test_an_algorithm_that_a_parameter_cannot_have_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"rowwise_adagrad of all: found hidden\.bias of shape \(5,\)"):
        build(Dense(), {"all": config("rowwise_adagrad")}, {}, "all")
    with pytest.raises(ConfigError, match=r"muon of tables: found tables\.users\.weight, a table with sparse"):
        build(Graph(), {"tables": config("muon"), "translations": config("muon")})
    with pytest.raises(ConfigError, match=r"nesterov: found true without momentum"):
        parse_config(OptimizerConfig, {"sgd": {"nesterov": True}, "learning_rate": {"constant": 1}}, "a.yaml")
    with pytest.raises(ConfigError, match=r"exactly one of adam, adamw, .* found none of them"):
        parse_config(OptimizerConfig, {"learning_rate": {"constant": 1}}, "a.yaml")
    with pytest.raises(ConfigError, match=r"at most one of adam, adamw, .* found adam and sgd"):
        parse_config(OptimizerConfig, {"adam": {}, "sgd": {}, "learning_rate": {"constant": 1}}, "a.yaml")


def test_a_state_of_other_schedules_is_taken_with_a_warning() -> None:
    model, optimizer, scheduler = make()
    run(model, optimizer, scheduler, range(3))
    state = scheduler.state_dict()
    scheduler.load_state_dict(state)
    _, _, other = make()
    state["schedules"]["translations"] = '{"constant":0.5}'
    with pytest.warns(UserWarning, match=r'translations: \{"constant":0.5\}, now \{"constant":0.02\}'):
        other.load_state_dict(state)
    assert other.state_dict()["step"] == 3
    model = nn.Linear(2, 2)
    decays = [{"polynomial": {"learning_rate": decay, "final_num_steps": 9}} for decay in (0.1, 0.2)]
    before, after = (
        build(model, {"all": config("adamw").but(GroupConfig(weight_decay=d))}, {}, "all")[1] for d in decays
    )
    with pytest.warns(UserWarning, match=r"weight decay of all: .*0\.1.*, now .*0\.2"):
        after.load_state_dict(before.state_dict())
