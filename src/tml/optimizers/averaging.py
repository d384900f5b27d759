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
from tml.core.sharding import differences


class WeightAverage:
    """The average of some tensors.

    Args:
        parameters: by name; the average begins as a copy of them and the buffers at the first `update`.
        buffers: module and name in it, by name; a module may put another tensor there at any time.
        decay: what the average keeps a step.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], buffers: Mapping[str, tuple[nn.Module, str]], decay: float
    ) -> None:
        self.parameters, self.buffers, self.decay = dict(parameters), dict(buffers), decay
        self.updates = 0
        self.averages: dict[str, Tensor] = {}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The present parameters and buffers by name."""
        buffers = {name: module._buffers[own] for name, (module, own) in self.buffers.items()}
        return self.parameters | {name: buffer for name, buffer in buffers.items() if buffer is not None}

    @torch.no_grad()
    def update(self) -> None:
        """Count the present weights in."""
        tensors = self.tensors
        if not self.averages:
            self.averages = {name: tensor.detach().to(_accurate(tensor), copy=True) for name, tensor in tensors.items()}
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        weights = [tensors[name].detach().to(average) for name, average in self.averages.items()]
        torch._foreach_lerp_(list(self.averages.values()), weights, 1 - decay)
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights inside the block, and its own again after it."""
        own: dict[str, Tensor] = {}
        try:
            with uninterrupted():
                tensors = self.tensors
                own = {name: tensors[name].detach().clone() for name in self.averages}
                self._copy_in(self.averages)
            yield
        finally:
            with uninterrupted():
                self._copy_in(own)

    @torch.no_grad()
    def _copy_in(self, values: Mapping[str, Tensor]) -> None:
        # By copies: whoever holds the tensors, DDP or a compiled graph, keeps them.
        tensors = self.tensors
        for name, value in values.items():
            tensors[name].copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """`{"updates": number of updates, "averages": {name: average}}`, without averages before the first update."""
        return {"updates": self.updates, "averages": dict(self.averages)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state by names.

        Raises:
            DataError: names are missing or left over, or an average has another shape than its weights.
        """
        saved, tensors = state["averages"], self.tensors
        if saved:
            found = differences(tensors, saved)
            if found:
                raise DataError(f"the averaged weights are of another model: {'; '.join(found)}")
        self.updates = state["updates"]
        of = tensors if saved else {}
        self.averages = {name: saved[name].to(own.device, _accurate(own), copy=True) for name, own in of.items()}


def floating_buffers(modules: Iterator[tuple[str, nn.Module]]) -> dict[str, tuple[nn.Module, str]]:
    """The floating buffers that a model saves: by name the module and the name in it; `modules` are all by path.

    One that modules share stands there once, under the first of its names in the alphabet.
    """
    named: dict[str, tuple[nn.Module, str]] = {}
    for path, module in modules:
        for name, buffer in module._buffers.items():
            saved = name not in module._non_persistent_buffers_set
            if buffer is not None and buffer.is_floating_point() and saved:
                named[f"{path}.{name}" if path else name] = module, name
    first: dict[Tensor | None, str] = {}
    for name, (module, own) in sorted(named.items(), key=lambda item: item[0]):
        first.setdefault(module._buffers[own], name)
    return {name: named[name] for name in first.values()}


def _accurate(tensor: Tensor) -> torch.dtype:
    return tensor.dtype if tensor.dtype.itemsize >= 4 else torch.float32
