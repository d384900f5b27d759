"""Matrix products in bfloat16 on a CPU, with weights and their updates in float32.

A processor with AMX or AVX-512 multiplies bfloat16 matrices some ten times as fast as float32 ones. `torch.autocast`
uses that, but on a CPU it spends as much time beside the products as in them. `linear` takes its place there:

- The gradient of a weight is Gᵀ·X. oneDNN reads a transposed left factor slowly; G is transposed by itself first, a
  few rows at a time, so that what is read stays in the cache. That halves the time of the product.
- The weight's bfloat16 copy may be kept over the steps (`Copies`), and its gradient stay in bfloat16, for an optimizer
  that reads the one and writes the other on its way through the weights (`tml.optimizers.sliced_adam`).

Under `torch.autocast("cpu", torch.bfloat16)` modules that call `linear` take this way; elsewhere it is `F.linear`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

ROWS = 32
"""Rows transposed at a time: what torch's own transposition of a large matrix takes is two to three times as long."""


def in_bfloat16(tensor: Tensor) -> bool:
    """Whether products of this tensor are to be in bfloat16 and on a CPU, by the autocast around."""
    return (
        tensor.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") is torch.bfloat16
        and not torch.compiler.is_compiling()
    )


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: inputs (batch, in), weight (out, in) and bias (out,) to (batch, out).

    A single output is float32 even so: it is most often a logit, which 8 bits would change by a hundredth.
    """
    kind = inputs.device.type
    if len(weight) == 1 and torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            return F.linear(inputs.to(weight.dtype), weight, bias)
    if not in_bfloat16(inputs) or inputs.ndim != 2 or weight.dtype is not torch.float32:
        return F.linear(inputs, weight, bias)
    copies = _COPIES.get()
    copy = copies.of(weight) if copies is not None else weight.detach().bfloat16()
    outputs: Tensor = _Linear.apply(inputs.bfloat16(), weight, bias, copy)  # type: ignore[no-untyped-call]
    return outputs


class Linear(nn.Linear):
    """`nn.Linear` by way of `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """Inputs (batch, in) to outputs (batch, out)."""
        return linear(input, self.weight, self.bias)


class Copies:
    """The weights of a model in bfloat16, from one step to the next.

    A copy is made anew where its weight may have changed: always, unless `keep` is told that the copy has followed.

    Args:
        kept: the weights whose optimizer calls `keep`. Their gradients are bfloat16.
    """

    def __init__(self, kept: frozenset[Tensor] = frozenset()) -> None:
        self.kept = kept
        self._copies: dict[Tensor, Tensor] = {}
        self._fresh: dict[Tensor, int] = {}

    def of(self, weight: Tensor) -> Tensor:
        """The present copy of a weight."""
        copy = self._copies.get(weight)
        if copy is None:
            copy = self._copies[weight] = torch.empty_like(weight, dtype=torch.bfloat16, requires_grad=False)
            if weight in self.kept and weight.grad is None:
                weight.grad_dtype = torch.bfloat16
        # Whoever writes to a weight moves its version, except for torch's fused optimizers: hence `forget`.
        if self._fresh.get(weight) != weight._version:
            copy.copy_(weight.detach())
            self._fresh[weight] = weight._version
        return copy

    def forget(self) -> None:
        """Before the weights are updated: no copy is known to be as its weight."""
        self._fresh.clear()

    def to_write(self, weight: Tensor) -> Tensor:
        """The copy, for the optimizer to write as it updates the weight."""
        return self._copies[weight]

    def keep(self, weight: Tensor) -> None:
        """The copy has been written together with its weight."""
        self._fresh[weight] = weight._version

    def close(self) -> None:
        """Gradients are float32 again."""
        for weight in self._copies:
            if weight.grad_dtype is not weight.dtype:
                gradient, weight.grad = weight.grad, None
                weight.grad_dtype = weight.dtype
                weight.grad = None if gradient is None else gradient.to(weight.dtype)
        self._copies.clear()
        self._fresh.clear()


_COPIES: ContextVar[Copies | None] = ContextVar("copies", default=None)


@contextmanager
def using(copies: Copies | None) -> Iterator[None]:
    """Inside the block `linear` takes these copies."""
    token = _COPIES.set(copies)
    try:
        yield
    finally:
        _COPIES.reset(token)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, _: Tensor, bias: Tensor | None, copy: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, copy)
        if bias is None:
            return inputs @ copy.t()
        return torch.addmm(bias.bfloat16(), inputs, copy.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        inputs, copy = ctx.saved_tensors
        (gradient,) = gradients
        gradient = gradient.bfloat16()
        needs_inputs, needs_weight, needs_bias, _ = ctx.needs_input_grad
        return (
            gradient @ copy if needs_inputs else None,
            _transposed(gradient) @ inputs if needs_weight else None,
            gradient.sum(0) if needs_bias else None,
            None,
        )


def _transposed(matrix: Tensor) -> Tensor:
    """The transpose, with its own rows one after the other in memory."""
    rows, columns = matrix.shape
    out = matrix.new_empty(columns, rows)
    for start in range(0, rows, ROWS):
        out[:, start : start + ROWS].copy_(matrix[start : start + ROWS].t())
    return out
