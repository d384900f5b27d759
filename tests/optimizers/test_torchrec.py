"""Embedding tables that TorchRec shards and FBGEMM updates in backward.

The reference is the model that is not sharded, with torch.optim's optimizers and rates written out: equal on one rank,
on two, and across a checkpoint that goes from one number of ranks to another.
"""

import gc
import inspect
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import distributed, nn
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from reference.ranks import run_script
from tml.core import checkpoint
from tml.core.errors import ConfigError, DataError
from tml.core.sharding import copy_into, full_state, full_tensor
from tml.core.train_state import TrainState
from tml.core.training import TrainingConfig, resume, train
from tml.optimizers.builders import build
from tml.optimizers.config import AverageConfig, OptimizerConfig
from tml.optimizers.groups import find_tables, find_towers, trainable_parameters
from tml.optimizers.in_backward import apply_in_backward
from tml.optimizers.kernels import Kernel, find_kernels
from tml.optimizers.schedules import LearningRate
from tml.projects.home.recap.optimizer import BuiltOptimizer, RecapOptimizerConfig, build_optimizer

TORCHREC_WAS_LEFT_ALONE = "torchrec" not in sys.modules
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    torchrec = pytest.importorskip("torchrec")
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
    from torchrec.distributed.model_parallel import DistributedModelParallel
    from torchrec.distributed.sharding_plan import (
        column_wise,
        construct_module_sharding_plan,
        data_parallel,
        row_wise,
        table_wise,
    )
    from torchrec.distributed.types import ShardingPlan
    from torchrec.distributed.utils import merge_fused_params, optimizer_type_to_emb_opt_type

CPU = torch.device("cpu")
RAMP = 7
RATES = {"backbone": 0.02, "a": 0.01, "b": 0.05}
TABLE_RATE = 0.05
SIZES = {"users": 11, "posts": 7, "ads": 3, "words": 13}
USERS, POSTS, ADS = (f"model.bags.embedding_bags.{name}.weight" for name in ("users", "posts", "ads"))
WORDS = "model.words.embeddings.words.weight"


