"""Averaged weights: an exponential moving average of what a training passes through, often better than its end.

    average ← d · average + (1 - d) · weights,    d = min(decay, (1 + n) / (10 + n)) after n updates

The growing d (as in TensorFlow's ExponentialMovingAverage) lets the average leave the first weights quickly. Floating
buffers, such as batch norm's statistics, are averaged like weights. Tables with sparse gradients are not: an average
would touch every row in every step, where the update touches a few.

Averages are kept in float32 at least: in bfloat16 a thousandth of a difference is rounded away, and they would stand
still.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tml.core.errors import DataError
from tml.core.interrupts import uninterrupted
from tml.optimizers.groups import listed


class WeightAverage:
    """The average of some tensors.

    Args:
        tensors: parameters and buffers by name; the average begins as a copy of them at the first `update`.
        decay: what the average keeps a step.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float) -> None:
        self.tensors, self.decay = dict(tensors), decay
        self.updates = 0
        self.averages: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self) -> None:
        """Count the present weights in."""
        if not self.averages:
            self.averages = {n: t.detach().to(_accurate(t), copy=True) for n, t in self.tensors.items()}
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        weights = [tensor.detach().to(_accurate(tensor)) for tensor in self.tensors.values()]
        torch._foreach_lerp_(list(self.averages.values()), weights, 1 - decay)
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights inside the block, and its own again after it."""
        own: dict[str, Tensor] = {}
        try:
            with uninterrupted():
                own = {name: self.tensors[name].detach().clone() for name in self.averages}
                self._copy_in(self.averages)
            yield
        finally:
            with uninterrupted():
                self._copy_in(own)

    @torch.no_grad()
    def _copy_in(self, values: Mapping[str, Tensor]) -> None:
        # By copies: whoever holds the tensors, DDP or a compiled graph, keeps them.
        for name, value in values.items():
            self.tensors[name].copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """`{"updates": number of updates, "averages": {name: average}}`, without averages before the first update."""
        return {"updates": self.updates, "averages": dict(self.averages)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state by names.

        Raises:
            DataError: names are missing or left over, or an average has another shape than its weights.
        """
        saved = state["averages"]
        if saved:
            sides = {"missing": self.tensors.keys() - saved.keys(), "left over": saved.keys() - self.tensors.keys()}
            sides["of another shape"] = {
                name for name in self.tensors.keys() & saved.keys() if self.tensors[name].shape != saved[name].shape
            }
            found = [f"{what} {listed(sorted(names))}" for what, names in sides.items() if names]
            if found:
                raise DataError(f"the averaged weights are of another model: {'; '.join(found)}")
        self.updates = state["updates"]
        of = self.tensors if saved else {}
        self.averages = {name: saved[name].to(own.device, _accurate(own), copy=True) for name, own in of.items()}


def floating_buffers(modules: Iterator[tuple[str, nn.Module]]) -> dict[str, Tensor]:
    """The floating buffers that a model saves, by name; `modules` are all of its modules by path.

    One that modules share stands there once, under the first of its names in the alphabet.
    """
    named = {
        f"{path}.{name}" if path else name: buffer
        for path, module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None and buffer.is_floating_point() and name not in module._non_persistent_buffers_set
    }
    first: dict[Tensor, str] = {}
    for name in sorted(named):
        first.setdefault(named[name], name)
    return {name: buffer for buffer, name in first.items()}


def _accurate(tensor: Tensor) -> torch.dtype:
    return tensor.dtype if tensor.dtype.itemsize >= 4 else torch.float32
