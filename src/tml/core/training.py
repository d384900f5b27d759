"""The training loop: take a batch, lower the loss, now and then measure and save.

What the loop needs to know about is a `TrainState`. Everything that shapes the steps to come is in its checkpoint:
parameters, optimizer, learning-rate schedule, step, position in the data, random state, and the running averages. So
a training that is interrupted and resumed gives the parameters and the metrics of one that never was, bit for bit.

A step is done whole or not at all: Ctrl-C waits for the end of it, then the loop saves a checkpoint and stops.
"""

import itertools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import PositiveInt
from rich.console import Console
from torch import nn

from tml.core import checkpoint, files
from tml.core.config import BaseConfig
from tml.core.curves import Curves
from tml.core.distributed import is_first_rank, ranks
from tml.core.errors import ConfigError, DataError
from tml.core.interrupts import uninterrupted
from tml.core.precision import Precision, numbers
from tml.core.progress import progress
from tml.core.step import measure_last, take_step
from tml.core.train_state import TrainState as TrainState


class TrainingConfig(BaseConfig):
    """How long to train and what to do on the way; all counts are in steps."""

    num_steps: PositiveInt | None
    """Null trains until the batches end."""
    log_every: PositiveInt = 100
    evaluate_every: PositiveInt = 1_000
    checkpoint_every: PositiveInt = 1_000
    checkpoints_to_keep: PositiveInt | None = 3
    """The newest so many; null keeps all."""
    accumulate_batches: PositiveInt = 1
    """Batches a step: their gradients are averaged, each by its share of the examples, as of one large batch."""
    precision: Precision = "float32"
    """What the model computes in: `float32`, `bfloat16` beside float32 weights, or `auto`, whichever is faster."""


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
        folder: takes `metrics.jsonl`, `tensorboard/` and `checkpoints/`, written by the first rank; None writes
            nothing. What an earlier run left there of steps after `state.step` is removed.
        evaluate: gets the model in evaluation mode, without gradients; its values are logged below `validation/`.
        callbacks: called after every step.
        label: what the progress bar is called.
        fingerprint: digest of the config, for `resume`.

    Raises:
        UserError: the loss or the gradient is not finite; the message has the step.
        ConfigError: batches are to be accumulated, but the optimizer cannot.
        DataError: the batches end before `num_steps`.
    """
    if config.accumulate_batches > 1 and not getattr(state.optimizer, "accumulates", True):
        raise ConfigError(
            f"accumulate_batches: found {config.accumulate_batches}, allowed is 1 where tables are updated in backward"
        )
    first = is_first_rank()
    if first:
        _show(state.optimizer)
    folder = folder if first else None
    steps_left = None if config.num_steps is None else max(config.num_steps - state.step, 0)
    with (
        Curves(folder, state.step, _written_before(state)) as curves,
        progress(label, steps_left, shown=first) as bar,
        numbers(config.precision, state.model, state.optimizer, config.accumulate_batches > 1) as computing,
    ):
        pauses = _Pauses(state, config, curves, evaluate, folder, fingerprint)
        batches = state.start()
        state.model.train()
        pauses.mark()
        try:
            pauses.take()  # what an interrupted run left to do after its last step
            while not _is_over(state, config):
                start = time.perf_counter()
                taken = list(itertools.islice(batches, config.accumulate_batches))
                if not taken:
                    _require_complete(state, config)
                    measure_last(state)  # only now is it known to have been the last
                    pauses.take(last=True)
                    break
                number = state.step + 1
                measure = number % config.log_every == 0 or number == config.num_steps
                with uninterrupted():
                    loss = take_step(state, taken, measure, start, computing)
                    pauses.mark()
                bar.advance(1, f"loss {loss:.4f}")
                measured = pauses.take()
                for callback in callbacks:
                    callback(state, measured)
        except KeyboardInterrupt:
            pauses.save_last_finished_step()
            raise
    return TrainResult(state.step, state.seconds, curves.latest)


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
            with uninterrupted():
                self.curves.write(state.step, measured)
                state.restart_averages()
        if self.evaluate and state.evaluated < state.step and (last or state.step % config.evaluate_every == 0):
            try:
                with averaged(state.optimizer):
                    values = _evaluate(state.model, self.evaluate)
            finally:
                # To put averaged weights in and out writes to buffers, but is no part of a next step.
                self.buffers = _versions(state.model)
            with uninterrupted():
                self.curves.write(state.step, values)
                state.evaluated = state.step
                self.mark()
            measured |= values
        if self.saved < state.step and (last or state.step % config.checkpoint_every == 0):
            self._save(state.state_dict())
        return measured

    def save_last_finished_step(self) -> None:
        # A buffer that moved since then has seen part of the next step: there is nothing whole to save. Nor is there
        # where ranks would have to stop at the same step.
        if ranks().world_size == 1 and self.saved < self.state.step and self.buffers == _versions(self.state.model):
            self._save(self.state.state_dict(self.position))

    def _save(self, state: dict[str, Any]) -> None:
        if self.store:
            checkpoint.save(self.store, state, self.state.step, self.fingerprint, self.config.checkpoints_to_keep)
        self.saved = self.state.step


def averaged(optimizer: torch.optim.Optimizer) -> AbstractContextManager[None]:
    """Inside the block the model has its averaged weights, where its optimizer keeps an average."""
    context: AbstractContextManager[None] = getattr(optimizer, "averaged", nullcontext)()
    return context


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
