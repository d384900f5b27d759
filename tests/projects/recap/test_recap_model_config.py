"""The model's config: every published field is read, and what cannot be is refused in one sentence."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from tml.core.config import load_config, parse_config, to_yaml
from tml.core.errors import ConfigError
from tml.projects.home.recap.config import (
    BackboneConfig,
    InputShapes,
    MlpConfig,
    MmoeConfig,
    ModelConfig,
    NetworkConfig,
    TaskConfig,
)

PUBLISHED = """
tasks:
  is_favorited: &tower
    mlp_config: &mlp
      layer_sizes: [256, 128, 1]
      batch_norm: {affine: false, momentum: 0.1}
      dropout: null
      final_layer_activation: false
    dcn_config: null
    dlrm_config: null
    mask_net_config: null
    affine_map: null
    pos_weight: 1.0
  is_reported:
    <<: *tower
    mlp_config: {<<: *mlp, dropout: {rate: 0.2}}
    affine_map: {scale: 2.0, bias: -1}
backbone:
  mlp_config: null
  dcn_config: null
  dlrm_config: null
  affine_map: null
  pos_weight: 1.0
  mask_net_config:
    use_parallel: true
    mask_blocks: [{output_size: 1024, reduction_factor: null, aggregation_size: 1024, input_layer_norm: false}]
    mlp: {layer_sizes: [2048], batch_norm: null, dropout: null, final_layer_activation: true}
featurization_config:
  log1p_abs_config: null
  clip_log1p_abs_config: null
  z_score_log_config: null
  double_norm_log_config:
    batch_norm_config: {affine: true, momentum: 0.01}
    clip_magnitude: 5.0
    layer_norm_config: {axis: -1, center: true, epsilon: 0.0, scale: true}
  feature_names_to_concat: [binary]
multi_task_type: share_all
large_embeddings: null
small_embeddings: null
position_debias_config: null
stratifiers: null
"""


def test_the_published_structure_with_its_nulls_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(PUBLISHED)
    config = load_config(ModelConfig, path)
    assert config.tasks is not None
    assert config.tasks["is_reported"].affine_map is not None
    assert config.tasks["is_reported"].affine_map.scale == 2.0
    assert config.backbone is not None
    assert config.backbone.last_mlp == MlpConfig(layer_sizes=(2048,), final_activation=True)
    path.write_text(to_yaml(config))
    assert load_config(ModelConfig, path) == config


FULL = """
multi_task_type: share_partial
backbone: {dcn_config: {num_layers: 2, rank: 8, num_experts: 4}}
featurization_config: {z_score_log_config: {}}
large_embeddings: {tables: [{name: author, key: author_id, num_embeddings: 1000, min_count: 2}]}
small_embeddings: {dimension_rule: {factor: 1.6}, tables: [{index: 3, num_embeddings: 10}]}
position_debias_config: {max_position: 20, num_dims: 4, drop_probability: 0.3, position_feature_index: 7}
stratifiers: [{name: country, index: 4, value: 2}, {name: topics, feature: posts.topic}]
"""


def test_every_other_part_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(FULL)
    config = load_config(ModelConfig, path)
    assert config.large_embeddings is not None
    assert config.large_embeddings.tables[0].column == "author_id"
    path.write_text(to_yaml(config))
    assert load_config(ModelConfig, path) == config


TOWER = {"mlp_config": {"layer_sizes": [1]}}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"tasks": {"a": {**TOWER, "reads": "input"}}}, "tasks.a.reads: found input with multi_task_type share_all"),
        ({"tasks": {"a": {**TOWER, "affine_map": {"scale": 0}}}}, r"affine_map: scale: found 0"),
        ({"tasks": {"a": {**TOWER, "weight": 0}}}, "a weight of 0 for every task"),
        ({"tasks": {"a": {"dcn_config": {}}}}, r"ends in an mlp .* found layer_sizes \[256\] with final_activation"),
        ({"tasks": {"a": {"dcn_config": {"mlp": None}}}}, "ends in an mlp .* found no mlp"),
        ({"tasks": {"a": {"mmoe_config": {}}}}, "unknown field"),
        ({"backbone": {"dcn_config": {"num_experts": 2}}}, "num_experts: found 2 without a rank"),
        ({"backbone": {"mlp_config": {"layer_sizes": [1]}, "pos_weight": 2}}, "pos_weight: found 2.0 for a backbone"),
        ({"backbone": {"mlp_config": {"layer_sizes": [1]}, "mmoe_config": {}}}, "backbone: exactly one of"),
        ({"featurization_config": {}}, "featurization_config: exactly one of"),
        ({"small_embeddings": {"tables": [{"index": 1}, {"index": 1}]}}, "found the index 1 twice"),
        (
            {"multi_task_type": "share_partial", "tasks": {"a": {**TOWER, "reads": "input"}}},
            "reads: input for every one in share_partial, that is share_none",
        ),
        ({"stratifiers": [{"name": "a"}]}, "exactly one of index, feature"),
        (
            {"task_weighting": {"uncertainty": {}}, "tasks": {"a": {**TOWER, "weight": 2}}},
            "task_weighting: found weights of tasks beside it",
        ),
        ({"task_weighting": {"grad_norm": {}}, "backbone": {"ple_config": {}}}, "needs a backbone that is one network"),
        (
            {
                "task_weighting": {"grad_norm": {}},
                "multi_task_type": "share_partial",
                "tasks": {"a": TOWER, "b": {**TOWER, "reads": "input"}},
            },
            "task_weighting.grad_norm: found b with reads: input",
        ),
        (
            {"large_embeddings": {"tables": [{"name": "user_id", "num_embeddings": 9}] * 2}},
            "allowed are distinct ones",
        ),
    ],
)
def test_what_cannot_be_is_refused(tree: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(ModelConfig, tree, "test")


def test_what_a_tower_reads() -> None:
    tower = TaskConfig(mlp_config=MlpConfig(layer_sizes=(1,)))
    own = tower.model_copy(update={"reads": "input"})
    assert ModelConfig().reads(tower) == "backbone"
    assert ModelConfig(multi_task_type="share_none", backbone=None).reads(tower) == "input"
    partial = ModelConfig(multi_task_type="share_partial")
    assert (partial.reads(tower), partial.reads(own)) == ("both", "input")


def test_a_plain_network_or_experts_make_a_backbone() -> None:
    network = NetworkConfig(mlp_config=MlpConfig(layer_sizes=(4,)))
    assert ModelConfig(backbone=network).backbone == BackboneConfig(mlp_config=MlpConfig(layer_sizes=(4,)))
    assert BackboneConfig(mmoe_config=MmoeConfig()).has_experts


def test_shapes_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match="names: found 1 for binary, allowed are 2"):
        InputShapes(continuous=1, binary=2, names={"binary": ("a",)}, tasks=("t",))
    with pytest.raises(ValidationError, match="log_mean: found 2 values, allowed are 1"):
        InputShapes(continuous=1, log_mean=(0.0, 1.0), tasks=("t",))
    with pytest.raises(ValidationError, match="trained: found user, allowed are names of embeddings"):
        InputShapes(continuous=1, trained={"user": 3}, tasks=("t",))
