"""Matrix products in bfloat16 on a CPU, with weights and their updates in float32.

A processor with AMX or AVX-512 multiplies bfloat16 matrices some ten times as fast as float32 ones. `torch.autocast`
uses that, but on a CPU it spends as much time beside the products as in them. `linear` takes its place there:

- oneDNN's kernel for a layer adds the bias and clips at zero as it writes; `torch.addmm` walks through the outputs
  once for the bias alone.
- The gradient of a weight is Gᵀ·X. oneDNN reads a transposed left factor slowly; G is transposed by itself first, a
  few rows at a time, so that what is read stays in the cache. That halves the time of the product.
- The weight's bfloat16 copy may be kept over the steps (`Copies`), and its gradient stay in bfloat16, for an optimizer
  that reads the one and writes the other on its way through the weights (`tml.optimizers.sliced_adam`).
- Layers that read the same inputs are one product (`linears`): their copies lie one below the other.

Under `torch.autocast("cpu", torch.bfloat16)` modules that call `linear` take this way; elsewhere it is `F.linear`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

ROWS = 32
"""Rows transposed at a time: what torch's own transposition of a large matrix takes is two to three times as long."""
GAP = 32
"""Elements between the rows of a left factor. Rows that begin a power of two apart share few places of the cache."""


def in_bfloat16(tensor: Tensor) -> bool:
    """Whether products of this tensor are to be in bfloat16 and on a CPU, by the autocast around."""
    return (
        tensor.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") is torch.bfloat16
        and not torch.compiler.is_compiling()
    )


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    """`F.linear`, clipped at zero if asked: inputs (batch, in), weight (out, in) and bias (out,) to (batch, out).

    A single output is float32 even so: it is most often a logit, which 8 bits would change by a hundredth.
    """
    kind = inputs.device.type
    if len(weight) == 1 and torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            outputs = F.linear(inputs.to(weight.dtype), weight, bias)
    elif in_bfloat16(inputs) and inputs.ndim == 2 and weight.dtype is torch.float32:
        return _Linear.apply(inputs.bfloat16(), copy_of(weight), relu, weight, bias)  # type: ignore[no-untyped-call, no-any-return]
    else:
        outputs = F.linear(inputs, weight, bias)
    return F.relu(outputs, inplace=True) if relu else outputs


def linears(inputs: Tensor, layers: Sequence[nn.Linear]) -> Tensor:
    """Inputs (batch, in) to the outputs (batch, all out) of several layers with biases, in bfloat16."""
    weights = [layer.weight for layer in layers]
    factors = [tensor for layer in layers for tensor in (layer.weight, layer.bias)]
    outputs: Tensor = _Linear.apply(inputs.bfloat16(), copy_of(*weights), False, *factors)  # type: ignore[no-untyped-call]
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
        self._joint: dict[tuple[Tensor, ...], Tensor] = {}
        self._copies: dict[Tensor, Tensor] = {}
        self._fresh: dict[Tensor, int] = {}

    def of(self, *weights: Tensor) -> Tensor:
        """The present copy of a weight, or of several (out, in) one below the other."""
        joint = self._joint.get(weights)
        if joint is None:
            joint = self._joint[weights] = self._make(weights)
        for weight in weights:
            # Whoever writes to a weight moves its version, except for torch's fused optimizers: hence `forget`.
            if self._fresh.get(weight) != weight._version:
                self._copies[weight].copy_(weight.detach())
                self._fresh[weight] = weight._version
        return joint

    def _make(self, weights: tuple[Tensor, ...]) -> Tensor:
        """Memory for the copies of these weights, which no others then use."""
        sizes = [len(weight) for weight in weights]
        joint = torch.empty(sum(sizes), *weights[0].shape[1:], dtype=torch.bfloat16, device=weights[0].device)
        self._joint = {others: copy for others, copy in self._joint.items() if not {*others} & {*weights}}
        for weight, copy in zip(weights, torch.split(joint, sizes), strict=True):
            self._copies[weight] = copy
            self._fresh.pop(weight, None)
            if weight in self.kept and weight.grad is None:
                weight.grad_dtype = torch.bfloat16
        return joint

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
        self._joint.clear()
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


def copy_of(*weights: Tensor) -> Tensor:
    """A weight in bfloat16, or several one below the other."""
    copies = _COPIES.get()
    if copies is not None:
        return copies.of(*weights)
    return torch.cat([weight.detach().bfloat16() for weight in weights])


def product(left: Tensor, right: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    """left·rightᵀ + bias, clipped at zero if asked: left (n, k), right (m, k) and bias (m,) to (n, m)."""
    if left.dtype is torch.bfloat16 and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        kernel = torch.ops.mkldnn._linear_pointwise
        outputs: Tensor = kernel(left, right, bias, "relu" if relu else "none", [], "")
        return outputs
    outputs = F.linear(left, right, None if bias is None else bias.to(left.dtype))
    return outputs.relu_() if relu else outputs


def left_factor(like: Tensor, rows: int, columns: int) -> Tensor:
    """Memory for a left factor (rows, columns), to be written."""
    wide = like.new_empty(rows, columns + GAP)
    wide[:, columns:] = 0  # oneDNN reads there, though it multiplies by zero
    return wide[:, :columns]


def transposed(matrix: Tensor) -> Tensor:
    """The transpose in memory of its own, as a left factor."""
    rows, columns = matrix.shape
    out = left_factor(matrix, columns, rows)
    for part, given in zip(torch.split(out, ROWS, dim=1), torch.split(matrix, ROWS), strict=True):
        part.copy_(given.t())
    return out


class _Linear(torch.autograd.Function):
    """One product for layers of the same inputs: after `relu` the weight and the bias of each."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, copy: Tensor, relu: bool, *factors: Tensor | None) -> Tensor:
        biases = [bias for bias in factors[1::2] if bias is not None]
        bias = None if not biases else biases[0] if len(biases) == 1 else torch.cat(biases)
        outputs = product(inputs, copy, bias, relu)
        ctx.sizes = [len(weight) for weight in factors[::2]]  # type: ignore[arg-type]
        ctx.save_for_backward(inputs, copy, outputs if relu else None)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, copy, outputs = ctx.saved_tensors
        gradient = gradients[0].to(inputs.dtype)
        if outputs is not None:
            gradient = torch.ops.aten.threshold_backward(gradient, outputs, 0)
        needs_inputs, _, _, *needs = ctx.needs_input_grad
        of_inputs = product(gradient, copy.t()) if needs_inputs else None
        weights = torch.split(transposed(gradient) @ inputs, ctx.sizes) if any(needs[::2]) else ()
        biases = torch.split(gradient.sum(0), ctx.sizes) if any(needs[1::2]) else ()
        factors: list[Tensor | None] = [None] * len(needs)
        factors[::2] = [*weights] or factors[::2]
        factors[1::2] = [*biases] or factors[1::2]
        return of_inputs, None, None, *(f if n else None for f, n in zip(factors, needs, strict=True))