class Ranker(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        bags = [
            torchrec.EmbeddingBagConfig(name=name, embedding_dim=8, num_embeddings=SIZES[name], feature_names=[name])
            for name in ("users", "posts", "ads")
        ]
        words = torchrec.EmbeddingConfig(name="words", embedding_dim=8, num_embeddings=13, feature_names=["words"])
        self.bags = torchrec.EmbeddingBagCollection(device=CPU, tables=bags)
        self.words = torchrec.EmbeddingCollection(device=CPU, tables=[words])
        self.backbone = nn.Linear(8, 8)
        self.towers = nn.ModuleDict({task: nn.Linear(8, 1) for task in ("a", "b")})

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        one_each = torch.ones_like(ids)
        keyed = torchrec.KeyedJaggedTensor.from_lengths_sync
        bags = self.bags(keyed(["users", "posts", "ads"], ids[:3].flatten(), one_each[:3].flatten()))
        words = self.words(keyed(["words"], ids[3], one_each[3]))["words"].values()
        hidden = self.backbone(bags["users"] * bags["posts"] + bags["ads"] + words).tanh()
        return torch.cat([tower(hidden) for tower in self.towers.values()], dim=1)


class Loss(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return (self.model(batch["ids"]) - batch["labels"]).square().mean()


def plain() -> nn.Module:
    torch.manual_seed(0)
    return Loss(Ranker())


def batch(step: int, rank: int = 0, ranks: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    ids = torch.stack([torch.randint(rows, (16,), generator=generator) for rows in SIZES.values()])
    labels = torch.randn(16, 2, generator=generator)
    return {"ids": ids[:, rank::ranks].contiguous(), "labels": labels[rank::ranks]}


def ramp(rate: float) -> dict[str, Any]:
    return {"linear_ramp_to_constant": {"learning_rate": rate, "num_ramp_steps": RAMP}}


def tables_config(algorithm: str, rate: float = TABLE_RATE, **settings: Any) -> OptimizerConfig:
    return OptimizerConfig.model_validate({algorithm: settings, "learning_rate": ramp(rate)})


CONFIG = RecapOptimizerConfig.model_validate(
    {
        "multi_task_learning_rates": {
            "backbone_learning_rate": ramp(RATES["backbone"]),
            "tower_learning_rates": {task: ramp(RATES[task]) for task in ("a", "b")},
        }
    }
)


def cuts(ranks: int = 1) -> dict[str, Any]:
    """Two tables cut by rows, of which one has fewer rows than fit evenly, and two whole ones on different ranks."""
    return {
        "users": row_wise(),
        "posts": table_wise(rank=ranks - 1),
        "ads": row_wise(),
        "words": table_wise(rank=0),
    }


def shard(model: nn.Module, by_table: Mapping[str, Any], ranks: int = 1) -> nn.Module:
    """The model in DistributedModelParallel, with the weights that it had."""
    ranker = model.model
    weights = model.state_dict()
    places = {"local_size": ranks, "world_size": ranks, "device_type": "cpu"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = {
            f"model.{name}": construct_module_sharding_plan(
                module, {table: by_table[table] for table in tables}, **places
            )
            for name, module, tables in (
                ("bags", ranker.bags, ("users", "posts", "ads")),
                ("words", ranker.words, ("words",)),
            )
        }
        wrapped = DistributedModelParallel(model, device=CPU, plan=ShardingPlan(plan))
    wrapped.load_state_dict(weights)
    return wrapped


def declared(algorithm: str, ranks: int = 1, **settings: Any) -> tuple[nn.Module, BuiltOptimizer]:
    model, config = plain(), tables_config(algorithm, **settings)
    apply_in_backward(model, config)
    wrapped = shard(model, cuts(ranks), ranks)
    return wrapped, build_optimizer(wrapped, CONFIG, config)


def advance(model: nn.Module, built: BuiltOptimizer, steps: range) -> None:
    for step in steps:
        loss = model(batch(step))
        built.optimizer.zero_grad()
        loss.backward()
        built.optimizer.step()
        built.scheduler.step()


class RowwiseAdagrad(torch.optim.Optimizer):
    """As it is written: the mean square of a row's gradient adds up, and its root divides the row's rate."""

    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for table in group["params"]:
                sums = self.state[table].setdefault("sum", torch.zeros(len(table)))
                sums += table.grad.square().mean(dim=1)
                table.data -= group["lr"] * table.grad / (sums.sqrt() + 1e-10)[:, None]


def reference(algorithm: str, steps: int) -> tuple[dict[str, torch.Tensor], torch.optim.Optimizer]:
    """The weights of the model that is not sharded after these steps, and the optimizer of its tables."""
    model = plain()
    named = dict(model.named_parameters())
    tables = [named.pop(name) for name in (USERS, POSTS, ADS, WORDS)]
    makers: dict[str, Any] = {
        "sgd": torch.optim.SGD,
        "adagrad": torch.optim.Adagrad,
        "rowwise_adagrad": lambda tables, lr: RowwiseAdagrad(tables, {"lr": lr}),
    }
    of_tables = makers[algorithm](tables, lr=TABLE_RATE)
    groups = {"backbone": "model.backbone", "a": "model.towers.a", "b": "model.towers.b"}
    dense = [
        {"params": [p for n, p in named.items() if n.startswith(path)], "lr": RATES[g]} for g, path in groups.items()
    ]
    optimizers = [torch.optim.Adam(dense, eps=1e-7), of_tables]
    full = [(group, group["lr"]) for optimizer in optimizers for group in optimizer.param_groups]
    for step in range(steps):
        for group, rate in full:
            group["lr"] = rate * min(step / RAMP, 1)
        model.zero_grad()
        model(batch(step)).backward()
        for optimizer in optimizers:
            optimizer.step()
    return model.state_dict(), of_tables


def assert_near(weights: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(
            weight, expected[name], rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in full_state(model.state_dict()).items()}


@pytest.fixture(scope="module", autouse=True)
def _process_group() -> Iterator[None]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("algorithm", ["sgd", "adagrad", "rowwise_adagrad"])
def test_one_rank_learns_as_the_model_that_is_not_sharded(algorithm: str) -> None:
    model, built = declared(algorithm)
    advance(model, built, range(20))
    expected, of_tables = reference(algorithm, 20)
    assert_near(weights_of(model), expected)
    state = built.optimizer.state_dict()["state"]
    for name, table in zip((USERS, POSTS, ADS, WORDS), of_tables.param_groups[0]["params"], strict=True):
        for key, value in of_tables.state[table].items():
            torch.testing.assert_close(state[name][key], value)


def test_the_rate_of_a_step_is_its_schedules_at_the_number_of_finished_steps() -> None:
    model, built = declared("adagrad")
    kernel = find_kernels(model)[USERS].module
    seen: list[tuple[float, int]] = []

    def note(kernel: Any, _inputs: Any, _outputs: Any) -> None:
        seen.append((kernel.get_learning_rate(), int(kernel.iter_cpu)))

    kernel.register_forward_hook(note)
    start = weights_of(model)
    advance(model, built, range(1))
    tables = (USERS, POSTS, ADS, WORDS)
    assert all(torch.equal(weights_of(model)[name], start[name]) for name in tables)  # the ramp begins at 0
    advance(model, built, range(1, 5))
    with torch.no_grad():  # an evaluation is no step
        model(batch(5))
        model(batch(6))
    advance(model, built, range(5, 10))
    steps = [0, 1, 2, 3, 4, 5, 5, 5, 6, 7, 8, 9]
    assert [step for _, step in seen] == steps
    assert [rate for rate, _ in seen] == pytest.approx([TABLE_RATE * min(step / RAMP, 1) for step in steps])


def compiled(module: nn.Module) -> nn.Module:
    wrapped: nn.Module = torch.compile(module, backend="eager")  # type: ignore[assignment]
    return wrapped


def test_paths_are_those_of_the_bare_model() -> None:
    bare = plain()
    names, towers, tables = list(trainable_parameters(bare).values()), find_towers(bare), list(find_tables(bare))
    assert tables == [name.removesuffix(".weight") for name in (USERS, POSTS, ADS, WORDS)]
    model = plain()
    apply_in_backward(model, tables_config("sgd"))
    model.model.backbone = compiled(model.model.backbone)
    model.model.towers["a"] = compiled(model.model.towers["a"])
    config = tables_config("sgd")
    inside = shard(model, cuts())
    other, _ = declared("sgd")
    for wrapped in (inside, compiled(other), shard(plain(), dict.fromkeys(SIZES, data_parallel()))):
        assert list(trainable_parameters(wrapped).values()) == names
        assert find_towers(wrapped) == towers
        assert list(find_tables(wrapped)) == tables
    outside = Loss(inside)
    assert find_towers(outside) == {task: f"model.{path}" for task, path in towers.items()}
    assert list(find_tables(outside)) == [f"model.{path}" for path in tables]
    built = build_optimizer(outside, CONFIG, config)
    assert built.optimizer.param_groups[-1]["param_names"] == [f"model.{path}.weight" for path in tables]


def test_the_table_of_groups_has_the_whole_tables() -> None:
    _, built = declared("rowwise_adagrad")
    console = Console(width=140)
    with console.capture() as capture:
        console.print(built.optimizer)
    (line,) = [line for line in capture.get().splitlines() if "embeddings" in line]
    size = str(8 * sum(SIZES.values()))
    assert re.split(r"\s{2,}", line.strip()) == ["embeddings", size, "4", "RowWiseAdagrad (in backward)", "0", "C"]


def test_tables_of_other_rates_and_algorithms_have_groups_of_their_own() -> None:
    model = plain()
    configs = {
        "model.bags.embedding_bags.users": tables_config("sgd", 0.1),
        "model.bags.embedding_bags.posts": tables_config("sgd", 0.2),
        "model.bags.embedding_bags.ads": tables_config("adagrad", 0.3),
        "model.words": tables_config("adagrad", 0.4),
        "rest": tables_config("adam", 0.001),
    }
    modules = {name: name for name in configs if name != "rest"}
    for path in modules:
        apply_in_backward(model, configs[path], [path])
    wrapped = shard(model, dict.fromkeys(SIZES, table_wise(rank=0)))
    optimizer, scheduler = build(wrapped, configs, modules, rest="rest")
    assert [[group["name"].rpartition(".")[2] for group in part.param_groups] for part in optimizer.parts] == [
        ["rest"],
        ["users", "posts"],
        ["ads", "words"],
    ]
    for _ in range(RAMP):
        optimizer.step()
        scheduler.step()
    wrapped(batch(0))
    rates = [find_kernels(wrapped)[name].module.get_learning_rate() for name in (USERS, POSTS, ADS, WORDS)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_tables_that_are_not_updated_in_backward_have_an_ordinary_optimizer() -> None:
    model = plain()
    apply_in_backward(model, tables_config("adagrad"))
    wrapped = shard(model, cuts() | {"posts": data_parallel()})
    built = build_optimizer(wrapped, CONFIG, tables_config("adagrad"))
    assert [group["param_names"] for group in built.optimizer.param_groups if group["name"] == "embeddings"] == [
        [POSTS],
        [USERS, ADS, WORDS],
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # FBGEMM's dense kernel is not registered with autograd
        advance(wrapped, built, range(10))
    assert_near(weights_of(wrapped), reference("adagrad", 10)[0])


def test_a_state_goes_to_the_model_that_is_not_sharded_and_back() -> None:
    config = tables_config("adagrad")
    model, built = declared("adagrad")
    advance(model, built, range(6))
    bare = plain()
    other = build_optimizer(bare, CONFIG, config)
    bare.load_state_dict(full_state(model.state_dict()))
    other.optimizer.load_state_dict(built.optimizer.state_dict())
    other.scheduler.load_state_dict(built.scheduler.state_dict())
    advance(bare, other, range(6, 12))
    last, last_built = declared("adagrad")
    last.load_state_dict(bare.state_dict())
    last_built.optimizer.load_state_dict(other.optimizer.state_dict())
    last_built.scheduler.load_state_dict(other.scheduler.state_dict())
    advance(last, last_built, range(12, 18))
    assert_near(weights_of(last), reference("adagrad", 18)[0])
    # A state of before the first step starts anew.
    fresh = {"state": {name: {} for name in last_built.optimizer.state_dict()["state"]}}
    last_built.optimizer.load_state_dict(fresh)
    state = last_built.optimizer.state_dict()["state"][USERS]
    assert not state["sum"].any()
    assert state["step"] == 0


def test_a_state_of_another_algorithm_or_shape_is_refused() -> None:
    _, built = declared("adagrad")
    state = built.optimizer.state_dict()
    state["state"][USERS] = {"exp_avg": torch.zeros(11, 8), "step": torch.tensor(1.0)}
    with pytest.raises(DataError, match=rf"state of {re.escape(USERS)}: found exp_avg, needed is sum"):
        built.optimizer.load_state_dict(state)
    state["state"][USERS] = {"sum": torch.zeros(12, 8), "step": torch.tensor(1.0)}
    with pytest.raises(DataError, match=r"state sum of .*users.weight: found shape \(12, 8\), needed is \(11, 8\)"):
        built.optimizer.load_state_dict(state)


def test_an_optimizer_that_does_not_fit_the_kernels_is_refused() -> None:
    model = plain()
    apply_in_backward(model, tables_config("adagrad", epsilon=1e-6))
    with pytest.raises(ConfigError, match=rf"{re.escape(USERS)}.* declared to be updated in backward but not sharded"):
        build_optimizer(model, CONFIG, tables_config("adagrad", epsilon=1e-6))
    wrapped = shard(model, dict.fromkeys(SIZES, table_wise(rank=0)))
    with pytest.raises(ConfigError, match=rf"the tables {re.escape(USERS)}, .*give emb_optimizer_config"):
        build_optimizer(wrapped, CONFIG)
    with pytest.raises(
        ConfigError, match=r"users.weight: its kernel has AdagradConfig\(.*, but its config SgdConfig\("
    ):
        build_optimizer(wrapped, CONFIG, tables_config("sgd"))
    with pytest.raises(ConfigError, match=r"its kernel has .*epsilon=1e-06\), but its config .*epsilon=1e-10\)"):
        build_optimizer(wrapped, CONFIG, tables_config("adagrad"))
    rates = {"model.bags": tables_config("adagrad", 0.1), "model": tables_config("adagrad", 0.2)}
    with pytest.raises(ConfigError, match=rf"no learning rate for the parameters {re.escape(WORDS)}, only for"):
        build(
            wrapped,
            {"bags": rates["model.bags"]},
            {"model.bags": "bags", "model.backbone": "bags", "model.towers": "bags"},
        )
    posts = {"model.bags.embedding_bags.posts": tables_config("adagrad", 0.3, epsilon=1e-6)}
    same = {"model": tables_config("adagrad", 0.2, epsilon=1e-6), **posts}
    with pytest.raises(ConfigError, match=r"users.weight and .*posts.weight: found two learning rates for one kernel"):
        build(wrapped, same)


def test_pieces_that_cannot_be_trained_right_are_refused() -> None:
    model = plain()
    apply_in_backward(model, tables_config("rowwise_adagrad"))
    wrapped = shard(model, cuts() | {"users": column_wise(ranks=[0, 0])})
    with pytest.raises(ConfigError, match=rf"{re.escape(USERS)}: cut by columns, but rowwise_adagrad"):
        build_optimizer(wrapped, CONFIG, tables_config("rowwise_adagrad"))
    wrapped = shard(plain(), cuts())
    with pytest.raises(ConfigError, match=r"posts.weight, .* are sharded with TorchRec's dense kernel"):
        build_optimizer(wrapped, CONFIG, tables_config("adagrad"))


def test_columns_on_one_rank_learn_as_the_table() -> None:
    model = plain()
    apply_in_backward(model, tables_config("adagrad"))
    wrapped = shard(model, dict.fromkeys(SIZES, column_wise(ranks=[0, 0])))
    built = build_optimizer(wrapped, CONFIG, tables_config("adagrad"))
    advance(wrapped, built, range(10))
    assert_near(weights_of(wrapped), reference("adagrad", 10)[0])


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [("sgd", {"momentum": 0.9}), ("adagrad", {"initial_accumulator_value": 0.1})],
)
def test_algorithms_without_a_kernel_are_refused(algorithm: str, settings: dict[str, float]) -> None:
    with pytest.raises(
        ConfigError, match=rf"{algorithm.title()}Config\(.*allowed in backward are sgd without momentum"
    ):
        apply_in_backward(plain(), tables_config(algorithm, **settings))


def test_declarations_that_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tables_config("sgd")
    with pytest.raises(ConfigError, match="no tables in an EmbeddingBagCollection"):
        apply_in_backward(nn.Embedding(3, 4), config)
    model = plain()
    with pytest.raises(ConfigError, match=r"found model\.bag, which has none of the model's tables model\.bags"):
        apply_in_backward(model, config, ["model.bags", "model.bag"])
    model.model.words.requires_grad_(False)
    with pytest.raises(ConfigError, match=rf"{re.escape(WORDS)}: frozen"):
        apply_in_backward(model, config)
    apply_in_backward(model, config, ["model.bags"])
    with pytest.raises(ConfigError, match=rf"{re.escape(USERS)}: declared twice"):
        apply_in_backward(model, config, ["model.bags.embedding_bags.users"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"AdamConfig\(.*allowed in backward are .* and on CUDA adam"):
        apply_in_backward(plain(), tables_config("adam"))
    monkeypatch.setitem(sys.modules, "torchrec.modules.embedding_modules", None)
    with pytest.raises(ConfigError, match=r"need torchrec, which is not installed: pip install .* --no-deps torchrec"):
        apply_in_backward(plain(), config)


def test_adam_is_declared_in_the_words_of_its_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernel is for CUDA alone, so here only what it is told and what it is understood to say are compared."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = tables_config("adam", beta_1=0.8, beta_2=0.99, epsilon=1e-5)
    model = plain()
    apply_in_backward(model, config)
    weight = model.get_parameter(WORDS)
    assert optimizer_type_to_emb_opt_type(weight._optimizer_classes[0]) is EmbOptimType.ADAM
    told = merge_fused_params(None, dict(weight._optimizer_kwargs[0]))
    assert told.pop("_batch_key")
    assert told.keys() <= inspect.signature(SplitTableBatchedEmbeddingBagsCodegen).parameters.keys()
    kernel = SimpleNamespace(optimizer=EmbOptimType.ADAM, optimizer_args=SimpleNamespace(**told, weight_decay=0.0))
    assert Kernel(kernel, (WORDS,), {}).algorithm == config.algorithm


def test_an_optimizer_that_is_gone_leaves_the_kernels_alone() -> None:
    model, built = declared("sgd")
    advance(model, built, range(3))
    del built
    gc.collect()
    other = build_optimizer(model, CONFIG, tables_config("sgd"))
    advance(model, other, range(1))  # at rate 0
    assert find_kernels(model)[USERS].module.get_learning_rate() == 0


STEPS, MORE = 6, 12
ALGORITHMS = ("adagrad", "rowwise_adagrad")


def train_to(step: int, algorithm: str, source: Path, target: Path, rank: int = 0, ranks: int = 1) -> None:
    """Resume from `source`, train to `step`, and leave the checkpoint in `target`, which the first rank writes."""
    model, built = declared(algorithm, ranks)
    batches = [batch(number, rank, ranks) for number in range(MORE)]
    state = TrainState(model, built.optimizer, built.scheduler, batches)
    resume(state, source)
    train(state, TrainingConfig(num_steps=step), target if rank == 0 else None)


def work(folder: Path, rank: int) -> None:
    assert TORCHREC_WAS_LEFT_ALONE  # by all of tml that is imported above
    torch.set_num_threads(1)
    store = distributed.FileStore(str(folder / "store"), 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    for algorithm in ALGORITHMS:
        train_to(STEPS, algorithm, folder / "nowhere", folder / algorithm / "two", rank, 2)
        train_to(MORE, algorithm, folder / algorithm / "one", folder / algorithm / "one then two", rank, 2)
    refused_on_every_rank()
    pieces_make_a_whole(rank)
    distributed.barrier()
    distributed.destroy_process_group()


def refused_on_every_rank() -> None:
    model = plain()
    apply_in_backward(model, tables_config("sgd"))
    wrapped = shard(model, dict.fromkeys(SIZES, table_wise(rank=1)), 2)
    with pytest.raises(ConfigError, match=r"users.weight: its kernel has SgdConfig"):
        build_optimizer(wrapped, CONFIG, tables_config("adagrad"))


def pieces_make_a_whole(rank: int) -> None:
    mesh = distributed.init_device_mesh("cpu", (2,))
    whole = torch.arange(15.0).reshape(5, 3)
    for placement in (Shard(0), Shard(1), Replicate()):
        tensor = distribute_tensor(torch.zeros(5, 3), mesh, [placement])
        copy_into(tensor, whole)
        gathered = full_tensor(tensor)
        assert torch.equal(gathered, whole) if rank == 0 else gathered is None
    with pytest.raises(ValueError, match=r"found shape \(3, 5\), needed is \(5, 3\)"):
        copy_into(tensor, whole.T)


def test_checkpoints_fit_any_number_of_ranks(tmp_path: Path) -> None:
    for algorithm in ALGORITHMS:
        train_to(STEPS, algorithm, tmp_path / "nowhere", tmp_path / algorithm / "one")
    run_script(__file__, tmp_path)
    for algorithm in ALGORITHMS:
        folder = tmp_path / algorithm
        states = [checkpoint.load(checkpoint.latest(folder / name / "checkpoints")) for name in ("one", "two")]
        assert states[0]["optimizer"]["state"].keys() == states[1]["optimizer"]["state"].keys()
        for name, state in states[0]["optimizer"]["state"].items():
            torch.testing.assert_close(states[1]["optimizer"]["state"][name], state, rtol=1e-5, atol=1e-7)
        assert_near(states[1]["model"], reference(algorithm, STEPS)[0])
        train_to(MORE, algorithm, folder / "two", folder / "two then one")
        expected, _ = reference(algorithm, MORE)
        for name in ("one then two", "two then one"):
            path = checkpoint.latest(folder / name / "checkpoints")
            assert path is not None
            assert checkpoint.step_of(path) == MORE
            assert_near(checkpoint.load(path)["model"], expected)


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]))


def test_what_a_gradient_that_is_never_there_cannot_have_is_refused() -> None:
    wrapped, built = declared("rowwise_adagrad")
    decayed = tables_config("rowwise_adagrad").model_copy(
        update={"weight_decay": LearningRate(constant=0.1), "no_weight_decay": ()}
    )
    with pytest.raises(
        ConfigError, match=r"weight_decay of embeddings: found .*users\.weight, a table updated in back"
    ):
        build_optimizer(wrapped, CONFIG, decayed)
    clipped = tables_config("rowwise_adagrad").model_copy(update={"clip_gradient_norm": 1.0})
    with pytest.raises(ConfigError, match=r"clip_gradient_norm of embeddings: found .*users\.weight, a table updated"):
        build_optimizer(wrapped, CONFIG, clipped)
    with pytest.raises(ConfigError, match="accumulate_batches: found 2, allowed is 1 where tables are updated in"):
        built.train([batch(0), batch(1)], accumulate_batches=2)
    averaged = CONFIG.model_copy(update={"average": AverageConfig()})
    optimizer, _ = build_optimizer(wrapped, averaged, tables_config("rowwise_adagrad"))
    assert optimizer.average is not None
    assert {name.split(".")[1] for name in optimizer.average.tensors} == {"backbone", "towers"}
