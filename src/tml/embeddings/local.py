"""Embedding tables in the memory of one process, with PyTorch alone.

A table is a matrix (number of ids, dimension). A batch reads a few of its rows, so the gradient of a table is sparse:
the positions of the rows that were read and one gradient row for each, (rows read, dimension) in all. A dense gradient
would cost the whole table at every step. An optimizer for such a table must take sparse gradients and, to cost no more
than the rows themselves, leave the others as they are: `sgd`, `adagrad` and `sparse_adam` of `torch.optim` do.

Vectors start from a normal distribution with standard deviation `scale` / sqrt(dimension), which makes the length of a
vector `scale` on the mean, whatever the dimension.
"""

from collections.abc import Mapping

import torch
from torch import nn


class LocalTables(nn.Module):
    """Named embedding tables of one dimension, with sparse gradients.

    Args:
        sizes: the number of rows of each table, by name.
        dim: the dimension of a vector.
        generator: makes the first values; tables are filled in the order of `sizes`.
        scale: the mean length of a vector at the start.

    Example:
        >>> tables = LocalTables({"user": 4}, dim=2, generator=torch.Generator().manual_seed(0))
        >>> tables("user", torch.tensor([[0, 3]])).shape
        torch.Size([1, 2, 2])
    """

    def __init__(self, sizes: Mapping[str, int], dim: int, generator: torch.Generator, scale: float = 1.0) -> None:
        super().__init__()
        self.dim = dim
        self.tables = nn.ModuleDict()
        for name, rows in sizes.items():
            vectors = torch.empty(rows, dim, device=generator.device)
            vectors.normal_(0.0, scale / dim**0.5, generator=generator)
            self.tables[name] = nn.Embedding(rows, dim, sparse=True, _weight=vectors)

    def forward(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """Read rows of a table.

        Args:
            name: the table.
            rows: row numbers, any shape, int64.

        Returns:
            Their vectors, shape of `rows` with the dimension behind it, float32.
        """
        vectors: torch.Tensor = self.tables[name](rows)
        return vectors

    def vectors(self, name: str) -> torch.Tensor:
        """All vectors of a table, (rows, dimension) float32, without a gradient."""
        weight = self.tables[name].weight
        assert isinstance(weight, torch.Tensor)
        return weight.detach()
