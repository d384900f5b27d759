"""Towers of one form that read the same, computed side by side in bfloat16.

Ten small towers, one after the other, take three times as long as their products. Here a layer of all of them is few
products and few walks through the activations (batch, towers · width), in which each tower has its columns:

- First layers are one product, since they read the same.
- Batch norm, ReLU and dropout work on columns, whosever they are. Dropout's random numbers are 16 bits of an integer
  each: a rate is rounded to a multiple of 2⁻¹⁶, and what is kept is scaled by the rounded one.
- Layers between read their own tower's columns, and write them, in place.
- The logits of all towers are one float32 product with a matrix of blocks.

The numbers are those of one tower after the other, but for the order of sums and what dropout draws.
"""

from collections.abc import Iterable, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from tml.core.bfloat16 import copy_of, in_bfloat16, linears, transposed
from tml.projects.home.recap.mlp import MLP

LEVELS = 1 << 16
"""How many values a random number of dropout has."""


def can_join(towers: Sequence[nn.Module], inputs: Tensor) -> TypeGuard[Sequence[MLP]]:
    """Whether towers that read these inputs can be computed by `joined_logits`: all in training, and of one form."""
    if not in_bfloat16(inputs) or inputs.ndim != 2 or not all(isinstance(tower, MLP) for tower in towers):
        return False
    forms = {_form(tower) for tower in towers}  # type: ignore[arg-type]
    return len(forms) == 1 and None not in forms


def joined_logits(towers: Sequence[MLP], inputs: Tensor) -> Tensor:
    """Inputs (batch, width) that all towers read to their logits (batch, towers)."""
    *hidden, last = zip(*(tower.linears for tower in towers), strict=True)
    outputs = inputs
    for depth, layers in enumerate(hidden):
        outputs = linears(outputs, layers) if depth == 0 else _blocks(outputs, layers)
        outputs = _normalised(outputs, [tower.norms[depth] for tower in towers if tower.norms])
        outputs = _Activation.apply(outputs, [tower.dropout for tower in towers])  # type: ignore[no-untyped-call]
    with torch.autocast("cpu", enabled=False):
        weights = torch.block_diag(*(layer.weight for layer in last))  # type: ignore[no-untyped-call]
        return F.linear(outputs.float(), weights, torch.cat([layer.bias for layer in last]))


def _form(tower: MLP) -> tuple[Any, ...] | None:
    """What towers must share; None where a tower is not for this."""
    layers, norms = tower.linears, tower.norms
    ends_linear = len(norms) in (0, len(layers) - 1) and not isinstance(tower.layers[-1], nn.ReLU | nn.Dropout)
    if not tower.training or not ends_linear or len(layers) < 2 or tower.out_width != 1:
        return None
    if any(layer.weight.dtype is not torch.float32 or not layer.weight.requires_grad for layer in layers):
        return None
    shapes = tuple(layer.weight.shape for layer in layers)
    return shapes, tuple((norm.affine, norm.momentum, norm.eps) for norm in norms)


def _normalised(inputs: Tensor, norms: Sequence[nn.BatchNorm1d]) -> Tensor:
    """Batch norm of each tower's columns, which moves the running statistics of each."""
    if not norms:
        return inputs
    names = ("running_mean", "running_var", "weight", "bias")
    mean, variance, weight, bias = (
        None if getattr(norms[0], name) is None else torch.cat([getattr(norm, name) for norm in norms])
        for name in names
    )
    outputs = F.batch_norm(inputs, mean, variance, weight, bias, True, norms[0].momentum or 0.0, norms[0].eps)
    width = norms[0].num_features
    for name, joint in (("running_mean", mean), ("running_var", variance)):
        assert joint is not None
        torch._foreach_copy_([getattr(norm, name) for norm in norms], torch.split(joint, width))
    for norm in norms:
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
    return outputs


def _dropped(like: Tensor, rate: float) -> tuple[Tensor, float]:
    """Which units dropout sets to zero, at random, and what the others are multiplied by."""
    dropped = round(rate * LEVELS)
    words = torch.empty(-(-like.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    numbers = words.view(torch.int16)[: like.numel()].view(like.shape)
    return numbers < dropped - LEVELS // 2, LEVELS / (LEVELS - dropped)


class _Activation(torch.autograd.Function):
    """ReLU, then dropout by the rate of each tower, in place. Where the output is zero nothing came through."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, rates: Sequence[float]) -> Tensor:
        outputs = inputs.relu_()
        ctx.scales = []
        for columns, rate in zip(outputs.chunk(len(rates), dim=1), rates, strict=True):
            if rate:
                dropped, scale = _dropped(columns, rate)
                columns.masked_fill_(dropped, 0).mul_(scale)
                ctx.scales.append(scale)
            else:
                ctx.scales.append(1.0)
        ctx.mark_dirty(inputs)
        ctx.save_for_backward(outputs)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (outputs,) = ctx.saved_tensors
        gradient = torch.ops.aten.threshold_backward(gradients[0], outputs, 0)
        for columns, scale in zip(gradient.chunk(len(ctx.scales), dim=1), ctx.scales, strict=True):
            if scale != 1:
                columns.mul_(scale)
        return gradient, None


def _blocks(inputs: Tensor, layers: Sequence[nn.Linear]) -> Tensor:
    """Inputs (batch, layers · in) to outputs (batch, layers · out): each layer reads and writes columns of its own."""
    copies = [copy_of(layer.weight) for layer in layers]
    bias = torch.cat([layer.bias for layer in layers])
    outputs: Tensor = _Blocks.apply(inputs, bias, copies, *(layer.weight for layer in layers))  # type: ignore[no-untyped-call]
    return outputs


class _Blocks(torch.autograd.Function):
    """Linear layers, each on its own columns."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, bias: Tensor, copies: Sequence[Tensor], *_: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, *copies)
        outputs = inputs.new_empty(len(inputs), len(bias))
        for columns, copy, out in _by_layer(inputs, copies, outputs):
            torch.mm(columns, copy.t(), out=out)
        return outputs.add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, *copies = ctx.saved_tensors
        gradient = gradients[0].to(inputs.dtype)
        of_inputs = torch.empty_like(inputs)
        for columns, copy, out in _by_layer(gradient, copies, of_inputs):
            torch.mm(columns, copy, out=out)
        rows = transposed(gradient).chunk(len(copies))
        weights = [g @ x for g, x in zip(rows, inputs.chunk(len(copies), dim=1), strict=True)]
        return of_inputs, gradient.sum(0), None, *weights


def _by_layer(inputs: Tensor, copies: Sequence[Tensor], outputs: Tensor) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
    number = len(copies)
    return zip(inputs.chunk(number, dim=1), copies, outputs.chunk(number, dim=1), strict=True)
