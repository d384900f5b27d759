"""DLRM against the paper's formula in NumPy."""

import numpy as np
import pytest
import torch

from tml.core.errors import ConfigError
from tml.projects.home.recap.config import DlrmConfig, MlpConfig
from tml.projects.home.recap.dlrm import DLRM

DENSE, FIELDS, ROWS = 5, (4, 3, 3, 4), 6
WIDTH = DENSE + sum(FIELDS)
BOTTOM, TOP = MlpConfig(layer_sizes=(7, 4)), MlpConfig(layer_sizes=(3,))


def make(config: DlrmConfig, fields: tuple[int, ...] = FIELDS) -> tuple[DLRM, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    net = DLRM(config, WIDTH, fields, generator).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(generator=generator)
    return net, torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64)


def numpy_mlp(state: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    weights = sorted(key for key in state if key.startswith(name) and key.endswith("weight"))
    for depth, key in enumerate(weights):
        x = state[key] @ x + state[key.replace("weight", "bias")]
        if depth < len(weights) - 1:
            x = np.maximum(x, 0)
    return x


@pytest.mark.parametrize("num_fields", [None, 3])
def test_equals_the_papers_formula(num_fields: int | None) -> None:
    net, inputs = make(DlrmConfig(bottom_mlp=BOTTOM, top_mlp=TOP, num_fields=num_fields))
    state = {name: parameter.detach().numpy() for name, parameter in net.named_parameters()}
    for found, x in zip(net(inputs).detach(), inputs.numpy(), strict=True):
        dense = numpy_mlp(state, "bottom", x if num_fields else x[:DENSE])
        if num_fields:
            vectors = [dense, *(state["maps.weight"] @ x).reshape(num_fields, 4)]
        else:
            a, b, c, d = np.split(x[DENSE:], np.cumsum(FIELDS)[:-1])
            vectors = [dense, a, b @ state["fields.1.weight"][0], c @ state["fields.1.weight"][1], d]
        products = [vectors[i] @ vectors[j] for i in range(len(vectors)) for j in range(i)]
        expected = numpy_mlp(state, "top", np.concatenate([dense, products]))
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("num_fields", [None, 2])
def test_gradients(num_fields: int | None) -> None:
    net, inputs = make(DlrmConfig(bottom_mlp=MlpConfig(layer_sizes=(4,)), top_mlp=TOP, num_fields=num_fields))
    names, values = zip(*net.named_parameters(), strict=True)

    def function(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = torch.func.functional_call(net, dict(zip(names, parameters, strict=True)), x)
        return outputs

    assert torch.autograd.gradcheck(function, (inputs[:3].requires_grad_(), *values))


def test_an_input_without_fields_needs_their_number() -> None:
    with pytest.raises(ConfigError, match="num_fields: found none, but what the network reads is not made of fields"):
        make(DlrmConfig(), fields=())


def test_an_input_of_fields_alone_has_nothing_for_the_bottom() -> None:
    with pytest.raises(ConfigError, match="needs something dense"):
        DLRM(DlrmConfig(), 7, (3, 4))
