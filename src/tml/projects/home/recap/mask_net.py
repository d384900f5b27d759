"""MaskNet (Wang, She & Zhang 2021, arXiv 2102.07619): feature-wise multiplication guided by the instance itself.

A feed-forward layer only ever adds features up. A mask block first multiplies its input h, element by element, by a
mask that two layers make from the whole instance v:

    mask   = W2·ReLU(W1·v + b1) + b2
    output = ReLU(LayerNorm(W·(mask ⊙ h)))

In parallel every block takes h = v, the network's input, and the outputs are concatenated. In series a block takes the
output of the block before it as h, and still the network's input as v. An MLP may follow.

Either way every block's W1 is applied to the same v: they are one matrix here, and one multiplication.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tml.core.bfloat16 import Linear, in_bfloat16
from tml.projects.home.recap.config import MaskBlockConfig, MaskNetConfig
from tml.projects.home.recap.mlp import MLP
from tml.projects.home.recap.parallel_blocks import masked, normed


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
        outputs: Tensor = self.norm(self.hidden(self.mask(aggregated) * inputs))
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
        blocks: list[MaskBlock] = list(self.blocks)  # type: ignore[arg-type]
        norms_inputs = any(block.input_norm is not None for block in blocks)
        if self.parallel and not norms_inputs and in_bfloat16(inputs) and inputs.ndim == 2:
            products = masked(inputs, self.aggregate, [block.mask for block in blocks])
            hidden = [block.hidden(product) for block, product in zip(blocks, products, strict=True)]
            outputs = normed(hidden, [block.norm for block in blocks], [block.activates for block in blocks])
            return outputs if self.mlp is None else self.mlp(outputs)
        # One ReLU a part gives each a tensor of its own: products with rows that are far apart take far longer.
        aggregated = [F.relu(part) for part in torch.split(self.aggregate(inputs), self.aggregations, dim=1)]
        if self.parallel:
            parts = [block(inputs, part) for block, part in zip(blocks, aggregated, strict=True)]
            outputs = torch.cat(parts, dim=1)
        else:
            outputs = inputs
            for block, part in zip(blocks, aggregated, strict=True):
                outputs = block(outputs, part)
        return outputs if self.mlp is None else self.mlp(outputs)


def _aggregation(block: MaskBlockConfig, width: int) -> int:
    if block.aggregation_size is not None:
        return block.aggregation_size
    assert block.reduction_factor is not None
    return max(1, int(block.reduction_factor * width))
