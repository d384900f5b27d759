"""The whole model: its size, its tasks by name, its loss, its start."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tml.core.config import load_config, parse_config
from tml.core.errors import ConfigError, DataError
from tml.projects.home.recap.config import (
    AffineMapConfig,
    DropoutConfig,
    InputShapes,
    MaskBlockConfig,
    MaskNetConfig,
    MlpConfig,
    ModelConfig,
    NetworkConfig,
    TaskConfig,
    TaskWeightingConfig,
)
from tml.projects.home.recap.mask_net import MaskNet
from tml.projects.home.recap.model import NEVER, HeavyRanker, RankerLoss, tower_key
from tml.projects.home.recap.published_config import PublishedConfig

TASKS = (
    "recap.engagement.is_replied",
    "recap.engagement.is_replied_reply_engaged_by_author",
    "recap.engagement.is_favorited",
)
SHAPES = InputShapes(continuous=6, binary=2, discrete=(5,), embeddings={"user_embedding": 4}, tasks=TASKS)
SMALL = ModelConfig(
    backbone=NetworkConfig(
        mask_net_config=MaskNetConfig(
            mask_blocks=(MaskBlockConfig(output_size=6, aggregation_size=5),) * 2,
            mlp=MlpConfig(layer_sizes=(8,), final_activation=True),
        )
    )
)


def make(config: ModelConfig = SMALL, shapes: InputShapes = SHAPES, seed: int = 0) -> HeavyRanker:
    return HeavyRanker(config, shapes, torch.Generator().manual_seed(seed))


def make_batch(rows: int = 32, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    batch = {
        "continuous": torch.randn(rows, 6, generator=generator) * 10,
        "binary": torch.ones(rows, 2),
        "discrete": torch.randint(0, 5, (rows, 1), generator=generator),
        "user_embedding": torch.randn(rows, 4, generator=generator),
    }
    return batch | {task: (torch.rand(rows, generator=generator) < 0.3).float() for task in TASKS}


EXAMPLE = Path(__file__).parents[3] / "examples" / "published.yaml"


def test_the_published_configuration_has_48_million_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TML_DATA", "data")
    monkeypatch.setenv("TML_RUNS", "runs")
    config = load_config(PublishedConfig, EXAMPLE).model
    assert config.tasks is not None
    shapes = InputShapes(
        continuous=2117,
        binary=59,
        embeddings={"user_embedding": 200, "user_eng_embedding": 200, "author_embedding": 200},
        tasks=tuple(config.tasks),
    )
    with torch.device("meta"):
        model = HeavyRanker(config, shapes)

    width = 2117 + 59 + 3 * 200
    featurization = 2 * 2117 + 2 * (2117 + 59) + 3 * 2 * 200
    mask = width * 1024 + 1024 + 1024 * width + width
    block = mask + width * 1024 + 2 * 1024
    backbone = 4 * block + 4 * 1024 * 2048 + 2048
    tower = 2048 * 256 + 256 + 256 * 128 + 128 + 128 * 1 + 1
    expected = featurization + backbone + 10 * tower
    assert sum(parameter.numel() for parameter in model.parameters()) == expected == 48_111_012
    rates = {
        task: [m.p for m in model.towers[tower_key(task)].modules() if isinstance(m, torch.nn.Dropout)]
        for task in config.tasks
    }
    assert rates.pop("recap.engagement.is_negative_feedback_v2") == [0.1, 0.1]
    assert rates.pop("recap.engagement.is_report_tweet_clicked") == [0.2, 0.2]
    assert not any(rates.values())


def test_logits_are_the_towers_of_the_backbone_of_the_features() -> None:
    model, batch = make().eval(), make_batch()
    shared = model.backbone(model.featurization(batch))
    for column, task in enumerate(model.tasks):
        tower = model.towers[task.replace(".", "/")]
        torch.testing.assert_close(model(batch)[:, column], tower(shared)[:, 0])


def test_labels_are_found_by_name_whatever_the_order_of_the_data() -> None:
    """The published towers each trained on another task's label (FACTS 5.1)."""
    batch = make_batch()
    more = {"recap.engagement.is_bookmarked": torch.ones(32)}
    permuted = dict(reversed([*batch.items(), *more.items()]))
    loss, outputs = RankerLoss(make())(batch)
    other_loss, other_outputs = RankerLoss(make())(permuted)
    assert torch.equal(loss, other_loss)
    assert outputs["losses"] == other_outputs["losses"]


