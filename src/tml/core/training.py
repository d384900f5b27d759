"""The training loop: take a batch, lower the loss, now and then measure and save.

What the loop needs to know about is a `TrainState`. Everything that shapes the steps to come is in its checkpoint:
parameters, optimizer, learning-rate schedule, step, position in the data, random state, and the running averages. So
a training that is interrupted and resumed gives the parameters and the metrics of one that never was, bit for bit.

A step is done whole or not at all: Ctrl-C waits for the end of it, then the loop saves a checkpoint and stops.
"""

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import PositiveFloat, PositiveInt
from rich.console import Console
from torch import nn

from tml.core import checkpoint, files
from tml.core.config import BaseConfig
from tml.core.curves import Curves
from tml.core.distributed import unwrap
from tml.core.errors import DataError, UserError
from tml.core.progress import progress
from tml.core.train_state import TrainState as TrainState


class TrainingConfig(BaseConfig):
    """How long to train and what to do on the way; all counts are in steps."""

    num_steps: PositiveInt | None
    """Null trains until the batches end."""
    log_every: PositiveInt = 100
    evaluate_every: PositiveInt = 1_000
    checkpoint_every: PositiveInt = 1_000
    checkpoints_to_keep: PositiveInt = 3
    clip_gradient_norm: PositiveFloat | None = None
    """Gradients whose norm over all parameters is larger are scaled down to it."""


Callback = Callable[[TrainState, Mapping[str, float]], None]
"""Called after every finished step with the state and what was measured at that step (most often nothing)."""


@dataclass(frozen=True)
class TrainResult:
    """What happened: finished steps, seconds in them, and the latest value of every metric."""

    step: int
    seconds: float
    metrics: dict[str, float]


def resume(state: TrainState, folder: Path, fingerprint: str = "") -> bool:
    """Load the newest complete checkpoint below `folder` that has this fingerprint; False where there is none."""
    path = checkpoint.latest(folder / "checkpoints", fingerprint)
    if path is not None:
        state.load_state_dict(checkpoint.load(path))
    return path is not None


def train(
    state: TrainState,
    config: TrainingConfig,
    folder: Path | None = None,
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    callbacks: Sequence[Callback] = (),
    label: str = "train",
    fingerprint: str = "",
) -> TrainResult:
    """Train from `state.step` to exactly `config.num_steps` finished steps.

    Logs, evaluates and saves every so many steps, each apart from the others, and all three after the last one.

    Args:
        state: changed in place.
        config: when to do what.
        folder: takes `metrics.jsonl`, `tensorboard/` and `checkpoints/`; None writes nothing. What an earlier run
            left there of steps after `state.step` is removed.
        evaluate: gets the model in evaluation mode, without gradients; its values are logged below `validation/`.
        callbacks: called after every step.
        label: what the progress bar is called.
        fingerprint: digest of the config, for `resume`.

    Raises:
        UserError: the loss or the gradient is not finite; the message has the step.
        DataError: the batches end before `num_steps`.
    """
    _show(state.optimizer)
    steps_left = None if config.num_steps is None else max(config.num_steps - state.step, 0)
    with Curves(folder, state.step, _written_before(state)) as curves, progress(label, steps_left) as bar:
        pauses = _Pauses(state, config, curves, evaluate, folder, fingerprint)
        batches = state.start()
        state.model.train()
        pauses.mark()
        try:
            pauses.take()  # what an interrupted run left to do after its last step
            while not _is_over(state, config):
                start = time.perf_counter()
                batch = next(batches, _END)
                if batch is _END:
                    _require_complete(state, config)
                    pauses.take(last=True)
                    break
                with _uninterrupted():
                    loss = _step(state, batch, config, start)
                    pauses.mark()
                bar.advance(1, f"loss {loss:.4f}")
                measured = pauses.take()
                for callback in callbacks:
                    callback(state, measured)
        except KeyboardInterrupt:
            pauses.save_last_finished_step()
            raise
    return TrainResult(state.step, state.seconds, curves.latest)


_END = object()


class _Pauses:
    """What is done between steps, each thing at its own interval and all of them after the last step."""

    def __init__(
        self,
        state: TrainState,
        config: TrainingConfig,
        curves: Curves,
        evaluate: Callable[[nn.Module], Mapping[str, float]] | None,
        folder: Path | None,
        fingerprint: str,
    ) -> None:
        self.state, self.config, self.curves, self.evaluate = state, config, curves, evaluate
        self.store = folder / "checkpoints" if folder else None
        self.fingerprint = fingerprint
        self.saved = state.step
        for stale in checkpoint.checkpoints(self.store) if self.store else []:
            if checkpoint.step_of(stale) > state.step:
                files.remove(stale)

    def mark(self) -> None:
        """Remember what can move before the next step is finished."""
        self.position, self.buffers = self.state.position(), _versions(self.state.model)

    def take(self, last: bool = False) -> dict[str, float]:
        """Log, evaluate and save where it is time to; returns what was measured."""
        state, config = self.state, self.config
        last = last or _is_over(state, config)
        measured: dict[str, float] = {}
        if state.logged < state.step and (last or state.step % config.log_every == 0):
            measured |= state.averages()
            with _uninterrupted():
                self.curves.write(state.step, measured)
                state.restart_averages()
        if self.evaluate and state.evaluated < state.step and (last or state.step % config.evaluate_every == 0):
            values = _evaluate(state.model, self.evaluate)
            with _uninterrupted():
                self.curves.write(state.step, values)
                state.evaluated = state.step
                self.mark()
            measured |= values
        if self.saved < state.step and (last or state.step % config.checkpoint_every == 0):
            self._save(state.state_dict())
        return measured

    def save_last_finished_step(self) -> None:
        # A buffer that moved since then has seen part of the next step: there is nothing whole to save.
        if self.saved < self.state.step and self.buffers == _versions(self.state.model):
            self._save({**self.state.state_dict(), **self.position})

    def _save(self, state: dict[str, Any]) -> None:
        if self.store:
            checkpoint.save(self.store, state, self.state.step, self.fingerprint, self.config.checkpoints_to_keep)
        self.saved = self.state.step


