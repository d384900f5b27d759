"""Embedding tables in the memory of one process, with PyTorch alone.

A table is a matrix (number of ids, dimension). A batch reads a few of its rows, and the gradient of a table is sparse:
the rows that were read and one gradient for each. A dense gradient would cost the whole table at every step. An
optimizer for such a table must take sparse gradients and, to cost no more than the rows themselves, leave the others as
they are.

A table may be kept in half precision; vectors are read, and gradients taken, as float32 even so.

Vectors start from a normal distribution with standard deviation `scale` / sqrt(dimension), which makes the length of a
vector `scale` on the mean, whatever the dimension.
"""

from collections.abc import Collection, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from tml.embeddings.engine import TableEngine

DataType = Literal["fp32", "fp16", "bf16"]

TYPES: Mapping[DataType, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def sparse_table(
    rows: int, dim: int, generator: torch.Generator, scale: float = 1.0, dtype: torch.dtype = torch.float32
) -> nn.Embedding:
    """One table (rows, dim) with sparse gradients, its vectors of the mean length `scale`, kept as `dtype`."""
    vectors = torch.empty(rows, dim, device=generator.device)
    vectors.normal_(0.0, scale / dim**0.5, generator=generator)
    return nn.Embedding(rows, dim, sparse=True, _weight=vectors.to(dtype))


class LocalTables(TableEngine):
    """Named embedding tables of one dimension, with sparse gradients.

    Args:
        sizes: the number of rows of each table, by name.
        dim: the dimension of a vector.
        generator: makes the first values; tables are filled in the order of `sizes`.
        scale: the mean length of a vector at the start.
        types: how the numbers of a table are kept, where it is not as fp32.
        frozen: tables that do not learn.

    Example:
        >>> tables = LocalTables({"user": 4}, dim=2, generator=torch.Generator().manual_seed(0))
        >>> tables("user", torch.tensor([[0, 3]])).shape
        torch.Size([1, 2, 2])
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        dim: int,
        generator: torch.Generator,
        scale: float = 1.0,
        types: Mapping[str, DataType] | None = None,
        frozen: Collection[str] = (),
    ) -> None:
        super().__init__(sizes, dim)
        self._number = {name: number for number, name in enumerate(sizes)}
        self.tables = nn.ModuleList()
        for name, rows in sizes.items():
            table = sparse_table(rows, dim, generator, scale, TYPES[(types or {}).get(name, "fp32")])
            self.tables.append(table.requires_grad_(name not in frozen))

    def read(self, name: str, rows: Tensor | slice) -> Tensor:
        """Vectors of rows, (n,) int64 or a slice, as (n, dimension), without a gradient."""
        table = self.vectors(name)
        read = table[rows] if isinstance(rows, slice) else table.index_select(0, rows)
        return read.to(torch.promote_types(read.dtype, torch.float32))

    @torch.no_grad()
    def write(self, name: str, rows: Tensor | slice, vectors: Tensor) -> None:
        """Put vectors (n, dimension) in the place of those of rows, each one there once."""
        table = self._table(name)
        table[rows] = vectors.to(table)

    def learns(self, name: str) -> bool:
        """Whether a table takes gradients."""
        return self._table(name).requires_grad

    def add_gradients(self, name: str, rows: Tensor, gradients: Tensor) -> None:
        """Keep the gradients of rows, each one there once, for the optimizer's next step."""
        give_gradient(self._table(name), rows, gradients)

    def vectors(self, name: str) -> Tensor:
        """All vectors of a table, (rows, dimension), without a gradient."""
        return self._table(name).detach()

    def path(self, name: str) -> str:
        """The path of a table's module below this one."""
        return f"tables.{self._number[name]}"

    def _table(self, name: str) -> Tensor:
        weight = self.tables[self._number[name]].weight
        assert isinstance(weight, Tensor)
        return weight


def give_gradient(table: Tensor, rows: Tensor, gradients: Tensor) -> None:
    """Add to the gradient of a table by rows, (n,) int64 in any order, each one there once."""
    if table.grad is not None:
        before = table.grad
        rows, place = torch.unique(torch.cat([before._indices()[0], rows]), return_inverse=True)
        both = torch.cat([before._values(), gradients])
        gradients = both.new_zeros(len(rows), both.shape[1]).index_add_(0, place, both)
    gradient = torch.sparse_coo_tensor(
        rows.unsqueeze(0), gradients, table.shape, is_coalesced=True, check_invariants=False
    )
    if table.dtype != gradient.dtype:
        # A copied parameter has forgotten it.
        table.grad_dtype = gradient.dtype
    table.grad = gradient