def test_the_order_of_tasks_in_the_dataset_changes_no_task() -> None:
    tower = TaskConfig(mlp_config=MlpConfig(layer_sizes=(4, 1)))
    config = SMALL.model_copy(update={"tasks": dict.fromkeys(TASKS, tower)})
    reordered = SHAPES.model_copy(update={"tasks": TASKS[::-1]})
    batch = make_batch()
    one, two = make(config).eval(), make(config, reordered).eval()
    for task, probability in one.probabilities(batch).items():
        assert torch.equal(probability, two.probabilities(batch)[task])


@pytest.mark.parametrize("task", TASKS)
def test_a_tower_learns_from_its_own_label_alone(task: str) -> None:
    batch = make_batch()
    batch |= {other: torch.full((32,), math.nan) for other in TASKS if other != task}
    objective = RankerLoss(make())
    loss, outputs = objective(batch)
    loss.backward()
    assert all(outputs["losses"][other] == 0 for other in TASKS if other != task)
    for name, tower in objective.model.towers.items():
        gradients = [parameter.grad.abs().max().item() for parameter in tower.parameters()]
        assert (max(gradients) > 0) == (name == tower_key(task))
    assert all(parameter.grad.isfinite().all() for parameter in objective.parameters())


def test_loss_equals_the_formula_with_pos_weights_and_labels_that_do_not_count() -> None:
    weights = (1.0, 7.0, 0.5)
    tower = MlpConfig(layer_sizes=(4, 1))
    tasks = {task: TaskConfig(mlp_config=tower, pos_weight=w) for task, w in zip(TASKS, weights, strict=True)}
    model = make(SMALL.model_copy(update={"tasks": tasks}))
    batch = make_batch()
    batch[TASKS[0]][:9] = math.nan
    loss, outputs = RankerLoss(model)(batch)
    assert torch.equal(outputs["logits"], model(batch))
    expected = []
    for column, (task, w) in enumerate(zip(TASKS, weights, strict=True)):
        y = batch[task].double().numpy()
        p = 1 / (1 + np.exp(-outputs["logits"][:, column].double().numpy()))
        expected.append(np.nanmean(-w * y * np.log(p) - (1 - y) * np.log(1 - p)))
        assert outputs["losses"][task].item() == pytest.approx(expected[-1], rel=1e-5)
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-5)
    assert not outputs["logits"].requires_grad


def test_a_batch_in_which_no_label_counts_has_loss_zero_and_no_gradient() -> None:
    batch = make_batch() | {task: torch.full((32,), math.nan) for task in TASKS}
    objective = RankerLoss(make())
    loss, _ = objective(batch)
    loss.backward()
    assert loss == 0
    assert not any(parameter.grad.any() for parameter in objective.parameters())


def test_a_missing_label_is_named() -> None:
    batch = make_batch()
    del batch[TASKS[1]]
    with pytest.raises(DataError, match=f"found no label {TASKS[1]}"):
        RankerLoss(make())(batch)


def test_task_lists_that_disagree_are_refused_with_the_difference() -> None:
    tower = TaskConfig(mlp_config=MlpConfig(layer_sizes=(1,)))
    config = ModelConfig(tasks=dict.fromkeys(("is_click", *TASKS[1:]), tower))
    expected = (
        "model.tasks: found is_click which the dataset lacks and no recap.engagement.is_replied which the dataset has"
    )
    with pytest.raises(ConfigError, match=expected):
        make(config)
    with pytest.raises(ConfigError, match=r"found no recap.engagement.is_favorited which the dataset has"):
        make(ModelConfig(tasks=dict.fromkeys(TASKS[:2], tower)))


