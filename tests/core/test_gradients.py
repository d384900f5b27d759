"""Norms of gradients against float64."""

import math

import pytest
import torch
from torch import nn

from tml.core import gradients


@pytest.mark.parametrize("sizes", [[(3,)], [(4096,), (5,)], [(100, 257), (8192,), (1,)], [()], [(90_001,), (300, 40)]])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
def test_norm_is_that_of_all_elements(sizes: list[tuple[int, ...]], kind: torch.dtype) -> None:
    values = [torch.randn(size, generator=torch.Generator().manual_seed(i)).to(kind) for i, size in enumerate(sizes)]
    expected = torch.cat([value.double().flatten() for value in values]).norm()
    found = gradients.norm(values)
    assert found.dtype == (torch.float64 if kind == torch.float64 else torch.float32)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_norm_of_a_large_tensor_is_right_where_torchs_own_is_not() -> None:
    values = torch.randn(8_000_000, generator=torch.Generator().manual_seed(0))
    assert float(gradients.norm([values])) == pytest.approx(float(values.double().norm()), rel=1e-6)


def test_a_transposed_gradient_is_measured_whole() -> None:
    values = torch.randn(300, 200)
    assert float(gradients.norm([values.t()])) == pytest.approx(float(values.norm()), rel=1e-5)


def test_groups_of_one_name_are_one() -> None:
    weights = [nn.Parameter(torch.zeros(2)) for _ in range(4)]
    for number, weight in enumerate(weights[:3]):
        weight.grad = torch.full((2,), float(number + 1))
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1, 1, 3])).sum().backward()
    groups = [
        {"name": "a", "params": [weights[0]]},
        {"params": [weights[1]]},
        {"name": "a", "params": [weights[2], weights[3]]},
        {"name": "table", "params": [table.weight]},
    ]
    norms = gradients.norms_by_group(groups)
    expected = {"a": math.sqrt(2 + 18), "1": math.sqrt(8), "table": math.sqrt(8 + 2)}
    assert norms == {name: pytest.approx(value) for name, value in expected.items()}
    assert gradients.total(norms) == pytest.approx(math.sqrt(20 + 8 + 10))


def test_without_gradients_norms_are_zero() -> None:
    assert gradients.norms_by_group([{"name": "a", "params": [nn.Parameter(torch.ones(3))]}]) == {"a": 0.0}
    assert gradients.norms_by_group([]) == {}
