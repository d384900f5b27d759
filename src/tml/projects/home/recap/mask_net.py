"""MaskNet (Wang, She & Zhang 2021, arXiv 2102.07619): feature-wise multiplication guided by the instance itself.

A feed-forward layer only ever adds features up. A mask block first multiplies its input h, element by element, by a
mask that two layers make from the whole instance v:

    mask   = W2·ReLU(W1·v + b1) + b2
    output = ReLU(LayerNorm(W·(mask ⊙ h)))

In parallel every block takes h = v, the network's input, and the outputs are concatenated. In series a block takes the
output of the block before it as h, and still the network's input as v. An MLP may follow.

Either way every block's W1 is applied to the same v: they are one matrix here, and one multiplication.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from tml.core.bfloat16 import Linear, in_bfloat16
from tml.projects.home.recap.config import MaskBlockConfig, MaskNetConfig
from tml.projects.home.recap.mlp import MLP


class MaskBlock(nn.Module):
    """One block, from ReLU(W1·v + b1) on: the mask's second layer, the product, the layer and its norm."""

    def __init__(
        self, config: MaskBlockConfig, width: int, aggregation: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.input_norm = nn.LayerNorm(width) if config.input_layer_norm else None
        self.mask = Linear(aggregation, width)
        self.hidden = Linear(width, config.output_size, bias=False)
        self.norm = nn.LayerNorm(config.output_size)
        self.activates = config.final_activation
        nn.init.xavier_uniform_(self.mask.weight, generator=generator)
        nn.init.zeros_(self.mask.bias)
        nn.init.xavier_uniform_(self.hidden.weight, generator=generator)

    def forward(self, inputs: Tensor, aggregated: Tensor) -> Tensor:
        """Inputs h (batch, width) and the aggregated instance (batch, aggregation) to (batch, output_size)."""
        if self.input_norm is not None:
            inputs = self.input_norm(inputs)
        return self.after_product(self.mask(aggregated) * inputs)

    def after_product(self, product: Tensor) -> Tensor:
        """From mask ⊙ h (batch, width) on."""
        outputs: Tensor = self.norm(self.hidden(product))
        return F.relu(outputs, inplace=True) if self.activates else outputs


class MaskNet(nn.Module):
    """Maps (batch, `width`) to (batch, `out_width`): the MLP's last layer, or what the blocks give together.

    Example:
        >>> block = MaskBlockConfig(output_size=5, reduction_factor=2.0)
        >>> net = MaskNet(MaskNetConfig(mask_blocks=(block, block), mlp=None), width=3)
        >>> net(torch.zeros(2, 3)).shape
        torch.Size([2, 10])
    """

    def __init__(self, config: MaskNetConfig, width: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.parallel = config.use_parallel
        self.aggregations = [_aggregation(block, width) for block in config.mask_blocks]
        self.aggregate = Linear(width, sum(self.aggregations))
        for weight in torch.split(self.aggregate.weight.detach(), self.aggregations):
            nn.init.xavier_uniform_(weight, generator=generator)
        nn.init.zeros_(self.aggregate.bias)

        sizes = [block.output_size for block in config.mask_blocks]
        widths = [width] * len(sizes) if self.parallel else [width, *sizes[:-1]]
        parts = zip(config.mask_blocks, widths, self.aggregations, strict=True)
        self.blocks = nn.ModuleList(MaskBlock(*part, generator) for part in parts)
        self.out_width = sum(sizes) if self.parallel else sizes[-1]
        self.mlp = MLP(config.mlp, self.out_width, generator) if config.mlp else None
        if self.mlp is not None:
            self.out_width = self.mlp.out_width

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (batch, width) to outputs (batch, out_width)."""
        if in_bfloat16(inputs):
            inputs = inputs.bfloat16()  # once for all blocks
        # One ReLU a part gives each a tensor of its own: products with rows that are far apart take far longer.
        aggregated = [F.relu(part) for part in torch.split(self.aggregate(inputs), self.aggregations, dim=1)]
        if self.parallel:
            outputs = torch.cat(self._side_by_side(inputs, aggregated), dim=1)
        else:
            outputs = inputs
            for block, part in zip(self.blocks, aggregated, strict=True):
                outputs = block(outputs, part)
        return outputs if self.mlp is None else self.mlp(outputs)

    def _side_by_side(self, inputs: Tensor, aggregated: Sequence[Tensor]) -> list[Tensor]:
        blocks: list[MaskBlock] = list(self.blocks)  # type: ignore[arg-type]
        if any(block.input_norm is not None for block in blocks) or torch.compiler.is_compiling():
            return [block(inputs, part) for block, part in zip(blocks, aggregated, strict=True)]
        masks = [block.mask(part) for block, part in zip(blocks, aggregated, strict=True)]
        products = _Products.apply(inputs, *masks)  # type: ignore[no-untyped-call]
        return [block.after_product(product) for block, product in zip(blocks, products, strict=True)]


class _Products(torch.autograd.Function):
    """One factor times each of several; the gradient of the one is summed as it is made."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, *masks: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(inputs, *masks)
        return tuple(mask * inputs for mask in masks)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, *masks = ctx.saved_tensors
        total: Tensor | None = None
        if ctx.needs_input_grad[0]:
            total = gradients[0] * masks[0]
            for gradient, mask in zip(gradients[1:], masks[1:], strict=True):
                total.addcmul_(gradient, mask)
        return total, *(gradient * inputs for gradient in gradients)


def _aggregation(block: MaskBlockConfig, width: int) -> int:
    if block.aggregation_size is not None:
        return block.aggregation_size
    assert block.reduction_factor is not None
    return max(1, int(block.reduction_factor * width))
