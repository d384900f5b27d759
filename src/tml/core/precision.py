"""The numbers that a model is trained in.

**float32**: everything. **bfloat16**: matrix products, and what is between two of them, have the range of float32 with
8 bits of precision, as of `torch.autocast`; weights, what the optimizer keeps, normalisation statistics and losses stay
float32. **auto**: bfloat16 where that is faster: the processor multiplies it (AMX, or a GPU from Ampere on), and the
model's matrices have `SMALLEST` weights in all; in smaller ones the conversions take longer than the products.

Evaluation is in float32, as the saved model is used.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from tml.core.bfloat16 import Copies, using
from tml.core.distributed import ranks

Precision = Literal["auto", "float32", "bfloat16"]

SMALLEST = 1_000_000


class Numbers:
    """How a step computes: `forward` is around the model, `forget` before the weights change."""

    def __init__(self, device: torch.device, dtype: torch.dtype = torch.float32, copies: Copies | None = None) -> None:
        self.device, self.dtype, self.copies = device, dtype, copies

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Inside the block the model computes in these numbers."""
        if self.dtype is torch.float32:
            yield
            return
        with torch.autocast(self.device.type, self.dtype), using(self.copies):
            yield

    def forget(self) -> None:
        """The optimizer is about to change the weights."""
        if self.copies is not None:
            self.copies.forget()


@contextmanager
def numbers(
    precision: Precision, model: nn.Module, optimizer: torch.optim.Optimizer, accumulates: bool = False
) -> Iterator[Numbers]:
    """The numbers of a training, for as long as the block lasts.

    Args:
        precision: by the config.
        model: on its device.
        optimizer: one that can (`sliced`, see `GroupedOptimizer`) gets gradients in bfloat16, unless they are summed
            up over batches or averaged over ranks: a sum of 8 bits forgets its smaller terms.
        accumulates: whether gradients are summed over batches.
    """
    device = next(model.parameters()).device
    if not _is_bfloat16(precision, model, device):
        yield Numbers(device)
        return
    if device.type != "cpu":
        yield Numbers(device, torch.bfloat16)
        return
    alone = not accumulates and ranks().world_size == 1
    sliced: frozenset[torch.Tensor] = getattr(optimizer, "sliced", frozenset()) if alone else frozenset()
    copies = Copies(sliced)
    if sliced:
        optimizer.copies = copies  # type: ignore[attr-defined]
    try:
        yield Numbers(device, torch.bfloat16, copies)
    finally:
        copies.close()
        if sliced:
            optimizer.copies = None  # type: ignore[attr-defined]


def _is_bfloat16(precision: Precision, model: nn.Module, device: torch.device) -> bool:
    if precision != "auto":
        return precision == "bfloat16"
    weights = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    return weights >= SMALLEST and multiplies_bfloat16(device)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for products of bfloat16 matrices."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_amx_tile_supported())