def test_base_rates_set_where_every_tower_starts() -> None:
    tower = TaskConfig(mask_net_config=MaskNetConfig(mlp=MlpConfig(layer_sizes=(4, 1))), pos_weight=3.0)
    mlp = TaskConfig(mlp_config=MlpConfig(layer_sizes=(4, 1)))
    model = make(SMALL.model_copy(update={"tasks": {TASKS[0]: mlp, TASKS[1]: tower, TASKS[2]: mlp}}))
    assert isinstance(model.towers[tower_key(TASKS[1])], MaskNet)
    model.initialise_biases({TASKS[2]: 0.0, TASKS[0]: 0.02, TASKS[1]: 0.3})
    batch = make_batch()
    for tower in model.towers.values():
        last = [module for module in tower.modules() if isinstance(module, torch.nn.Linear)][-1]
        torch.nn.init.zeros_(last.weight)
    p = model.probabilities(batch)
    torch.testing.assert_close(p[TASKS[0]], torch.full((32,), 0.02))
    torch.testing.assert_close(p[TASKS[2]], torch.full((32,), 1e-6))
    # Where positives weigh three times, the loss 3·0.3·-log p + 0.7·-log(1 - p) is least at 0.9 / 1.6.
    torch.testing.assert_close(p[TASKS[1]], torch.full((32,), 0.9 / 1.6))


def test_a_task_without_a_label_that_counts_has_no_base_rate_and_starts_as_it_is() -> None:
    model = make()
    model.initialise_biases({TASKS[0]: math.nan, TASKS[1]: 0.3, TASKS[2]: 0.1})
    assert model(make_batch()).isfinite().all()


def test_base_rates_of_other_tasks_are_refused() -> None:
    with pytest.raises(DataError, match="base rates: found is_click which the model lacks and no recap"):
        make().initialise_biases({"is_click": 0.5, **dict.fromkeys(TASKS[1:], 0.1)})


def test_same_generator_same_bits_and_torchs_own_generator_untouched() -> None:
    torch.manual_seed(1)
    one = make().state_dict()
    torch.manual_seed(2)
    two = make().state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], value) for name, value in make(seed=9).state_dict().items())


def test_share_none_gives_towers_the_features() -> None:
    config = ModelConfig(multi_task_type="share_none", backbone=None)
    model, batch = make(config).eval(), make_batch()
    assert not list(model.backbone.parameters())
    inputs = model.featurization(batch)
    torch.testing.assert_close(model(batch)[:, :1], model.towers[tower_key(TASKS[0])](inputs))


@pytest.mark.parametrize(("kind", "backbone"), [("share_all", None), ("share_none", SMALL.backbone)])
def test_a_backbone_is_there_exactly_where_it_is_shared(kind: str, backbone: NetworkConfig | None) -> None:
    tree = {"multi_task_type": kind, "backbone": backbone}
    with pytest.raises(ConfigError, match=r"share_all needs a backbone|share_none allows only null"):
        parse_config(ModelConfig, tree, "test")


@pytest.mark.parametrize(
    "tower",
    [
        {"mlp_config": {"layer_sizes": [4, 2]}},
        {"mlp_config": {"layer_sizes": [4, 1], "final_activation": True}},
        {"mask_net_config": {"mlp": None}},
        {"mask_net_config": {}},
    ],
)
def test_a_tower_that_does_not_end_in_a_logit_is_refused(tower: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"tasks.is_click: a tower ends in an mlp"):
        parse_config(ModelConfig, {"tasks": {"is_click": tower}}, "test")


def test_exactly_one_architecture() -> None:
    with pytest.raises(
        ValidationError, match="exactly one of mlp_config, dcn_config, dlrm_config, mask_net_config is allowed"
    ):
        NetworkConfig()
    both = {"mlp_config": {"layer_sizes": [1]}, "mask_net_config": {}}
    with pytest.raises(ConfigError, match="backbone: exactly one of"):
        parse_config(ModelConfig, {"backbone": both}, "test")


def test_task_names_that_would_share_a_tower_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"differ in more than '\.' and '/'"):
        InputShapes(continuous=1, tasks=("a.b", "a/b"))


