"""DCN-v2 against the paper's formulas in NumPy, sample by sample."""

import numpy as np
import pytest
import torch

from tml.projects.home.recap.config import DcnConfig, MlpConfig
from tml.projects.home.recap.dcn import DCN

WIDTH, ROWS = 6, 5


def make(config: DcnConfig) -> tuple[DCN, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    net = DCN(config, WIDTH, generator).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(generator=generator)
    return net, torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64)


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum()


def crossed(net: DCN, config: DcnConfig, x0: np.ndarray) -> np.ndarray:
    """One sample through the cross layers."""
    x = x0
    for layer in net.crosses:
        state = {name: parameter.detach().numpy() for name, parameter in layer.named_parameters()}
        bias = state["up.bias"]
        if config.rank is None:
            x = x0 * (state["up.weight"] @ x + bias) + x
        elif config.num_experts == 1:
            u, v = state["up.weight"], state["down.weight"].T
            x = x0 * (u @ v.T @ x + bias) + x
        else:
            rank, total = config.rank, np.zeros(WIDTH)
            gates = softmax(state["gate.weight"] @ x)
            for i in range(config.num_experts):
                part = slice(i * rank, (i + 1) * rank)
                v, c, u = state["down.weight"][part].T, state["inner"][i], state["up.weight"][:, part]
                expert = x0 * (u @ np.tanh(c @ np.tanh(v.T @ x)) + bias)
                total += gates[i] * expert
            x = total + x
    return x


def deep(net: torch.nn.Module, x: np.ndarray) -> np.ndarray:
    weight, bias = (parameter.detach().numpy() for parameter in net.parameters())
    return np.maximum(weight @ x + bias, 0)


LAYER = MlpConfig(layer_sizes=(4,), final_activation=True)


@pytest.mark.parametrize("shape", [{}, {"rank": 2}, {"rank": 1}, {"rank": 3, "num_experts": 4}])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("parallel_mlp", [None, LAYER])
@pytest.mark.parametrize("mlp", [None, LAYER])
def test_equals_the_papers_formula(
    shape: dict[str, int], num_layers: int, parallel_mlp: MlpConfig | None, mlp: MlpConfig | None
) -> None:
    config = DcnConfig(num_layers=num_layers, parallel_mlp=parallel_mlp, mlp=mlp, **shape)
    net, inputs = make(config)
    outputs = net(inputs).detach()
    assert outputs.shape == (ROWS, net.out_width)
    assert net.out_width == (4 if mlp else WIDTH + 4 if parallel_mlp else WIDTH)
    for found, x0 in zip(outputs, inputs.numpy(), strict=True):
        x = crossed(net, config, x0)
        if net.parallel_mlp is not None:
            x = np.concatenate([x, deep(net.parallel_mlp, x0)])
        if net.mlp is not None:
            x = deep(net.mlp, x)
        np.testing.assert_allclose(found, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [{}, {"rank": 2}, {"rank": 2, "num_experts": 3}])
def test_gradients(shape: dict[str, int]) -> None:
    net, inputs = make(DcnConfig(num_layers=2, mlp=None, **shape))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.3)
    names, values = zip(*net.named_parameters(), strict=True)

    def function(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = torch.func.functional_call(net, dict(zip(names, parameters, strict=True)), x)
        return outputs

    assert torch.autograd.gradcheck(function, (inputs[:3].requires_grad_(), *values))


def test_the_degree_of_the_products_rises_by_one_a_layer() -> None:
    """Along a ray t·x0 the output is a polynomial of degree layers + 1: its next finite difference is 0."""
    net, inputs = make(DcnConfig(num_layers=3, mlp=None))
    with torch.no_grad():
        for cross in net.crosses:
            cross.up.weight.div_(WIDTH)
    values = np.stack([net(t * inputs[:1]).detach().numpy()[0] for t in range(7)])
    np.testing.assert_allclose(np.diff(values, n=5, axis=0), 0, atol=1e-6 * np.abs(values).max())
    assert np.abs(np.diff(values, n=4, axis=0)).max() > 1e-3


def test_a_low_rank_layer_has_the_paper_s_number_of_weights() -> None:
    full, low = (DCN(DcnConfig(num_layers=2, rank=rank, mlp=None), 100) for rank in (None, 5))
    assert sum(p.numel() for p in full.parameters()) == 2 * (100 * 100 + 100)
    assert sum(p.numel() for p in low.parameters()) == 2 * (2 * 5 * 100 + 100)
