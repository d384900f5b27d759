"""Featurization against the formula in NumPy, and on the inputs that broke the published one."""

import math

import numpy as np
import pytest
import torch

from tml.core.errors import ConfigError, DataError
from tml.features.normalisation import ColumnStatistics
from tml.projects.home.recap.config import (
    ClipLog1pAbsConfig,
    DoubleNormLogConfig,
    FeaturizationConfig,
    InputBatchNormConfig,
    InputShapes,
    LargeEmbeddingsConfig,
    LargeTableConfig,
    LayerNormConfig,
    Log1pAbsConfig,
    ModelConfig,
    PositionDebiasConfig,
    SmallEmbeddingsConfig,
    SmallTableConfig,
    ZScoreLogConfig,
)
from tml.projects.home.recap.double_norm_log import DoubleNormLog, UnbiasedBatchNorm
from tml.projects.home.recap.featurize import Featurization, build_dense

ROWS, CONTINUOUS, BINARY = 40, 5, 3


def make(config: DoubleNormLogConfig | None = None) -> tuple[DoubleNormLog, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    layer = DoubleNormLog(config or DoubleNormLogConfig(), CONTINUOUS, BINARY).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(mean=1.0, generator=generator)
    continuous = torch.randn(ROWS, CONTINUOUS, generator=generator, dtype=torch.float64)
    continuous = continuous.sign() * (10 * continuous.abs()).exp()
    continuous[0, :3] = torch.tensor([math.nan, math.inf, -math.inf])
    continuous[1, 4] = 0.0
    binary = (torch.rand(ROWS, BINARY, generator=generator) < 0.5).double()
    return layer, continuous, binary


def logs(continuous: torch.Tensor) -> np.ndarray:
    x = np.where(np.isfinite(continuous.numpy()), continuous.numpy(), 0)
    return np.sign(x) * np.log(1 + np.abs(x))


def reference(
    layer: DoubleNormLog, x: np.ndarray, binary: torch.Tensor, mean: np.ndarray, variance: np.ndarray, clip: float
) -> np.ndarray:
    state = {name: parameter.detach().numpy() for name, parameter in layer.named_parameters()}
    x = (x - mean) / np.sqrt(variance + 1e-5) * state["batch_norm.weight"] + state["batch_norm.bias"]
    row = np.concatenate([np.clip(x, -clip, clip), binary.numpy()], axis=1)
    row = (row - row.mean(axis=1, keepdims=True)) / row.std(axis=1, keepdims=True)
    return row * state["layer_norm.weight"] + state["layer_norm.bias"]


@pytest.mark.parametrize("clip", [5.0, 0.7])
def test_training_equals_the_formula_with_epsilon_zero(clip: float) -> None:
    layer, continuous, binary = make(DoubleNormLogConfig(clip_magnitude=clip))
    x = logs(continuous)
    expected = reference(layer, x, binary, x.mean(axis=0), x.var(axis=0), clip)
    np.testing.assert_allclose(layer(continuous, binary).detach(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("batches", [1, 7])
def test_evaluation_uses_the_weighted_mean_of_the_batches_seen_and_nothing_else(batches: int) -> None:
    momentum = 0.25
    layer, continuous, binary = make(DoubleNormLogConfig(batch_norm_config=InputBatchNormConfig(momentum=momentum)))
    seen = [continuous * (k + 1) for k in range(batches)]
    for batch in seen:
        layer(batch, binary)
    weights = np.array([(1 - momentum) ** (batches - 1 - k) for k in range(batches)])
    weights /= weights.sum()
    mean = sum(w * logs(batch).mean(axis=0) for w, batch in zip(weights, seen, strict=True))
    variance = sum(w * logs(batch).var(axis=0, ddof=1) for w, batch in zip(weights, seen, strict=True))
    expected = reference(layer, logs(continuous), binary, mean, variance, clip=5.0)
    layer.eval()
    np.testing.assert_allclose(layer(continuous, binary).detach(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer(continuous[:1], binary[:1]).detach(), expected[:1], rtol=1e-5, atol=1e-6)


def test_batch_norm_equals_torchs_in_training_and_is_the_identity_before_it() -> None:
    ours, theirs = UnbiasedBatchNorm(4, InputBatchNormConfig(momentum=0.3)), torch.nn.BatchNorm1d(4, momentum=0.3)
    inputs = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)) * 3 + 1
    torch.testing.assert_close(ours.eval()(inputs), theirs.eval()(inputs), rtol=0, atol=0)
    torch.testing.assert_close(ours.train()(inputs), theirs.train()(inputs), rtol=0, atol=0)
    for _ in range(60):
        ours(inputs[:2])
        theirs(inputs[:2])
    torch.testing.assert_close(ours.eval()(inputs), theirs.eval()(inputs))


@pytest.mark.parametrize("value", [0.0, 1.0, -3.7])
@pytest.mark.parametrize("epsilon", [0.0, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_of_equal_values_gives_finite_outputs_and_gradients(
    value: float, epsilon: float, dtype: torch.dtype
) -> None:
    """With the published epsilon of 0 such a row is 0/0 (FACTS 5.11)."""
    layer = DoubleNormLog(DoubleNormLogConfig(layer_norm_config=LayerNormConfig(epsilon=epsilon)), 64, 8).to(dtype)
    continuous = torch.full((6, 64), value, dtype=dtype, requires_grad=True)
    outputs = layer(continuous, torch.zeros(6, 8, dtype=dtype))
    outputs.square().sum().backward()
    assert outputs.abs().max() < 0.1
    for tensor in (continuous, *layer.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


@pytest.mark.parametrize("value", [0.1, 1.0, 4.99, 5.0])
def test_layer_norm_of_one_constant_row_is_near_its_bias(value: float) -> None:
    layer = DoubleNormLog(DoubleNormLogConfig(), 300, 0)
    row = torch.full((1, 300), value, requires_grad=True)
    outputs = layer.layer_norm(row)
    (outputs * torch.linspace(-1, 1, 300)).sum().backward()
    assert outputs.abs().max() < 0.1
    assert row.grad is not None
    assert row.grad.isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38, -3e38])
def test_every_float_gives_a_finite_output(value: float) -> None:
    layer = DoubleNormLog(DoubleNormLogConfig(), CONTINUOUS, BINARY)
    generator = torch.Generator().manual_seed(0)
    continuous = torch.randn(ROWS, CONTINUOUS, generator=generator)
    continuous[3, 2] = value
    for mode in (True, False):
        assert layer.train(mode)(continuous, torch.ones(ROWS, BINARY)).isfinite().all()


@pytest.mark.parametrize("training", [True, False])
def test_gradients(training: bool) -> None:
    layer, _, binary = make()
    continuous = torch.randn(4, CONTINUOUS, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    binary = binary[:4]
    layer(continuous, binary)
    layer.train(training)
    names, values = zip(*layer.named_parameters(), strict=True)
    buffers = {name: buffer.clone() for name, buffer in layer.named_buffers()}

    def function(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        state = {**dict(zip(names, parameters, strict=True)), **{k: v.clone() for k, v in buffers.items()}}
        outputs: torch.Tensor = torch.func.functional_call(layer, state, (x, binary))
        return outputs

    assert torch.autograd.gradcheck(function, (continuous.requires_grad_(), *values))


SHAPES = InputShapes(
    continuous=CONTINUOUS, binary=BINARY, discrete=(4, 6), embeddings={"user_embedding": 8, "author": 4}, tasks=("t",)
)


def batch(rows: int = ROWS) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(6)
    return {
        "continuous": torch.randn(rows, CONTINUOUS, generator=generator),
        "binary": torch.ones(rows, BINARY),
        "discrete": torch.randint(0, 4, (rows, 2), generator=generator),
        "user_embedding": torch.randn(rows, 8, generator=generator) * 5 + 2,
        "author": torch.randn(rows, 4, generator=generator),
    }


def test_everything_is_concatenated_each_embedding_with_its_own_layer_norm() -> None:
    featurization = Featurization(ModelConfig(), SHAPES)
    inputs = batch()
    outputs = featurization(inputs).detach()
    assert outputs.shape == (ROWS, featurization.out_width)
    assert featurization.out_width == CONTINUOUS + BINARY + 8 + 4 + 2 * 8
    dense, user, author, discrete = outputs.split([CONTINUOUS + BINARY, 8, 4, 16], dim=1)
    np.testing.assert_allclose(dense.std(dim=1, correction=0), np.ones(ROWS), rtol=1e-4)
    for name, part in (("user_embedding", user), ("author", author)):
        x = inputs[name].double().numpy()
        expected = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
        np.testing.assert_allclose(part, expected, rtol=1e-4, atol=1e-5)
    assert featurization.discrete is not None
    torch.testing.assert_close(discrete, featurization.discrete(inputs["discrete"]))


def test_an_unknown_users_zero_vector_is_finite_and_so_is_its_gradient() -> None:
    featurization = Featurization(ModelConfig(), SHAPES)
    inputs = {**batch(), "user_embedding": torch.zeros(ROWS, 8, requires_grad=True)}
    outputs = featurization(inputs)
    outputs.square().sum().backward()
    assert outputs.isfinite().all()
    gradient = inputs["user_embedding"].grad
    assert gradient is not None
    assert gradient.isfinite().all()


def test_null_small_embeddings_leave_the_discrete_columns_out() -> None:
    featurization = Featurization(ModelConfig(small_embeddings=None), SHAPES)
    inputs = batch()
    del inputs["discrete"]
    assert featurization(inputs).shape == (ROWS, CONTINUOUS + BINARY + 8 + 4)


def test_a_missing_or_misshapen_input_is_named() -> None:
    featurization = Featurization(ModelConfig(), SHAPES)
    inputs = batch()
    del inputs["author"]
    with pytest.raises(DataError, match="found no 'author'"):
        featurization(inputs)
    with pytest.raises(DataError, match=r"user_embedding: found the shape \(40, 7\), the model needs \(batch, 8\)"):
        featurization({**batch(), "user_embedding": torch.zeros(ROWS, 7)})


def test_log1p_is_the_signed_logarithm_clipped_or_not() -> None:
    _, continuous, binary = make()
    plain = build_dense(FeaturizationConfig(log1p_abs_config=Log1pAbsConfig()), SHAPES)
    clipped = build_dense(FeaturizationConfig(clip_log1p_abs_config=ClipLog1pAbsConfig(clip_magnitude=2)), SHAPES)
    expected = logs(continuous)
    assert np.abs(expected).max() > 2
    np.testing.assert_allclose(plain(continuous, binary), np.hstack([expected, binary]), rtol=1e-12)
    np.testing.assert_allclose(clipped(continuous, binary), np.hstack([np.clip(expected, -2, 2), binary]), rtol=1e-12)


def test_z_score_log_standardises_by_the_statistics_of_the_dataset() -> None:
    _, continuous, binary = make()
    continuous[:, 3] = 7.0
    statistics = ColumnStatistics(CONTINUOUS)
    statistics.add(continuous.numpy().astype(np.float32))
    found = statistics.result()
    shapes = SHAPES.model_copy(update={k: tuple(found[k]) for k in ("log_mean", "log_deviation")})
    layer = build_dense(FeaturizationConfig(z_score_log_config=ZScoreLogConfig(clip_magnitude=2)), shapes)
    x = logs(continuous)
    scores = (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-3)
    expected = np.hstack([np.clip(scores, -2, 2), binary])
    np.testing.assert_allclose(layer(continuous.float(), binary.float()), expected, rtol=1e-4, atol=1e-3)


def test_z_score_without_statistics_is_refused() -> None:
    config = ModelConfig(featurization_config=FeaturizationConfig(z_score_log_config=ZScoreLogConfig()))
    with pytest.raises(ConfigError, match="z_score_log_config: needs the mean and deviation"):
        Featurization(config, SHAPES)


@pytest.mark.parametrize("kind", ["log1p_abs_config", "clip_log1p_abs_config", "z_score_log_config"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38, 0.0])
def test_every_featurization_gives_finite_outputs_and_gradients(kind: str, value: float) -> None:
    shapes = SHAPES.model_copy(update={"log_mean": (0.0,) * CONTINUOUS, "log_deviation": (0.0,) * CONTINUOUS})
    layer = build_dense(FeaturizationConfig.model_validate({kind: {}}), shapes)
    continuous = torch.full((3, CONTINUOUS), value, requires_grad=True)
    outputs = layer(continuous, torch.ones(3, BINARY))
    outputs.sum().backward()
    assert outputs.isfinite().all()
    assert continuous.grad is not None
    assert continuous.grad.isfinite().all()


@pytest.mark.parametrize(("scale", "center"), [(True, False), (False, False)])
def test_the_layer_norm_may_learn_no_scale_or_shift(scale: bool, center: bool) -> None:
    config = DoubleNormLogConfig(layer_norm_config=LayerNormConfig(scale=scale, center=center))
    names = {name for name, _ in DoubleNormLog(config, 3, 1).layer_norm.named_parameters()}
    assert names == ({"weight"} if scale else set())


def test_binary_features_can_be_left_out() -> None:
    given = FeaturizationConfig(log1p_abs_config=Log1pAbsConfig(), feature_names_to_concat=())
    featurization = Featurization(ModelConfig(featurization_config=given, small_embeddings=None), SHAPES)
    assert featurization(batch()).shape == (ROWS, CONTINUOUS + 8 + 4) == (ROWS, featurization.out_width)


WITH_ALL = ModelConfig(
    small_embeddings=SmallEmbeddingsConfig(tables=(SmallTableConfig(index=1, embedding_dim=3),)),
    large_embeddings=LargeEmbeddingsConfig(tables=(LargeTableConfig(name="user_id", num_embeddings=50),)),
    position_debias_config=PositionDebiasConfig(max_position=9, num_dims=2, drop_probability=0),
)
NAMED = SHAPES.model_copy(update={"names": {"continuous": ("a", "b", "position", "c", "d")}, "trained": {"author": 7}})


def full_batch() -> dict[str, torch.Tensor]:
    return {**batch(), "author": torch.arange(ROWS) % 7, "user_id": torch.arange(ROWS), "position": torch.arange(ROWS)}


def test_all_embeddings_come_last_and_their_widths_are_the_fields() -> None:
    featurization, inputs = Featurization(WITH_ALL, NAMED), full_batch()
    assert featurization.fields == (8, 4, 3, 16, 2)
    outputs = featurization(inputs).detach()
    assert outputs.shape == (ROWS, CONTINUOUS + BINARY + 33) == (ROWS, featurization.out_width)
    _, _, author, small, large, position = outputs.split([CONTINUOUS + BINARY, *featurization.fields], dim=1)
    assert featurization.large is not None
    assert featurization.position is not None
    table = featurization.trained["author"].weight.detach()
    torch.testing.assert_close(author, featurization.embedding_norms["author"](table[inputs["author"]]))
    torch.testing.assert_close(small, featurization.discrete(inputs["discrete"]))
    torch.testing.assert_close(large, featurization.large(inputs))
    torch.testing.assert_close(position, featurization.position(inputs))


def test_with_position_debias_the_position_comes_in_by_no_other_way() -> None:
    featurization, inputs = Featurization(WITH_ALL, NAMED).eval(), full_batch()
    changed = {**inputs, "continuous": inputs["continuous"].clone()}
    changed["continuous"][:, 2] = math.nan
    assert torch.equal(featurization(inputs), featurization(changed))
    changed["continuous"][:, 1] += 1
    assert not torch.equal(featurization(inputs), featurization(changed))
    by_index = PositionDebiasConfig(max_position=9, num_dims=2, position_feature_index=0)
    featurization = Featurization(ModelConfig(position_debias_config=by_index), NAMED).eval()
    assert featurization.fields == (8, 4, 8, 2)
    outputs = featurization({**inputs, "discrete": torch.zeros(ROWS, 2, dtype=torch.int64)})
    other = featurization({**inputs, "discrete": torch.tensor([[3, 0]]).repeat(ROWS, 1)})
    assert torch.equal(outputs[:, :-2], other[:, :-2])
    assert not torch.equal(outputs[:, -2:], other[:, -2:])
    far = ModelConfig(position_debias_config=PositionDebiasConfig(position_feature_index=5))
    with pytest.raises(ConfigError, match="position_feature_index: found 5, allowed is less than the 2 discrete"):
        Featurization(far, NAMED)


def test_trained_vectors_start_at_those_given() -> None:
    featurization = Featurization(WITH_ALL, NAMED)
    vectors = torch.randn(7, 4, generator=torch.Generator().manual_seed(1))
    featurization.initialise("author", vectors)
    torch.testing.assert_close(featurization.trained["author"].weight.detach(), vectors)
    featurization(full_batch()).sum().backward()
    assert featurization.trained["author"].weight.grad.is_sparse
    with pytest.raises(DataError, match=r"author: found vectors of \(6, 4\), the model needs \(7, 4\)"):
        featurization.initialise("author", vectors[:6])


def test_a_missing_column_of_ids_is_named() -> None:
    inputs = full_batch()
    del inputs["user_id"]
    with pytest.raises(DataError, match="found no 'user_id'"):
        Featurization(WITH_ALL, NAMED)(inputs)
    with pytest.raises(DataError, match=r"user_id: found the shape \(40, 1\), the model needs \(batch,\)"):
        Featurization(WITH_ALL, NAMED)({**inputs, "user_id": torch.zeros(ROWS, 1, dtype=torch.int64)})


@pytest.mark.parametrize("rows", [2, 128, 300])
def test_two_walks_give_the_outputs_gradients_and_statistics_of_the_layers(rows: int) -> None:
    torch.manual_seed(0)
    dense = DoubleNormLog(DoubleNormLogConfig(clip_magnitude=1.5), 7, 3).double()
    for parameter in dense.parameters():
        torch.nn.init.normal_(parameter)
    continuous = torch.randn(rows, 7, dtype=torch.float64) * 100
    continuous[0, :3] = torch.tensor([math.nan, math.inf, -math.inf])
    binary = torch.randint(0, 2, (rows, 3)).double()
    found = []
    for learns in (False, True):  # inputs that need a gradient go through the layers
        dense.batch_norm.reset_running_stats()
        outputs = dense(continuous.clone().requires_grad_(learns), binary)
        gradients = torch.autograd.grad((outputs * torch.arange(10)).square().sum(), [*dense.parameters()])
        found.append([outputs, *gradients, *(buffer.clone() for buffer in dense.buffers())])
    assert (found[0][0] - found[1][0]).abs().max() < 1e-10
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_features_come_rounded_where_the_network_rounds_them_first() -> None:
    featurization = Featurization(ModelConfig(), InputShapes(continuous=4, binary=2, tasks=("a",)))
    batch = {"continuous": torch.randn(9, 4) * 10, "binary": torch.ones(9, 2)}
    whole = featurization(batch)
    featurization.round()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = featurization(batch)
    torch.testing.assert_close(rounded, whole.bfloat16(), rtol=0, atol=0)
    torch.testing.assert_close(featurization(batch), whole)
