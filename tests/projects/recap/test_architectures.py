"""Every architecture through the main job's training: examples to a saved model that predicts what it did."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tml.core.config import parse_config
from tml.core.errors import ConfigError, DataError
from tml.data.examples import DiscreteColumn, ExampleWriter, Part, Schema, vector_column
from tml.data.id_numbers import NO_ID
from tml.embeddings.files import read_embeddings, write_embeddings
from tml.features.normalisation import ColumnStatistics
from tml.metrics.binary import BinaryMetrics
from tml.projects.home.recap.baseline_predictions import predict_baselines
from tml.projects.home.recap.calibration_maps import calibrate_predictions
from tml.projects.home.recap.data import RankerInputs
from tml.projects.home.recap.predict import predict
from tml.projects.home.recap.train import RecapConfig, load_ranker, train_recap

ROWS, USERS = 4000, 40
TASKS = ("is_click", "is_played")


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Examples in which clicks depend on a product of features, the user and the position; plays need a video."""
    folder = tmp_path_factory.mktemp("data") / "examples"
    generator = np.random.default_rng(0)
    statistics = ColumnStatistics(4)
    parts = {}
    for part, rows in (("train", ROWS), ("validation", 1000)):
        position = generator.integers(0, 5, rows)
        continuous = generator.normal(size=(rows, 4)).astype(np.float32) * 3
        continuous[:, 3] = position
        binary = (generator.random((rows, 2)) < 0.5).astype(np.float32)
        discrete = generator.integers(0, 4, (rows, 2)).astype(np.int32)
        users = generator.integers(0, USERS, rows)
        logit = np.sign(continuous[:, 0] * continuous[:, 1]) + (users % 2) * 2 - 1 + 0.5 * (discrete[:, 0] - 1.5)
        click = generator.random(rows) < 1 / (1 + np.exp(-logit + 0.5 * position))
        played = (generator.random(rows) < 1 / (1 + np.exp(-logit))) & (binary[:, 1] > 0)
        times = pa.array(np.arange(rows) * 1_000_000, pa.timestamp("us", "UTC"))
        ids = {name: [f"{name[0]}{value}" for value in users] for name in ("user_id", "post_id", "author_id")}
        columns: dict[str, Any] = {
            "impression_id": pa.array([f"{part}{row}" for row in range(rows)]),
            "session_id": pa.array([str(row // 5) for row in range(rows)]),
            **{name: pa.array(values) for name, values in ids.items()},
            "served_at": times,
            "created_at": times,
            "position": pa.array(position, pa.int64()),
            "continuous": vector_column(continuous),
            "binary": vector_column(binary),
            "discrete": vector_column(discrete),
            "is_click": pa.array(click.astype(np.float32)),
            "is_played": pa.array(played.astype(np.float32)),
        }
        writer = ExampleWriter(folder, part)
        writer.write(pa.table(columns))
        positives = {"is_click": int(click.sum()), "is_played": int(played.sum())}
        parts[part] = Part("2024-01-01", "2024-01-02", rows, writer.shards, positives)
        if part == "train":
            statistics.add(continuous)
    Schema(
        continuous=["a", "b", "c", "position"],
        binary=["is_reply", "has_video"],
        discrete=[DiscreteColumn("topic", ["x", "y", "z"]), DiscreteColumn("country", ["x", "y", "z"])],
        tasks={task: {"engagement": task, "negative_sampling_rate": 1.0} for task in TASKS},
        parts=parts,
        log={},
        statistics=statistics.result(),
    ).write(folder)
    return folder


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vectors of most users."""
    folder = tmp_path_factory.mktemp("embeddings")
    vectors = np.random.default_rng(1).normal(size=(USERS - 5, 6)).astype(np.float32)
    write_embeddings(folder / "user.parquet", [f"u{user}" for user in range(USERS - 5)], vectors)
    return folder


TOWER = {"mlp_config": {"layer_sizes": [8, 1]}}
MLP = {"mlp_config": {"layer_sizes": [16], "final_activation": True}}
BLOCK = {"output_size": 8, "aggregation_size": 8}
MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"backbone": MLP},
    "mask_net_serial": {"backbone": {"mask_net_config": {"use_parallel": False, "mask_blocks": [BLOCK, BLOCK]}}},
    "dcn": {"backbone": {"dcn_config": {"rank": 4, "num_experts": 2, "parallel_mlp": {"layer_sizes": [8]}}}},
    "dlrm": {"backbone": {"dlrm_config": {}}, "small_embeddings": {"dimension_rule": {}}},
    "mmoe": {"backbone": {"mmoe_config": {"num_experts": 3, "expert": MLP}}},
    "ple": {"backbone": {"ple_config": {"num_levels": 2, "expert": MLP}}, "task_weighting": {"uncertainty": {}}},
    "share_none": {"backbone": None, "multi_task_type": "share_none"},
    "share_partial": {
        "backbone": MLP,
        "multi_task_type": "share_partial",
        "tasks": {
            "is_click": {**TOWER, "reads": "both", "affine_map": {"scale": 0.5, "trainable": True}},
            "is_played": {**TOWER, "reads": "input", "applies_if": "has_video"},
        },
    },
    "ids": {
        "backbone": MLP,
        "task_weighting": {"grad_norm": {}},
        "featurization_config": {"z_score_log_config": {}},
        "large_embeddings": {
            "tables": [{"name": "user_id", "num_embeddings": 500, "min_count": 2, "drop_probability": 0.1}]
        },
        "position_debias_config": {"max_position": 4, "num_dims": 3},
    },
}


def config_of(model: dict[str, Any], **changes: Any) -> RecapConfig:
    tree = {"embeddings": {}, "batch_size": 200, "epochs": 4, "model": model, "training": {"num_steps": None}}
    return parse_config(RecapConfig, tree | changes, "test")


def auc(path: Path, model: str, task: str) -> float:
    table = pq.read_table(path)
    metrics = BinaryMetrics()
    metrics.update(table[f"label/{task}"].to_numpy(), table[f"{model}/{task}"].to_numpy())
    value = metrics.compute().auc
    assert value is not None
    return value


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_trains_through_the_main_job(examples: Path, tmp_path: Path, name: str) -> None:
    fast = {"embedding_optimizer": {"adam": {}, "learning_rate": {"constant": 0.03}}} if name == "ids" else {}
    config = config_of(MODELS[name], **fast)
    result = train_recap(config, examples, None, tmp_path, seed=0, fingerprint="f")
    assert result.step == 80
    predict(config, examples, None, tmp_path / "model.safetensors", None, tmp_path / "predictions.parquet")
    assert auc(tmp_path / "predictions.parquet", "ranker", "is_click") > (0.75 if name == "ids" else 0.62)
    found = pq.read_table(tmp_path / "predictions.parquet")["ranker/is_played"].to_numpy()
    if name == "share_partial":
        assert 0.3 < (found < 1e-12).mean() < 0.7


def test_with_position_debias_a_ranking_knows_no_position(examples: Path, tmp_path: Path) -> None:
    config = config_of(MODELS["ids"], epochs=1)
    train_recap(config, examples, None, tmp_path, seed=0, fingerprint="f")
    schema = Schema.read(examples)
    inputs = RankerInputs(schema, {}, None, config.model)
    table = pq.read_table(examples / "validation")
    moved = table.set_column(
        table.column_names.index("position"), "position", pa.array(np.full(len(table), 3), pa.int64())
    )
    ranker = load_ranker(tmp_path / "model.safetensors")
    one, two = inputs.batch(table), inputs.batch(moved)
    with torch.no_grad():
        assert not torch.equal(ranker(one), ranker(two))
        assert torch.equal(ranker(inputs.as_if_first(one)), ranker(inputs.as_if_first(two)))
        none = {name: values for name, values in two.items() if name != "position"}
        assert torch.equal(ranker(inputs.as_if_first(one)), ranker(none))


def test_pretrained_vectors_are_joined_frozen_or_trained_from_the_file_on(
    examples: Path, embeddings: Path, tmp_path: Path
) -> None:
    table = pq.read_table(examples / "validation")
    vectors = read_embeddings(embeddings / "user.parquet")
    for trained in (False, True):
        sources = {"user_embedding": {"nodes": "user", "key": "user_id", "trained": trained}}
        config = config_of({"backbone": MLP}, embeddings=sources, epochs=1)
        folder = tmp_path / str(trained)
        train_recap(config, examples, embeddings, folder, seed=0, fingerprint="f")
        predict(config, examples, embeddings, folder / "model.safetensors", None, folder / "predictions.parquet")
        ranker = load_ranker(folder / "model.safetensors")
        inputs = RankerInputs(Schema.read(examples), config.embeddings, embeddings, config.model)
        found = inputs.batch(table)["user_embedding"]
        # The last users have no vector, and the column behind those of the dataset says so.
        known = inputs.batch(table)["binary"][:, -1].tolist()
        assert known == [float(user in vectors.ids.to_pylist()) for user in table["user_id"].to_pylist()]
        assert 0 < sum(known) < len(known)
        assert inputs.shapes().names["binary"][-1] == "user_embedding_is_known"
        if not trained:
            np.testing.assert_array_equal(found, vectors.lookup(table["user_id"].combine_chunks()))
            continue
        rows = {f"u{user}": user + 1 for user in range(USERS - 5)}
        assert found.tolist() == [rows.get(user, 0) for user in table["user_id"].to_pylist()]
        learnt = ranker.featurization.trained["user_embedding"].weight.detach().numpy()
        assert learnt.shape == (USERS - 4, 6)
        change = np.abs(learnt[1:] - vectors.vectors).max(axis=1)
        assert (change > 0).all()
        assert change.max() < 0.3


def test_a_tower_starts_at_the_base_rate_of_the_examples_that_its_task_applies_to(
    examples: Path, tmp_path: Path
) -> None:
    tasks = {"is_click": TOWER, "is_played": {**TOWER, "applies_if": "has_video"}}
    config = config_of({"backbone": MLP, "tasks": tasks}, training={"num_steps": 1})
    train_recap(config, examples, None, tmp_path, seed=0, fingerprint="f")
    table = pq.read_table(examples / "train")
    has_video = np.array(table["binary"].to_pylist())[:, 1] > 0
    rate = table["is_played"].to_numpy()[has_video].mean()
    bias = load_ranker(tmp_path / "model.safetensors").towers["is_played"].linears[-1].bias.item()
    assert bias == pytest.approx(np.log(rate / (1 - rate)), abs=0.01)


def test_ids_the_model_reads_come_from_the_examples_keys(examples: Path) -> None:
    schema = Schema.read(examples)
    model = config_of(MODELS["ids"]).model
    inputs = RankerInputs(schema, {}, None, model)
    assert {"user_id", "position"} <= set(inputs.columns())
    table = pq.read_table(examples / "validation").slice(0, 3)
    empty = table.set_column(table.column_names.index("user_id"), "user_id", pa.array([None] * 3, pa.string()))
    assert inputs.batch(empty)["user_id"].tolist() == [NO_ID] * 3
    wrong = config_of({"large_embeddings": {"tables": [{"name": "country", "num_embeddings": 9}]}}).model
    with pytest.raises(ConfigError, match="large_embeddings: found the column country, allowed are impression_id"):
        RankerInputs(schema, {}, None, wrong)


def test_a_file_of_embeddings_that_has_changed_since_is_refused(
    examples: Path, embeddings: Path, tmp_path: Path
) -> None:
    sources = {"user_embedding": {"nodes": "user", "key": "user_id", "trained": True}}
    config = config_of({"backbone": MLP}, embeddings=sources, epochs=0.1)
    train_recap(config, examples, embeddings, tmp_path, seed=0, fingerprint="f")
    write_embeddings(tmp_path / "user.parquet", ["u1"], np.ones((1, 6), np.float32))
    with pytest.raises(DataError, match=r"user_embedding: found 1 ids, but the model was trained with 35"):
        predict(config, examples, tmp_path, tmp_path / "model.safetensors", None, tmp_path / "predictions.parquet")


def test_a_task_that_does_not_apply_counts_nowhere_and_its_probability_stays_zero(
    examples: Path, tmp_path: Path
) -> None:
    # In another order than the dataset's.
    tasks = {"is_played": {**TOWER, "applies_if": "has_video"}, "is_click": TOWER}
    config = config_of({"backbone": MLP, "tasks": tasks}, epochs=2)
    result = train_recap(config, examples, None, tmp_path, seed=0, fingerprint="f")
    out, held_out = tmp_path / "predictions.parquet", pq.read_table(examples / "validation")
    predict_baselines(config, None, examples, None, 0, tmp_path / "baselines.parquet")
    predict(config, examples, None, tmp_path / "model.safetensors", None, out, tmp_path / "baselines.parquet")
    table = pq.read_table(out)
    has_video = np.array(held_out["binary"].to_pylist())[:, 1] > 0
    labels = table["label/is_played"].to_numpy()
    np.testing.assert_array_equal(labels[has_video], held_out["is_played"].to_numpy()[has_video])
    assert np.isnan(labels[~has_video]).all()
    assert table["label/is_click"].equals(held_out["is_click"])
    train = pq.read_table(examples / "train")
    applies = np.array(train["binary"].to_pylist())[:, 1] > 0
    rate = train["is_played"].to_numpy()[applies].mean()
    assert table["base_rate/is_played"][0].as_py() == pytest.approx(rate)
    # All held-out examples are looked at on the way: the last figures are those of the predictions.
    for task in TASKS:
        assert result.metrics[f"validation/auc/{task}"] == pytest.approx(auc(out, "ranker", task))
    calibrated, _ = calibrate_predictions(table, list(TASKS), "isotonic")
    for column in ("ranker/is_played", "first/is_played"):
        assert ((calibrated[column].to_numpy() == 0) == ~has_video).all()


def test_a_condition_may_be_whether_a_vector_is_known(examples: Path, embeddings: Path, tmp_path: Path) -> None:
    sources = {"user_embedding": {"nodes": "user", "key": "user_id"}}
    tasks = {"is_click": {**TOWER, "applies_if": "user_embedding_is_known"}, "is_played": TOWER}
    config = config_of({"backbone": MLP, "tasks": tasks}, embeddings=sources, training={"num_steps": 1})
    train_recap(config, examples, embeddings, tmp_path, seed=0, fingerprint="f")
    table = pq.read_table(examples / "train")
    rate = table["is_click"].to_numpy()[[int(user[1:]) < USERS - 5 for user in table["user_id"].to_pylist()]].mean()
    bias = load_ranker(tmp_path / "model.safetensors").towers["is_click"].linears[-1].bias.item()
    assert bias == pytest.approx(np.log(rate / (1 - rate)), abs=0.01)
