"""Double norm log, the published way to read counts and rates:

    x ↦ 0 where x is not finite
      ↦ sign(x)·log(1 + |x|)
      ↦ batch norm, clipped to ±5
      ↦ layer norm over the row, together with the binary features

The published layer norm adds an epsilon of 0 to the variance: a row of equal values gives 0/0. An epsilon below
`EPSILON_FLOOR` is raised to it. That is under float32's resolution for a row with a variance near one, as rows have
after a batch norm, and gives a row of equal values a finite output and gradient.

In training on a CPU each of the two is one walk: a few rows at a time go through all of the steps while they are in
the cache, those before the batch's statistics and those after them; the backward goes through the latter again.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from tml.core.bfloat16 import in_bfloat16
from tml.projects.home.recap.config import BatchNormConfig, DoubleNormLogConfig

EPSILON_FLOOR = 1e-8
ROWS = 128
"""Rows at a time: at the published width a float32 tensor of them is a mebibyte."""


class UnbiasedBatchNorm(nn.BatchNorm1d):
    """Batch norm whose running statistics carry nothing of the values they start from.

    Running averages begin at an arbitrary value, whose share after n batches is (1 - momentum)^n: 0.08 after 250
    batches at the published momentum of 0.01. A short run would be evaluated with a variance that no batch had. Here
    they begin at zero and are divided by 1 - (1 - momentum)^n when used, as in Adam. In training it is
    `torch.nn.BatchNorm1d`.
    """

    def __init__(self, width: int, config: BatchNormConfig) -> None:
        super().__init__(width, affine=config.affine, momentum=config.momentum)
        self.decay = math.log1p(-config.momentum)

    def reset_running_stats(self) -> None:
        """Forget every batch."""
        super().reset_running_stats()
        if self.running_var is not None:
            self.running_var.zero_()

    def update(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Take a batch (batch, width) into the running statistics; returns its mean and its (biased) variance."""
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        mean, variance = torch.batch_norm_update_stats(inputs, self.running_mean, self.running_var, self.momentum)
        return mean, variance

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (batch, width) to outputs of the same shape."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        if self.training:
            return super().forward(inputs)
        batches = self.num_batches_tracked
        share = -torch.expm1(batches.clamp(min=1) * self.decay)
        variance = torch.where(batches > 0, self.running_var / share, 1.0)
        mean = self.running_mean / share
        return F.batch_norm(inputs, mean, variance, self.weight, self.bias, training=False, eps=self.eps)


