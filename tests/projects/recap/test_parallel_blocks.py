"""The walks of a parallel MaskNet against its formula: in float64 through autograd, in bfloat16 as a whole."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tml.projects.home.recap import parallel_blocks
from tml.projects.home.recap.config import MaskBlockConfig, MaskNetConfig
from tml.projects.home.recap.mask_net import MaskNet
from tml.projects.home.recap.parallel_blocks import ROWS, masked, normed

BATCHES = (1, ROWS, 2 * ROWS + 7)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Factors as they are, not rounded."""
    monkeypatch.setattr(parallel_blocks, "copy_of", lambda *weights: torch.cat([w.detach() for w in weights]))


def agree(ours: Tensor, theirs: Tensor, of: list[Tensor]) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    weight = torch.randn_like(theirs)
    pairs = (torch.autograd.grad((outputs * weight).sum(), of) for outputs in (ours, theirs))
    for mine, expected in zip(*pairs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rows", BATCHES)
@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.usefixtures("exact")
def test_masked_inputs_and_their_gradients_are_the_formulas(rows: int, learns: bool) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(rows, 11, dtype=torch.float64, requires_grad=learns)
    aggregate = nn.Linear(11, 9, dtype=torch.float64)
    masks = [nn.Linear(size, 11, dtype=torch.float64) for size in (4, 5)]
    parts = F.relu(aggregate(inputs)).split([4, 5], dim=1)
    expected = torch.stack([mask(part) * inputs for mask, part in zip(masks, parts, strict=True)])
    of = [*aggregate.parameters(), *(parameter for mask in masks for parameter in mask.parameters())]
    agree(torch.stack(masked(inputs, aggregate, masks)), expected, [inputs, *of] if learns else of)


@pytest.mark.parametrize("rows", BATCHES)
def test_norms_side_by_side_are_layer_norms(rows: int) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(rows, size, dtype=torch.float64, requires_grad=True) for size in (6, 3)]
    norms = [nn.LayerNorm(size, dtype=torch.float64) for size in (6, 3)]
    for norm in norms:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    expected = torch.cat([norms[0](inputs[0]).relu(), norms[1](inputs[1])], dim=1)
    of = [*inputs, *(parameter for norm in norms for parameter in norm.parameters())]
    agree(normed(inputs, norms, [True, False]), expected, of)


def test_a_parallel_net_in_bfloat16_is_near_float32() -> None:
    block = MaskBlockConfig(output_size=40, aggregation_size=48)
    net = MaskNet(MaskNetConfig(mask_blocks=(block, block), mlp=None), 100, torch.Generator().manual_seed(0))
    inputs = torch.randn(90, 100, generator=torch.Generator().manual_seed(1), requires_grad=True)
    results = []
    for precision in (torch.bfloat16, torch.float32):
        with torch.autocast("cpu", precision, enabled=precision is torch.bfloat16):
            outputs = net(inputs)
        assert outputs.dtype is precision
        gradients = torch.autograd.grad(outputs.float().square().sum(), [inputs, *net.parameters()])
        results.append([outputs.float(), *gradients])
    for half, full in zip(*results, strict=True):
        assert (half - full).norm() < 0.05 * full.norm()