def test_dropout_draws_in_training_alone() -> None:
    tower = TaskConfig(mlp_config=MlpConfig(layer_sizes=(64, 1), dropout=DropoutConfig(rate=0.5)))
    model, batch = make(SMALL.model_copy(update={"tasks": dict.fromkeys(TASKS, tower)})), make_batch()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert not torch.equal(model(batch), model(batch))
    model.eval()
    assert torch.equal(model(batch), model(batch))


def test_a_state_dict_restores_the_evaluation_to_the_bit() -> None:
    model, batch = make(), make_batch()
    model(batch)
    restored = make(seed=1)
    restored.load_state_dict(model.state_dict())
    assert torch.equal(restored.eval()(batch), model.eval()(batch))


def test_training_finds_a_product_of_two_features() -> None:
    """An exclusive or: no linear model of these features is better than the base rate."""
    objective = RankerLoss(make(shapes=SHAPES.model_copy(update={"tasks": TASKS[:1]})))
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    for step in range(150):
        batch = make_batch(rows=256, seed=step)
        batch[TASKS[0]] = (batch["continuous"][:, 0] * batch["continuous"][:, 1] > 0).float()
        loss, _ = objective(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * math.log(2)
    objective.eval()
    held_out = make_batch(rows=1000, seed=1000)
    label = held_out["continuous"][:, 0] * held_out["continuous"][:, 1] > 0
    assert ((objective.model(held_out)[:, 0] > 0) == label).float().mean().item() > 0.85


LOGIT = MlpConfig(layer_sizes=(1,))


def test_share_partial_lets_each_tower_read_what_it_says() -> None:
    reads = ("backbone", "input", None)
    tasks = {task: TaskConfig(mlp_config=LOGIT, reads=read) for task, read in zip(TASKS, reads, strict=True)}
    config = ModelConfig(multi_task_type="share_partial", backbone=SMALL.backbone, tasks=tasks)
    model, batch = make(config).eval(), make_batch()
    inputs = model.featurization(batch)
    shared = model.backbone(inputs)
    expected = [shared, inputs, torch.cat([shared, inputs], dim=1)]
    for column, (tower, read) in enumerate(zip(model.towers.values(), expected, strict=True)):
        torch.testing.assert_close(model(batch)[:, column], tower(read)[:, 0])


ARCHITECTURES: dict[str, dict[str, object]] = {
    "mlp": {"mlp_config": {"layer_sizes": [8], "final_activation": True}},
    "mask_net_parallel": {"mask_net_config": {"mask_blocks": [{"output_size": 4, "aggregation_size": 3}] * 2}},
    "mask_net_serial": {
        "mask_net_config": {
            "use_parallel": False,
            "mask_blocks": [{"output_size": 4, "reduction_factor": 0.5, "final_activation": False}] * 2,
        }
    },
    "dcn": {"dcn_config": {"num_layers": 2}},
    "dcn_low_rank_parallel": {"dcn_config": {"rank": 2, "num_experts": 2, "parallel_mlp": {"layer_sizes": [8]}}},
    "dlrm": {"dlrm_config": {"bottom_mlp": {"layer_sizes": [4]}}},
    "mmoe": {"mmoe_config": {"num_experts": 2}},
    "ple": {"ple_config": {"num_levels": 2, "expert": {"dcn_config": {"mlp": {"layer_sizes": [5]}}}}},
}
TOWERS: dict[str, dict[str, object]] = {
    "mlp": {"mlp_config": {"layer_sizes": [1]}},
    "mask_net": {"mask_net_config": {"mask_blocks": [{"output_size": 4, "aggregation_size": 3}]}},
    "dcn": {"dcn_config": {"num_layers": 1}},
    "dlrm": {"dlrm_config": {"bottom_mlp": {"layer_sizes": [4]}, "num_fields": 3, "top_mlp": {"layer_sizes": [1]}}},
}
for kind in ("mask_net", "dcn"):
    TOWERS[kind][f"{kind}_config"]["mlp"] = {"layer_sizes": [3, 1]}  # type: ignore[index]


def config_of(backbone: str, tower: str = "mlp") -> ModelConfig:
    tree = {"backbone": ARCHITECTURES[backbone], "tasks": dict.fromkeys(TASKS, TOWERS[tower])}
    return parse_config(ModelConfig, tree, "test")


@pytest.mark.parametrize(
    ("backbone", "tower"), [*((name, "mlp") for name in ARCHITECTURES), *(("mlp", name) for name in TOWERS)]
)
def test_every_architecture_is_a_backbone_or_a_tower_and_learns(backbone: str, tower: str) -> None:
    objective = RankerLoss(make(config_of(backbone, tower)))
    objective.model.initialise_biases(dict.fromkeys(TASKS, 0.25))
    batch = make_batch()
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    first, _ = objective(batch)
    for _ in range(40):
        optimizer.zero_grad()
        loss, _ = objective(batch)
        loss.backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in objective.parameters())
    assert loss < 0.7 * first


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("backbone", ["mmoe", "ple"])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_compiled_and_eager_agree(backbone: str, bfloat16: bool) -> None:
    """With towers of every architecture, each traced and differentiated by the compiler."""
    serial = {**TOWERS["mask_net"]["mask_net_config"], "use_parallel": False}  # type: ignore[dict-item]
    mixture = {"rank": 2, "num_experts": 2, "parallel_mlp": {"layer_sizes": [8]}, "mlp": {"layer_sizes": [1]}}
    tree = {
        "backbone": ARCHITECTURES[backbone],
        "tasks": {
            TASKS[0]: {**TOWERS["dlrm"], "affine_map": {"scale": 2.0, "trainable": True}},
            TASKS[1]: {"dcn_config": mixture, "applies_if": "binary.1"},
            TASKS[2]: {"mask_net_config": serial},
        },
        "position_debias_config": {"drop_probability": 0.0},
        "large_embeddings": {"tables": [{"name": "user_id", "num_embeddings": 30}]},
    }
    config = parse_config(ModelConfig, tree, "test")
    eager, compiled = RankerLoss(make(config)), RankerLoss(make(config))
    batch = make_batch() | {"position": torch.arange(32), "user_id": torch.arange(32) * 7}
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        loss, outputs = eager(batch)
        other_loss, other_outputs = torch.compile(compiled, backend="aot_eager")(batch)
    near = {"rtol": 0.02, "atol": 0.02} if bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(other_loss, loss, **near)
    torch.testing.assert_close(other_outputs["logits"], outputs["logits"], **near)
    loss.backward()
    other_loss.backward()
    for one, two in zip(eager.parameters(), compiled.parameters(), strict=True):
        found, expected = two.grad.to_dense(), one.grad.to_dense()
        if bfloat16:  # rounded at other places: gradients agree as a whole, small ones not one by one
            assert (found - expected).norm() <= 0.05 * expected.norm() + 1e-3
        else:
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("trainable", [False, True])
def test_an_affine_map_scales_and_shifts_the_logit_and_starts_at_the_base_rate(trainable: bool) -> None:
    affine = AffineMapConfig(scale=-2.0, bias=0.5, trainable=trainable)
    tasks = {task: TaskConfig(mlp_config=LOGIT, affine_map=affine) for task in TASKS}
    model, batch = make(SMALL.model_copy(update={"tasks": tasks})).eval(), make_batch()
    shared = model.backbone(model.featurization(batch))
    tower = model.towers[tower_key(TASKS[0])]
    torch.testing.assert_close(model(batch)[:, :1], -2 * tower.network(shared) + 0.5)
    learnt = {name for name, _ in tower.named_parameters() if "." not in name}
    assert learnt == ({"scale", "bias"} if trainable else set())
    model.initialise_biases(dict.fromkeys(TASKS, 0.1))
    for tower in model.towers.values():
        torch.nn.init.zeros_(tower.network.linears[-1].weight)
    torch.testing.assert_close(torch.sigmoid(model(batch)), torch.full((32, 3), 0.1))


