"""One step of a training: forward and backward for each of its batches, then update and schedule.

Gradients of several batches are averaged by their shares of the examples: the gradient of the mean loss over one large
batch, as long as no layer mixes examples (batch norm does).
"""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from tml.core import gradients
from tml.core.distributed import unwrap
from tml.core.errors import UserError
from tml.core.precision import Numbers
from tml.core.train_state import TrainState


def take_step(
    state: TrainState, batches: Sequence[Any], measure: bool, start: float, numbers: Numbers | None = None
) -> float:
    """Do one step, whole: forward, backward, update, schedule.

    Args:
        state: changed in place.
        batches: one or more, whose gradients are averaged, each by its share of the examples.
        measure: whether the norms of gradients are wanted, which costs a pass over them.
        start: when the step began, on the clock of `time.perf_counter`.
        numbers: what the model computes in; float32 by default.

    Returns:
        The mean loss.

    Raises:
        UserError: the loss is not finite, or the gradient where its norm is measured: with `measure` or a limit to it.
            Parameters are then as before.
    """
    number = state.step + 1
    numbers = numbers or Numbers(state.device)
    state.optimizer.zero_grad()
    values, counts = _accumulate(state, batches, number, numbers)
    groups = [(group.get("name", str(i)), group) for i, group in enumerate(state.optimizer.param_groups)]
    state.rates = {f"learning_rate/{name}": float(group["lr"]) for name, group in groups}
    state.rates |= {f"weight_decay/{n}": float(g["weight_decay"]) for n, g in groups if "weight_decay_schedule" in g}
    if measure or getattr(state.optimizer, "clips", False):
        state.rates |= _gradient_norms(state.optimizer, number, for_step=True)
    numbers.forget()
    state.optimizer.step()
    if state.scheduler:
        state.scheduler.step()
    state.step = number
    state.batches_read += len(batches)
    seconds = time.perf_counter() - start
    state.seconds += seconds
    state.add({**values, "examples": sum(counts), "seconds": seconds})
    return values["train/loss"]


def _accumulate(
    state: TrainState, batches: Sequence[Any], number: int, numbers: Numbers
) -> tuple[dict[str, float], list[int]]:
    """The mean losses of the batches, their gradients added up; and how many examples each batch has."""
    counts = [_examples(batch) for batch in batches]
    shares = [count / sum(counts) if all(counts) else 1 / len(batches) for count in counts]
    means: dict[str, float] = {}
    for batch, share in zip(batches, shares, strict=True):
        # Ranks need to agree on the gradient once a step, not once a batch.
        alone = getattr(state.model, "no_sync", nullcontext) if batch is not batches[-1] else nullcontext
        with alone():
            with numbers.forward():
                result = state.model(_to_device(batch, state.device))
            loss, losses = _loss_of(result, state.model)
            # One transfer from the device for all of them.
            value, *task_values = torch.stack([loss.detach(), *losses.values()]).tolist()
            if not math.isfinite(value):
                raise UserError(f"the loss at step {number} is {value}: lower the learning rate or look for bad inputs")
            (loss if share == 1 else loss * share).backward()  # type: ignore[no-untyped-call]
        tasks = {f"train/loss/{task}": v for task, v in zip(losses, task_values, strict=True)}
        for name, found in {"train/loss": value, **tasks}.items():
            means[name] = means.get(name, 0.0) + share * found
    return means, counts


def measure_last(state: TrainState) -> None:
    """Measure the gradient of the last step, which is still there, where the step itself did not.

    Raises:
        UserError: the gradient is not finite.
    """
    parameters = (parameter for group in state.optimizer.param_groups for parameter in group["params"])
    if "gradient_norm" not in state.rates and any(parameter.grad is not None for parameter in parameters):
        state.rates |= _gradient_norms(state.optimizer, state.step, for_step=False)


def _gradient_norms(optimizer: torch.optim.Optimizer, number: int, for_step: bool) -> dict[str, float]:
    """The norm of the whole gradient, and of each group's where there are several."""
    measure = getattr(optimizer, "gradient_norms", None)
    norms = measure(for_step=for_step) if measure else gradients.norms_by_group(optimizer.param_groups)
    norm = gradients.total(norms)
    if not math.isfinite(norm):
        raise UserError(f"the gradient at step {number} is {norm}: lower the learning rate or look for bad inputs")
    groups = {f"gradient_norm/{name}": value for name, value in norms.items()} if len(norms) > 1 else {}
    return {"gradient_norm": norm, **groups}


def _loss_of(result: Any, model: nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    loss, outputs = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
        name = type(unwrap(model)).__name__
        raise UserError(f"{name}.forward must return a scalar loss or (loss, outputs), found {found}")
    if not loss.requires_grad:
        name = type(unwrap(model)).__name__
        raise UserError(f"{name}.forward must return a loss with a gradient, found one that no trained parameter is in")
    losses = (outputs.get("losses") or {}) if isinstance(outputs, Mapping) else {}
    loss = loss.reshape(())
    return loss, {name: torch.as_tensor(value).detach().reshape(()).to(loss) for name, value in losses.items()}


def _to_device(batch: Any, device: torch.device) -> Any:
    if hasattr(batch, "to"):  # a tensor, or what is made of tensors, such as TorchRec's KeyedJaggedTensor
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: _to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        moved = [_to_device(value, device) for value in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)
    return batch


def _examples(batch: Any) -> int:
    """The length of the batch's first tensor that has one; 0 where there is none."""
    if isinstance(batch, torch.Tensor):
        return len(batch) if batch.ndim else 0
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return next((count for count in map(_examples, values) if count), 0)
