"""A multi-layer perceptron: h ↦ ReLU(norm(W·h + b)) layer by layer.

Batch norm, if any, stands between a layer and its activation, dropout after the activation. The last layer is linear
alone, as a tower's logit must be, unless `final_activation` makes it like the others. Weights start Glorot-uniform
(Glorot & Bengio 2010), biases at zero.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from tml.core.bfloat16 import Linear, linear
from tml.projects.home.recap.config import MlpConfig


class MLP(nn.Module):
    """Maps (batch, `width`) to (batch, `config.layer_sizes[-1]`).

    Example:
        >>> MLP(MlpConfig(layer_sizes=(4, 1)), width=3)(torch.zeros(2, 3)).shape
        torch.Size([2, 1])
    """

    def __init__(self, config: MlpConfig, width: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.out_width = config.layer_sizes[-1]
        self.dropout = config.dropout.rate if config.dropout else 0.0
        self.layers = nn.Sequential()
        for depth, (before, after) in enumerate(pairwise((width, *config.layer_sizes)), start=1):
            linear = Linear(before, after)
            nn.init.xavier_uniform_(linear.weight, generator=generator)
            nn.init.zeros_(linear.bias)
            self.layers.append(linear)
            if depth == len(config.layer_sizes) and not config.final_activation:
                break
            if config.batch_norm:
                norm = config.batch_norm
                self.layers.append(nn.BatchNorm1d(after, affine=norm.affine, momentum=norm.momentum))
            self.layers.append(nn.ReLU(inplace=True))  # no layer here keeps its outputs for the backward
            if config.dropout:
                self.layers.append(nn.Dropout(config.dropout.rate))

    @property
    def linears(self) -> list[nn.Linear]:
        """The linear layers, first to last: of a tower, the last one gives the logit."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    @property
    def norms(self) -> list[nn.BatchNorm1d]:
        """The batch norms, first to last."""
        return [layer for layer in self.layers if isinstance(layer, nn.BatchNorm1d)]

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (batch, width) to outputs (batch, out_width)."""
        outputs = inputs
        layers = [*self.layers]
        for layer, before, after in zip(layers, [None, *layers], [*layers[1:], None], strict=False):
            if isinstance(layer, Linear):
                outputs = linear(outputs, layer.weight, layer.bias, relu=isinstance(after, nn.ReLU))
            elif not (isinstance(layer, nn.ReLU) and isinstance(before, Linear)):  # which has done it as it wrote
                outputs = layer(outputs)
        return outputs
