"""DLRM (Naumov et al. 2019, arXiv 1906.00091): pairwise dot products of embeddings and of what is dense.

    d = bottom(dense)                          a vector as wide as a field's
    z = (v_i · v_j  for i > j),                v = d and the fields' vectors
    output = top(concatenation of d and z)

The input here is one vector of which the last parts may be fields: the embeddings. A field that is not as wide as d is
brought to that width by a matrix of its own; the paper has all embeddings of one width. With `num_fields` the fields
are that many linear maps of the whole input, all of which is then dense: so a tower can be one, on a backbone's output.
"""

import math
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from tml.core.errors import ConfigError
from tml.projects.home.recap.mlp import MLP
from tml.projects.home.recap.network_config import DlrmConfig


class FieldsOfOneWidth(nn.Module):
    """Fields (batch, fields · width) to vectors (batch, fields, dim), each by its own matrix unless it is so wide."""

    def __init__(self, fields: int, width: int, dim: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.fields, self.out_width = fields, dim
        self.weight: nn.Parameter | None = None
        if width != dim:
            self.weight = nn.Parameter(torch.empty(fields, width, dim))
            bound = math.sqrt(6 / (width + dim))
            nn.init.uniform_(self.weight, -bound, bound, generator=generator)

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (batch, fields · width) to (batch, fields, dim)."""
        vectors = inputs.reshape(len(inputs), self.fields, -1)
        return vectors if self.weight is None else torch.einsum("bfw,fwd->bfd", vectors, self.weight)


class DLRM(nn.Module):
    """Maps (batch, `width`) to (batch, `out_width`), the top MLP's last layer.

    Args:
        config: the two MLPs and, where the input has no fields, their number.
        width: of the input.
        fields: the widths of the input's last parts that are fields; what is before them is dense.
        generator: draws the initial weights.

    Raises:
        ConfigError: `num_fields` is not given and the input has no fields, or nothing that is dense.

    Example:
        >>> config = DlrmConfig(bottom_mlp={"layer_sizes": [4]}, top_mlp={"layer_sizes": [1]})
        >>> DLRM(config, width=3 + 4 + 6, fields=(4, 6))(torch.zeros(2, 13)).shape
        torch.Size([2, 1])
    """

    lower: Tensor

    def __init__(
        self, config: DlrmConfig, width: int, fields: Sequence[int] = (), generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if config.num_fields is None and not fields:
            raise ConfigError("dlrm_config.num_fields: found none, but what the network reads is not made of fields")
        self.dense_width = width if config.num_fields else width - sum(fields)
        if not self.dense_width:
            raise ConfigError("dlrm_config: found an input of fields alone, the bottom_mlp needs something dense")
        self.bottom = MLP(config.bottom_mlp, self.dense_width, generator)
        dim = self.bottom.out_width
        self.maps = nn.Linear(width, config.num_fields * dim, bias=False) if config.num_fields else None
        self.fields = nn.ModuleList()
        self.widths: list[int] = []
        if self.maps is not None:
            nn.init.xavier_uniform_(self.maps.weight, generator=generator)
        else:
            for size, same in groupby(fields):
                number = len(list(same))
                self.fields.append(FieldsOfOneWidth(number, size, dim, generator))
                self.widths.append(number * size)
        vectors = 1 + (config.num_fields or len(fields))
        rows, columns = torch.tril_indices(vectors, vectors, offset=-1)
        self.register_buffer("lower", rows * vectors + columns, persistent=False)
        self.top = MLP(config.top_mlp, dim + len(rows), generator)
        self.out_width = self.top.out_width

    @property
    def mlp(self) -> MLP:
        """The MLP that the network ends in."""
        return self.top

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (batch, width) to outputs (batch, out_width)."""
        dense = self.bottom(inputs[:, : self.dense_width])
        if self.maps is not None:
            fields = [self.maps(inputs).reshape(len(inputs), -1, dense.shape[1])]
        else:
            parts = torch.split(inputs[:, self.dense_width :], self.widths, dim=1)
            fields = [field(part) for field, part in zip(self.fields, parts, strict=True)]
        vectors = torch.cat([dense.unsqueeze(1), *fields], dim=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(start_dim=1)[:, self.lower]
        outputs: Tensor = self.top(torch.cat([dense, products], dim=1))
        return outputs