NAMED = SHAPES.model_copy(update={"names": {"binary": ("is_reply", "has_video"), "discrete": ("topic",)}})


def test_labels_of_a_task_that_does_not_apply_do_not_count_and_its_probability_is_zero() -> None:
    tasks = dict.fromkeys(TASKS, TaskConfig(mlp_config=LOGIT))
    tasks |= {TASKS[1]: TaskConfig(mlp_config=LOGIT, applies_if="has_video")}
    tasks |= {TASKS[2]: TaskConfig(mlp_config=LOGIT, applies_if="discrete.0")}
    model = make(SMALL.model_copy(update={"tasks": tasks}), NAMED)
    plain = make(SMALL.model_copy(update={"tasks": dict.fromkeys(TASKS, TaskConfig(mlp_config=LOGIT))}), NAMED)
    batch = make_batch()
    batch["binary"][:20, 1] = 0
    _, outputs = RankerLoss(model)(batch)
    masked = {**batch, TASKS[1]: batch[TASKS[1]].clone(), TASKS[2]: batch[TASKS[2]].clone()}
    masked[TASKS[1]][:20] = math.nan
    masked[TASKS[2]][batch["discrete"][:, 0] == 0] = math.nan
    _, expected = RankerLoss(plain)(masked)
    for task in TASKS:
        assert outputs["losses"][task] == expected["losses"][task] > 0
    model.eval()
    found = model.probabilities(batch)
    assert (found[TASKS[1]][:20] < 1e-12).all()
    assert (found[TASKS[1]][20:] > 1e-6).all()
    assert ((found[TASKS[2]] < 1e-12) == (batch["discrete"][:, 0] == 0)).all()
    assert model(batch)[:20, 1].eq(NEVER).all()


