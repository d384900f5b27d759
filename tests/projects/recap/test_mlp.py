"""The MLP against the formula in NumPy."""

import numpy as np
import pytest
import torch

from tml.projects.home.recap.config import BatchNormConfig, DropoutConfig, MlpConfig
from tml.projects.home.recap.mlp import MLP

WIDTH, ROWS = 7, 12


def make(config: MlpConfig) -> tuple[MLP, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    mlp = MLP(config, WIDTH, generator).double()
    with torch.no_grad():
        for name, parameter in mlp.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(generator=generator)
    return mlp, torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64)


def reference(mlp: MLP, inputs: np.ndarray, normalise: bool, final_activation: bool) -> np.ndarray:
    linears = [layer for layer in mlp.layers if isinstance(layer, torch.nn.Linear)]
    h = inputs
    for depth, linear in enumerate(linears, start=1):
        h = h @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()
        if depth == len(linears) and not final_activation:
            break
        if normalise:
            h = (h - h.mean(axis=0)) / np.sqrt(h.var(axis=0) + 1e-5)
        h = np.maximum(h, 0)
    return h


@pytest.mark.parametrize("sizes", [(1,), (5,), (6, 4, 1)])
@pytest.mark.parametrize("batch_norm", [None, BatchNormConfig()])
@pytest.mark.parametrize("final_activation", [False, True])
def test_equals_the_formula(sizes: tuple[int, ...], batch_norm: BatchNormConfig | None, final_activation: bool) -> None:
    mlp, inputs = make(MlpConfig(layer_sizes=sizes, batch_norm=batch_norm, final_activation=final_activation))
    expected = reference(mlp, inputs.numpy(), batch_norm is not None, final_activation)
    assert mlp.out_width == sizes[-1]
    np.testing.assert_allclose(mlp(inputs).detach(), expected, rtol=1e-10, atol=1e-12)


def test_one_layer_without_final_activation_is_linear() -> None:
    """The published code could not run this one (FACTS 5.12)."""
    mlp, inputs = make(MlpConfig(layer_sizes=(3,)))
    assert len(mlp.layers) == 1
    torch.testing.assert_close(mlp(2 * inputs) - mlp(inputs), mlp(inputs) - mlp(0 * inputs))
    assert (mlp(inputs) < 0).any()


def test_batch_norm_has_no_parameters_and_evaluates_with_running_statistics() -> None:
    mlp, inputs = make(MlpConfig(layer_sizes=(4, 1), batch_norm=BatchNormConfig(momentum=0.1)))
    assert sum(p.numel() for p in mlp.parameters()) == WIDTH * 4 + 4 + 4 + 1
    linear, last = mlp.layers[0], mlp.linears[-1]
    mlp(inputs)
    h = linear(inputs).detach().numpy()
    mean, variance = 0.1 * h.mean(axis=0), 0.9 + 0.1 * h.var(axis=0, ddof=1)
    hidden = np.maximum((h - mean) / np.sqrt(variance + 1e-5), 0)
    expected = hidden @ last.weight.detach().numpy().T + last.bias.detach().numpy()
    np.testing.assert_allclose(mlp.eval()(inputs).detach(), expected, rtol=1e-10)
    torch.testing.assert_close(mlp(inputs[:1]), mlp(inputs)[:1])


def test_affine_batch_norm_is_learnt() -> None:
    mlp, _ = make(MlpConfig(layer_sizes=(4, 1), batch_norm=BatchNormConfig(affine=True)))
    assert sum(p.numel() for p in mlp.parameters()) == WIDTH * 4 + 4 + 2 * 4 + 4 + 1


def test_dropout_acts_in_training_alone_and_keeps_the_mean() -> None:
    mlp, _ = make(MlpConfig(layer_sizes=(2000, 1), dropout=DropoutConfig(rate=0.2)))
    hidden = mlp.layers[:-1]
    inputs = torch.ones(1, WIDTH, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trained = hidden(inputs)
    evaluated = hidden.eval()(inputs)
    alive = evaluated > 0
    assert (trained[alive] == 0).double().mean().item() == pytest.approx(0.2, abs=0.05)
    kept = trained != 0
    torch.testing.assert_close(trained[kept], evaluated[kept] / 0.8)


@pytest.mark.parametrize("batch_norm", [None, BatchNormConfig(affine=True)])
def test_gradients(batch_norm: BatchNormConfig | None) -> None:
    mlp, inputs = make(MlpConfig(layer_sizes=(4, 3, 1), batch_norm=batch_norm))
    names, values = zip(*mlp.named_parameters(), strict=True)

    def function(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = torch.func.functional_call(mlp, dict(zip(names, parameters, strict=True)), x)
        return outputs

    assert torch.autograd.gradcheck(function, (inputs[:4].requires_grad_(), *values))


def test_weights_start_glorot_uniform_from_the_generator_alone() -> None:
    config = MlpConfig(layer_sizes=(300, 1))
    one, two = (MLP(config, 200, torch.Generator().manual_seed(5)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    weight = one.layers[0].weight
    bound = (6 / 500) ** 0.5
    assert weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert weight.var().item() == pytest.approx(bound**2 / 3, rel=0.02)
    assert not one.layers[0].bias.any()
