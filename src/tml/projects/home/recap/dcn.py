"""Deep & Cross Network V2 (Wang et al. 2021, arXiv 2008.13535): products of features of every degree, by layers.

With the network's input x0, cross layer l makes of x_l

    full         x_{l+1} = x0 ⊙ (W·x_l + b) + x_l
    low rank     W = U·Vᵀ, with U and V of (width, rank)
    mixture      x_{l+1} = x0 ⊙ (Σ_i G_i(x_l)·U_i·g(C_i·g(V_iᵀ·x_l)) + b) + x_l

where the gate G is a softmax over the experts i of a linear layer, C_i is (rank, rank) and g is tanh. As the gates add
up to one, the experts' common b may stand outside their sum. A layer raises the highest degree of the products by one.

Deep layers follow the crosses (stacked), or stand beside them on the same input (parallel).
"""

import math

import torch
from torch import Tensor, nn

from tml.projects.home.recap.mlp import MLP
from tml.projects.home.recap.network_config import DcnConfig


class CrossLayer(nn.Module):
    """One cross layer with one matrix, full or of low rank."""

    def __init__(self, width: int, rank: int | None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.down = None if rank is None else nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(width if rank is None else rank, width)
        for linear in (self.down, self.up):
            if linear is not None:
                nn.init.xavier_uniform_(linear.weight, generator=generator)
        nn.init.zeros_(self.up.bias)

    def forward(self, start: Tensor, inputs: Tensor) -> Tensor:
        """The network's input x0 and this layer's x, (batch, width) each, to (batch, width)."""
        inner = inputs if self.down is None else self.down(inputs)
        return torch.addcmul(inputs, start, self.up(inner))


class CrossMixture(nn.Module):
    """One cross layer of several low-rank experts behind a gate."""

    def __init__(self, width: int, rank: int, experts: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.experts = experts
        self.gate = nn.Linear(width, experts, bias=False)
        self.down = nn.Linear(width, experts * rank, bias=False)
        self.inner = nn.Parameter(torch.empty(experts, rank, rank))
        self.up = nn.Linear(experts * rank, width)
        nn.init.xavier_uniform_(self.gate.weight, generator=generator)
        # Of each expert's own width, not that of all.
        bound = math.sqrt(6 / (width + rank))
        nn.init.uniform_(self.down.weight, -bound, bound, generator=generator)
        nn.init.uniform_(self.up.weight, -bound, bound, generator=generator)
        nn.init.uniform_(self.inner, -math.sqrt(3 / rank), math.sqrt(3 / rank), generator=generator)
        nn.init.zeros_(self.up.bias)

    def forward(self, start: Tensor, inputs: Tensor) -> Tensor:
        """The network's input x0 and this layer's x, (batch, width) each, to (batch, width)."""
        inner = torch.tanh(self.down(inputs)).reshape(len(inputs), self.experts, -1)
        inner = torch.tanh(torch.einsum("bei,eji->bej", inner, self.inner))
        weighted = inner * torch.softmax(self.gate(inputs), dim=1).unsqueeze(2)
        return torch.addcmul(inputs, start, self.up(weighted.flatten(start_dim=1)))


class DCN(nn.Module):
    """Maps (batch, `width`) to (batch, `out_width`): the MLP's last layer, or what the crosses and deep layers give.

    Example:
        >>> DCN(DcnConfig(num_layers=2, rank=2, mlp=None), width=5)(torch.zeros(3, 5)).shape
        torch.Size([3, 5])
    """

    def __init__(self, config: DcnConfig, width: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.crosses = nn.ModuleList()
        for _ in range(config.num_layers):
            if config.num_experts > 1:
                assert config.rank is not None
                self.crosses.append(CrossMixture(width, config.rank, config.num_experts, generator))
            else:
                self.crosses.append(CrossLayer(width, config.rank, generator))
        self.out_width = width
        self.parallel_mlp = MLP(config.parallel_mlp, width, generator) if config.parallel_mlp else None
        if self.parallel_mlp is not None:
            self.out_width += self.parallel_mlp.out_width
        self.mlp = MLP(config.mlp, self.out_width, generator) if config.mlp else None
        if self.mlp is not None:
            self.out_width = self.mlp.out_width

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (batch, width) to outputs (batch, out_width)."""
        outputs = inputs
        for cross in self.crosses:
            outputs = cross(inputs, outputs)
        if self.parallel_mlp is not None:
            outputs = torch.cat([outputs, self.parallel_mlp(inputs)], dim=1)
        return outputs if self.mlp is None else self.mlp(outputs)
