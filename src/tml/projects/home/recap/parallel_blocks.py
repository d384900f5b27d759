"""Mask blocks side by side: what is between and around the matrix products of a parallel MaskNet.

Written down as it is in `mask_net`, a step walks through (batch, width) of each block some twenty times, most often to
read from memory what it has just written there. These functions walk less:

- `masked`, from the inputs to mask ⊙ inputs of every block. Its backward goes through the batch a few rows at a time:
  what comes of a block's gradient is made, summed up and transposed while it is in the cache.
- `normed`, layer norm and ReLU of every block, written to where the next layer reads all of them as one.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tml.core.bfloat16 import copy_of, left_factor, product, transposed

ROWS = 32
"""Rows at a time for each thread: at the published width six tensors of them are a mebibyte."""


def masked(inputs: Tensor, aggregate: nn.Linear, masks: Sequence[nn.Linear]) -> tuple[Tensor, ...]:
    """The inputs (batch, width) under each mask: (W2·ReLU(W1·v + b1) + b2) ⊙ v, (batch, width) each.

    Args:
        inputs: v, in the numbers of the products.
        aggregate: W1 and b1 of all masks, one below the other.
        masks: W2 and b2 of each.
    """
    factors = [tensor for layer in masks for tensor in (layer.weight, layer.bias)]
    copies = copy_of(aggregate.weight), [copy_of(layer.weight) for layer in masks]
    products: tuple[Tensor, ...] = _Masked.apply(inputs, copies, aggregate.weight, aggregate.bias, *factors)  # type: ignore[no-untyped-call]
    return products


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, copies: tuple[Tensor, list[Tensor]], *factors: Tensor) -> tuple[Tensor, ...]:
        joint, seconds = copies
        sizes = [copy.shape[1] for copy in seconds]
        _, bias, *others = factors
        firsts = zip(torch.split(joint, sizes), torch.split(bias, sizes), strict=True)
        aggregated = [product(inputs, copy, part, relu=True) for copy, part in firsts]
        masks = [product(a, copy, b) for a, copy, b in zip(aggregated, seconds, others[1::2], strict=True)]
        ctx.save_for_backward(inputs, joint, *aggregated, *seconds, *masks)
        return tuple(mask * inputs for mask in masks)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, joint, *saved = ctx.saved_tensors
        number = len(gradients)
        aggregated, copies, masks = (saved[start : start + number] for start in range(0, 3 * number, number))
        of_inputs, of_mask = torch.zeros_like(inputs), torch.empty_like(inputs)
        rows = ROWS * torch.get_num_threads()
        turned = left_factor(inputs, *reversed(inputs.shape))
        of_aggregated = left_factor(inputs, len(inputs), len(joint))
        factors: list[Tensor] = []
        columns = torch.split(of_aggregated, [copy.shape[1] for copy in copies], dim=1)
        for gradient, a, copy, mask, out in zip(gradients, aggregated, copies, masks, columns, strict=True):
            tensors = (gradient, mask, inputs, of_inputs, of_mask, turned.t())
            for g, m, x, total, of_m, across in zip(*(torch.split(tensor, rows) for tensor in tensors), strict=True):
                total.addcmul_(g, m)
                across.copy_(torch.mul(g, x, out=of_m))
            factors += [turned @ a, of_mask.sum(0)]
            torch.ops.aten.threshold_backward(product(of_mask, copy.t()), a, 0, grad_input=out)
        first = transposed(of_aggregated) @ inputs
        if ctx.needs_input_grad[0]:
            of_inputs.addmm_(of_aggregated, joint)
        return of_inputs, None, first, of_aggregated.sum(0), *factors


def normed(inputs: Sequence[Tensor], norms: Sequence[nn.LayerNorm], activates: Sequence[bool]) -> Tensor:
    """The layer norm of each input (batch, width), clipped at zero where asked, side by side: (batch, all widths)."""
    settings = [(norm.eps, clips) for norm, clips in zip(norms, activates, strict=True)]
    factors = [tensor for norm in norms for tensor in (norm.weight, norm.bias)]
    outputs: Tensor = _Normed.apply(settings, *inputs, *factors)  # type: ignore[no-untyped-call]
    return outputs


class _Normed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, settings: list[tuple[float, bool]], *tensors: Tensor) -> Tensor:
        inputs, factors = tensors[: len(settings)], tensors[len(settings) :]
        widths = [x.shape[1] for x in inputs]
        outputs = inputs[0].new_empty(len(inputs[0]), sum(widths))
        statistics: list[Tensor] = []
        parts = zip(inputs, factors[::2], factors[1::2], settings, torch.split(outputs, widths, dim=1), strict=True)
        for x, weight, bias, (epsilon, clips), out in parts:
            normal, *found = torch.native_layer_norm(x, weight.shape, weight, bias, epsilon)
            statistics += found
            if clips:
                torch.clamp_min(normal, 0, out=out)
            else:
                out.copy_(normal)
        ctx.clips = [clips for _, clips in settings]
        ctx.save_for_backward(outputs, *inputs, *factors, *statistics)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        number = len(ctx.clips)
        outputs, *saved = ctx.saved_tensors
        inputs, factors, statistics = saved[:number], saved[number : 3 * number], saved[3 * number :]
        widths = [x.shape[1] for x in inputs]
        columns = (torch.split(tensor, widths, dim=1) for tensor in (gradients[0], outputs))
        of_inputs: list[Tensor] = []
        of_factors: list[Tensor] = []
        for i, (gradient, out) in enumerate(zip(*columns, strict=True)):
            if ctx.clips[i]:
                gradient = torch.ops.aten.threshold_backward(gradient, out, 0)
            weight, bias = factors[2 * i : 2 * i + 2]
            mean, deviation = statistics[2 * i : 2 * i + 2]
            found = torch.ops.aten.native_layer_norm_backward(
                gradient.contiguous(), inputs[i], weight.shape, mean, deviation, weight, bias, [True, True, True]
            )
            of_inputs.append(found[0])
            of_factors += found[1:]
        return None, *of_inputs, *of_factors
