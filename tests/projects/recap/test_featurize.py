"""Featurization against the formula in NumPy, and on the inputs that broke the published one."""

import math

import numpy as np
import pytest
import torch

from tml.core.errors import DataError
from tml.projects.home.recap.config import (
    DoubleNormLogConfig,
    InputBatchNormConfig,
    InputShapes,
    LayerNormConfig,
    ModelConfig,
)
from tml.projects.home.recap.discrete import SmallEmbeddings
from tml.projects.home.recap.featurize import DoubleNormLog, Featurization, UnbiasedBatchNorm

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


def test_small_embeddings_look_up_each_columns_own_rows() -> None:
    embeddings = SmallEmbeddings((3, 1, 4), width=2, generator=torch.Generator().manual_seed(0))
    tables = embeddings.table.weight.detach().numpy()
    a, b, c = tables[:3], tables[3:4], tables[4:]
    discrete = torch.tensor([[0, 0, 0], [2, 0, 3], [1, 0, 2]])
    expected = [np.concatenate([a[i], b[j], c[k]]) for i, j, k in discrete.tolist()]
    np.testing.assert_array_equal(embeddings(discrete).detach(), expected)


def test_an_index_outside_a_column_is_its_unknown_value() -> None:
    embeddings = SmallEmbeddings((3, 1, 4), width=2)
    outside = torch.tensor([[3, 1, 4], [-1, -7, 10**12], [99, 2, -(2**63)]])
    torch.testing.assert_close(embeddings(outside), embeddings(torch.zeros(3, 3, dtype=torch.int64)))


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