@pytest.mark.parametrize("feature", ["has_sound", "binary.2", "continuous.1"])
def test_a_condition_on_another_feature_is_refused(feature: str) -> None:
    tasks = dict.fromkeys(TASKS, TaskConfig(mlp_config=LOGIT, applies_if=feature))
    with pytest.raises(ConfigError, match=f"applies_if: found {feature}, allowed are binary and discrete"):
        make(SMALL.model_copy(update={"tasks": tasks}), NAMED)


def test_given_weights_of_tasks_weigh_their_losses() -> None:
    tasks = {task: TaskConfig(mlp_config=LOGIT, weight=w) for task, w in zip(TASKS, (2.0, 0.0, 0.5), strict=True)}
    loss, outputs = RankerLoss(make(SMALL.model_copy(update={"tasks": tasks})))(make_batch())
    losses = [value.item() for value in outputs["losses"].values()]
    assert loss.item() == pytest.approx((2 * losses[0] + 0.5 * losses[2]) / 3)


@pytest.mark.parametrize("kind", ["uncertainty", "grad_norm"])
def test_learnt_weights_train_with_the_model_and_are_in_its_state(kind: str) -> None:
    weighting = TaskWeightingConfig.model_validate({kind: {}})
    objective = RankerLoss(make(SMALL.model_copy(update={"task_weighting": weighting})))
    before = {name: value.clone() for name, value in objective.state_dict().items() if name.startswith("weighting")}
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    for seed in range(3):
        optimizer.zero_grad()
        loss, _ = objective(make_batch(seed=seed))
        loss.backward()
        optimizer.step()
    after = {name: value for name, value in objective.state_dict().items() if name.startswith("weighting")}
    assert before.keys() == after.keys() != set()
    assert not any(torch.equal(before[name], after[name]) for name in before)
    with torch.no_grad():
        assert objective.eval()(make_batch())[0].isfinite()
    if kind == "grad_norm":
        plain = RankerLoss(make())
        first, _ = RankerLoss(make(SMALL.model_copy(update={"task_weighting": weighting})))(make_batch())
        torch.testing.assert_close(first, plain(make_batch())[0])


def test_the_default_model_s_parameters_keep_their_names() -> None:
    """Models that were saved before load still: `load_ranker` looks for these names."""
    names = {name.rpartition(".")[0] for name, _ in make(ModelConfig()).named_parameters()}
    blocks = {f"backbone.blocks.{i}.{part}" for i in range(4) for part in ("mask", "hidden", "norm")}
    towers = {f"towers.{tower_key(task)}.layers.{i}" for task in TASKS for i in (0, 3, 6)}
    features = {"dense.batch_norm", "dense.layer_norm", "embedding_norms.user_embedding", "discrete.table"}
    backbone = {"backbone.aggregate", "backbone.mlp.layers.0"}
    assert names == blocks | towers | backbone | {f"featurization.{name}" for name in features}
