"""What an engine of embedding tables does, whatever keeps its rows: one process, partitions on disk, several machines.

An engine hands out copies of rows and takes gradients for them; it never sees a model or a loss. Called as a module it
makes a read part of autograd's graph: in backward the gradients of all reads of a row are summed, and it gets them.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class TableEngine(nn.Module):
    """Named tables of vectors of one dimension.

    Args:
        sizes: the number of rows of each table.
        dim: the dimension of a vector.
    """

    def __init__(self, sizes: Mapping[str, int], dim: int) -> None:
        super().__init__()
        self.dim, self.sizes = dim, dict(sizes)

    def forward(self, name: str, rows: Tensor) -> Tensor:
        """Vectors of rows of any shape, int64, with a gradient: shape of `rows` with the dimension behind it."""
        if not self.learns(name) or not torch.is_grad_enabled():
            return self.read(name, rows.reshape(-1)).view(*rows.shape, self.dim)
        # Autograd only follows what comes from a tensor with a gradient; this one has no elements.
        anchor = torch.empty(0, device=self.device, requires_grad=True)
        vectors: Tensor = _Lookup.apply(anchor, self, name, rows)  # type: ignore[no-untyped-call]
        return vectors

    @property
    def device(self) -> torch.device:
        """Where vectors are read to."""
        return next(self.parameters()).device

    @abstractmethod
    def path(self, name: str) -> str:
        """The path of a table's module below this one."""

    @abstractmethod
    def read(self, name: str, rows: Tensor | slice) -> Tensor:
        """Vectors of rows, (n,) int64 or a slice, as (n, dimension) of at least float32; rows may come twice."""

    @abstractmethod
    def write(self, name: str, rows: Tensor | slice, vectors: Tensor) -> None:
        """Put vectors (n, dimension) in the place of those of rows, each one there once."""

    @abstractmethod
    def learns(self, name: str) -> bool:
        """Whether a table takes gradients; a frozen one does not."""

    @abstractmethod
    def add_gradients(self, name: str, rows: Tensor, gradients: Tensor) -> None:
        """Take the gradients (n, dimension) of rows, (n,) int64 and each one there once, for the optimizer's next step.

        What several calls before one step give a row is added up.
        """

    def begin(self, batch: Mapping[str, Any]) -> None:
        """Make ready for the reads and the gradients of a training batch; whoever trains calls it before them.

        Args:
            batch: has `reads`, by table the `rows` that are read and the same rows `unique`, each once and ascending.
        """

    def finish(self) -> None:
        """Take note that the gradients of the batch have all been added."""


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, _anchor: Tensor, engine: TableEngine, name: str, rows: Tensor) -> Tensor:
        context.engine, context.name, context.rows = engine, name, rows
        return engine.read(name, rows.reshape(-1)).view(*rows.shape, engine.dim)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        rows, place = torch.unique(context.rows.reshape(-1), return_inverse=True)
        gradient = gradients[0].reshape(len(place), -1)
        summed = gradient.new_zeros(len(rows), gradient.shape[1]).index_add_(0, place, gradient)
        context.engine.add_gradients(context.name, rows, summed)
        return None, None, None, None
