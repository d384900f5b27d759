"""Adam on a CPU that also widens bfloat16 gradients and writes the weights in bfloat16.

Each of the two alone is a walk through all weights, half as long as Adam's own. Here a weight is updated a slice at a
time: the slice's gradient is widened to float32, torch's fused kernel updates it, and it is rounded to bfloat16, while
all of it is in the cache. The numbers are those of three walks. Parameters whose gradient is float32 go the usual way.
"""

from typing import Any

import torch
from torch import Tensor

from tml.core.bfloat16 import Copies

SLICE = 1 << 16
"""Elements for each thread: weight, gradient and two moments take a mebibyte."""


def can_slice(optimizer: torch.optim.Optimizer, parameter: Tensor) -> bool:
    """Whether `step` takes a bfloat16 gradient of this parameter."""
    kinds = (torch.optim.Adam, torch.optim.AdamW)
    if type(optimizer) not in kinds or parameter.device.type != "cpu" or parameter.dtype is not torch.float32:
        return False
    return all(group["fused"] for group in optimizer.param_groups) and parameter.is_contiguous()


def step(optimizer: torch.optim.Adam, copies: Copies) -> None:
    """One step of a fused Adam or AdamW; the `copies` of weights with bfloat16 gradients are written along."""
    halves = {
        parameter: group
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None and parameter.grad.dtype is torch.bfloat16 is not parameter.dtype
    }
    gradients = {parameter: parameter.grad for parameter in halves}
    try:
        # torch's own step is to see the others alone.
        for parameter in halves:
            parameter.grad = None
        optimizer.step()
    finally:
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
    with torch.no_grad():
        for parameter, group in halves.items():
            _update(parameter, group, _state_of(optimizer, parameter), copies)


def _state_of(optimizer: torch.optim.Adam, parameter: Tensor) -> dict[str, Any]:
    state: dict[str, Any] = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32)
        state["exp_avg"] = torch.zeros_like(parameter, requires_grad=False)
        state["exp_avg_sq"] = torch.zeros_like(parameter, requires_grad=False)
    return state


def _update(parameter: Tensor, group: dict[str, Any], state: dict[str, Any], copies: Copies) -> None:
    state["step"] += 1
    assert parameter.grad is not None
    tensors = (parameter.detach(), parameter.grad, state["exp_avg"], state["exp_avg_sq"], copies.to_write(parameter))
    settings = {name: group[name] for name in ("lr", "eps", "weight_decay", "amsgrad", "maximize")}
    settings["beta1"], settings["beta2"] = group["betas"]
    size = SLICE * torch.get_num_threads()
    buffer = torch.empty(size)
    update = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
    slices = zip(*(tensor.view(-1).split(size) for tensor in tensors), strict=True)
    for weight, gradient, mean, square, half in slices:
        wide = buffer[: len(weight)].copy_(gradient)
        update([weight], [wide], [mean], [square], [], [state["step"]], **settings)
        half.copy_(weight)
    copies.keep(parameter)
