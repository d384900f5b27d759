"""MaskNet against the paper's formula in NumPy."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tml.projects.home.recap.config import MaskBlockConfig, MaskNetConfig, MlpConfig
from tml.projects.home.recap.mask_net import MaskNet

WIDTH, ROWS = 6, 9


def blocks(**changes: bool) -> tuple[MaskBlockConfig, ...]:
    return (
        MaskBlockConfig(output_size=5, aggregation_size=4, **changes),
        MaskBlockConfig(output_size=3, reduction_factor=1.5, **changes),
        MaskBlockConfig(output_size=2, aggregation_size=1, **changes),
    )


def make(config: MaskNetConfig) -> tuple[MaskNet, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    net = MaskNet(config, WIDTH, generator).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(generator=generator)
    return net, torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64)


def layer_norm(x: np.ndarray, norm: torch.nn.LayerNorm) -> np.ndarray:
    centred = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + norm.eps)
    return centred * norm.weight.detach().numpy() + norm.bias.detach().numpy()


def reference(net: MaskNet, config: MaskNetConfig, v: np.ndarray) -> np.ndarray:
    state = {name: parameter.detach().numpy() for name, parameter in net.named_parameters()}
    h, outputs, start = v, [], 0
    for k, block_config in enumerate(config.mask_blocks):
        size = block_config.aggregation_size or int(block_config.reduction_factor * WIDTH)
        w1, b1 = (state[f"aggregate.{part}"][start : start + size] for part in ("weight", "bias"))
        start += size
        w2, b2, w = (state[f"blocks.{k}.{part}"] for part in ("mask.weight", "mask.bias", "hidden.weight"))
        block = net.blocks[k]
        mask = np.maximum(v @ w1.T + b1, 0) @ w2.T + b2
        masked = mask * (layer_norm(h, block.input_norm) if block_config.input_layer_norm else h)
        out = layer_norm(masked @ w.T, block.norm)
        if block_config.final_activation:
            out = np.maximum(out, 0)
        outputs.append(out)
        h = v if config.use_parallel else out
    result = np.concatenate(outputs, axis=1) if config.use_parallel else h
    if config.mlp is not None:
        result = np.maximum(result @ state["mlp.layers.0.weight"].T + state["mlp.layers.0.bias"], 0)
    return result


@pytest.mark.parametrize("use_parallel", [True, False])
@pytest.mark.parametrize("input_layer_norm", [True, False])
@pytest.mark.parametrize("final_activation", [True, False])
@pytest.mark.parametrize("mlp", [None, MlpConfig(layer_sizes=(4,), final_activation=True)])
def test_equals_the_papers_formula(
    use_parallel: bool, input_layer_norm: bool, final_activation: bool, mlp: MlpConfig | None
) -> None:
    """Serial with an MLP after it is what the published code could not run (FACTS 5.12)."""
    parts = blocks(input_layer_norm=input_layer_norm, final_activation=final_activation)
    config = MaskNetConfig(mask_blocks=parts, mlp=mlp, use_parallel=use_parallel)
    net, inputs = make(config)
    outputs = net(inputs).detach()
    assert outputs.shape == (ROWS, net.out_width)
    assert net.out_width == (4 if mlp else 10 if use_parallel else 2)
    np.testing.assert_allclose(outputs, reference(net, config, inputs.numpy()), rtol=1e-9, atol=1e-12)


def test_a_block_multiplies_features_which_no_sum_of_them_does() -> None:
    """With mask = v and W = 1 the block holds the features' squares: the product the paper is about."""
    config = MaskNetConfig(mask_blocks=(MaskBlockConfig(output_size=2, aggregation_size=4),), mlp=None)
    net = MaskNet(config, width=2)
    block = net.blocks[0]
    with torch.no_grad():
        # ReLU(v) - ReLU(-v) = v
        net.aggregate.weight.copy_(torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]))
        block.mask.weight.copy_(torch.tensor([[1.0, -1, 0, 0], [0, 0, 1, -1]]))
        block.hidden.weight.copy_(torch.eye(2))
    seen: list[torch.Tensor] = []
    block.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net(torch.tensor([[3.0, -2.0]]))
    torch.testing.assert_close(seen[0], torch.tensor([[9.0, 4.0]]))


@pytest.mark.parametrize("use_parallel", [True, False])
def test_gradients(use_parallel: bool) -> None:
    net, inputs = make(MaskNetConfig(mask_blocks=blocks(), mlp=None, use_parallel=use_parallel))
    names, values = zip(*net.named_parameters(), strict=True)

    def function(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = torch.func.functional_call(net, dict(zip(names, parameters, strict=True)), x)
        return outputs

    assert torch.autograd.gradcheck(function, (inputs[:3].requires_grad_(), *values))


def test_each_blocks_aggregation_starts_glorot_uniform_for_its_own_width() -> None:
    parts = (MaskBlockConfig(output_size=1, aggregation_size=500), MaskBlockConfig(output_size=1, aggregation_size=10))
    net = MaskNet(MaskNetConfig(mask_blocks=parts, mlp=None), 90, torch.Generator().manual_seed(0))
    wide, narrow = net.aggregate.weight.split([500, 10])
    assert wide.abs().max().item() == pytest.approx((6 / 590) ** 0.5, rel=0.01)
    assert narrow.abs().max().item() == pytest.approx((6 / 100) ** 0.5, rel=0.01)


@pytest.mark.parametrize("given", [{}, {"aggregation_size": 3, "reduction_factor": 0.5}])
def test_aggregation_size_or_reduction_factor(given: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="exactly one of aggregation_size, reduction_factor"):
        MaskBlockConfig(output_size=2, **given)


def test_a_small_reduction_factor_leaves_one_unit() -> None:
    config = MaskNetConfig(mask_blocks=(MaskBlockConfig(output_size=2, reduction_factor=0.01),), mlp=None)
    assert MaskNet(config, WIDTH).aggregate.out_features == 1