def _in_the_cache(tensor: Tensor) -> bool:
    """Whether it is worth while to go a few rows at a time."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def signed_log(continuous: Tensor) -> Tensor:
    """sign(x)·log(1 + |x|); NaN and infinities count as 0."""
    if continuous.requires_grad or not _in_the_cache(continuous):
        finite = torch.nan_to_num(continuous, nan=0.0, posinf=0.0, neginf=0.0)
        return torch.copysign(torch.log1p(finite.abs()), finite)
    logs = torch.empty_like(continuous)
    for values, out in zip(torch.split(continuous, ROWS), torch.split(logs, ROWS), strict=True):
        torch.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0, out=out)
        torch.copysign(out.abs().log1p_(), out, out=out)
    return logs


class DoubleNormLog(nn.Module):
    """Continuous (batch, C) and binary (batch, B) features to (batch, C + B)."""

    def __init__(self, config: DoubleNormLogConfig, continuous: int, binary: int) -> None:
        super().__init__()
        self.clip = config.clip_magnitude
        self.batch_norm = UnbiasedBatchNorm(continuous, config.batch_norm_config)
        norm = config.layer_norm_config
        self.layer_norm = nn.LayerNorm(
            continuous + binary, eps=max(norm.epsilon, EPSILON_FLOOR), elementwise_affine=norm.scale, bias=norm.center
        )
        self.rounds = False

    def forward(self, continuous: Tensor, binary: Tensor) -> Tensor:
        """Continuous may hold NaN and infinities, which count as 0."""
        logs = signed_log(continuous)
        tensors = (self.batch_norm.weight, self.batch_norm.bias, self.layer_norm.weight, self.layer_norm.bias)
        if self.training and self._walks(logs, binary, tensors):
            mean, variance = self.batch_norm.update(logs)
            settings = self.clip, self.batch_norm.eps, self.layer_norm.eps
            dtype = torch.bfloat16 if self.rounds and in_bfloat16(logs) else logs.dtype
            outputs: Tensor = _NormClipNorm.apply(settings, dtype, logs, binary, mean, variance, *tensors)  # type: ignore[no-untyped-call]
            return outputs
        # `hardtanh_` is `clamp`, but that it overwrites its input and reads its output in the backward.
        clipped = F.hardtanh_(self.batch_norm(logs), -self.clip, self.clip)
        normed: Tensor = self.layer_norm(torch.cat([clipped, binary], dim=1))
        return normed

    @staticmethod
    def _walks(logs: Tensor, binary: Tensor, tensors: tuple[Tensor | None, ...]) -> bool:
        if logs.requires_grad or binary.requires_grad or not _in_the_cache(logs):
            return False
        return len(logs) > 1 and all(tensor is not None and tensor.dtype is logs.dtype for tensor in (*tensors, binary))


class _NormClipNorm(torch.autograd.Function):
    """From the logs on, given the batch's statistics; what is before them does not learn."""

    @staticmethod
    def forward(ctx: Any, settings: tuple[float, float, float], dtype: torch.dtype, *tensors: Tensor) -> Tensor:
        logs, binary, _, _, _, _, scale, shift = tensors
        ctx.settings = settings
        ctx.save_for_backward(*tensors)
        outputs = logs.new_empty(len(logs), logs.shape[1] + binary.shape[1], dtype=dtype)
        for (_, _, joined), out in zip(_walk(settings, *tensors), torch.split(outputs, ROWS), strict=True):
            out.copy_(F.layer_norm(joined, joined.shape[1:], scale, shift, settings[2]))
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        logs, _, mean, variance, *factors = ctx.saved_tensors
        clip, batch_epsilon, row_epsilon = ctx.settings
        scale, _, row_scale, row_shift = factors
        deviation = (variance + batch_epsilon).rsqrt()
        totals = [torch.zeros_like(factor) for factor in factors]
        for (part, normal, joined), given in zip(
            _walk(ctx.settings, *ctx.saved_tensors), torch.split(gradients[0], ROWS), strict=True
        ):
            gradient = given.to(logs.dtype)
            _, *rows = torch.native_layer_norm(joined, joined.shape[1:], row_scale, row_shift, row_epsilon)
            of_joined, *of_rows = torch.ops.aten.native_layer_norm_backward(
                gradient, joined, joined.shape[1:], *rows, row_scale, row_shift, [True, True, True]
            )
            of_normal = torch.ops.aten.hardtanh_backward(of_joined[:, : normal.shape[1]], normal, -clip, clip)
            _, *of_columns = torch.ops.aten.native_batch_norm_backward(
                of_normal, part, scale, None, None, mean, deviation, True, batch_epsilon, [False, True, True]
            )
            torch._foreach_add_(totals, [*of_columns, *of_rows])
        return None, None, None, None, None, None, *totals


def _walk(
    settings: tuple[float, float, float], logs: Tensor, binary: Tensor, mean: Tensor, variance: Tensor, *factors: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """A few rows at a time: the logs, their batch norm, and that clipped and with the binary features beside it.

    The last is in memory that the next rows take over.
    """
    clip, epsilon, _ = settings
    width = logs.shape[1]
    memory = logs.new_empty(min(ROWS, len(logs)), width + binary.shape[1])
    for part, flags in zip(torch.split(logs, ROWS), torch.split(binary, ROWS), strict=True):
        normal = F.batch_norm(part, mean, variance, factors[0], factors[1], False, 0.0, epsilon)
        joined = memory[: len(part)]
        torch.clamp(normal, -clip, clip, out=joined[:, :width])
        joined[:, width:] = flags
        yield part, normal, joined