def _is_over(state: TrainState, config: TrainingConfig) -> bool:
    return config.num_steps is not None and state.step >= config.num_steps


def _show(optimizer: torch.optim.Optimizer) -> None:
    if hasattr(optimizer, "__rich__"):
        # Where there is no terminal nothing sets the width, and a log file has room.
        Console(stderr=True, width=None if sys.stderr.isatty() else 140).print(optimizer)


def _require_complete(state: TrainState, config: TrainingConfig) -> None:
    if config.num_steps is not None:
        raise DataError(f"the training batches ended after step {state.step}, but num_steps is {config.num_steps}")
    if state.step == 0:
        raise DataError("there are no training batches, but at least one is needed")


def _step(state: TrainState, batch: Any, config: TrainingConfig, start: float) -> float:
    """One step, whole: forward, backward, update, schedule. Returns its loss."""
    number = state.step + 1
    loss, losses = _loss_of(state.model(_to_device(batch, state.device)), state.model)
    # One transfer from the device for all of them.
    value, *task_values = torch.stack([loss.detach(), *losses.values()]).tolist()
    if not math.isfinite(value):
        raise UserError(f"the loss at step {number} is {value}: lower the learning rate or look for bad inputs")
    state.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    groups = enumerate(state.optimizer.param_groups)
    state.rates = {f"learning_rate/{group.get('name', i)}": float(group["lr"]) for i, group in groups}
    if config.clip_gradient_norm is not None or number % config.log_every == 0 or number == config.num_steps:
        norm = _clip(state.model, config.clip_gradient_norm)
        if not math.isfinite(norm):
            raise UserError(f"the gradient at step {number} is {norm}: lower the learning rate or look for bad inputs")
        state.rates["gradient_norm"] = norm
    state.optimizer.step()
    if state.scheduler:
        state.scheduler.step()
    state.step = number
    seconds = time.perf_counter() - start
    state.seconds += seconds
    tasks = {f"train/loss/{task}": v for task, v in zip(losses, task_values, strict=True)}
    state.add({"train/loss": value, **tasks, "examples": _examples(batch), "seconds": seconds})
    return float(value)


def _loss_of(result: Any, model: nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    loss, outputs = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
        name = type(unwrap(model)).__name__
        raise UserError(f"{name}.forward must return a scalar loss or (loss, outputs), found {found}")
    losses = outputs.get("losses", {}) if isinstance(outputs, Mapping) else {}
    loss = loss.reshape(())
    return loss, {name: value.detach().reshape(()).to(loss.dtype) for name, value in losses.items()}


def _to_device(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: _to_device(value, device) for key, value in batch.items()}
    if type(batch) in (list, tuple):
        return type(batch)(_to_device(value, device) for value in batch)
    return batch


def _examples(batch: Any) -> int:
    """The length of the batch's first tensor that has one; 0 where there is none."""
    if isinstance(batch, torch.Tensor):
        return len(batch) if batch.ndim else 0
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return next((count for count in map(_examples, values) if count), 0)


def _clip(model: nn.Module, largest: float | None) -> float:
    """The norm of the whole gradient; where it is above `largest`, the gradient is scaled down to that."""
    gradients = []
    for parameter in model.parameters():
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            gradients.append(parameter.grad.values())
        elif parameter.grad is not None:
            gradients.append(parameter.grad)
    norm = float(nn.utils.get_total_norm(gradients))
    if largest is not None and norm > largest:
        torch._foreach_mul_(gradients, largest / norm)
    return norm


def _evaluate(model: nn.Module, evaluate: Callable[[nn.Module], Mapping[str, float]]) -> dict[str, float]:
    model.eval()
    with torch.no_grad():
        values = evaluate(model)
    model.train()
    prefix = "validation/"
    return {key if key.startswith(prefix) else prefix + key: value for key, value in values.items()}


def _versions(model: nn.Module) -> list[tuple[int, int]]:
    """Which tensor each buffer is, and how often it has been written to."""
    return [(id(buffer), buffer._version) for buffer in model.buffers()]


def _written_before(state: TrainState) -> Callable[[dict[str, Any]], bool]:
    """Which lines of the metrics are of the steps that the state has behind it."""
    return lambda line: line["step"] <= (state.logged if "train/loss" in line else state.evaluated)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back until the block is done."""
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed = False

    def remember(_number: int, _frame: Any) -> None:
        nonlocal pressed
        pressed = True

    signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if pressed:
        handler(signal.SIGINT, None)
